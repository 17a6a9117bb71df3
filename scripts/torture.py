#!/usr/bin/env python
"""Kill commands with SIGKILL at random moments, let the same command finish, compare every byte with an undisturbed run.

    scripts/torture.py extract-latents finetune-wan rlvr infer --kills 10
    scripts/torture.py convert --kills 3 -- --to lerobot

Each trial has a folder of its own with its own copy of small painted data, so that derived columns are compared as well.
The undisturbed run tells when each phase of the command begins (loading, encoding, training, …). Kills go round the phases;
the moment is drawn within the phase, and every second round waits from there for a file that is being written, so that the
signal comes in the middle of a save. Ranks and other children must go down with the command. Exit 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import painted  # noqa: E402
from worldsim.core import registry  # noqa: E402
from worldsim.core.files import TEMPORARY  # noqa: E402
from worldsim.core.runs import VOLATILE  # noqa: E402

FORMAT = "act-hdf5"
TIMING = ("second", "time", "memory", "gib")
"""Parts of the names of numbers in metrics.jsonl that tell of the machine, not of the run."""
LATE = 25
"""How often a trial may be drawn again because the run ended before the signal came; in the second half of these any moment
of the phase will do, between two files as well."""
EARLIER = 0.8
"""Each further draw is from this share of the time before: the machine may be quicker now than in the undisturbed run."""


SOURCE = "source"
"""What every trial starts from: ``data`` and, where the command needs one, ``model``."""
ORPHAN_SECONDS = 5.0


@dataclass(frozen=True)
class Victim:
    """A command on small data: its words after ``worldsim``, and what it needs.

    ``{data}`` stands for the data's path, ``{model}`` for the run folder that the commands ``before`` make, once for all
    trials; ``{tokenizer}`` for one that only they need.

    Attributes:
        phases: name -> pattern, in a trial's folder, of the first file that shows that the phase has begun.
    """

    words: tuple[str, ...]
    phases: dict[str, str]
    episodes: int = 6
    frames: int = 24
    size: tuple[int, int] = (64, 128)
    before: tuple[tuple[str, ...], ...] = ()


LONGER = (
    "--set",
    "train.steps=200",
    "--set",
    "train.checkpoint_every=20",
    "--set",
    "cache.hop=1",
    "--set",
    "cache.batch=1",
)
EVERY_TENTH = ("--set", "train.steps=80", "--set", "train.checkpoint_every=10")
MODEL = ("finetune-wan", "{data}", "--config", "smoke", "--device", "cpu", "--out", "{model}")
TOKENIZER = ("train", "{data}", "--config", "smoke", "--device", "cpu", "--out", "{tokenizer}")
TOKENS = ("--tokenizer", "{tokenizer}", "--set", "train.steps=40", "--set", "predicted=3")
TOKEN_MODEL = ("train", "{data}", "--config", "token_smoke", *TOKENS, "--device", "cpu", "--out", "{model}")
ROUNDS = ("--set", "iterations=24", "--set", "save_every=3", "--set", "validate.every=4", "--set", "prompts=8")
ALL = ("--episodes", "all", "--set", "max_episodes=null", "--set", "frames=12")
VICTIMS = {
    "convert": Victim(
        ("convert", "{data}", "--to", FORMAT), {"convert": "out/**/*.h5"}, episodes=24, frames=40, size=(120, 160)
    ),
    "extract-latents": Victim(
        ("extract-latents", "{data}", "--extractor", "raw", "--device", "cpu"),
        {"extract": "data/columns/actions/*/*.npy", "finish": "data/columns/actions/*/stats.json"},
        episodes=120,
        size=(32, 32),
    ),
    "train": Victim(
        ("train", "{data}", "--config", "smoke", "--device", "cpu", *EVERY_TENTH),
        {"train": "out/metrics.jsonl", "save": "out/state/step_*"},
    ),
    "finetune-wan": Victim(
        ("finetune-wan", "{data}", "--config", "smoke", "--device", "cpu", *LONGER),
        {"encode": "data/columns/latents/*/*.npy", "train": "out/metrics.jsonl", "save": "out/state/step_*"},
    ),
    "rlvr": Victim(
        ("rlvr", "{data}", "--config", "smoke", "--model", "{model}", "--device", "cpu", *ROUNDS),
        {"encode": "data/columns/tokens/*/*.npy", "train": "out/metrics.jsonl", "save": "out/state/step_*"},
        before=(TOKENIZER, TOKEN_MODEL),
    ),
    "infer": Victim(
        ("infer", "{data}", "--config", "smoke", "--model", "{model}", "--device", "cpu", *ALL),
        {"imagine": "out/inference/*.png", "write": "out/frames/*.npz"},
        before=(MODEL,),
    ),
    "eval-video": Victim(
        ("eval", "video", "{data}", "--config", "smoke", "--model", "copy", "--device", "cpu"), {"score": "out/frames/*"}
    ),
}
WANTED = ("extract-latents", "train", "finetune-wan", "rlvr", "infer")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", help=f"of {', '.join(VICTIMS)} (default {' '.join(WANTED)})")
    parser.add_argument("--kills", type=int, default=10, help="trials of each; each is killed once (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="keep everything here instead of in a temporary folder")
    words = sys.argv[1:] if arguments is None else arguments
    split = words.index("--") if "--" in words else len(words)  # what follows -- goes to the command
    options = parser.parse_args(words[:split])
    options.more = words[split + 1 :]
    options.commands = [name for word in options.commands or WANTED for name in word.split(",")]
    for name in options.commands:
        if name not in VICTIMS:
            parser.error(f"{name} is none of {', '.join(VICTIMS)}")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        return torture_all(options.folder.resolve(), options)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        return torture_all(Path(folder), options)


def torture_all(folder: Path, options: argparse.Namespace) -> int:
    """Every command in turn, then the verdict."""
    bad = {name: torture(folder / name, name, options) for name in options.commands}
    trials = options.kills * len(bad)
    print(f"VERDICT: {trials - sum(bad.values())} of {trials} killed runs ended in the same bytes", flush=True)
    return 1 if any(bad.values()) else 0


def torture(folder: Path, command: str, options: argparse.Namespace) -> int:
    """All trials of one command in ``folder``; prints the table and returns how many differed."""
    victim, draw = VICTIMS[command], random.Random(options.seed)
    make_source(folder / SOURCE, victim)
    undisturbed = Trial(folder, "undisturbed", victim, options.more)
    spans = undisturbed.watch()
    truth = payload(undisturbed.folder)
    times = ", ".join(f"{name} from {begin:.2f} s" for name, (begin, _) in spans.items())
    end = max(stop for _, stop in spans.values())
    print(f"{command}, undisturbed: {len(truth)} payload files; {times}, end at {end:.2f} s", flush=True)
    print(
        "trial  phase      killed after                      left behind                                outcome", flush=True
    )
    bad = 0
    for number in range(options.kills):
        trial, phase, how = killed(folder, number, victim, options.more, draw, spans)
        left = trial.left_behind()
        trial.run()
        differences = compare(truth, payload(trial.folder))
        bad += bool(differences)
        print(f"{number + 1:5d}  {phase:9s}  {how:32s}  {left:42s} {differences or 'equal'}", flush=True)
        if not differences and not options.folder:
            shutil.rmtree(trial.folder)
    print(f"{command}: {options.kills - bad} of {options.kills} killed runs ended in the same bytes", flush=True)
    return bad


Spans = dict[str, tuple[float, float]]
"""Phase -> when it begins and ends, in seconds after the first sign of life."""


def killed(
    folder: Path, number: int, victim: Victim, more: list[str], draw: random.Random, spans: Spans
) -> tuple[Trial, str, str]:
    """A trial that really was killed at work, in which phase, and how. One that ended too early is drawn again."""
    phases = [*list(spans)[1:], next(iter(spans))]  # loading, where nothing is lost yet, comes last
    phase, in_write = phases[number % len(phases)], bool(number // len(phases) % 2)
    length = spans[phase][1] - spans[phase][0]
    for attempt in range(LATE):
        trial = Trial(folder, f"trial-{number + 1}", victim, more)
        after = draw.uniform(0.0, length * EARLIER**attempt)
        how = trial.kill(victim.phases.get(phase), after, in_write and attempt < LATE // 2)
        if how:
            return trial, trial.phase(), how
        shutil.rmtree(trial.folder)
    raise SystemExit(f"{LATE} runs in a row ended before the signal came; the data is too small for this machine")


class Trial:
    """One run of the command in a folder of its own, by relative paths, so that nothing in it depends on its place."""

    def __init__(self, parent: Path, name: str, victim: Victim, more: list[str]) -> None:
        self.folder, self.victim = parent / name, victim
        shutil.copytree(parent / SOURCE, self.folder)
        self.words = [*filled(victim.words), *more, "--out", "out", "--json"]

    @property
    def home(self) -> str:
        """What the environment of every process of this trial has, and of no other's."""
        return str(self.folder / ".home")

    def start(self) -> subprocess.Popen:
        return start(self.words, self.folder, self.home)

    def run(self) -> None:
        """To the end."""
        self._ended_well(self.start())

    def watch(self) -> Spans:
        """To the end; tells when its phases begin and end. The first one, ``load``, begins with the first sign of life."""
        process = self.start()
        began, times = self._first_sign(process), {"load": 0.0}
        while process.poll() is None:
            for phase, pattern in self.victim.phases.items():
                if phase not in times and any(self.folder.glob(pattern)):
                    times[phase] = time.monotonic() - began
            time.sleep(0.002)
        end = time.monotonic() - began
        self._ended_well(process)
        order = sorted(times, key=lambda phase: times[phase])
        return {phase: (times[phase], times[after] if after else end) for phase, after in zip(order, [*order[1:], None])}

    def kill(self, mark: str | None, after: float, in_write: bool) -> str:
        """Kill the whole process group ``after`` seconds into a phase, or then as soon as a file is half-written.

        Args:
            mark: what shows that the phase has begun; None is the first sign of life.

        Returns:
            when it was killed, in words; empty when it had ended before.
        """
        process = self.start()
        began = self._first_sign(process)
        while mark and not any(self.folder.glob(mark)) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(after)
        writing = ""
        while in_write and not writing and process.poll() is None:
            writing = next((p.name for top in ("out", "data") for p in half_written(self.folder / top)), "")
        if process.poll() is not None:
            self._ended_well(process)
            return ""
        at = time.monotonic() - began
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if orphans := self._orphans():
            raise SystemExit(f"{' '.join(self.words)} was killed, but its processes {orphans} go on")
        return f"{at:6.2f} s{', in ' + writing.removeprefix(TEMPORARY)[:20] if in_write else ''}"

    def _ended_well(self, process: subprocess.Popen) -> None:
        if process.wait() != 0:
            log = (self.folder / "log.txt").read_text()[-2000:]
            raise SystemExit(f"{' '.join(self.words)} ended with exit code {process.returncode}:\n{log}")

    def _orphans(self) -> list[int]:
        """Processes of this trial that outlive its end (Linux), after the time that ranks have to notice it."""
        wanted, until = f"WORLDSIM_HOME={self.home}".encode(), time.monotonic() + ORPHAN_SECONDS
        while found := [number for number, told in environments() if wanted in told.split(b"\0")]:
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        return found

    def _first_sign(self, process: subprocess.Popen) -> float:
        while not (self.folder / "out" / "config.yaml").exists() and process.poll() is None:
            time.sleep(0.002)
        return time.monotonic()

    def phase(self) -> str:
        """The last phase that has begun."""
        begun = [name for name, mark in self.victim.phases.items() if any(self.folder.glob(mark))]
        return begun[-1] if begun else "load"

    def left_behind(self) -> str:
        """What the kill left, for the table."""
        files = [p for top in ("out", "data") for p in (self.folder / top).rglob("*") if p.is_file()]
        half = sum(TEMPORARY in str(p.relative_to(self.folder)) for p in files)
        steps = [int(p.name.rpartition("_")[2]) for p in (self.folder / "out" / "state").glob("step_*")]
        at = f", state of step {max(steps)}" if steps else ""
        return f"{len(files) - half} files, {half} half-written{at}"


