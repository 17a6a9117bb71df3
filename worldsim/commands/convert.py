"""``worldsim convert``: any dataset, read as a stream and without loss, into the format that the next step wants.

One episode at a time is read, examined (``data/doctor``), staged under a temporary name and committed. A bad episode is
left out by name and reason; the good ones are finished, and only then the command fails. Typing it again continues.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from worldsim.commands._selection import Shape, choose, parse_size, shape_of
from worldsim.core import registry
from worldsim.core.config import config
from worldsim.core.console import progress
from worldsim.core.errors import BadEpisode, PartialResult, UserError, again, did_you_mean
from worldsim.core.files import remove
from worldsim.core.protocols import EpisodeSource, EpisodeWriter
from worldsim.core.runs import VOLATILE, RunContext
from worldsim.core.types import DatasetCard, Result
from worldsim.data.doctor import examine_numbers, fold_notes, verdict, watch
from worldsim.formats import detect, open_dataset

USES_TORCH = False
JOURNAL = "convert.jsonl"
COUNTED_EPISODES = 32
"""How many episodes a plan opens to count frames; the rest are estimated from them."""


@config
class Config:
    """What to convert, and how.

    Attributes:
        source: dataset folder or file. Exactly one of ``source`` and ``hf_dataset``.
        hf_dataset: ``owner/name`` of a dataset on the Hugging Face Hub; downloaded once into its own cache.
        revision: branch, tag or commit of ``hf_dataset``.
        from_format: registered format of the source; detected when null.
        to: registered format to write.
        cameras: ``a,b``: which cameras to keep; all when null.
        episodes: ``start:stop``, or numbers or ids ``a,b``; all when null.
        size: ``HxW``: resize frames (antialiased; the aspect ratio is not kept); as they are when null.
        fps: overrides the frame rate that the source states.
        workers: threads that compress; one per core when null.
        max_rejected: how many bad episodes are accepted before the command fails.
        reader, writer: further options of the two formats (``reader.image_keys``, ``writer.filter``, …).
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("max_rejected", "workers")

    source: str | None = None
    hf_dataset: str | None = None
    revision: str | None = None
    from_format: str | None = None
    to: str = "act-hdf5"
    cameras: str | None = None
    episodes: str | None = None
    size: str | None = None
    fps: float | None = None
    workers: int | None = None
    max_rejected: int = 0
    reader: dict[str, Any]
    writer: dict[str, Any]

    def __post_init__(self) -> None:
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps must be above 0, not {self.fps:g}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if self.max_rejected < 0:
            raise ValueError(f"max_rejected must not be negative, but is {self.max_rejected}")
        parse_size(self.size)


def default_out(config: Config) -> str:
    """``data/<name>``: the Hub dataset's name, or the source folder's (``bridge_dataset/1.0.0`` -> ``bridge_dataset``)."""
    if config.hf_dataset:
        return f"data/{config.hf_dataset.rstrip('/').rpartition('/')[2]}"
    if config.source is None:
        raise _no_source()
    path = Path(config.source).resolve()
    name = path.parent.name if re.fullmatch(r"\d+\.\d+\.\d+", path.name) else path.stem if path.is_file() else path.name
    return f"data/{name}"


def _no_source() -> UserError:
    return UserError("there is nothing to convert: name a SOURCE folder or --hf-dataset REPO", "worldsim convert SOURCE")


def run(config: Config, context: RunContext) -> Result:
    """Convert; raises :class:`PartialResult` after the good episodes when more than ``max_rejected`` are bad."""
    folder = _locate(config)
    context.inputs["source"] = str(folder)
    writer_class = registry.get("formats", config.to)
    source = _open(folder, config)
    try:
        shape = _shape(source.card, config)
        _must_hold(shape.card, folder, config.to)
        if hasattr(writer_class, "drops"):
            shape.card.notes.extend(writer_class.drops(shape.card))
        chosen = choose(source.ids(), config.episodes)
        options = _accepted(writer_class.create, config.writer, "writer")
        if config.workers and "threads" in inspect.signature(writer_class.create).parameters:
            options.setdefault("threads", config.workers)
        writer = writer_class.create(context.out, shape.card, **options)
        return _convert(source, writer, shape, chosen, config, context)
    finally:
        source.close()


