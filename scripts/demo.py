"""The main job end to end on a plain CPU, with the commands that a user would type.

    simulate (Push-T; Metaworld where OpenGL is there) -> convert -> extract-latents -> finetune-wan -> infer -> eval video

Everything lands under ``runs/demo``: ``report/index.html`` to look at, ``frames/`` to recompute every score from,
``summary.json`` for machines. Typing it again continues where it stopped, or says that it is done.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a small net: two threads took 0.25 s per step where one took 0.21
from simulate import main as simulate

from worldsim.cli.main import main as worldsim
from worldsim.core.config import fingerprint, recipes_folder
from worldsim.core.files import folder_digest, read_json, remove, replacing, write_json

COPIED = ("report", "frames", "baseline", "scores.json")
SHOWN = ("summary.json", *COPIED)
FLOOR_EPISODES, FLOOR_FRAMES = 16, 16
"""Fewer held-out episodes or imagined frames than these say too little."""
OVER_COPY, OVER_BASE, GAP, P_BOUND = 2.0, 0.5, 0.8, 0.01
"""What the demo must show, in dB of motion PSNR; the last is the sign test's bound."""
PATIENCE, MEMORY = 480, 6000
"""Seconds on two free cores after set-up, and MB."""
# A close view: the mover is 14 of 64 pixels wide and slow, so that a model that ignores its actions cannot hide. Colours that
# worldsim-tiny was not shown, and y points up: the fine-tune has something to learn.
PUSHT = {
    "size": 64,
    "control": "velocity",
    "axes": "[x,-y]",
    "workspace": 256,
    "agent_radius": 28,
    "block_scale": 16,
    "look": "dark",
    "apart": "true",
}
DRAWER = {"size": 64, "camera": "near", "zoom": 1.2}


@dataclass(frozen=True)
class Story:
    """How much of everything. The defaults are what ``make demo`` shows; a test tells it shorter.

    Attributes:
        out: where all of it goes.
        episodes: simulated; a fifth is held out.
        steps: actions per episode.
        horizon: frames imagined.
        recipe: of finetune-wan, under configs/.
        train: overrides of the recipe, ``key=value``.
        metaworld: episodes of a small Metaworld dataset, where an OpenGL library is there; 0 is none.
    """

    out: Path = Path("runs/demo")
    episodes: int = 100
    steps: int = 40
    horizon: int = 16
    recipe: str = "demo"
    train: tuple[str, ...] = ()
    metaworld: int = 8


