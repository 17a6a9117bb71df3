"""``tokenize-world --tokenizer kmeans``: embed frames, fit one codebook on the training episodes, and tell every frame by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldsim import __version__, tokenizers
from worldsim.commands import _latents, _tokens_page, _world_cache, _world_codebook, _world_tokens
from worldsim.commands._rejections import accepted, records
from worldsim.commands._token_windows import choose_camera
from worldsim.commands._world_tokens import WorldColumns
from worldsim.core.errors import UserError, again
from worldsim.core.protocols import EpisodeSource
from worldsim.core.runs import CHECKPOINT, RunContext
from worldsim.core.types import Result
from worldsim.data import columns, token_statistics
from worldsim.data.split import Split, split_episodes
from worldsim.formats import open_dataset
from worldsim.tokenizers.kmeans import KMeans
from worldsim.train import distributed


@dataclass
class Work:
    """One dataset that is being told in world tokens."""

    config: Any
    context: RunContext
    data: Path
    root: Path
    source: EpisodeSource
    camera: str
    split: Split
    dataset: str

    @property
    def share(self) -> dict[str, int]:
        return {"rank": self.context.rank, "world_size": self.context.world_size}

    @property
    def parts(self) -> dict[str, list[str]]:
        """The parts of the split that were asked for, by name."""
        wanted = self.config.split
        if wanted == "all":
            return {name: ids for name, ids in self.split.parts.items() if ids}
        if wanted == "held-out":
            name = "test" if self.split.parts.get("test") else "val"
            return {name: self.split.held_out}
        return {wanted: self.split.part(wanted)}


def run(config: Any, context: RunContext) -> Result:
    """Fill the columns, write checkpoint, cache files and the sheet of the codebook.

    Raises:
        UserError: no such backbone, camera or run; too few training frames.
        PartialResult: more than ``max_rejected`` episodes cannot be read; the others are told.
    """
    data, root = _latents.folders(config.data, config.columns)
    context.inputs["data"] = str(data)
    source = open_dataset(data, config.format)
    try:
        given = _given(config, context.device)
        camera, split = _camera(config, source, given), split_episodes(source.ids(), source.card.splits)
        work = Work(config, context, data, root, source, camera, split, columns.dataset_fingerprint(data))
        _require_episodes(work)
        if given is not None:
            context.reads("checkpoint", Path(config.checkpoint))
            _note_seen(work, given)
        tokenizer, rejected = (given, dict[str, str]()) if given is not None else _fitted(work)
        wanted = [name for ids in work.parts.values() for name in ids]
        told = _world_tokens.fill(
            root, source, tokenizer, camera, wanted, context.device, data=data, batch=config.batch, **work.share
        )
        rejected = distributed.union({**rejected, **told.rejected})
        if context.rank != 0:
            return Result()
        return _report(work, tokenizer, told, rejected)
    finally:
        source.close()


def _require_episodes(work: Work) -> None:
    """
    Raises:
        UserError: there is no such part of the split, or nothing in it.
    """
    if not any(work.parts.values()):
        raise UserError(f"no episode of {work.data} is in the split part '{work.config.split}'", again(split="all"))


def _given(config: Any, device: str) -> KMeans | None:
    """The codebook of another run, where one was named.

    Raises:
        UserError: there is no such run, or it holds another tokenizer.
    """
    if not config.checkpoint:
        return None
    run_folder = Path(config.checkpoint)
    if not run_folder.exists():
        raise UserError(f"there is no run {run_folder}", again(checkpoint=None))
    tokenizer = tokenizers.load(run_folder, device)
    if not isinstance(tokenizer, KMeans):
        raise UserError(f"{run_folder} holds the tokenizer {tokenizer.name}, not kmeans", again(tokenizer=tokenizer.name))
    return tokenizer


def _camera(config: Any, source: EpisodeSource, given: KMeans | None) -> str:
    """The named one, else that of a given codebook, else the first by name."""
    if given is None:
        return choose_camera(source, config.camera, "tokenize-world")
    return _world_tokens.camera_of(source, given, config.camera, "tokenize-world")


def _note_seen(work: Work, tokenizer: KMeans) -> None:
    """Say when a codebook has seen episodes that are held out here."""
    about = tokenizer.about
    if about.get("camera") not in (None, work.camera):
        work.context.note(f"the codebook was fitted on camera '{about['camera']}', this is '{work.camera}'")
    seen = set(about.get("fitted_on", [])) & set(work.split.held_out)
    if about.get("dataset") == work.dataset and seen:
        work.context.note(f"the codebook was fitted on {len(seen)} episodes that are held out here")


def _fitted(work: Work) -> tuple[KMeans, dict[str, str]]:
    """A codebook of this dataset's own training episodes; made by rank 0, read by the others."""
    config, context = work.config, work.context
    embedder = _world_codebook.open_embedder(config.vision_model, config.pooling, config.normalise, context.device)
    train = work.split.train
    embedded, rejected = _world_tokens.embed(
        work.root, work.source, embedder, work.camera, train, work.dataset, batch=config.batch, **work.share
    )
    rejected = distributed.union(rejected)
    folder = context.out / CHECKPOINT
    if context.rank == 0:
        usable = [name for name in train if name in embedded]
        if not usable:
            raise UserError(f"no training episode of {work.data} can be read", ["worldsim", "doctor", work.data])
        tokenizer, about = _world_codebook.fit(embedded, usable, embedder, config.num_tokens, config.sample, context.seed)
        if tokenizer.codes < config.num_tokens:
            context.note(
                f"{tokenizer.codes} codes instead of {config.num_tokens}: at most one for {_world_codebook.FRAMES_PER_CODE} "
                f"of the {about['sample']} embeddings of training frames"
            )
        shown = _world_codebook.pictures(tokenizer, embedded, usable, work.source, work.camera)
        whole = KMeans(embedder, tokenizer.centroids, shown)
        whole.about = {"camera": work.camera, "dataset": work.dataset, "name": work.source.card.name, **about}
        whole.save(folder)
    distributed.barrier()
    return tokenizers.load(folder, context.device), rejected


