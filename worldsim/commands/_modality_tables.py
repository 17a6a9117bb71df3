"""The tables of the world-modality reports, each a pure function of ``comparison.json``'s values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worldsim.commands._modality_corruptions import about
from worldsim.report.document import Grid, Value

Json = Mapping[str, Any]
Cell = str | Value | None
NAMES = {
    "A": "A (BC)",
    "A_plus": "A_plus (as large as C)",
    "B": "B (Aux)",
    "C": "C (World modality)",
    "C_no_input": "C_no_input (control)",
    "C_hist": "C_hist (token history)",
    "C_pred": "C_pred (predicted futures)",
    "C_oracle": "C_oracle (true futures)",
}
"""The arms with the words of the original report."""


def label(arm: str) -> str:
    return NAMES.get(arm, arm)


def value(spread: Json | None, form: str = ".4g", factor: float = 1.0) -> Value | None:
    """A cell from ``{"mean", "low", "high"}``."""
    if spread is None or spread["mean"] is None:
        return None
    low, high = (None if spread[key] is None else spread[key] * factor for key in ("low", "high"))
    return Value(spread["mean"] * factor, low, high, form)


def entry(spread: Json, k: int, form: str = ".4g") -> Value:
    """A cell from entry k of lists."""
    return Value(spread["mean"][k], spread["low"][k], spread["high"][k], form)


def errors(c: Json) -> Grid:
    """Held-out action error and token accuracy of every arm (4.1)."""
    head = [
        "arm",
        "seeds",
        "action MSE (normalised)",
        "action MSE (physical)",
        "top-1",
        "top-5",
        "parameters",
        "ms per step",
    ]
    rows: list[list[Cell]] = []
    one_unit = len(set(c["units"])) == 1  # a mean over metres and degrees means nothing; by entry it does
    for arm, s in c["arms"].items():
        world = s["world"] or {}
        rows.append(
            [
                label(arm),
                str(len(s["seeds"])),
                value(s["action_mse"]),
                value(s["action_mse_physical"]) if one_unit else None,
                value(world.get("top1"), ".1%"),
                value(world.get("top5"), ".1%"),
                f"{s['parameters']:,}",
                Value(s["ms_per_step"], form=".2f"),
            ]
        )
    text = (
        "Mean over seeds, averaged per sample (window); [95 % interval over held-out episodes]. Physical: where all entries have "
        f"one unit ({' and '.join(dict.fromkeys(c['units']))}, squared). ms with the image encoder."
    )
    return Grid("action_error", head, rows, text)


def seeds(c: Json) -> Grid:
    """Each seed's own error."""
    every = sorted({seed for s in c["arms"].values() for seed in s["seeds"]})
    rows: list[list[Cell]] = []
    for arm, s in c["arms"].items():
        own = dict(zip(s["seeds"], s["action_mse_seeds"]))
        rows.append([label(arm), *(Value(own[seed]) if seed in own else None for seed in every)])
    return Grid(
        "action_error_by_seed", ["arm", *(f"seed {seed}" for seed in every)], rows, "Action MSE (normalised) of every run."
    )


def joints(c: Json) -> Grid:
    """Squared errors per action entry, in its own unit."""
    names = [f"{name} ({unit}²)" if unit not in ("1", "?") else name for name, unit in zip(c["action_names"], c["units"])]
    rows: list[list[Cell]] = [
        [label(arm), *(entry(s["by_joint_physical"], k) for k in range(len(names)))] for arm, s in c["arms"].items()
    ]
    return Grid("action_error_by_entry", ["arm", *names], rows, "Action MSE per action entry, physical units.")


def steps(c: Json) -> Grid:
    """Error by step of the chunk (4.2)."""
    rows: list[list[Cell]] = [
        [label(arm), *(entry(s["by_step"], k) for k in range(c["horizon"]))] for arm, s in c["arms"].items()
    ]
    head = ["arm", *(f"+{k}" for k in range(c["horizon"]))]
    text = "Action MSE (normalised) by step of the chunk; +0 acts now. Intervals are in the CSV."
    return Grid("action_error_by_step", head, rows, text, ranges=False)


def pairs(c: Json) -> Grid:
    """Arms against each other."""
    rows: list[list[Cell]] = [
        [
            f"{d['arm']} − {d['base']}",
            value(d, "+.3g"),
            Value(d["relative"], form="+.1%"),
            ", ".join("–" if seed is None else f"{seed:+.3g}" for seed in d["seeds"]),
            d["outcome"],
        ]
        for d in c["differences"]
    ]
    text = (
        "Paired difference of held-out action MSE (normalised), mean over seeds; below 0 the first arm is better. 'lower' or "
        "'higher' is said only where the interval excludes 0 and every seed agrees in sign. Not corrected for the number of pairs."
    )
    return Grid("differences", ["pair", "difference", "of the base's error", "each seed", "outcome"], rows, text)


TOKEN_COLUMNS = (
    ("top-1", "top1", "copy_top1", ".1%"),
    ("top-5", "top5", None, ".1%"),
    ("top-1 where the token changes", "change_top1", None, ".1%"),
    ("cross-entropy, bits", "bits", "copy_bits", ".3f"),
    ("skill over copy", "skill", None, "+.3f"),
)


