"""Two ways to the same fine-tuning step: ``worldsim finetune-wan``, and a plain loop over diffusers + peft."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor, nn

from worldsim.commands import finetune_wan
from worldsim.core.config import build, load_recipe
from worldsim.core.runs import RunContext
from worldsim.train.tracking import read_rows
from worldsim.world_models import wan
from worldsim.world_models._wan_geometries import Base

WARM = 3
"""Steps that are not counted: kernels are chosen, caches fill."""
RANK = 16
DIM = 7
"""Numbers per action of the painted data."""
PROMPT = "task 0"


@dataclass
class Work:
    """What both arms do. ``size`` is (height, width); ``steps`` are counted steps of one turn."""

    base: Base
    data: Path
    device: str
    size: tuple[int, int]
    frames: int
    batch: int
    steps: int
    samples: int
    checkpointing: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32


@dataclass
class Turn:
    """Seconds per step, the share of it spent waiting for data, and seconds by part."""

    seconds: float
    waited: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)


@contextmanager
def given_base(base: Base) -> Iterator[None]:
    """The command finds these random weights under the model's name."""
    before = finetune_wan.resolve, wan.resolve
    finetune_wan.resolve = wan.resolve = lambda model, revision=None: base
    try:
        yield
    finally:
        finetune_wan.resolve, wan.resolve = before


