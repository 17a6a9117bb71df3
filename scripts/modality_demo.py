"""Does a policy get better when it reads and predicts world tokens? The whole experiment, with the commands that a user would type.

    simulate (Metaworld) -> tokenize-world -> train every arm with every seed -> eval offline -> eval intervene -> eval policy

Everything lands under ``runs/modality-demo``: ``report/`` with the headings of the original experiment's REPORT filled, and
``summary.json`` for machines. Typing it again continues where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import Failed, Teller, program

from worldsim.core.config import fingerprint
from worldsim.core.files import read_json, write_json

POLICIES = ("scripted:expert,noise=0.05", "scripted:expert,noise=0.3")
CAMERA = {"size": 64, "camera": "near"}
ACTING = ("A", "B", "C")
INTERVENED = ("C", "C_hist", "C_pred", "C_oracle")


@dataclass(frozen=True)
class Story:
    """How much of everything. The defaults are what the documentation's table shows; a test tells it shorter.

    Attributes:
        out: where all of it goes.
        env: what is simulated, and acted in at the end; ``pusht`` needs no OpenGL.
        episodes, steps: recorded; a fifth of the episodes is held out.
        tokens: size of the codebook.
        recipe: of ``train``, for all arms. train: overrides of it, ``key=value``.
        seeds: of training.
        trials: episodes that each policy acts, on seeds that were not recorded. 0 is none.
    """

    out: Path = Path("runs/modality-demo")
    env: str = "metaworld:drawer-close-v3"
    episodes: int = 60
    steps: int = 24
    tokens: int = 64
    recipe: str = "world_modality_tiny_all"
    train: tuple[str, ...] = ()
    seeds: int = 3
    trials: int = 50


def tell(story: Story) -> dict[str, Any]:
    """The whole story; returns what ``summary.json`` holds. Told before by the same program, it is not told again."""
    out, teller = story.out, Teller()
    told = out / "told.json"
    me = {"story": fingerprint({k: str(v) for k, v in vars(story).items()}), "program": program()}
    if told.exists() and read_json(told) == me and (out / "summary.json").exists():
        print(f"modality-demo: already done -> {out}")
        return read_json(out / "summary.json")
    data, tokens, arms = out / "data", out / "tokens", out / "arms"
    policies = POLICIES if story.env.startswith("metaworld") else ("scripted:push", "scripted:push,noise=0.3")
    options: dict[str, Any] = dict(CAMERA) if story.env.startswith("metaworld") else {"size": CAMERA["size"]}
    teller.simulate(data, story.env, policies, options, episodes=story.episodes, steps=story.steps, seed=0)
    words = [
        "--tokenizer",
        "kmeans",
        "--vision-model",
        "random-conv",
        "--num-tokens",
        story.tokens,
        "--set",
        "pooling=grid2",
    ]
    teller.type("worldsim", "tokenize-world", data, *words, "--out", tokens)
    pairs = [word for pair in (f"seeds={story.seeds}", *story.train) for word in ("--set", pair)]
    words = ["--config", story.recipe, data, "--tokenizer", tokens, *pairs]
    teller.type("worldsim", "train", *words, "--out", arms)
    for arm in INTERVENED:
        for seed in range(story.seeds):
            run = arms / "runs" / f"{arm}-{seed}"
            teller.type("worldsim", "eval", "intervene", data, "--model", run, "--out", out / f"intervene-{arm}-{seed}")
    success = act(story, teller, arms, options)
    words = ["--all-arms", "--seeds", story.seeds, "--runs", arms, "--out", out / "report"]
    teller.type("worldsim", "eval", "offline", data, *words, *success)
    summary = read_json(out / "report" / "result.json")["metrics"]
    write_json(out / "summary.json", summary)
    write_json(told, me)
    return summary


def act(story: Story, teller: Teller, arms: Path, options: dict[str, Any]) -> list[object]:
    """Every acting arm of every seed in the simulator; returns the words that hand the result to the report."""
    if not story.trials:
        return []
    out = story.out / "success"
    runs = [arms / "runs" / f"{arm}-{seed}" for arm in ACTING for seed in range(story.seeds)]
    words = [word for run in runs for word in ("--policy", run)]
    words += [word for key, value in options.items() for word in ("--set", f"env.{key}={value}")]
    counts = ["--set", f"episodes={story.trials}", "--set", f"steps={story.steps}", "--seed", 100_000]
    teller.type("worldsim", "eval", "policy", "--env", story.env, *words, *counts, "--out", out)
    return ["--set", f"success={out}"]


def main(argv: Sequence[str] | None = None) -> int:
    default = Story()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=default.out)
    for name in ("env", "recipe"):
        parser.add_argument(f"--{name}", default=getattr(default, name))
    for name in ("episodes", "steps", "tokens", "seeds", "trials"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--train", action="append", default=[], metavar="key=value", help="override of the recipe")
    given = vars(parser.parse_args(argv))
    try:
        tell(Story(**{**given, "train": tuple(given["train"])}))
    except Failed as failed:
        print(
            f"modality-demo: stopped; the same command continues, or to start afresh: rm -r {given['out']}", file=sys.stderr
        )
        return failed.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
