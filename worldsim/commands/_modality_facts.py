"""What the report says about robot, task, data, training and codebook, as (word, value) pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from worldsim.commands._modality_runs import Bench
from worldsim.core.protocols import EpisodeSource
from worldsim.core.runs import COLUMNS
from worldsim.data import token_statistics

TOLD = (
    "steps", "epochs", "batch", "lr", "weight_decay", "warmup", "clip", "lambda_world", "label_smoothing",
    "change_point_weight", "d_model", "layers", "heads", "ffn", "dropout", "pre_norm", "tie_head", "world_dropout",
    "block_act_to_world", "data_fraction",
)  # fmt: skip
"""Keys of a run's config that a reader wants to know, wherever they stand in it."""
TASKS = 3


def setup(what: Bench, source: EpisodeSource) -> dict[str, Any]:
    """Section 1, with the words of the original report."""
    card, tokenizer = what.first.policy.card, what.first.policy.tokenizer
    at = {name: index for index, name in enumerate(source.ids())}
    told = dict.fromkeys(source.episode(at[name]).instruction for name in what.episodes[:16])
    tasks = [text for text in told if text]
    more = f" and {len(tasks) - TASKS} more" if len(tasks) > TASKS else ""
    split = what.gathered.split
    return {
        "Robot": source.card.robot or "not said by the dataset",
        "Task": ("; ".join(tasks[:TASKS]) + more) if tasks else "not said by the dataset",
        "Dataset": f"{source.card.name} ({source.card.format}), {len(source)} episodes at {source.card.fps:g} fps, "
        f"{len(what.train)} for training, {len(what.episodes)} held out here (split by {split.source})",
        "Camera": ", ".join(f"{name} ({h} x {w})" for name, (h, w) in card.cameras.items()),
        "State and actions": f"{card.net.state_dim} and {card.net.action_dim}: {', '.join(card.action_spec.names)}",
        "Vision encoder": _encoder(tokenizer),
        "World token codebook size (N)": card.net.codes,
        "Context length (T_ctx)": card.spec.context,
        "Action horizon (H)": card.spec.horizon,
        "Future offset (K)": card.spec.future,
    }


def _encoder(tokenizer: Any) -> str:
    card = tokenizer.card()
    vision = card.get("vision", {})
    revision = f", revision {vision['revision']}" if vision.get("revision") else ""
    return (
        f"{vision.get('model', card.get('tokenizer'))} (pooling {vision.get('pooling')}, d = {card.get('dim')}{revision})"
    )


def training(run: Path) -> dict[str, Any]:
    """How the runs were trained, from the first one's ``config.yaml``."""
    path = run / "config.yaml"
    if not path.is_file():
        return {}
    found = dict(_leaves(yaml.safe_load(path.read_text(encoding="utf8")) or {}))
    if found.get("epochs"):
        found.pop("steps", None)  # a bound that epochs stay below
    return {key: found[key] for key in TOLD if found.get(key) is not None}


def _leaves(values: dict[str, Any]) -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        out += _leaves(value) if isinstance(value, dict) else [(key, value)]
    return out


def codebook(what: Bench, root: Path) -> dict[str, Any]:
    """Section 6.1."""
    tokenizer: Any = what.first.policy.tokenizer
    tokens = {name: np.asarray(what.gathered.rows.tokens[name]) for name in what.episodes}
    frequencies = token_statistics.counts(tokens, tokenizer.codes)
    size = sum(path.stat().st_size for path in (root / COLUMNS).glob("world-*/*/*.npy"))
    return {
        "Encoder backbone": _encoder(tokenizer),
        "Number of clusters (N)": tokenizer.codes,
        "Tokens per frame": tokenizer.frame_tokens,
        "Number of frames used for k-means": tokenizer.about.get("sample"),
        "Fitted on": _fitted_on(tokenizer, what),
        "Codebook": tokenizer.codebook_hash,
        "Used on held-out episodes": f"{int((frequencies > 0).sum())} of {tokenizer.codes}",
        "Effective vocabulary, exp(entropy)": f"{token_statistics.effective(frequencies):.1f}",
        "Entropy": f"{token_statistics.entropy(frequencies):.3f} nats",
        "Cache (embeddings and tokens)": f"{size / 2**20:.1f} MiB",
    }


def _fitted_on(tokenizer: Any, what: Bench) -> str:
    """Which episodes the codebook has seen, held-out ones among them or not; another dataset's ids say nothing here."""
    fitted = tokenizer.about.get("fitted_on")
    if not fitted:
        return "not said by the codebook"
    if tokenizer.about.get("dataset") != what.first.policy.card.dataset:
        return f"{len(fitted)} episodes of another dataset"
    seen = len(set(fitted) & set(what.episodes))
    return f"{len(fitted)} episodes, {f'{seen} of them held out here' if seen else 'none of them held out here'}"