def _report(work: Work, tokenizer: KMeans, told: WorldColumns, rejected: dict[str, str]) -> Result:
    config, context, parts = work.config, work.context, work.parts
    wanted = [name for ids in parts.values() for name in ids]
    present = told.of(wanted)
    if not present:
        raise UserError(f"no episode of {work.data} can be read", ["worldsim", "doctor", work.data])
    statistics = _statistics(work, tokenizer, told)
    frequencies = {part: token_statistics.counts(told.of(ids), tokenizer.codes) for part, ids in parts.items()}
    facts = [("data", str(work.data)), ("camera", work.camera), ("worldsim", __version__)]
    page = _tokens_page.publish(context.out / "report", tokenizer, statistics, frequencies, facts, context.notes)
    folder = Path(config.cache or context.out / "cache") / work.source.card.name
    places = _world_cache.Places.of(work.source, {name: len(rows) for name, rows in present.items()})
    about = {"dataset": work.source.card.name, "fingerprint": work.dataset, "camera": work.camera}
    files = _world_cache.write(folder, tokenizer, told, parts, places, about)
    run_folder = config.checkpoint or context.out
    together = sum(frequencies.values(), np.zeros(tokenizer.codes, np.int64))
    result = Result(
        metrics={
            "episodes": len(present),
            "frames": sum(len(rows) for rows in present.values()),
            "tokens": int(together.sum()),
            "codes": tokenizer.codes,
            "codes_used": int((together > 0).sum()),
            "codebook": tokenizer.codebook_hash,
            "camera": work.camera,
            "statistics": statistics,
            "columns": [c.folder.relative_to(work.root).as_posix() for c in (told.embeddings, told.tokens)],
            "cache": [str(folder / name) for name in files],
            "report": str(page),
            "rejected": records(rejected),
        },
        next=_world_tokens.train_command(config.data, run_folder, config.columns),
        summary=_summary(present, statistics, tokenizer, page),
    )
    return accepted(result, rejected, config.max_rejected)


def _statistics(work: Work, tokenizer: KMeans, told: WorldColumns) -> dict[str, Any]:
    """By part of the split; bigrams are always those of the training episodes, when their tokens are there."""
    train = told.of(work.split.train)
    return {
        part: token_statistics.summary(told.of(ids), tokenizer.codes, work.config.horizon, train or None)
        for part, ids in work.parts.items()
    }


def _summary(present: dict[str, np.ndarray], statistics: dict[str, Any], tokenizer: KMeans, page: Path) -> str:
    lines = [f"{len(present)} episodes; codebook {tokenizer.codebook_hash} of {tokenizer.codes} codes: {page}"]
    for part, one in statistics.items():
        copied = [f"{one[key][0]:.3f}" if one.get(key) and one[key][0] is not None else "–" for key in ("copy", "bigram")]
        lines.append(
            f"{part}: {one['used']} codes used, {one['effective']:.1f} effective; next frame's token: copy {copied[0]}, "
            f"bigram {copied[1]}"
        )
    return "\n".join(lines)


def plan(config: Any) -> dict[str, Any]:
    """What would be embedded and with what; decodes no frame and loads no backbone but a given codebook's."""
    data, _ = _latents.folders(config.data, config.columns)
    source = open_dataset(data, config.format)
    try:
        camera = _camera(config, source, _given(config, "cpu"))
        split = split_episodes(source.ids(), source.card.splits)
    finally:
        source.close()
    return {
        "train_episodes": len(split.train),
        "held_out_episodes": len(split.held_out),
        "camera": camera,
        "codebook": config.checkpoint or f"{config.num_tokens} codes, fitted on the training episodes",
        "vision_model": None if config.checkpoint else config.vision_model,
    }
