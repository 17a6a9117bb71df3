"""``worldsim eval tokens``: what a codebook's tokens say before any model has learned anything.

Used and effective vocabulary, entropy, and the copy and bigram baselines per horizon, for the training and the held-out
episodes apart, with a picture of each code. Frames that no column holds yet are encoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from worldsim import __version__, tokenizers
from worldsim.commands import _latents, _tokens_page, _world_tokens
from worldsim.commands._rejections import accepted, records
from worldsim.core.config import config
from worldsim.core.errors import UserError
from worldsim.core.protocols import EpisodeSource
from worldsim.core.runs import RunContext
from worldsim.core.types import Result
from worldsim.data import token_statistics
from worldsim.data.split import split_episodes
from worldsim.formats import open_dataset
from worldsim.tokenizers.kmeans import KMeans
from worldsim.train import distributed


@config
class Config:
    """Whose tokens are looked at.

    Attributes:
        data: dataset folder, any format. format: its registered format; detected when null.
        tokenizer: run folder of ``tokenize-world --tokenizer kmeans``, or of a policy that has a copy of it.
        camera: that of the codebook, else the first by name, when null.
        horizon: frames ahead that baselines are told for.
        batch: frames per forward pass. columns: where columns lie when the dataset is read-only; the dataset when null.
        max_rejected: how many bad episodes are accepted before the command fails.
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("max_rejected", "batch")

    data: str | None = None
    format: str | None = None
    tokenizer: str | None = None
    camera: str | None = None
    horizon: int = 8
    batch: int = 64
    columns: str | None = None
    max_rejected: int = 0

    def __post_init__(self) -> None:
        for key in ("horizon", "batch"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")


def run(config: Config, context: RunContext) -> Result:
    """Fill the columns, count, and write ``report/``.

    Raises:
        UserError: no such run, or one that is no codebook.
        PartialResult: more than ``max_rejected`` episodes cannot be read; the others are counted.
    """
    data, root = _latents.folders(config.data, config.columns)
    tokenizer = _codebook(config, context.device)
    context.reads("data", data)
    context.reads("tokenizer", Path(str(config.tokenizer)))
    source = open_dataset(data, config.format)
    try:
        camera, parts = _world_tokens.camera_of(source, tokenizer, config.camera, "eval tokens"), _parts(source)
        wanted = [name for ids in parts.values() for name in ids]
        share = {"rank": context.rank, "world_size": context.world_size}
        told = _world_tokens.fill(
            root, source, tokenizer, camera, wanted, context.device, data=data, batch=config.batch, **share
        )
    finally:
        source.close()
    rejected = distributed.union(told.rejected)
    if context.rank != 0:
        return Result()
    tokens = {part: told.of(ids) for part, ids in parts.items()}
    tokens = {part: found for part, found in tokens.items() if found}
    if not tokens:
        raise UserError(f"no episode of {data} can be read", ["worldsim", "doctor", data])
    codes, train = tokenizer.codes, tokens.get("train")
    statistics = {part: token_statistics.summary(of, codes, config.horizon, train) for part, of in tokens.items()}
    frequencies = {part: token_statistics.counts(of, codes) for part, of in tokens.items()}
    facts = [("data", str(data)), ("camera", camera), ("tokenizer", str(config.tokenizer)), ("worldsim", __version__)]
    page = _tokens_page.publish(context.out / "report", tokenizer, statistics, frequencies, facts, context.notes)
    return _result(config, tokenizer, statistics, rejected, page)


def _codebook(config: Config, device: str) -> KMeans:
    if config.tokenizer is None or not Path(config.tokenizer).exists():
        missing = "no codebook was named" if config.tokenizer is None else f"there is no run {config.tokenizer}"
        raise UserError(missing, ["worldsim", "tokenize-world", config.data or "DATA", "--tokenizer", "kmeans"])
    tokenizer = tokenizers.load(config.tokenizer, device)
    if not isinstance(tokenizer, KMeans):
        raise UserError(
            f"{config.tokenizer} holds the tokenizer {tokenizer.name}, whose tokens are not world tokens",
            ["worldsim", "tokenize-world", config.data or "DATA", "--tokenizer", "kmeans"],
        )
    return tokenizer


def _parts(source: EpisodeSource) -> dict[str, list[str]]:
    """Train first, held out last."""
    parts = {name: ids for name, ids in split_episodes(source.ids(), source.card.splits).parts.items() if ids}
    order = ("train", "other", "val", "test")
    return dict(sorted(parts.items(), key=lambda item: order.index(item[0]) if item[0] in order else 1))


def _result(config: Config, tokenizer: KMeans, statistics: dict[str, Any], rejected: dict[str, str], page: Path) -> Result:
    result = Result(
        metrics={
            "codebook": tokenizer.codebook_hash,
            "codes": tokenizer.codes,
            "statistics": statistics,
            "rejected": records(rejected),
            "report": str(page),
        },
        next=_world_tokens.train_command(config.data, config.tokenizer, config.columns),
        summary=f"{_tokens_page.lead(statistics)}\n{page}",
    )
    return accepted(result, rejected, config.max_rejected)


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    """Which episodes would be counted, and how many are still to be encoded; decodes no frame."""
    data, root = _latents.folders(config.data, config.columns)
    tokenizer = _codebook(config, "cpu")
    source = open_dataset(data, config.format)
    try:
        camera, parts = _world_tokens.camera_of(source, tokenizer, config.camera, "eval tokens"), _parts(source)
    finally:
        source.close()
    wanted = [name for ids in parts.values() for name in ids]
    missing = _world_tokens.missing(root, tokenizer, camera, wanted, data)
    return {"episodes": {part: len(ids) for part, ids in parts.items()}, "camera": camera, "missing": len(missing)}