class Failed(Exception):
    """A step ended with another exit code than 0; it has said why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class Teller:
    """Types the commands: prints each and runs it in this process, so that torch is imported once."""

    def type(self, *words: object, may_fail: bool = False) -> bool:
        """Run one command; returns whether it succeeded. Raises :class:`Failed` unless it may fail."""
        argv = [str(word) for word in words]
        print(f"\n$ {shlex.join(argv)}", flush=True)
        command = simulate if argv[0] == "python" else worldsim
        code = command(argv[2:] if argv[0] == "python" else argv[1:])
        sys.stdout.flush()
        if code and not may_fail:
            raise Failed(code)
        return code == 0

    def simulate(
        self, out: Path, env: str, policies: Sequence[str], options: dict[str, Any], may_fail: bool = False, **counts: int
    ) -> bool:
        words = [word for policy in policies for word in ("--policy", policy)]
        words += [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
        words += [word for key, value in counts.items() for word in (f"--{key}", value)]
        return self.type("python", "scripts/simulate.py", out, "--env", env, *words, may_fail=may_fail)


def tell(story: Story) -> dict[str, Any]:
    """The whole story; returns what ``summary.json`` holds. Told before by the same program, it is not told again."""
    began = time.monotonic()
    out, teller = story.out, Teller()
    told = out / "told.json"
    me = {"story": fingerprint({k: str(v) for k, v in vars(story).items()}), "program": program()}
    if told.exists() and read_json(told) == me and all((out / name).exists() for name in SHOWN):
        print(f"demo: already done -> {out}")
        return read_json(out / "summary.json")
    with watched_memory() as memory:
        main_job(story, teller)
        if story.metaworld:
            metaworld_too(story, teller)
    from worldsim.commands.eval_video import demo_summary

    summary = demo_summary(read_json(out / "eval" / "scores.json"))
    # A continued run took at least what its finished parts took.
    before = sum(read_json(path)["seconds"] for path in out.glob("*/result.json"))
    seconds = max(time.monotonic() - began, before)
    summary |= {"seconds": round(seconds, 1), "peak_rss_mb": round(memory.peak / 2**20)}
    summary = publish(out, summary)
    write_json(told, me)
    return summary


def program() -> str:
    """What the result depends on besides the story: the package and its recipes."""
    root = Path(__file__).resolve().parents[1]

    def compiled(path: Path) -> bool:
        return "__pycache__" in path.parts

    return fingerprint([folder_digest(folder, skip=compiled) for folder in (root / "worldsim", recipes_folder())])


def main_job(story: Story, teller: Teller) -> None:
    """Push-T, from the simulator to the report."""
    out = story.out
    recorded, episodes, tuned, base = out / "data" / "pusht", out / "episodes", out / "tuned", out / "base"
    teller.simulate(
        recorded,
        "pusht",
        ("scripted:wander,speed=0.25", "scripted:push,speed=0.3"),
        PUSHT,
        episodes=story.episodes,
        steps=story.steps,
    )
    teller.type("worldsim", "convert", recorded, "--to", "act-hdf5", "--out", episodes)
    teller.type("worldsim", "extract-latents", episodes, "--extractor", "raw", "--out", out / "latents")
    train = ["worldsim", "finetune-wan", episodes, "--config", story.recipe]
    overrides = [word for pair in story.train for word in ("--set", pair)]
    teller.type(*train, *overrides, "--out", tuned)
    # The untuned base: the same net one step at learning rates of 0 away, so LoRA and conditioner are still zero.
    still = ("train.steps=1", "train.lr=0", "train.conditioner_lr=0")
    teller.type(*train, *overrides, *(word for pair in still for word in ("--set", pair)), "--out", base)
    look = ["--frames", story.horizon, "--episodes", "held-out"]
    teller.type("worldsim", "infer", episodes, "--model", tuned, *look, "--set", "save_frames=true", "--out", out / "infer")
    teller.type(
        "worldsim", "eval", "video", episodes, "--model", tuned, *look, "--set", f"baseline={base}", "--out", out / "eval"
    )


def metaworld_too(story: Story, teller: Teller) -> None:
    """A robot arm's dataset through the same commands, where OpenGL is there; small, and no part of the scores."""
    recorded, episodes = story.out / "data" / "drawer", story.out / "drawer"
    actors = ("scripted:expert,noise=0.3", "scripted:wander")
    counts = {"episodes": story.metaworld, "steps": story.steps}
    if not teller.simulate(recorded, "metaworld:drawer-close-v3", actors, DRAWER, may_fail=True, **counts):
        print("demo: going on without Metaworld")
        return
    teller.type("worldsim", "convert", recorded, "--to", "act-hdf5", "--out", episodes)
    teller.type("worldsim", "doctor", episodes)


