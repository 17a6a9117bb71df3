"""World models whose answers are known beforehand, and a dataset on disk to try them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests import painted
from worldsim.commands import eval_video, infer
from worldsim.core import registry
from worldsim.core.config import build, load_recipe
from worldsim.core.runs import RunContext
from worldsim.core.types import ActionSpec, Result


def write_painted(folder: Path, num_episodes: int = 6, num_frames: int = 14, size: tuple[int, int] = (64, 128), **options):
    """A painted dataset in WorldEval's tree (episode k has ``num_frames + k`` frames). Returns ``folder``."""
    source = painted.PaintedSource(num_episodes, num_frames, size=size, **options)
    writer = registry.get("formats", "act-hdf5").create(folder, source.card)
    for index in range(num_episodes):
        writer.commit(writer.stage(source.episode(index)))
    writer.finalize(source.card)
    return folder


class Echo:
    """Paints into frame k the number of the frame that the k-th action step leads to, so any slip in time shows.

    ``actions[t][0] == t`` in a painted episode: the last row of a step leads to frame ``t + 1``. The picture is the given
    one, moved on by the same smooth pattern; with the right actions the future is exact.
    """

    def __init__(self, spec: ActionSpec | None = None, size: tuple[int, int] = (64, 128), fps: float = 10.0) -> None:
        self.height, self.width = size
        self.fps, self.context_frames, self.action_spec, self.action_delay = fps, 3, spec, 0
        self.calls: list[dict] = []

    def rollout(self, context, actions, *, num_samples: int = 1, seeds=None) -> np.ndarray:
        self.calls.append({"context": np.asarray(context), "actions": np.asarray(actions), "seeds": list(seeds)})
        out = np.empty((len(context), num_samples, actions.shape[1], *context.shape[2:]), np.uint8)
        for b in range(len(context)):
            episode = painted.read_index(context[b, -1]) // 1000
            for k in range(actions.shape[1]):
                t = round(float(actions[b, k, -1, 0])) + 1
                out[b, :, k] = painted.paint(1000 * episode + t, self.height, self.width, 0, episode)
        return out


class Noisy:
    """The given frame plus noise that depends on (seed, sample) alone; deaf to actions."""

    height = width = 0
    fps = 0.0
    context_frames = 1
    action_spec = None

    def rollout(self, context, actions, *, num_samples: int = 1, seeds=None) -> np.ndarray:
        n = actions.shape[1]
        out = np.empty((len(context), num_samples, n, *context.shape[2:]), np.uint8)
        for b, seed in enumerate(seeds):
            for s in range(num_samples):
                noise = np.random.default_rng((seed, s)).integers(-9, 10, out.shape[2:])
                out[b, s] = np.clip(context[b, -1].astype(int) + noise, 0, 255)
        return out

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """A codec of five bits per channel."""
        return frames & 0xF8 | 4


def run_infer(
    out: Path, data: Path, model: str = "echo", recipe: str = "smoke", seed: int = 0, **values
) -> tuple[Result, RunContext]:
    return _run(infer, "infer", out, data, model, recipe, seed, values)


def run_eval(
    out: Path, data: Path, model: str = "echo", recipe: str = "smoke", seed: int = 0, **values
) -> tuple[Result, RunContext]:
    return _run(eval_video, "eval-video", out, data, model, recipe, seed, values)


def _run(module, command, out, data, model, recipe, seed, values):
    _, base = load_recipe(command, recipe)
    config = build(module.Config, {**base, "data": str(data), "model": model, "max_episodes": None, **values})
    out.mkdir(parents=True, exist_ok=True)
    context = RunContext(command, out, seed=seed)
    return module.run(config, context), context
