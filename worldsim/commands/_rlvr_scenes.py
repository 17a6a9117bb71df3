"""The scenes that a token model is reinforced on: prompts from columns of tokens, and the true frames that rewards need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldsim.commands._token_windows import TokenWindows
from worldsim.data import cameras, windows
from worldsim.data.transforms import Cover
from worldsim.report.strip import strip
from worldsim.report.video import write_png
from worldsim.rl.groups import Collector, Prompts
from worldsim.rl.step import Shares
from worldsim.train.order import Order, noise_seed

KEPT_BYTES = 2**30
"""True frames are kept in memory, uint8, when all of them together are no larger."""
SHOWN = 3
"""Held-out scenes in the picture of rollouts."""
TRAIN, LOOK = 1, 2
"""Two kinds of scenes, so that their noise differs."""


@dataclass
class Truth:
    """True frames of windows, cut and resized as for the tokenizer; small datasets are decoded once and kept."""

    found: TokenWindows
    kept: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.at = {name: number for number, name in enumerate(self.found.source.ids())}
        height, width = self.found.size
        frames = sum(starts[-1] + self.found.spec.span for starts in self.found.starts.values())
        self.keeps = 3 * height * width * frames <= KEPT_BYTES

    def frames(self, episode: str, start: int) -> np.ndarray:
        """uint8 ``[F, H, W, 3]`` of the window that begins at source frame ``start``."""
        rows = windows.frame_rows(start, self.found.spec)
        if not self.keeps:
            return self._cover().forward(self._stream(episode).rows(rows))
        if episode not in self.kept:
            self.kept[episode] = self._cover().forward(self._stream(episode).read())
        return self.kept[episode][rows]

    def _stream(self, episode: str) -> Any:
        source = self.found.source.episode(self.at[episode])
        return cameras.camera_stream(source, self.found.cut.camera, *self.found.size)

    def _cover(self) -> Cover:
        return Cover(*self.found.size)


@dataclass
class Scenes:
    """Prompts for ``worldsim.rl`` out of windows. Everything about a scene follows from (seed, kind, iteration, place).

    Attributes:
        found: windows of the part of the split that is drawn from. model: a ``TokenAR``, for its layout and action bins.
    """

    found: TokenWindows
    model: Any
    seed: int

    def __post_init__(self) -> None:
        self.truth = Truth(self.found)

    def iteration(self, number: int, shares: Shares, rank: int) -> Prompts:
        """This rank's scenes of an iteration, in the order of ``Shares.numbers``; epochs go through all windows."""
        order = Order(len(self.found), self.seed, shares.own, shares.rounds, rank, shares.world_size)
        indices = [index for round_ in range(shares.rounds) for index in order.indices(number, round_).tolist()]
        return self.prompts(indices, [(TRAIN, number, place) for place in shares.numbers(rank)])

    def spread(self, count: int, rank: int, world_size: int) -> Prompts:
        """This rank's share of ``count`` scenes that lie evenly over all windows: the same at every call."""
        indices = np.linspace(0, len(self.found) - 1, count).round().astype(int)
        places = range(rank, count, world_size)
        return self.prompts([int(indices[place]) for place in places], [(LOOK, 0, place) for place in places])

    def prompts(self, indices: Sequence[int], keys: Sequence[tuple[int, int, int]]) -> Prompts:
        """The windows ``indices``; ``keys`` seed the draw of their context frames and of their noise."""
        layout, history = self.model.layout, self.model.layout.history
        rows, pictures, where, seeds = [], [], [], []
        for index, key in zip(indices, keys):
            rng = np.random.default_rng(noise_seed(self.seed, *key))
            rows.append(self.found.batch([index], rng))
            episode, start = self.found.index[index]
            pictures.append(self.truth.frames(episode, start))
            given = start + (history - 1) * self.found.spec.stride
            where.append(f"episode {episode}, given frame {given}")
            seeds.append(noise_seed(self.seed, *key, 0))
        context, frames, physical = (
            np.concatenate([row[name] for row in rows]) for name in ("context", "frames", "actions")
        )
        bins = self.model.bins.encode(physical.reshape(-1, physical.shape[-1])).reshape(*physical.shape[:2], -1)
        actions, tokens = torch.from_numpy(bins.astype(np.int64)), torch.from_numpy(frames)
        own, clips = torch.from_numpy(context), torch.from_numpy(np.stack(pictures))
        return Prompts(
            prompt=layout.prompt(own, tokens[:, :history], actions[:, :history]),
            forced=layout.forced(actions[:, history:], layout.predicted),
            context=own,
            given=tokens[:, history - 1],
            truth=clips[:, history:],
            last=clips[:, history - 1],
            seeds=seeds,
            where=where,
        )


def only(found: TokenWindows, episodes: Sequence[str]) -> TokenWindows:
    """The windows of some of the episodes."""
    return replace(found, starts={name: found.starts[name] for name in found.starts if name in set(episodes)})


@torch.no_grad()
def draw_rollouts(path: Path, collector: Collector, reference: Any, look: Scenes) -> None:
    """A picture of a few held-out scenes as they were, as the model began, and as it ended, from the same noise."""
    device = collector.policy.net.lm_head.weight.device
    prompts = look.spread(min(SHOWN, len(look.found)), 0, 1).to(device)
    rows: dict[str, Any] = {}
    for number in range(len(prompts)):
        scene = prompts.part(slice(number, number + 1))
        given = scene.last[:, None]
        rows[f"truth {number + 1}"] = torch.cat([given, scene.truth], 1)[0]
        for name, model in (("before", reference), ("after", collector.policy)):
            drawn = model.sample(scene.prompt, scene.forced, 1, scene.seeds, legal=collector.legal)
            tokens = model.layout.frames_of(drawn.tokens.clone(), clamp=not collector.legal)
            frames, _ = collector.decode(scene.context, tokens)
            frames = (frames[0] * 255).round().byte().movedim(-3, -1)
            rows[f"{name} {number + 1}"] = torch.cat([given, frames], 1)[0]
    pictures = {name: frames.cpu().numpy() for name, frames in rows.items()}
    write_png(path, strip(pictures, range(collector.policy.layout.predicted + 1)))
