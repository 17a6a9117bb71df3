"""Latent actions of a dataset as a column: what ``extract-latents`` writes and ``finetune-wan`` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldsim.core import registry
from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.protocols import EpisodeSource
from worldsim.core.types import ActionSpec
from worldsim.data import columns
from worldsim.data.columns import Column, ColumnSpec
from worldsim.data.stats import Stats, stats_of

KIND = "actions"
STATS = "stats.json"


@dataclass
class Latents:
    """A column of kind ``actions``, the meaning of its rows, and the episodes that could not give any."""

    column: Column
    spec: ActionSpec
    rejected: list[dict[str, str]] = field(default_factory=list)


def folders(data: str | None, columns_folder: str | None) -> tuple[Path, Path]:
    """The dataset and where its columns go.

    Raises:
        UserError: no dataset was named.
    """
    if data is None:
        raise UserError("no dataset was named", "worldsim convert --hf-dataset REPO")
    return Path(data), Path(columns_folder or data)


def column_spec(extractor: Any, name: str, source: EpisodeSource, digest: str) -> ColumnSpec:
    """What the column is keyed by. The meaning of its rows travels in the parameters."""
    meaning = extractor.spec(source.card)
    return ColumnSpec(KIND, name, "frame", {**extractor.params(), "spec": meaning.to_json()}, {"dataset": digest})


def fill(
    root: Path, source: EpisodeSource, name: str, extractor: Any, digest: str, *, rank: int = 0, world_size: int = 1
) -> Latents:
    """Extract what is missing; a bad episode is left out by name and reason.

    Args:
        root: where columns go. name: the extractor's registered name. digest: the dataset's fingerprint.
    """
    spec = column_spec(extractor, name, source, digest)
    at = {episode: index for index, episode in enumerate(source.ids())}
    rejected: list[dict[str, str]] = []

    def reject(bad: BadEpisode) -> None:
        rejected.append({"episode": bad.episode, "reason": bad.reason})

    def encode(episode: str) -> Any:
        return extractor.extract(source.episode(at[episode]))

    column = columns.ensure(
        root, spec, at, encode, rank=rank, world_size=world_size, title=f"extract {name}", reject=reject
    )
    return Latents(column, extractor.spec(source.card), rejected)


def find(root: Path, data: Path, name: str, digest: str) -> Latents:
    """A column made by ``extract-latents``.

    Args:
        name: ``plugin`` or ``plugin@fingerprint``.

    Raises:
        UserError: absent, stale or ambiguous; with the command that makes it.
    """
    plugin = name.partition("@")[0]
    known = plugin if plugin in registry.names("latent_actions") else "NAME"
    elsewhere = ["--columns", str(root)] if root != data else []
    command = ["worldsim", "extract-latents", str(data), "--extractor", known, *elsewhere]
    column = columns.find(root, KIND, name, {"dataset": digest}, command, key="actions")
    return Latents(column, ActionSpec.from_json(column.spec.params["spec"]))


def train_stats(column: Column, train: list[str], *, write: bool = True) -> Stats:
    """Statistics over the train split's rows, kept beside the column; episodes without rows do not count."""
    stats = stats_of((episode, column.load(episode)) for episode in train if episode in column)
    if write:
        stats.write(column.folder / STATS)
    return stats


def teacher_forced(column: Column) -> bool:
    """Whether every row has seen the true frame that it belongs to."""
    return bool(column.spec.params.get("teacher_forced", False))


def rows_of_chunk(column: Column, given: int) -> int:
    """Rows from frame ``given`` on that a policy intended before it looked at a frame after it; 0 for one without chunks."""
    chunk = int(column.spec.params.get("chunk", 0))
    return (given // chunk + 1) * chunk - given if chunk > 1 else 0


def looks_ahead(column: Column, given: int, last: int) -> bool:
    """Whether a policy that plans in chunks had seen a true frame after frame ``given`` when it intended row ``last``."""
    chunk = int(column.spec.params.get("chunk", 0))
    return chunk > 1 and last // chunk * chunk > given
