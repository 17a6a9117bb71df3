"""A tiny token model with a tiny tokenizer's twin, and scenes for them, for tests of reinforcement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim import rewards
from worldsim.core import registry
from worldsim.rl.groups import Collector, Prompts
from worldsim.train.order import noise_seed
from worldsim.world_models._token_layout import Layout
from worldsim.world_models._token_net import NetSpec, TokenNet
from worldsim.world_models._token_sampler import Sampled, sample

PREDICTED, ACTIONS, BINS = 3, 2, 8


@dataclass
class Policy:
    """The least that ``SupportsLogProb`` asks for, over the real network and sampler."""

    net: TokenNet
    layout: Layout

    def sample(self, prompt: Tensor, forced: Tensor, n: int, seeds: Sequence[int], *, legal: bool = True) -> Sampled:
        return sample(self.net, prompt, forced, self.layout.response, n, seeds, legal=legal)

    def log_probs(self, prompt: Tensor, responses: Tensor, *, legal: bool = True) -> Tensor:
        return self.net.log_probs(prompt, responses, self.layout.response, legal=legal)


def policy(codec: Any, seed: int = 0) -> Policy:
    history = 1 if codec.context_tokens else 2
    sizes = (codec.codes, codec.frame_tokens, codec.context_tokens)
    layout = Layout.clean(*sizes, history, PREDICTED, ACTIONS, BINS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = TokenNet(NetSpec(layout.vocab, 2, 32, 64, 2))
        for parameter in net.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return Policy(net.eval(), layout)


class Cells:
    """A codec without weights: each token is the grey value of one cell of the picture. Quick to build, exact to check."""

    codes, frame_tokens, context_tokens, height, width = 16, 4, 3, 8, 8
    grid = (2, 2)

    def open(self, context: Tensor) -> Tensor:
        return context.float().mean(1) / self.codes

    def pixels(self, features: Tensor, tokens: Tensor) -> Tensor:
        grey = (tokens.float() / (self.codes - 1)).view(*tokens.shape[:2], 1, 2, 2)
        shade = 0.9 * grey + 0.1 * features[:, None, None, None, None]
        return shade.repeat_interleave(4, 3).repeat_interleave(4, 4).expand(-1, -1, 3, -1, -1)

    def encode_context(self, frames: Tensor) -> Tensor:
        return self.encode(frames[:, None], None)[:, 0, :3]

    def encode(self, frames: Tensor, context: Tensor | None) -> Tensor:
        cells = frames.float().mean(-1).unflatten(-1, (2, 4)).unflatten(-3, (2, 4)).mean((-3, -1))
        return (cells / 255 * (self.codes - 1)).round().long().flatten(-2)


def codec(name: str = "fsq-compressive") -> Any:
    return registry.get("tokenizers", name).tiny()


def scenes(model: Policy, tokenizer: Any, numbers: Sequence[int], seed: int = 0) -> Prompts:
    """Scenes by number: the same one whatever it is drawn with."""
    layout, rows = model.layout, []
    frames = layout.history + PREDICTED
    for number in numbers:
        generator = torch.Generator().manual_seed(noise_seed(seed, number))
        clip = torch.randint(0, 256, (1, frames, 1, 1, 3), generator=generator)
        ramp = torch.linspace(0, 60, tokenizer.width).long()[:, None]
        clip = (
            (clip + ramp).clamp(0, 255).to(torch.uint8).expand(1, frames, tokenizer.height, tokenizer.width, 3).contiguous()
        )
        context = tokenizer.encode_context(clip[:, 0])
        tokens = tokenizer.encode(clip, clip[:, 0] if layout.context_tokens else None)
        actions = torch.randint(0, BINS, (1, frames - 1, ACTIONS), generator=generator)
        prompt, response = layout.split(layout.sequence(context, tokens, actions))
        given = tokens[:, layout.history - 1]
        rows.append((prompt, response, context, given, clip[:, layout.history :], clip[:, layout.history - 1]))
    tensors = [torch.cat(parts) for parts in zip(*rows)]
    seeds = [noise_seed(seed, 7, number) for number in numbers]
    return Prompts(*tensors, seeds, [f"episode {number}, frame 3" for number in numbers])


def collector(model: Policy, tokenizer: Any, reward: str = "mse", size: int = 4, **changes: Any) -> Collector:
    return Collector(model, changes.pop("reference", None), tokenizer, rewards.load(reward), size, **changes)