def _shape(card: DatasetCard, config: Config) -> Shape:
    """The target's card; a format that holds fewer cameras than there are chooses when the user did not, and it is said."""
    keeps = getattr(registry.get("formats", config.to), "keeps", None)
    kept = card.camera_names if keeps is None or config.cameras else keeps(card)
    shape = shape_of(card, config.cameras or ",".join(kept), config.size, config.fps)
    left = [name for name in card.camera_names if name not in kept]
    if left:
        shape.card.notes.append(
            f"{config.to} holds {', '.join(kept)} alone; {', '.join(left)} left out (--cameras chooses)"
        )
    return shape


def _must_hold(card: DatasetCard, folder: Path, to: str) -> None:
    lacking = registry.get("formats", to).lacks(card)
    if lacking:
        raise UserError(f"{folder} cannot become {to}: {lacking}", again(to="act-hdf5"))


class Journal:
    """``state/convert.jsonl``: frames and remarks of each committed episode, so that a continued run reports all of them;
    and which were rejected, so that it looks at those again before it stages them.

    A line is written before its commit; the last line of an episode counts, and one torn by a kill is ignored.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / "state" / JOURNAL
        self.lines: dict[int, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf8").splitlines():
                with suppress(json.JSONDecodeError):
                    entry = json.loads(line)
                    self.lines[entry["index"]] = entry
        self.path.parent.mkdir(exist_ok=True)

    def add(self, index: int, **entry: Any) -> None:
        self.lines[index] = {"index": index, **entry}
        with self.path.open("a", encoding="utf8") as file:
            file.write("\n" + json.dumps(self.lines[index]))

    def of(self, indices: list[int]) -> tuple[int, list[str]]:
        """Frames and folded remarks of these episodes."""
        entries = [self.lines[index] for index in indices if "frames" in self.lines.get(index, {})]
        return sum(entry["frames"] for entry in entries), fold_notes([note for e in entries for note in e["notes"]])

    def close(self) -> None:
        remove(self.path)
        if not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


def _convert(
    source: EpisodeSource, writer: EpisodeWriter, shape: Shape, chosen: list[int], config: Config, context: RunContext
) -> Result:
    rejected: list[dict[str, Any]] = []
    journal = Journal(context.out)
    done: list[int] = []
    with progress("convert", len(chosen), unit="episodes") as bar:
        for index in chosen:
            try:
                if not writer.has(index):
                    _one(source, writer, shape, index, journal)
                done.append(index)
            except BadEpisode as bad:
                rejected.append({"episode": bad.episode, "index": index, "reason": bad.reason})
                journal.add(index, rejected=bad.reason)
            bar.advance(text=f"{len(rejected)} rejected" if rejected else None)
    frames, remarks = journal.of(done)
    card = replace(shape.card, notes=[*shape.card.notes, *remarks])
    if done:
        writer.finalize(card)
    for note in card.notes:
        context.note(note)
    result = _report(card, len(done), frames, rejected, config, context)
    journal.close()
    return result


def _one(source: EpisodeSource, writer: EpisodeWriter, shape: Shape, index: int, journal: Journal) -> None:
    """Read, examine, stage and commit one episode; raises :class:`BadEpisode` with nothing left behind."""
    try:
        episode = shape.fit(source.episode(index))
    except BadEpisode:
        raise
    except UserError as error:
        raise BadEpisode(source.ids()[index], error.sentence) from error
    examine_numbers(episode, shape.card)
    watched, findings = watch(episode)
    if "rejected" in journal.lines.get(index, {}):  # not mended: say so again, and leave a finished dataset alone
        for stream in watched.frames.values():
            for _ in stream.blocks():
                pass
        verdict(findings)
    ticket = writer.stage(watched)
    try:
        notes = [*episode.provenance.get("notes", ()), *verdict(findings)]
        journal.add(index, frames=episode.num_frames, notes=notes)
    except BaseException:
        writer.discard(ticket)
        raise
    writer.commit(ticket)


def _report(
    card: DatasetCard, episodes: int, frames: int, rejected: list[dict[str, Any]], config: Config, context: RunContext
) -> Result:
    files = (p for p in context.out.rglob("*") if p.is_file() and p.name not in (*VOLATILE, JOURNAL))
    size = sum(p.stat().st_size for p in files)
    metrics = {
        "format": config.to,
        "episodes": episodes,
        "frames": frames,
        "cameras": card.camera_names,
        "fps": card.fps,
        "bytes": size,
        "rejected": rejected,
    }
    total = episodes + len(rejected)
    summary = (
        f"{episodes} of {total} episodes ({frames} frames) are in {context.out} as {config.to}: "
        f"{', '.join(card.camera_names)} at {card.fps:g} fps, {size / 1e6:,.1f} MB"
    )
    result = Result(metrics=metrics, summary=summary, next=_next(config.to, context.out))
    if len(rejected) > config.max_rejected:
        first = rejected[0]
        raise PartialResult(
            f"{len(rejected)} of {total} episodes were rejected, the first is {first['episode']}: {first['reason']}",
            again(max_rejected=len(rejected)),
            result,
        )
    if rejected:
        context.note(f"{len(rejected)} bad episodes were left out: {', '.join(r['episode'] for r in rejected[:5])}")
    return result


def _open(folder: Path, config: Config) -> EpisodeSource:
    name = config.from_format or detect(folder)
    if not folder.exists():
        raise UserError(f"{folder} does not exist", "worldsim doctor")
    opener = registry.get("formats", name).open
    options = _accepted(opener, config.reader, "reader")
    if config.fps is not None and "fps" in inspect.signature(opener).parameters:
        options.setdefault("fps", config.fps)
    return open_dataset(folder, name, **options)


def _accepted(function: Callable[..., Any], options: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The options, when the format's function knows each of them."""
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for key in options:
        if key not in known and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise UserError(f"unknown key '{place}.{key}'{did_you_mean(key, known)}")
    return dict(options)


