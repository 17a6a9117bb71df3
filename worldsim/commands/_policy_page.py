"""From trials to the page of ``eval policy``: rates with intervals, paired differences, films of the first seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldsim import __version__
from worldsim.commands._policy_trials import Book
from worldsim.core.config import to_yaml
from worldsim.core.runs import RunContext
from worldsim.report.bars import Bar, bars
from worldsim.report.document import Block, Code, Document, Facts, Figure, Grid, Section, Value, render
from worldsim.report.grid import Tile, grid
from worldsim.report.proportions import Agreement
from worldsim.report.video import write_mp4, write_png

FILM, LAST, RATES = "films.mp4", "films.png", "rates.png"
MAXIMUM = 8
"""Films beside each other, at most."""
WORDS = (
    (
        "success",
        "the environment's own is_success at any step of a trial; in a dream what the judge says of imagined frames",
    ),
    ("interval", "95 %, Wilson's score interval; trials are independent, seeds are the same for every policy"),
    (
        "paired difference",
        "first minus second over the same seeds, interval after Newcombe (1998, method 10); p: McNemar's exact test, two-sided",
    ),
    (
        "ms per step",
        "time inside the policy divided by environment steps; a chunk that is carried out costs its steps nothing",
    ),
)


def publish(
    config: Any,
    context: RunContext,
    rows: list[dict[str, Any]],
    pairs: list[dict[str, Any]],
    found: Agreement | None,
    book: Book,
    *,
    fps: float,
) -> str:
    """Write ``report/``; returns the table for the terminal."""
    folder, place = context.out / "report", config.env["name"]
    names = labels(config.policy)
    rows = [{**row, "policy": names[row["policy"]]} for row in rows]
    pairs = [{**pair, "first": names[pair["first"]], "second": names[pair["second"]]} for pair in pairs]
    write_png(folder / RATES, bars([_bar(row) for row in rows], f"success in {place}"))
    sections = [Section("Success", [_table(rows), Figure(RATES, "Rate (dot) and 95 % interval (bar) of each policy.")])]
    if pairs:
        sections.append(Section("Paired differences", [_paired(pairs)]))
    if found:
        sections.append(Section("Agreement with the other run", _agreement(found, str(config.truth))))
    if config.clips:
        sections.append(Section("Films", _films(config, book, folder, fps)))
    about: list[Block] = [Facts(WORDS), *context.notes]
    facts = [
        ("environment", str(place)),
        ("steps at most", str(config.horizon)),
        ("trials per policy", str(config.episodes)),
    ]
    facts += [("seeds", f"{book.seeds[0]} … {book.seeds[-1]}"), ("worldsim", __version__)]
    sections += [Section("How this was counted", about), Section("Config", [Facts(facts), Code(to_yaml(config))])]
    subtitle = f"{config.episodes} trials per policy of at most {config.horizon} steps, the same seeds for all"
    render(Document(f"Policies in {place}", lead(rows, pairs), sections, subtitle), folder)
    return "\n".join(_line(row) for row in rows)


def labels(policies: Sequence[str]) -> dict[str, str]:
    """How each policy is called on the page: a folder by the last parts of its path that tell it from the others."""
    for parts in (2, 3, 4):
        short = {text: "/".join(Path(text).parts[-parts:]) if Path(text).is_dir() else text for text in policies}
        if len(set(short.values())) == len(short):
            return short
    return {text: text for text in policies}


def lead(rows: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> str:
    """One sentence, by rule: who has the highest rate, and whether any difference of two policies excludes zero."""
    known = [row for row in rows if row["rate"] is not None]
    if not known:
        return "Nobody judged what the policies did, so no rate is given."
    best = max(known, key=lambda row: row["rate"])
    alike = [row["policy"] for row in known if row["rate"] == best["rate"]]
    whose = best["policy"] if len(alike) == 1 else f"{len(alike)} policies alike: {', '.join(alike)}"
    sentence = f"The highest rate is {best['rate']:.0%} ({best['successes']} of {best['trials']}), of {whose}"
    sure = [pair for pair in pairs if pair["low"] > 0 or pair["high"] < 0]
    if not pairs:
        return f"{sentence}; its 95 % interval is {best['low']:.0%} … {best['high']:.0%}."
    if not sure:
        return f"{sentence}; no two policies can be told apart by these trials."
    said = [f"{better} beats {other}" for better, other in map(_order, sure[:3])]
    more = f" (and {len(sure) - 3} more pairs)" if len(sure) > 3 else ""
    return f"{sentence}; on the same seeds {', '.join(said)}{more}, the paired interval excluding zero."


def _order(pair: dict[str, Any]) -> tuple[str, str]:
    return (pair["first"], pair["second"]) if pair["low"] > 0 else (pair["second"], pair["first"])


def _bar(row: dict[str, Any]) -> Bar:
    numbers = [math.nan if row[key] is None else row[key] for key in ("rate", "low", "high")]
    return Bar(row["policy"], numbers[0], numbers[1], numbers[2], f"{row['successes']}/{row['trials']}")


def _table(rows: list[dict[str, Any]]) -> Grid:
    columns = (
        "policy",
        "success / trials",
        "rate",
        "mean steps to success",
        "policy ms per step",
        "environment ms per step",
    )
    cells = [
        (
            row["policy"],
            f"{row['successes']} / {row['trials']}",
            Value(row["rate"], row["low"], row["high"], ".1%"),
            Value(row["mean_steps_to_success"], form=".1f"),
            Value(row["ms_per_step"], form=".2f"),
            Value(row["env_ms_per_step"], form=".2f"),
        )
        for row in rows
    ]
    return Grid("success", columns, cells)


def _paired(pairs: list[dict[str, Any]]) -> Grid:
    columns = ("first", "second", "difference of rates", "only first solved", "only second solved", "p")
    cells = [
        (
            pair["first"],
            pair["second"],
            Value(pair["difference"], pair["low"], pair["high"], "+.1%"),
            Value(pair["only_first"], form=".0f"),
            Value(pair["only_second"], form=".0f"),
            Value(pair["p"], form=".3g"),
        )
        for pair in pairs
    ]
    return Grid("paired", columns, cells)


def _agreement(found: Agreement, truth: str) -> list[Block]:
    pearson = "undefined (all rates of one side are equal)" if math.isnan(found.pearson) else f"{found.pearson:.3f}"
    pairs = (
        ("compared with", truth),
        ("policies", str(found.policies)),
        ("Pearson correlation of the rates", pearson),
        ("pairs in the opposite order", f"{found.violations} of {found.pairs}"),
        ("mean maximum rank violation", f"{found.mean_maximum:.3f}"),
    )
    return [Facts(pairs), "A handful of policies cannot establish agreement: these numbers have no interval."]


def _films(config: Any, book: Book, folder: Any, fps: float) -> list[Block]:
    seeds, filmed = book.seeds[: min(config.clips, config.episodes, MAXIMUM)], []
    for name in config.policy:
        by_seed = {trial.seed: trial for trial in book.trials(name)}
        filmed.append([Tile(f"seed {seed}", book.film(name, seed), by_seed[seed].solved_at) for seed in seeds])
    frames = grid(filmed)
    write_mp4(folder / FILM, frames, fps)
    write_png(folder / LAST, frames[-1])
    order = ", ".join(labels(config.policy).values())
    text = f"Rows from top to bottom: {order}. Columns: the first {len(seeds)} seeds; none was picked. Green: solved; red: not."
    return [Figure(FILM, text), Figure(LAST, "The last pictures of the same films.")]


def _line(row: dict[str, Any]) -> str:
    if row["rate"] is None:
        return f"{row['policy']}: not judged, {row['ms_per_step']:.1f} ms per step"
    span = f"[{row['low']:.0%} … {row['high']:.0%}]"
    return f"{row['policy']}: {row['successes']}/{row['trials']} = {row['rate']:.0%} {span}, {row['ms_per_step']:.1f} ms per step"
