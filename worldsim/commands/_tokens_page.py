"""The page of a codebook: what its codes look like, how many are in use, and how far copying gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.core.files import write_json
from worldsim.report.codebook import codebook_sheet
from worldsim.report.document import Block, Document, Facts, Figure, Grid, Items, Section, Value, render
from worldsim.report.plots import Curve, plot
from worldsim.report.video import write_png
from worldsim.tokenizers.kmeans import KMeans

SHEET, BASELINES, USE = "codebook.png", "baselines.png", "use.png"
STATISTICS = "statistics.json"
MEANINGS = (
    ("codes used", "Codes that occur at least once."),
    ("entropy", "Of the distribution of codes, in nats; its exponential is the effective vocabulary: as many equally frequent "
     "codes would be as hard to guess."),
    ("copy", "How often the token k frames later is the present one. An accuracy is worth what it has beyond this."),
    ("bigram", "How often it is the one that most often came k frames after the present one in the training episodes."),
    ("at changes", "The bigram where the token k frames later differs from the present one; copying is never right there."),
    ("pairs", "Within one episode and one position of the grid; all pairs of a split count alike."),
)  # fmt: skip


def publish(
    folder: Path,
    tokenizer: KMeans,
    statistics: Mapping[str, Mapping[str, Any]],
    frequencies: Mapping[str, np.ndarray],
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> Path:
    """Write ``index.html``, ``REPORT.md``, tables and pictures into ``folder``; returns the page's path.

    Args:
        statistics: name of a split -> ``token_statistics.summary``. frequencies: name of a split -> counts ``[N]``.
    """
    total = sum(frequencies.values(), np.zeros(tokenizer.codes, np.int64))
    write_png(folder / SHEET, codebook_sheet(tokenizer.pictures.cpu().numpy(), total))
    plot(folder / BASELINES, _curves(statistics), "The token k frames later", "frames ahead", "share right")
    plot(
        folder / USE, _use(frequencies), "Codes by how often they occur", "code, the most frequent first", "share of tokens"
    )
    write_json(folder / STATISTICS, statistics)
    what = "frame" if tokenizer.frame_tokens == 1 else "cell of a frame"
    sections = [
        Section("The codebook", [Figure(SHEET, f"The training {what} nearest to each centroid, the most frequent first.")]),
        Section("Vocabulary", [_vocabulary(statistics), Figure(USE, "Flat is well used; a steep line is a few codes.")]),
        Section("Baselines", [_baselines(statistics), Figure(BASELINES, "Copy and bigram baselines by frames ahead.")]),
        Section("What the words mean", [Facts(MEANINGS)]),
        Section("Where it comes from", [Facts([("codebook", tokenizer.codebook_hash), *facts])]),
    ]
    if notes:
        sections.insert(3, Section("Notes", _notes(notes)))
    return render(Document("World tokens", lead(statistics), sections, _subtitle(tokenizer)), folder)


def lead(statistics: Mapping[str, Mapping[str, Any]]) -> str:
    """The sentence that matters, on the last split: held-out where there is one."""
    part, one = list(statistics.items())[-1]
    used = f"{one['used']} of {one['codes']} codes are in use in the {part} episodes ({one['effective']:.1f} effectively)"
    copied = one["copy"][0]
    if copied is None:
        return f"{used}; no episode has two frames."
    if copied >= 0.999:
        return f"{used}, and the token never changes from one frame to the next: predicting it shows nothing."
    return f"{used}; the next frame has the same token in {copied:.1%} of cases, so predicting it is worth what lies above that."


def _subtitle(tokenizer: KMeans) -> str:
    rows, columns = tokenizer.grid
    each = "one per frame" if tokenizer.frame_tokens == 1 else f"{rows} x {columns} per frame"
    return f"{tokenizer.codes} k-means codes, {each}, of {tokenizer.encoder.source} ({tokenizer.dim} numbers)"


def _notes(notes: Sequence[str]) -> list[Block]:
    return [Items(notes)]


def _vocabulary(statistics: Mapping[str, Mapping[str, Any]]) -> Grid:
    columns = ["split", "episodes", "tokens", "codes", "codes used", "entropy (nats)", "effective vocabulary"]
    rows: list[list[str | Value | None]] = [
        [
            part,
            *(Value(one[key], form=".0f") for key in ("episodes", "tokens", "codes", "used")),
            Value(one["entropy_nats"], form=".3f"),
            Value(one["effective"], form=".1f"),
        ]
        for part, one in statistics.items()
    ]
    return Grid("vocabulary", columns, rows)


def _baselines(statistics: Mapping[str, Mapping[str, Any]]) -> Grid:
    kinds = {"copy": "copy", "bigram": "bigram", "bigram_at_changes": "bigram at changes"}
    horizon = len(next(iter(statistics.values()))["copy"])
    rows: list[list[str | Value | None]] = [
        [f"{part}: {title}", *(Value(value, form=".3f") for value in one[key])]
        for part, one in statistics.items()
        for key, title in kinds.items()
        if key in one
    ]
    caption = "Share of tokens that are right, k frames ahead."
    return Grid("baselines", ["baseline", *(f"k = {k}" for k in range(1, horizon + 1))], rows, caption)


def _curves(statistics: Mapping[str, Mapping[str, Any]]) -> list[Curve]:
    out = []
    for colour, (part, one) in enumerate(statistics.items()):
        for key, dashed in (("copy", False), ("bigram", True)):
            values = np.array([np.nan if v is None else v for v in one.get(key, [])], float)
            if len(values):
                out.append(Curve(f"{part}: {key}", np.arange(1, len(values) + 1), values, dashed=dashed, colour=colour))
    return out


def _use(frequencies: Mapping[str, np.ndarray]) -> list[Curve]:
    return [
        Curve(part, np.arange(1, len(counts) + 1), np.sort(counts)[::-1] / max(int(counts.sum()), 1), colour=colour)
        for colour, (part, counts) in enumerate(frequencies.items())
    ]