def ours(work: Work, out: Path, batch: int, steps: int | None = None) -> Turn:
    """``worldsim finetune-wan`` in this process, columns made before or here; its own metrics tell the time."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    count = work.steps if steps is None else steps
    recipe = load_recipe("finetune-wan", "smoke")[1]
    train = {"steps": WARM + count, "batch": batch, "log_every": 1, "checkpoint_every": 10**6, "wandb": False}
    values = {
        **recipe,
        "data": str(work.data),
        "model": work.base.model,
        "frames": work.frames,
        "size": f"{work.size[0]}x{work.size[1]}",
        "history": 1,
        "hidden": None,
        "lora": {"rank": RANK},
        "train": {**recipe["train"], **train, "gradient_checkpointing": work.checkpointing},
        "sampling": {**recipe["sampling"], "steps": work.samples},
    }
    context = RunContext("finetune-wan", out, work.device)
    with given_base(work.base):
        finetune_wan.run(build(finetune_wan.Config, values), context)
    rows = read_rows(out / "metrics.jsonl")[WARM:]
    total = sum(row["seconds"] for row in rows)
    return Turn(total / max(len(rows), 1), sum(row["data_seconds"] for row in rows) / total if total else 0.0)


def imagine(work: Work, run: Path) -> float:
    """Seconds of one rollout of ``frames - 1`` frames from what ``ours`` left; loading and the first rollout not counted."""
    with given_base(work.base):
        model: Any = wan.Wan.load(run, work.device)
    model.set_instructions([PROMPT])
    given = np.zeros((1, 1, *work.size, 3), np.uint8)
    actions = np.zeros((1, work.frames - 1, 1, DIM), np.float32)
    return _second(lambda: model.rollout(given, actions))


def _second(act: Callable[[], object]) -> float:
    act()
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


class Plain:
    """A fine-tuning script as one writes it with diffusers + peft: batch 1; video, VAE and text encoder in the loop.

    The same network, LoRA, conditioner size, loss and optimiser. No EMA, no guidance dropout, no metrics: less than ours does.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.files = sorted((work.data / "episodes").glob("*.h5"))
        self.vae, self.text = work.base.vae(work.device), work.base.text_encoder(work.device)
        self.net = work.base.transformer(work.dtype).to(work.device)
        targets = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
        self.net.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
        if work.checkpointing:
            self.net.enable_gradient_checkpointing()
        width = work.base.geometry.width
        self.actions = nn.Sequential(
            nn.Linear(4 * DIM, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        ).to(work.device)
        self.net.patch_embedding.register_forward_hook(self._add)
        self.drive: Tensor | None = None
        lora = [p for p in self.net.parameters() if p.requires_grad]
        for parameter in lora:
            parameter.data = parameter.data.float()
        self.trained = [*lora, *self.actions.parameters()]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)

    def _add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """The action vector of each latent on all of its tokens."""
        assert self.drive is not None
        return output + self.drive.transpose(1, 2)[..., None, None].to(output.dtype)

    def read(self) -> tuple[np.ndarray, Tensor]:
        """A random clip: frames uint8 ``[1, F, H, W, 3]``, its actions ``[1, F - 1, A]``."""
        with h5py.File(random.choice(self.files)) as file:
            frames, actions = file["observations/images/cam_front"], file["action"]
            start = random.randrange(len(frames) - self.work.frames + 1)
            clip = frames[start : start + self.work.frames]
            return clip[None], torch.from_numpy(actions[start : start + self.work.frames - 1])[None].float()

    def embed(self) -> Tensor:
        """The prompt, zero-padded to the model's tokens, ``[1, L, D]``."""
        own = torch.from_numpy(self.text.encode(PROMPT))[None]
        padded = torch.zeros(1, self.work.base.geometry.text_tokens, own.shape[2])
        padded[:, : own.shape[1]] = own
        return padded.to(self.work.device)

    def predict(self, x: Tensor, sigma: Tensor, text: Tensor, actions: Tensor) -> Tensor:
        """Velocity; the first latent is given and clean, as TI2V's own pipeline tells it: one time per token."""
        latents, height, width = x.shape[2:]
        grouped = self.actions(actions.reshape(1, latents - 1, 4 * DIM))
        self.drive = torch.cat([torch.zeros_like(grouped[:, :1]), grouped], dim=1)
        time = (1000.0 * sigma).expand(1, latents).clone()
        time[:, 0] = 0.0
        time = time.repeat_interleave(height * width // 4, dim=1)
        kind = self.work.dtype
        return self.net(x.to(kind), time, text.to(kind), return_dict=False)[0].float()

    def step(self) -> dict[str, float]:
        """One optimiser step; seconds by part."""
        at = [time.perf_counter()]
        frames, actions = self.read()
        at.append(time.perf_counter())
        x0 = torch.from_numpy(self.vae.encode(frames)).to(self.work.device)
        at.append(time.perf_counter())
        text = self.embed()
        at.append(time.perf_counter())
        noise, sigma = torch.randn_like(x0), torch.sigmoid(torch.randn(1, device=x0.device))
        x = (1 - sigma) * x0 + sigma * noise
        x[:, :, 0] = x0[:, :, 0]
        predicted = self.predict(x, sigma, text, actions.to(self.work.device))
        loss = ((predicted - (noise - x0))[:, :, 1:] ** 2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()
        at.append(time.perf_counter())
        return dict(zip(("read", "vae", "text", "step"), np.diff(at).tolist()))

    def turn(self, steps: int | None = None) -> Turn:
        """A turn of counted steps; what comes before the network's step is waiting, for nothing runs beside it."""
        for _ in range(WARM):
            self.step()
        rows = [self.step() for _ in range(self.work.steps if steps is None else steps)]
        parts = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        total = sum(parts.values())
        return Turn(total, (total - parts["step"]) / total, parts)

    def floor(self) -> Turn:
        """Forward, backward and optimiser of the bare network on one batch that lies in memory: nobody's data, no actions."""
        work, geometry = self.work, self.work.base.geometry
        shape = (
            work.batch,
            geometry.channels,
            1 + (work.frames - 1) // 4,
            *(side // geometry.stride for side in work.size),
        )
        x = torch.randn(shape, device=work.device, dtype=work.dtype)
        text = self.embed().to(work.dtype).expand(work.batch, -1, -1)
        self.drive = torch.zeros(work.batch, shape[2], geometry.width, device=work.device)
        time_ = torch.full((work.batch,), 500.0, device=work.device)

        def step() -> None:
            loss = self.net(x, time_, text, return_dict=False)[0].float().pow(2).mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss.item()

        for _ in range(WARM):
            step()
        began = time.perf_counter()
        for _ in range(work.steps):
            step()
        return Turn((time.perf_counter() - began) / work.steps)

    @torch.no_grad()
    def imagine(self) -> float:
        """Seconds of one rollout of the same frames, encoding the text and the given frame in it; the first not counted."""
        work, geometry = self.work, self.work.base.geometry
        shape = (1, geometry.channels, 1 + (work.frames - 1) // 4, *(side // geometry.stride for side in work.size))
        given, actions = np.zeros((1, 1, *work.size, 3), np.uint8), torch.zeros(1, work.frames - 1, DIM, device=work.device)
        sigmas = torch.linspace(1.0, 0.0, work.samples + 1, device=work.device)
        sigmas = geometry.shift * sigmas / (1 + (geometry.shift - 1) * sigmas)

        def roll() -> None:
            first, text = torch.from_numpy(self.vae.encode(given)).to(work.device)[:, :, 0], self.embed()
            x = torch.randn(shape, device=work.device)
            for now, after in pairwise(sigmas):
                x[:, :, 0] = first
                x = x + (after - now) * self.predict(x, now.view(1), text, actions)
            x[:, :, 0] = first
            self.vae.decode(x)

        return _second(roll)