def _locate(config: Config) -> Path:
    if (config.source is None) == (config.hf_dataset is None):
        if config.source is None:
            raise _no_source()
        raise UserError(f"both a source ({config.source}) and --hf-dataset {config.hf_dataset} are given; give one")
    if config.source is not None:
        return Path(config.source)
    assert config.hf_dataset is not None
    from worldsim.commands._hub import download

    return download(config.hf_dataset, config.revision)


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    """What a run would read and write, without reading a frame. ``bytes`` is the uncompressed size of the frames."""
    if config.hf_dataset is not None and config.source is None:
        from worldsim.commands._hub import cached

        folder = cached(config.hf_dataset, config.revision)
        if folder is None:
            return {"source": config.hf_dataset, "download": "needed before episodes can be counted", "to": config.to}
    else:
        folder = _locate(config)
    source = _open(folder, config)
    try:
        shape = _shape(source.card, config)
        _must_hold(shape.card, folder, config.to)
        chosen = choose(source.ids(), config.episodes)
        looked = chosen[:: -(-len(chosen) // COUNTED_EPISODES)]
        lengths = [length for index in looked if (length := _length(source, index)) is not None]
        frames = round(sum(lengths) / max(len(lengths), 1) * len(chosen))
        pixels = sum(camera.height * camera.width for camera in shape.card.cameras)
        return {
            "source": str(folder),
            "format": source.card.format,
            "to": config.to,
            "episodes": len(chosen),
            "frames": frames,
            "frames_estimated": len(looked) < len(chosen),
            "cameras": {camera.name: [camera.height, camera.width] for camera in shape.card.cameras},
            "fps": shape.card.fps,
            "bytes": 3 * pixels * frames,
            "notes": shape.card.notes,
        }
    finally:
        source.close()


def _length(source: EpisodeSource, index: int) -> int | None:
    """None for an episode that cannot be opened: the run will say why."""
    try:
        return source.episode(index).num_frames
    except UserError:
        return None


def _next(to: str, out: Path) -> list[object]:
    """What users of a format do with it next: RLVR-World's npz files are for a tokenizer, everything else for a video model."""
    if to.replace("_", "-") == "oxe-npz":
        return ["worldsim", "train", "--config", "fsq_compressive", out]
    return ["worldsim", "finetune-wan", out]
