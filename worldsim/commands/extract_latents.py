"""``worldsim extract-latents``: what drives a world model, one row per frame, as a column beside the data.

The recorded actions, or what a policy intends: the numbers that enter its action head (``docs/latents.md``). For a folder
in WorldEval's layout ``train/all_actions.pt`` is written as well, in that project's own form.
"""

from __future__ import annotations

import io
import re
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from worldsim.commands import _latents
from worldsim.commands._hub import cached, download
from worldsim.commands._latents import Latents
from worldsim.core import registry
from worldsim.core.config import config
from worldsim.core.errors import PartialResult, UserError, again
from worldsim.core.files import replacing
from worldsim.core.protocols import EpisodeSource
from worldsim.core.runs import RunContext
from worldsim.core.types import Result
from worldsim.data import columns
from worldsim.data.split import split_episodes
from worldsim.data.stats import Stats
from worldsim.formats import detect, open_dataset
from worldsim.latent_actions import Mode, Options
from worldsim.train import distributed

ALL_ACTIONS = Path("train", "all_actions.pt")
TEACHER_FORCED = (
    "the policy has observed every frame: a model driven by these latents has been told of the truth that it imagines, "
    "so eval video refuses it headline scores"
)


@config
class Config:
    """What to extract, and from what.

    Attributes:
        data: dataset folder, any format.
        format: its registered format; detected when null.
        extractor: registered name of the latent actions.
        policy: folder of the LeRobot policy whose latents are taken, or its name on the Hub.
        checkpoint: run folder of a latent-action model.
        mode: ``chunk``: the policy observes once per executed chunk, as on the robot; ``frame``: at every frame. Latents
            of the second kind have seen every true frame; they are refused for headline scores.
        compat: ``worldeval`` repeats the reference's numbers (ACT): un-normalised inputs, whole chunks.
        cameras: the policy's camera -> the dataset's, where the names differ.
        batch: observations per forward pass of the policy.
        columns: where columns go when the dataset is read-only; the dataset itself when null.
        max_rejected: how many bad episodes are accepted before the command fails.
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("max_rejected",)

    data: str | None = None
    format: str | None = None
    extractor: str = "raw"
    policy: str | None = None
    checkpoint: str | None = None
    mode: Mode = "chunk"
    compat: Literal["worldeval"] | None = None
    cameras: dict[str, str] = field(default_factory=dict)
    batch: int = 16
    columns: str | None = None
    max_rejected: int = 0

    def __post_init__(self) -> None:
        if self.max_rejected < 0:
            raise ValueError(f"max_rejected must not be negative, but is {self.max_rejected}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, but is {self.batch}")


def run(config: Config, context: RunContext) -> Result:
    """Fill the column, take statistics of the train split, and write ``all_actions.pt`` where it belongs."""
    data, root = _latents.folders(config.data, config.columns)
    context.inputs["data"] = str(data)
    extractor = _extractor(config, context)
    kind = config.format or detect(data)
    source = open_dataset(data, kind)
    try:
        digest = columns.dataset_fingerprint(data)
        latents = _latents.fill(
            root, source, _name(config), extractor, digest, rank=context.rank, world_size=context.world_size
        )
        reasons = distributed.union({entry["episode"]: entry["reason"] for entry in latents.rejected})
        latents.rejected = [{"episode": episode, "reason": reasons[episode]} for episode in sorted(reasons)]
        present = [episode for episode in source.ids() if episode in latents.column]
        if not present:
            reason = latents.rejected[0] if latents.rejected else {"episode": "?", "reason": "there is none"}
            raise UserError(f"{data}: no episode gives latents; {reason['episode']}: {reason['reason']}")
        if context.rank != 0:
            return Result()
        train = split_episodes(source.ids(), source.card.splits).train
        stats = _latents.train_stats(latents.column, [episode for episode in train if episode in latents.column])
        if kind == "act-hdf5":
            write_all_actions(root, data, source, latents, present)
        if latents.column.spec.params.get("teacher_forced"):
            context.note(TEACHER_FORCED)
        return _report(config, latents, present, stats, root)
    finally:
        source.close()


def _name(config: Config) -> str:
    return config.extractor.replace("_", "-")


def _extractor(config: Config, context: RunContext) -> Any:
    policy = _policy_folder(config)
    if policy is not None and Path(policy).is_dir():
        context.inputs["policy"] = policy
    return _create(config, policy, context.device, context.seed)


def _create(config: Config, policy: str | None, device: str, seed: int) -> Any:
    options = Options(config.mode, config.compat, config.cameras, config.batch, seed)
    return registry.get("latent_actions", config.extractor).create(policy, config.checkpoint, device, options)


def _policy_folder(config: Config, *, fetch: bool = True) -> str | None:
    """The named folder, or the Hub's repository of that name in its cache.

    Args:
        fetch: download it where needed; otherwise None.
    """
    name = config.policy
    if name is None or Path(name).exists() or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        return name
    if not registry.get("latent_actions", config.extractor).READS_POLICY:
        return name
    folder = download(name, kind="model") if fetch else cached(name, kind="model")
    return str(folder) if folder else None


def _report(config: Config, latents: Latents, present: list[str], stats: Stats, root: Path) -> Result:
    folder = latents.column.folder
    rows = sum(len(latents.column.load(episode)) for episode in present)
    result = Result(
        metrics={
            "episodes": len(present),
            "rows": rows,
            "width": stats.dim,
            "column": folder.relative_to(root).as_posix(),
            "train_rows": stats.count,
            "rejected": latents.rejected,
            **{
                key: latents.column.spec.params[key]
                for key in ("mode", "chunk", "teacher_forced")
                if key in latents.column.spec.params
            },
        },
        next=["worldsim", "finetune-wan", config.data, "--actions", folder.name, *_columns(config)],
        summary=f"{len(present)} episodes, {rows} rows of {stats.dim} numbers in {folder}",
    )
    if len(latents.rejected) > config.max_rejected:
        first, count = latents.rejected[0], len(latents.rejected)
        raise PartialResult(
            f"{count} of {count + len(present)} episodes were rejected, the first is {first['episode']}: {first['reason']}",
            again(max_rejected=count),
            result,
        )
    return result


def _columns(config: Config) -> list[str]:
    """The words that say where the columns lie, where it is not in the dataset."""
    return ["--columns", config.columns] if config.columns else []


def write_all_actions(root: Path, data: Path, source: EpisodeSource, latents: Latents, present: list[str]) -> None:
    """``train/all_actions.pt``: ``{"file_path": [str, …], "encoded_action": [Tensor (T, D), …]}``, fp32, in order.

    Paths are relative to the dataset's folder, so that it can be moved.
    """
    import torch

    at = {episode: index for index, episode in enumerate(source.ids())}
    files = [Path(source.episode(at[episode]).source).relative_to(data).as_posix() for episode in present]
    rows = [torch.from_numpy(np.array(latents.column.load(episode), np.float32)) for episode in present]
    buffer = io.BytesIO()
    torch.save({"file_path": files, "encoded_action": rows}, buffer)
    with replacing(root / ALL_ACTIONS) as temporary:
        temporary.write_bytes(buffer.getvalue())


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    """What would be extracted and where it would go; opens no episode, builds no policy and downloads none."""
    data, root = _latents.folders(config.data, config.columns)
    policy = _policy_folder(config, fetch=False)
    if config.policy is not None and policy is None:
        return {"policy": f"{config.policy} is downloaded from the Hub first", "column": None}
    extractor = _create(config, policy, "cpu", seed)
    source = open_dataset(data, config.format)
    try:
        spec = _latents.column_spec(extractor, _name(config), source, columns.dataset_fingerprint(data))
        todo = columns.missing(root, spec, source.ids())
        return {"episodes": len(source), "missing": len(todo), "column": str(root / spec.path)}
    finally:
        source.close()