def start(words: list[str], folder: Path, home: str) -> subprocess.Popen:
    """``worldsim WORDS`` in ``folder``, leader of a process group of its own."""
    command = [sys.executable, "-m", "worldsim.cli.main", *words]
    told = {"WORLDSIM_HOME": home, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=os.environ | told, stdout=log, stderr=log, start_new_session=True)


def environments() -> Iterator[tuple[int, bytes]]:
    """(process id, environment) of the living processes that may be read; none where there is no ``/proc``."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            told, state = (entry / "environ").read_bytes(), (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it ended, or is another user's
            continue
        if state not in "ZX":
            yield int(entry.name), told


def half_written(folder: Path) -> Iterator[Path]:
    """Files and folders that are being written, by their temporary names."""
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files) if TEMPORARY in name)


def filled(words: tuple[str, ...]) -> list[str]:
    return [word.format(data="data", model="model", tokenizer="tokenizer") for word in words]


def make_source(folder: Path, victim: Victim) -> None:
    """What every trial starts from."""
    make_data(folder / "data", victim)
    for words in victim.before:
        process = start(filled(words), folder, str(folder / ".home"))
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(words)} failed:\n{(folder / 'log.txt').read_text()[-2000:]}")
    if victim.before:
        shutil.rmtree(folder / "data" / "columns")


def make_data(folder: Path, victim: Victim) -> None:
    """A painted dataset, written through the format's own writer."""
    options = {"size": victim.size, "cameras": ("cam_front",), "states": True}
    source = painted.PaintedSource(victim.episodes, victim.frames, **options)
    writer = registry.get("formats", FORMAT).create(folder, source.card)
    for index in range(len(source)):
        writer.commit(writer.stage(source.episode(index)))
    writer.finalize(source.card)


def payload(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on a kill: the run's files, its resume state, the data with its columns."""
    found = {}
    for top in ("out", "data", "model"):
        for path in sorted((folder / top).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and path.name not in VOLATILE:
                found[name] = path.read_bytes()
    metrics = folder / "out" / "metrics.jsonl"
    if metrics.exists():
        found["out/metrics.jsonl"] = "\n".join(steady(line) for line in metrics.read_text().splitlines()).encode()
    return found


def steady(line: str) -> str:
    """A row of metrics.jsonl without what tells of the machine."""
    row = {k: v for k, v in json.loads(line).items() if not any(part in k for part in TIMING)}
    return json.dumps(row, sort_keys=True)


def compare(truth: dict[str, bytes], found: dict[str, bytes]) -> str:
    """What differs, in words; empty when nothing does."""
    missing, extra = sorted(truth.keys() - found.keys()), sorted(found.keys() - truth.keys())
    other = sorted(name for name in truth.keys() & found.keys() if truth[name] != found[name])
    groups = {"MISSING": missing, "EXTRA": extra, "OTHER BYTES": other}
    return "; ".join(f"{word} {', '.join(names[:4])} ({len(names)})" for word, names in groups.items() if names)


if __name__ == "__main__":
    sys.exit(main())
