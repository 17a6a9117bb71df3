"""RLDS: trajectories as TensorFlow Datasets TFRecord files, read without TensorFlow.

::

    NAME/VERSION/features.json                              what each flattened key holds, and how it is encoded
    NAME/VERSION/dataset_info.json                          splits and episodes per shard (may be absent)
    NAME/VERSION/NAME-SPLIT.tfrecord-00000-of-00001         one record per episode: a tf.train.Example

``steps/action`` may be a dictionary; its entries are put side by side in alphabetical order (RT-1: 13 columns). Row t of
everything was recorded at step t, and ``action[t]`` acts between frames t and t + 1; the last row has no successor.

source: google-research/rlds (README), tensorflow/datasets (encodings), spec rlvr-world 1.1.
"""

from __future__ import annotations

from pathlib import Path

from worldsim.core.errors import UserError, again
from worldsim.core.registry import register
from worldsim.core.types import DatasetCard

CARD = {
    "title": "RLDS / TFDS episodes, Open X-Embodiment (read)",
    "source": "https://github.com/google-research/rlds",
    "size": "about 10 KB per 256x320 JPEG frame",
    "license": "Apache-2.0",
}


@register("formats")
class Rlds:
    """Reads RLDS data sets: a version folder, the folder above it, or the one above that."""

    @staticmethod
    def detect(path: Path) -> bool:
        from worldsim.formats._rlds_layout import find_folders

        return bool(find_folders(path))

    @staticmethod
    def open(path: Path, *, fps: float | None = None, state: str | None = None):
        """Open a data set for reading.

        Args:
            fps: frames per second; RLDS does not record it. Default: a table of published rates, else 10, said aloud.
            state: comma-separated names of the observations that make up the states; default ``state``.
        """
        from worldsim.formats._rlds_read import RldsSource

        return RldsSource(Path(path), fps=fps, state=state)

    @staticmethod
    def lacks(card: DatasetCard) -> str | None:
        return "rlds is read only; it cannot be written without TensorFlow"

    @staticmethod
    def create(path: Path, card: DatasetCard):
        raise UserError(str(Rlds.lacks(card)), again(to="lerobot"))
