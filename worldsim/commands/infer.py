"""``worldsim infer``: given a frame and actions, write what a world model thinks happens.

Writes ``inference/metadata.json`` with first frames and videos, ``side_by_side/*.mp4`` (given | truth | prediction) and,
with ``save_frames``, ``frames/<episode>.npz`` (see ``worldsim.data.predictions``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldsim.commands._agenda import Agenda, Order, Planned
from worldsim.commands._imagine import Studio
from worldsim.commands._world import load_world as load
from worldsim.core.config import config
from worldsim.core.errors import PartialResult, UserError
from worldsim.core.files import write_json
from worldsim.core.protocols import EpisodeSource
from worldsim.core.runs import RunContext
from worldsim.core.types import Result
from worldsim.data import scenes
from worldsim.data.predictions import Prediction, save
from worldsim.formats import open_dataset
from worldsim.report.video import side_by_side, write_mp4, write_png
from worldsim.world_models import rollout_memory

SHOWN_SAMPLES = 3
"""Samples beside each other in a film; the others are in ``frames/``."""


@config
class Config:
    """What to imagine.

    Attributes:
        data: dataset folder, any format.
        model: run folder of a world model, or the name of one without weights (``copy``).
        episodes: ``held-out`` (also when null), a part of the split (``train``, ``all``), ``0:16``, or ids ``a,b``.
        max_episodes: at most this many, in the source's order.
        camera: the model's own when null, else the dataset's first by name.
        actions: ``dataset``; a file of rows in physical units (.npy, .csv, or .npz with one array per episode); or
            ``policy:NAME[,key=value]``: a scripted policy that needs no simulator (``random``, ``sine``), or a folder with a
            LeRobot policy, which acts on the imagined frames.
        columns: where columns lie when DATA is read-only.
        frames: n, frames to imagine after the given one: exactly as many as action steps.
        start: the given frame; the first one that has all its actions when null.
        fps: for models that take any rate; must divide the dataset's.
        num_samples: N futures per episode.
        permutations: imagine again with the actions of other episodes, this many times (each to another one).
        batch: episodes per model call. Part of the config, because sums inside a network depend on it in the last bit.
        steps, guidance: how a diffusion model samples; its own values when null.
        temperature, top_k: how a token model draws; its own values when null, ``top_k`` 0 takes every code.
        save_frames: write ``frames/<episode>.npz``.
        max_rejected: how many undecodable episodes are accepted before the command fails.
    """

    data: str | None = None
    model: str = "copy"
    episodes: str | None = None
    max_episodes: int | None = None
    camera: str | None = None
    actions: str = "dataset"
    columns: str | None = None
    frames: int = 16
    start: int | None = None
    fps: float | None = None
    num_samples: int = 1
    permutations: int = 0
    batch: int = 4
    steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    save_frames: bool = False
    max_rejected: int = 0

    def __post_init__(self) -> None:
        check_counts(self, least_one=("frames", "num_samples", "batch", "max_episodes", "steps"))
        check_counts(self, least_zero=("permutations", "start", "max_rejected", "temperature", "top_k"))


def check_counts(config: Any, least_one: tuple[str, ...] = (), least_zero: tuple[str, ...] = ()) -> None:
    """Refuse numbers that count nothing; None passes."""
    for key in (*least_one, *least_zero):
        value, least = getattr(config, key), 1 if key in least_one else 0
        if value is not None and value < least:
            raise ValueError(f"{key} must be at least {least}, not {value}")


def order_of(config: Any, *, reconstruct: bool = False) -> Order:
    """The part of a config that ``infer`` and ``eval video`` share."""
    if config.data is None:
        raise UserError("no dataset was named", "worldsim infer DATA --model RUN")
    same = set(Order.__dataclass_fields__) - {"data", "reconstruct"}
    values = {key: getattr(config, key) for key in same if hasattr(config, key)}
    return Order(data=Path(config.data), reconstruct=reconstruct, **values)


def run(config: Config, context: RunContext) -> Result:
    """Imagine every chosen episode; an episode that is finished already is not imagined again.

    Raises:
        UserError: nothing can be imagined, or model and data do not match.
        PartialResult: more than ``max_rejected`` episodes could not be decoded; the others are finished.
    """
    order = order_of(config)
    context.reads("data", order.data)
    if Path(config.model).exists():
        context.reads("model", Path(config.model))
    chosen = Path(config.actions.removeprefix("policy:").partition(",")[0])
    if chosen.exists() and config.actions != "dataset":
        context.reads("actions", chosen)
    source = open_dataset(order.data)
    try:
        studio = Studio(order, load(config.model, context.device), source, context.seed, context.note, context.device)
        agenda = studio.agenda()
        folder = Folder(context.out, config.save_frames, agenda.names, studio.spec.first())
        for prediction in studio.batches(agenda, folder.has):
            folder.write(prediction)
        write_metadata(folder, order.data, source, agenda.imagined)
    finally:
        source.close()
    return _result(config, context, studio, agenda)


class Folder:
    """The files of a run, per episode; ``side_by_side`` comes last and says that an episode is finished."""

    def __init__(self, out: Path, save_frames: bool, names: dict[str, str], frame_index: int) -> None:
        self.out, self.save_frames, self.names, self.frame_index = out, save_frames, names, frame_index

    def stem(self, episode: str) -> str:
        """The seed's naming: ``<episode>_frame_<k>``."""
        return f"{self.names[episode]}_frame_{self.frame_index}"

    def image(self, episode: str) -> Path:
        return self.out / "inference" / f"{self.stem(episode)}.png"

    def video(self, episode: str) -> Path:
        return self.out / "inference" / "videos" / f"{self.stem(episode)}.mp4"

    def film(self, episode: str) -> Path:
        return self.out / "side_by_side" / f"{self.stem(episode)}.mp4"

    def has(self, planned: Planned) -> bool:
        return self.film(planned.episode).exists()

    def write(self, prediction: Prediction) -> None:
        episode, p = prediction.episode, prediction
        write_png(self.image(episode), p.given)
        write_mp4(self.video(episode), p.pred, p.fps)
        if self.save_frames:
            save(self.out / "frames" / f"{self.names[episode]}.npz", p)
        write_mp4(self.film(episode), side_by_side(panels(p)), p.fps)


