"""What `rlvr.py` measures: the work that both arms do, the clocks they are measured with, and the arithmetic floor."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from _peak import peak_bytes, reset_peak, resident_bytes
from torch import Tensor

from worldsim.tokenizers.fsq_compressive import FSQCompressive, Spec
from worldsim.world_models._token_layout import Layout
from worldsim.world_models._token_net import NetSpec, TokenNet


@dataclass
class Work:
    """Random weights and random scenes of a geometry.

    Attributes:
        layout, spec: of the model. size: samples per group. frames: predicted.
        prompt: int64 ``[P, Lp]``. forced: ``[P, Lr]``. context: ``[P, Lc]``. given: ``[P, L]``, codes of the last given frame.
        seeds: one per prompt.
    """

    layout: Layout
    spec: NetSpec
    size: int
    frames: int
    dtype: torch.dtype
    prompt: Tensor
    forced: Tensor
    context: Tensor
    given: Tensor
    seeds: list[int]

    @staticmethod
    def make(layout: Layout, spec: NetSpec, size: int, frames: int, prompts: int, dtype: torch.dtype) -> Work:
        draw = torch.Generator().manual_seed(0)
        shape = (prompts, layout.history)
        context = torch.randint(layout.codes, (prompts, layout.context_tokens), generator=draw)
        given = torch.randint(layout.codes, (*shape, layout.frame_tokens), generator=draw)
        rows = layout.history + frames
        actions = torch.randint(layout.action_bins, (prompts, rows, layout.action_tokens), generator=draw)
        prompt = layout.prompt(context, given, actions[:, : layout.history])
        forced = layout.forced(actions[:, layout.history :], frames)
        return Work(layout, spec, size, frames, dtype, prompt, forced, context, given[:, -1], list(range(7, 7 + prompts)))

    @property
    def sampled(self) -> int:
        """Tokens that are drawn, over all samples."""
        return len(self.prompt) * self.size * self.frames * self.layout.frame_tokens

    def net(self) -> TokenNet:
        """The same random weights at every call."""
        torch.manual_seed(1)
        return TokenNet(self.spec).to(self.dtype).eval()


def tokenizer_of(layout: Layout, height: int, width: int, channels: tuple[int, ...]) -> FSQCompressive:
    """A small random tokenizer with the token counts of ``layout``."""
    levels = (7, 5, 5, 5, 5) if layout.codes == 4375 else (3, 5)
    torch.manual_seed(2)
    spec = Spec(channels=channels, resnets=1, groups=4, latent=8, levels=levels, patch=4, heads=2, centre=True, late=True)
    made = FSQCompressive(spec, height, width).eval().requires_grad_(False)
    if (made.codes, made.frame_tokens, made.context_tokens) != (layout.codes, layout.frame_tokens, layout.context_tokens):
        raise ValueError(f"{height}x{width} with {channels} has other token counts than the layout")
    return made


@dataclass
class Meter:
    """Wall and processor seconds, and peak growth of resident memory (MB), per stage."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    grown: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        trim()
        before, known = resident_bytes(), reset_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu
        if known:
            self.grown[name] = max(self.grown.get(name, 0.0), (peak_bytes() - before) / 1e6)

    def add(self, other: Meter, share: float = 1.0) -> None:
        """Take over ``share`` of another meter's times, and its peaks."""
        for mine, theirs in ((self.wall, other.wall), (self.cpu, other.cpu)):
            for name, seconds in theirs.items():
                mine[name] = mine.get(name, 0.0) + share * seconds
        for name, value in other.grown.items():
            self.grown[name] = max(self.grown.get(name, 0.0), value)


def trim() -> None:
    """Give freed memory back, so that a stage is not billed for the one before."""
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def floor_macs(work: Work) -> dict[str, float]:
    """Multiply-adds that cannot be avoided (prompt once per group, samples once, legal ids alone), per stage; decoding apart.

    source: spec 6.2's column "ideal".
    """
    spec, layout = work.spec, work.layout
    groups, size = work.prompt.shape[0], work.size
    linear = spec.layers * (4 * spec.width**2 + 3 * spec.width * spec.ffn)
    prompt, fed = layout.prompt_length, fed_tokens(work)
    pairs = prompt**2 / 2 + size * (fed * prompt + fed**2 / 2)
    forward = (prompt + size * fed) * linear + pairs * 2 * spec.width * spec.layers
    forward += size * work.frames * layout.frame_tokens * spec.width * layout.codes
    return {"sample": groups * forward, "reference": groups * forward, "update": 3 * groups * forward}


def floor_bytes(work: Work) -> float:
    """Bytes that sampling must read from memory, step by step: the weights, each group's prompt once, each sample's own."""
    spec, layout = work.spec, work.layout
    item = torch.finfo(work.dtype).bits / 8
    weights = spec.layers * (4 * spec.width**2 + 3 * spec.width * spec.ffn) + spec.width * layout.codes
    groups, rows, fed = work.prompt.shape[0], work.prompt.shape[0] * work.size, fed_tokens(work)
    cache = 2 * spec.width * spec.layers * (groups * layout.prompt_length + rows * fed / 2)
    return item * (weights + cache) * work.frames * layout.frame_tokens


def fed_tokens(work: Work) -> int:
    """Tokens of a response that go into the network: all before the last generated one."""
    layout = work.layout
    return work.frames * layout.frame_tokens + (work.frames - 1) * layout.action_tokens - 1


def machine_rates(dtype: torch.dtype) -> dict[str, float]:
    """Multiply-adds per second of a large product, and bytes per second of reading, both the best of a few, here."""
    a, rows = torch.randn(1024, 1024).to(dtype), torch.ones(96 * 1024, 1024, dtype=dtype)
    best = {"macs": 0.0, "bytes": 0.0}
    for _ in range(6):
        began = time.perf_counter()
        (a @ a).sum().item()
        best["macs"] = max(best["macs"], 1024**3 / (time.perf_counter() - began))
        began = time.perf_counter()
        torch.mv(rows, a[0])
        best["bytes"] = max(best["bytes"], rows.numel() * rows.element_size() / (time.perf_counter() - began))
    return best


def decode_macs(tokenizer: Any, work: Work, distinct: float) -> float:
    """Multiply-adds of decoding each context once and the distinct share of the frames once."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as opening:
        features = tokenizer.open(work.context[:1])
    with FlopCounterMode(display=False) as decoding:
        tokenizer.pixels(features, work.given[:1, None])
    frames = len(work.prompt) * work.size * work.frames * distinct
    return (opening.get_total_flops() * len(work.prompt) + decoding.get_total_flops() * frames) / 2
