"""``worldsim tokenize-world``: the discrete codes of every frame, as memory-mapped columns beside the data.

Token world models read these and nothing else while they train; ``train`` and ``rlvr`` fill what is missing by themselves. See
``commands._tokens`` for what a column holds. World tokens (``kmeans``) are fitted here: see ``commands._tokenize_kmeans``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from worldsim import tokenizers
from worldsim.commands import _latents, _tokenize_kmeans, _tokens
from worldsim.commands._rejections import accepted, records
from worldsim.commands._token_windows import choose_camera
from worldsim.commands._tokens import Cut
from worldsim.core import registry
from worldsim.core.config import config
from worldsim.core.errors import UserError, again, did_you_mean
from worldsim.core.protocols import EpisodeSource
from worldsim.core.runs import RunContext
from worldsim.core.types import Result
from worldsim.data import columns
from worldsim.data.split import split_episodes
from worldsim.data.windows import stride_for
from worldsim.formats import open_dataset
from worldsim.train import distributed

KMEANS = "kmeans"


@config
class Config:
    """What to tokenise, and with what.

    Attributes:
        data: dataset folder, any format. format: its registered format; detected when null.
        tokenizer: its registered name. checkpoint: the run that trained it (a token model's run has a copy); when null
            ``runs/train/<tokenizer>``, and for kmeans a codebook is fitted.
        split: a part of the split (``train``, ``all``), or ``held-out``.
        camera: when null, that of a given kmeans codebook, else the first by name.
        fps: frame rate of the model that will read the tokens; the dataset's when null.
        reach: frames told from each context frame, itself included: ``context_back + history + predicted`` of the model that
            will read them; only for a tokenizer with a context.
        batch: frames per forward pass.
        vision_model: for kmeans, what embeds frames: a registered name (``random-conv`` needs no download), a Hugging Face
            repository, a folder, or ``tokenizer:RUN``.
        pooling: ``auto``, ``cls``, ``mean`` or ``gridN``. normalise: embeddings to unit length.
        num_tokens: codes of a codebook that is fitted; at most a quarter of the training embeddings. sample: at most so many
            embeddings are fitted on. horizon: frames ahead that the baselines of the statistics are told for.
        cache: folder of the experiment's own files (``<cache>/<dataset>/train_world_tokens.int.npy``, …); ``OUT/cache`` when null.
        columns: where columns go when the dataset is read-only; the dataset itself when null.
        max_rejected: how many bad episodes are accepted before the command fails.
    """

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = (
        "max_rejected",
        "batch",
    )  # seldom a bit: sums of a wider batch round otherwise

    data: str | None = None
    format: str | None = None
    tokenizer: str = "fsq-compressive"
    checkpoint: str | None = None
    split: str = "all"
    camera: str | None = None
    fps: float | None = None
    reach: int = 8
    batch: int = 16
    vision_model: str = "facebook/dinov2-base"
    num_tokens: int = 1024
    pooling: str = "auto"
    normalise: bool = False
    sample: int = 200_000
    horizon: int = 8
    cache: str | None = None
    columns: str | None = None
    max_rejected: int = 0

    def __post_init__(self) -> None:
        for key in ("reach", "batch", "num_tokens", "sample", "horizon"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
        if self.num_tokens < 2:
            raise ValueError("num_tokens must be at least 2: a codebook of one code says nothing")
        known = registry.names("tokenizers")
        if self.tokenizer.replace("_", "-") not in known:
            raise ValueError(f"there is no tokenizer '{self.tokenizer}'{did_you_mean(self.tokenizer, known)}")


def run(config: Config, context: RunContext) -> Result:
    """Fill the columns; every process takes its share of the episodes.

    Raises:
        UserError: no such run, or a run of another tokenizer.
        PartialResult: more than ``max_rejected`` episodes cannot be read; the others are tokenised.
    """
    if config.tokenizer == KMEANS:
        return _tokenize_kmeans.run(config, context)
    data, root = _latents.folders(config.data, config.columns)
    folder = _folder(config)
    context.inputs["data"] = str(data)
    context.reads("checkpoint", _run_of(config))
    tokenizer = tokenizers.load(folder, context.device)
    _require_name(config, tokenizer)
    source = open_dataset(data, config.format)
    try:
        cut, names = _cut(config, source, tokenizer), _episodes(config, source)
        found = _tokens.specs(tokenizer, columns.dataset_fingerprint(data), cut)
        share = {"rank": context.rank, "world_size": context.world_size}
        tokens = _tokens.fill(root, source, tokenizer, found, cut, names, context.device, batch=config.batch, **share)
        rejected = distributed.union(tokens.rejected)
    finally:
        source.close()
    if context.rank != 0:
        return Result()
    return _report(config, tokens, [name for name in names if name in tokens], rejected, root, tokenizer.codes)


def _run_of(config: Config) -> Path:
    return Path(config.checkpoint or f"runs/train/{config.tokenizer.replace('-', '_')}")


def _folder(config: Config) -> Path:
    run_folder = _run_of(config)
    if not run_folder.exists():
        raise UserError(
            f"tokens of {config.tokenizer} need a trained tokenizer: there is no run {run_folder}",
            ["worldsim", "train", "--config", config.tokenizer.replace("-", "_"), config.data or "DATA"],
        )
    return tokenizers.find(run_folder)


def _require_name(config: Config, tokenizer: Any) -> None:
    name = tokenizer.card()["tokenizer"].replace("_", "-")
    if name != config.tokenizer.replace("_", "-"):
        raise UserError(
            f"{_run_of(config)} holds the tokenizer {name}, not {config.tokenizer}",
            again(tokenizer=name),
        )


def _cut(config: Config, source: EpisodeSource, tokenizer: Any) -> Cut:
    camera = choose_camera(source, config.camera, "tokenize-world")
    return Cut(camera, stride_for(source.card.fps, config.fps), config.reach if tokenizer.context_tokens else 1)


def _episodes(config: Config, source: EpisodeSource) -> list[str]:
    split = split_episodes(source.ids(), source.card.splits)
    return split.held_out if config.split == "held-out" else split.part(config.split)


def _report(
    config: Config, tokens: _tokens.Tokens, present: list[str], rejected: dict[str, str], root: Path, codes: int
) -> Result:
    parts = [tokens.frames, *([tokens.context] if tokens.context else [])]
    used = np.zeros(codes, bool)
    count = 0
    for episode in present:
        values = np.asarray(tokens.frames.load(episode))
        values = values[values != _tokens.ABSENT]
        used[values] = True
        count += values.size
    recipe = f"token_{'multi' if tokens.context else 'single'}_step"
    result = Result(
        metrics={
            "episodes": len(present),
            "tokens": count,
            "codes": codes,
            "codes_used": int(used.sum()),
            "columns": [column.folder.relative_to(root).as_posix() for column in parts],
            "rejected": records(rejected),
        },
        next=["worldsim", "train", "--config", recipe, config.data, "--tokenizer", _run_of(config)],
        summary=f"{len(present)} episodes, {count} tokens, {used.sum()} of {codes} codes in use: {tokens.frames.folder}",
    )
    return accepted(result, rejected, config.max_rejected)


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    """What would be tokenised and where it would go; decodes no frame."""
    if config.tokenizer == KMEANS:
        return _tokenize_kmeans.plan(config)
    data, root = _latents.folders(config.data, config.columns)
    folder = _folder(config)
    tokenizer = tokenizers.load(folder, "cpu")
    _require_name(config, tokenizer)
    source = open_dataset(data, config.format)
    try:
        cut, names = _cut(config, source, tokenizer), _episodes(config, source)
    finally:
        source.close()
    found = _tokens.specs(tokenizer, columns.dataset_fingerprint(data), cut)
    return {
        "episodes": len(names),
        "missing": len(_tokens.missing(root, found, names)),
        "columns": [str(root / spec.path) for spec in found.values()],
    }