def publish(out: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """The page, the frames, the scores and ``summary.json`` where a reader looks; an unchanged result is left alone."""
    path = out / "summary.json"
    if all((out / name).exists() for name in SHOWN):
        before = read_json(path)
        if {**summary, "seconds": 0, "peak_rss_mb": 0} == {**before, "seconds": 0, "peak_rss_mb": 0}:
            return before
    for name in COPIED:
        with replacing(out / name) as temporary:
            remove(out / name)
            copy = shutil.copytree if (out / "eval" / name).is_dir() else shutil.copyfile
            copy(out / "eval" / name, temporary)
    write_json(path, summary)
    return summary


@dataclass
class Memory:
    """Peak resident memory of this process and its children together, bytes."""

    peak: int = 0


@contextmanager
def watched_memory(every: float = 0.25) -> Iterator[Memory]:
    """Sample the process tree; between samples this process's own high-water mark counts."""
    memory, stop, me = Memory(), threading.Event(), psutil.Process()

    def resident(process: psutil.Process) -> int:
        try:
            return process.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            return 0

    def sample() -> None:
        while not stop.wait(every):
            memory.peak = max(memory.peak, sum(resident(p) for p in [me, *me.children(recursive=True)]))

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        stop.set()
        watcher.join()
        unit = 1 if sys.platform == "darwin" else 1024
        memory.peak = max(memory.peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def telling(summary: dict[str, Any]) -> bool:
    """Whether there are episodes and frames enough to conclude anything."""
    return summary["episodes"] >= FLOOR_EPISODES and summary["horizon"] >= FLOOR_FRAMES


def misses(summary: dict[str, Any]) -> list[str]:
    """What the demo should show and does not, in words; empty when it shows everything."""
    tuned, base, copy = (summary[row] for row in ("tuned", "base", "copy_last"))
    checks = {
        f"the tuned model is {OVER_COPY} dB better than the repeated given frame where something moves": tuned[
            "motion_psnr"
        ]
        >= copy["motion_psnr"] + OVER_COPY,
        f"it is {OVER_BASE} dB better than the untuned base there": tuned["motion_psnr"] >= base["motion_psnr"] + OVER_BASE,
        "it is no worse than the repeated frame on the full frame, in PSNR": tuned["psnr"] >= copy["psnr"],
        "it is no worse than the repeated frame on the full frame, in SSIM": tuned["ssim"] >= copy["ssim"],
        f"it follows its actions by {GAP} dB at p < {P_BOUND}": summary["permutation_gap"] >= GAP
        and summary["permutation_p"] < P_BOUND,
    }
    return [claim for claim, holds in checks.items() if not holds]


def verdict(summary: dict[str, Any], story: Story) -> str:
    """What a reader should take from it, in plain words."""
    tuned, base, copy = (summary[row]["motion_psnr"] for row in ("tuned", "base", "copy_last"))
    lines = [
        f"demo: {summary['episodes']} held-out episodes, {summary['horizon']} imagined frames each, "
        f"{summary['seconds']:.0f} s, {summary['peak_rss_mb']} MB",
        f"  motion PSNR: tuned {tuned:.2f} dB, untuned base {base:.2f} dB, repeated given frame {copy:.2f} dB, "
        f"codec ceiling {summary['ceiling']['motion_psnr']:.2f} dB",
        f"  own against other actions: {summary['permutation_gap']:+.2f} dB (p = {summary['permutation_p']:.2g})",
    ]
    if telling(summary):
        lines += [f"  NOT SHOWN: {miss}" for miss in misses(summary)]
    else:
        lines.append("  Too few episodes or frames to conclude anything.")
    if summary["seconds"] > PATIENCE or summary["peak_rss_mb"] > MEMORY:
        lines.append(f"  More than {PATIENCE} s or {MEMORY} MB: is the machine busy?")
    return "\n".join([*lines, f"  open {story.out / 'report' / 'index.html'}"])


def main(argv: Sequence[str] | None = None) -> int:
    default = Story()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=default.out)
    for name in ("episodes", "steps", "horizon", "metaworld"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--recipe", default=default.recipe)
    parser.add_argument("--train", action="append", default=[], metavar="key=value", help="override of the recipe")
    given = vars(parser.parse_args(argv))
    story = Story(**{**given, "train": tuple(given["train"])})
    try:
        summary = tell(story)
    except Failed as failed:
        print(f"demo: stopped; the same command continues, or to start afresh: rm -r {story.out}", file=sys.stderr)
        return failed.code
    print(f"\n{verdict(summary, story)}")
    return 1 if telling(summary) and misses(summary) else 0


if __name__ == "__main__":
    sys.exit(main())
