"""RLVR-World's and iVideoGPT's episodes: one ``np.savez_compressed`` file each, two arrays in it.

::

    <name>/<split>_eps_<8 digits>.npz     image (T,H,W,3) uint8 · action (T,A)

One camera, stored under its display key (``image``; some Open X-Embodiment sets have another). Instruction, fps and what
else a file cannot hold lie in ``worldsim.json`` and in the file's archive comment, which ``np.load`` does not look at.
States and further columns are not held, which is said. The digits are the episode's index in its source.

source: thuml/RLVR-World vid_wm/oxe_data_converter.py (layout, facts only; spec rlvr-world 1.1).
"""

from __future__ import annotations

from pathlib import Path

from worldsim.core.registry import register
from worldsim.core.types import DatasetCard

CARD = {
    "title": "RLVR-World / iVideoGPT npz episodes (read, write)",
    "source": "https://github.com/thuml/RLVR-World",
    "size": "about 0.15 MB per 256x320 frame",
    "license": "MIT",
}


@register("formats")
class OxeNpz:
    """Reads a folder of such files or the folder above it; writes the latter."""

    @staticmethod
    def detect(path: Path) -> bool:
        from worldsim.formats._oxe_npz_read import find_folders

        return bool(find_folders(path))

    @staticmethod
    def open(path: Path, *, fps: float | None = None):
        """Open a folder for reading. ``fps``: for files that do not say; else a table by the data set's name, else 10."""
        from worldsim.formats._oxe_npz_read import OxeNpzSource

        return OxeNpzSource(Path(path), fps=fps)

    @staticmethod
    def lacks(card: DatasetCard) -> str | None:
        if card.actions is None:
            return "oxe-npz needs actions and the dataset has none"
        if len(card.cameras) != 1:
            have = ", ".join(card.camera_names) or "none"
            return f"oxe-npz holds exactly one camera; choose one with --cameras (there are: {have})"
        return None

    @staticmethod
    def keeps(card: DatasetCard) -> list[str]:
        """The camera that is kept when none was chosen: the set's display camera as published, else the first by name."""
        from worldsim.formats._oxe_tables import display_key

        shown = display_key(card.name)
        return [shown] if shown in card.camera_names else card.camera_names[:1]

    @staticmethod
    def drops(card: DatasetCard) -> list[str]:
        """What is left out because two arrays cannot hold it, one sentence each."""
        dropped = [f"states ({len(card.state_names)} columns)"] if card.state_names else []
        dropped += [f"'{name}'" for name in card.extras]
        return [f"oxe-npz does not hold {', '.join(dropped)}; left out"] if dropped else []

    @staticmethod
    def create(path: Path, card: DatasetCard, *, image_key: str | None = None, level: int = 1):
        """Open a folder for writing.

        Args:
            image_key: the array's name in the file; the data set's display key as published when None, mostly ``image``.
            level: of deflate, 1 to 9; numpy uses 6, which takes three times as long for a twelfth fewer bytes.
        """
        from worldsim.formats._oxe_npz_write import OxeNpzWriter
        from worldsim.formats._oxe_tables import display_key

        return OxeNpzWriter(Path(path), card, image_key=image_key or display_key(card.name), level=level)