def tokens(c: Json) -> Grid:
    """World tokens over all horizons, beside what can be guessed without looking."""
    base = c["baselines"]
    rows: list[list[Cell]] = [
        [label(arm), *(value(s["world"][key], form) for _, key, _, form in TOKEN_COLUMNS)]
        for arm, s in c["arms"].items()
        if s["world"] is not None
    ]
    rows.append(["copy of today's token", *(value(base.get(key or ""), form) for _, _, key, form in TOKEN_COLUMNS)])
    rows.append(["bigram", value(base["bigram_top1"], ".1%"), *[None] * (len(TOKEN_COLUMNS) - 1)])
    text = (
        "Skill = (bits of copy − bits of the model) / bits of copy; the copy baseline keeps today's token with the frequency seen "
        "in training, else draws by token frequency. Baselines are fitted on training episodes. "
        f"{base['change']['mean']:.1%} of the future tokens differ from today's."
    )
    return Grid("world_tokens", ["", *(title for title, *_ in TOKEN_COLUMNS)], rows, text)


def tokens_by_step(c: Json) -> Grid:
    """The same by frames ahead."""
    base, future = c["baselines"], c["future"]
    rows: list[list[Cell]] = [
        [f"{arm}: {title}", *(entry(s["world"][f"{key}_by_step"], k, form) for k in range(future))]
        for arm, s in c["arms"].items()
        if s["world"] is not None
        for title, key, _, form in TOKEN_COLUMNS
    ]
    for title, key, form in (
        ("copy: top-1", "copy_top1", ".1%"),
        ("copy: cross-entropy, bits", "copy_bits", ".3f"),
        ("bigram: top-1", "bigram_top1", ".1%"),
        ("share of tokens that change", "change", ".1%"),
    ):
        rows.append([title, *(entry(base[f"{key}_by_step"], k, form) for k in range(future))])
    head = ["by frames ahead", *(f"+{k}" for k in range(1, future + 1))]
    return Grid("world_tokens_by_step", head, rows, "Intervals are in the CSV.", ranges=False)


def ratios(c: Json, arms: Sequence[str] | None = None) -> Grid:
    """Corrupted over clean, every corruption of every arm."""
    rows: list[list[Cell]] = []
    for arm in arms or c["arms"]:
        for name, found in c["arms"][arm]["interventions"].items():
            each = ", ".join(f"{ratio:.3g}" for ratio in found["ratio_seeds"])
            far = Value(found["distance"], form=".3g")
            rows.append([f"{arm}: {name}", about(name, c), value(found["ratio"], ".3f"), each, far, found["reading"]])
    text = (
        "Held-out action MSE with wrong world input over that with the true one; same windows, same network. 'used' only if "
        "the whole interval lies above 1.1, 'weak' if above 1, 'unused' if it does not and excludes more than 1.1."
    )
    head = ["arm: intervention", "what is read instead", "ratio", "each seed", "centroid distance", "reading"]
    return Grid("interventions", head, rows, text)


def ratios_by(c: Json, key: str, titles: Sequence[str], caption: str) -> Grid:
    """Corrupted over clean per action entry (``by_joint``) or per step of the chunk (``by_step``)."""
    rows: list[list[Cell]] = [
        [f"{arm}: {name}", *(entry(found[key], k, ".3f") for k in range(len(titles)))]
        for arm, s in c["arms"].items()
        for name, found in s["interventions"].items()
    ]
    return Grid(
        f"interventions_{key}", ["arm: intervention", *titles], rows, f"{caption} Intervals are in the CSV.", ranges=False
    )


def inside(c: Json) -> Grid:
    """How much the network looks at, and how steeply it depends on, its world tokens."""
    rows: list[list[Cell]] = [
        [label(arm), Value(s["attention"], form=".2%"), Value(s["gradient"], form=".3g")]
        for arm, s in c["arms"].items()
        if s["attention"] is not None or s["gradient"] is not None
    ]
    text = (
        "Attention: share of the action positions' attention on world tokens, mean over layers, heads and windows. Gradient: "
        "norm of the action loss's gradient at the world input over that at the observation. Neither says that a token is used; "
        "interventions do."
    )
    return Grid("attention_and_gradient", ["arm", "attention on world tokens", "gradient, world / observation"], rows, text)


def efficiency(c: Json) -> Grid:
    """Error by share of the training episodes."""
    shares = sorted({row["fraction"] for row in c["efficiency"]})
    by = {(row["arm"], row["fraction"]): row for row in c["efficiency"]}
    rows: list[list[Cell]] = [
        [label(arm), *(value(by[arm, share]["action_mse"]) if (arm, share) in by else None for share in shares)]
        for arm in dict.fromkeys(row["arm"] for row in c["efficiency"])
    ]
    head = ["arm", *(f"{share:.0%} of the training episodes" for share in shares)]
    return Grid("data_efficiency", head, rows, "Held-out action MSE (normalised), mean over seeds.")


def success(c: Json) -> Grid:
    """Closed loop (5.2)."""
    rows: list[list[Cell]] = [
        [label(row["arm"]), f"{row['successes']} / {row['trials']}", Value(row["rate"], row["low"], row["high"], ".1%")]
        for row in c["closed_loop"]["rows"]
    ]
    return Grid(
        "success",
        ["Model", "Success / Trials", "Success Rate"],
        rows,
        "Wilson 95 % interval; trials of all seeds together.",
    )


def empty_success() -> Grid:
    """The same table where nothing was tried."""
    rows: list[list[Cell]] = [[label(arm), None, None] for arm in ("A", "B", "C")]
    return Grid("success", ["Model", "Success / Trials", "Success Rate"], rows, "No closed-loop trials were given.")