def panels(p: Prediction) -> dict[str, Any]:
    """Label -> frames, as a film shows them from left to right."""
    out: dict[str, Any] = {"given": p.samples[0, :1]}
    if p.truth is not None:
        out["truth"] = p.truth
    shown = p.samples[:SHOWN_SAMPLES]
    out |= {"prediction" if len(shown) == 1 else f"prediction {k + 1}": sample for k, sample in enumerate(shown)}
    if p.permuted is not None:
        out["other actions"] = p.permuted[0]
    return out


def write_metadata(folder: Folder, data: Path, source: EpisodeSource, planned: list[Planned]) -> None:
    """``inference/metadata.json``: a list of {image_path, file_path, frame_index, language}.

    ``image_path`` is relative to the folder of the list, ``file_path`` to the dataset's folder, so both can be moved.
    """
    entries = []
    for one in planned:
        episode = source.episode(one.index)
        file = Path(episode.source)
        inside = file.is_relative_to(data) or file.resolve().is_relative_to(data.resolve())
        entries.append(
            {
                "image_path": folder.image(one.episode).name,
                "file_path": (file.resolve().relative_to(data.resolve()) if inside else Path(file.name)).as_posix(),
                "frame_index": folder.frame_index,
                "language": episode.instruction or "",
            }
        )
    write_json(folder.out / "inference" / "metadata.json", entries)


def _result(config: Config, context: RunContext, studio: Studio, agenda: Agenda) -> Result:
    made, rejected = len(agenda.imagined), agenda.rejected
    result = Result(
        metrics={
            "episodes": made,
            "frames": config.frames,
            "frame_index": studio.spec.first(),
            "camera": studio.spec.camera,
            "num_samples": config.num_samples,
            "rejected": rejected,
            "too_short": agenda.too_short,
        },
        summary=f"{made} episodes, 1 given + {config.frames} imagined frames each: {context.out / 'side_by_side'}",
        next=f"worldsim eval video {config.data} --model {config.model}",
    )
    if len(rejected) > config.max_rejected:
        first = rejected[0]
        raise PartialResult(
            f"{len(rejected)} episodes cannot be read, the first is {first['episode']}: {first['reason']}",
            f"worldsim infer {config.data} --out {context.out}-2 --set max_rejected={len(rejected)}",
            result,
        )
    return result


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    """What would be read and imagined, and in how much memory, without loading the model or decoding a frame."""
    order = order_of(config)
    source = open_dataset(order.data)
    try:
        chosen, split = scenes.choose(source.card, source.ids(), order.episodes)
        count = len(chosen[: order.max_episodes])
        rollouts = count * (config.num_samples + config.permutations)
        memory = rollout_memory(config.model, config.batch)
        return {
            "data": str(order.data),
            "format": source.card.format,
            "split": split.source,
            "episodes": count,
            "model": config.model,
            "frames_to_imagine": rollouts * config.frames,
            **({} if memory is None else {"gpu_memory_gib": round(memory, 1)}),
        }
    finally:
        source.close()
