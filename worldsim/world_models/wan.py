"""Wan video models as world models: given frames and actions in, imagined frames out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.core.errors import UserError, again
from worldsim.core.registry import register
from worldsim.core.types import ActionSpec
from worldsim.data.columns import prompt_key
from worldsim.data.stats import stats_of
from worldsim.data.transforms import Normalize
from worldsim.encoders import seeded
from worldsim.encoders.umt5 import clean
from worldsim.encoders.wan_vae import WanVAE, latent_count
from worldsim.train import checkpoint
from worldsim.world_models._wan_card import Sampling, WanCard
from worldsim.world_models._wan_geometries import Base, resolve
from worldsim.world_models._wan_memory import rollout_bytes
from worldsim.world_models._wan_net import NetSpec, WanNet
from worldsim.world_models._wan_rollout import MAX_TOKENS, Imagination

CARD = {
    "title": "Wan 2.1 / 2.2 video diffusion transformers with LoRA and a per-latent action conditioner",
    "source": "https://huggingface.co/Wan-AI",
    "size": "1.4 B to 16 B parameters; the random twins have 35 thousand",
    "license": "Apache-2.0",
    "bases": {
        "wan2.2-ti2v-5b": {"source": "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "size": "5.0 B parameters, 34 GB with encoders"},
        "wan2.1-i2v-14b-480p": {
            "source": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
            "size": "16.4 B parameters, 46 GB with encoders",
        },
        "wan2.1-t2v-1.3b": {"source": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "size": "1.4 B parameters, 15 GB with encoders"},
        "tiny-ti2v": {"source": "worldsim", "size": "random, for tests"},
        "tiny-i2v": {"source": "worldsim", "size": "random, for tests"},
        "tiny-t2v": {"source": "worldsim", "size": "random, for tests"},
    },
}
TEXT = "text."
"""Prefix of prompt embeddings in a checkpoint's weights file."""


@register("world_models")
class Wan:
    """A fine-tuned Wan. See :class:`~worldsim.core.protocols.WorldModel`; also reconstructs, samples as told, reads text.

    History: TI2V and T2V get the given latents clean, at time 0 of their own, inside the sequence (for T2V this is new to
    the base and learned by the LoRA); I2V gets them through its mask and condition channels and CLIP's view of the first.
    """

    def __init__(self, net: WanNet, card: WanCard, base: Base, texts: dict[str, Tensor], device: str) -> None:
        self.net = net.to(device).eval().requires_grad_(False)
        self.card, self.base, self.texts = card, base, texts
        self.device = torch.device(device)
        self.height, self.width, self.fps = card.height, card.width, card.fps
        self.context_frames = card.context_frames
        self.action_spec: ActionSpec | None = card.action_spec
        self.camera, self.action_delay, self.action_column = card.camera, card.action_delay, card.action_column
        self.teacher_forced, self.train_episodes = card.teacher_forced, card.train_episodes
        self.action_dropout = card.action_dropout
        self.instructions: list[str | None] = []

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", merge: bool = False) -> Wan:
        """From a run folder or its ``checkpoint/``.

        Args:
            merge: fold the LoRA into the base weights; faster, not trainable, in bf16 a rounding apart.

        Raises:
            UserError: a file or key is missing or unknown, or the base's weights are not on this machine.
        """
        folder = Path(folder)
        folder = folder if (folder / checkpoint.CARD).exists() else folder / "checkpoint"
        card = WanCard.read(folder / checkpoint.CARD)
        path = folder / checkpoint.WEIGHTS
        return cls.of(card, checkpoint.read_weights(path), str(path), device, merge)

    @classmethod
    def of(cls, card: WanCard, tensors: dict[str, Tensor], source: str, device: str, merge: bool = False) -> Wan:
        """From a card and what training left (LoRA, conditioner, prompts); ``source`` is named in errors."""
        base = resolve(card.base["model"], card.base["revision"])
        texts = {name.removeprefix(TEXT): tensor for name, tensor in tensors.items() if name.startswith(TEXT)}
        if texts.keys() != set(card.prompts.values()):
            raise UserError(f"{source} and its {checkpoint.CARD} disagree about their prompts")
        dtype = torch.bfloat16 if device == "cuda" and card.net.rank else torch.float32
        net = WanNet(base.transformer(dtype), base.geometry, card.net)
        net.load_trained({name: tensor for name, tensor in tensors.items() if not name.startswith(TEXT)}, source)
        if merge:
            net.merge()
        return cls(net, card, base, texts, device)

    @classmethod
    def tiny(cls, model: str = "tiny-ti2v", route: str = "patch-add") -> Wan:
        """A random twin of the same classes, whose LoRA and conditioner are moved from zero so that actions matter."""
        base = resolve(model)
        spec = NetSpec(action_dim=2, rows_per_frame=1, route=route, hidden=16, rank=2, alpha=2.0)
        net = WanNet(base.transformer(), base.geometry, spec)
        seeded(lambda: [torch.nn.init.normal_(p, std=0.2) for p in net.trained().values()])
        card = WanCard(
            base=base.to_json(),
            net=spec,
            height=32,
            width=64,
            fps=10.0,
            frames=9,
            histories=(1, 2),
            camera="camera",
            action_column="raw",
            action_spec=ActionSpec.unknown(2, 10.0),
            action_delay=0,
            normalize=Normalize.of(stats_of([("unit", np.array([[-1.0, -1.0], [1.0, 1.0]]))])),
            sampling=Sampling(steps=2, guidance=1.0, shift=base.geometry.shift),
            prompts={},
        )
        return cls(net, card, base, {}, "cpu")

    @classmethod
    def rollout_memory(cls, folder: Path, batch: int) -> float:
        """GiB of accelerator memory that rollouts of ``batch`` clips need, from ``card.json`` alone."""
        return cls.memory_of(WanCard.read(folder / checkpoint.CARD), batch)

    @staticmethod
    def memory_of(card: WanCard, batch: int) -> float:
        """GiB, as :meth:`rollout_memory`."""
        geometry = resolve(card.base["model"], card.base["revision"]).geometry
        grid = (card.height // geometry.multiple) * (card.width // geometry.multiple)
        tokens = latent_count(card.frames) * grid
        return rollout_bytes(geometry, card.net, tokens, min(batch, max(1, MAX_TOKENS // tokens))) / 2**30

    @cached_property
    def vae(self) -> WanVAE:
        return self.base.vae(str(self.device))

    @cached_property
    def _clip(self) -> Any:
        return self.base.image_encoder(str(self.device))

    def set_sampling(self, steps: int | None = None, guidance: float | None = None) -> None:
        """How the next rollouts are sampled; None keeps the card's. Guidance 1.0 is off: one forward per step."""
        self.card = self.card.with_sampling(steps, guidance)

    @property
    def guidance(self) -> float:
        """Of the next rollouts; 1.0 is off."""
        return self.card.sampling.guidance

    def set_instructions(self, instructions: Sequence[str | None]) -> None:
        """The tasks of the next rollouts' contexts; None reads as no text."""
        self.instructions = list(instructions)

    def rollout(self, context: Any, actions: Any, *, num_samples: int = 1, seeds: list[int] | None = None) -> np.ndarray:
        """uint8 ``[B, N, n, H, W, 3]``: n frames for n action steps, whatever n. See ``core.protocols.WorldModel``."""
        context, actions = np.asarray(context), np.asarray(actions)
        self._check(context, actions, seeds)
        rows = self.card.normalize.forward(actions)
        seeds = list(range(len(context))) if seeds is None else seeds
        text = self._text(len(context))
        imagination = Imagination(self.net, self.card, self.vae, lambda: self._clip, self.device)
        clips = [(b, n) for b in range(len(context)) for n in range(num_samples)]
        out = np.empty((len(context), num_samples, actions.shape[1], self.height, self.width, 3), np.uint8)
        for at in range(0, len(clips), imagination.group):
            group = clips[at : at + imagination.group]
            own = [b for b, _ in group]
            frames = imagination.roll(context[own], rows[own], [(seeds[b], n) for b, n in group], text[own])
            for (b, n), video in zip(group, frames):
                out[b, n] = video
        return out

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """What the codec alone makes of the truth: uint8 ``[B, T, H, W, 3]``, any T >= 1."""
        count = frames.shape[1]
        missing = -(count - 1) % 4
        padded = np.concatenate([frames, np.repeat(frames[:, -1:], missing, axis=1)], axis=1)
        return np.concatenate([self.vae.decode(self.vae.encode(clip[None]))[:, :count] for clip in padded])

    def _check(self, context: np.ndarray, actions: np.ndarray, seeds: list[int] | None) -> None:
        spec, wanted = self.card.net, (self.height, self.width, 3)
        if context.ndim != 5 or context.dtype != np.uint8 or context.shape[2:] != wanted or not context.shape[1]:
            raise UserError(f"the context is {context.dtype} {context.shape}; the model takes uint8 [B, T >= 1, {wanted}]")
        if actions.ndim != 4 or actions.shape[2:] != (spec.rows_per_frame, spec.action_dim) or not actions.shape[1]:
            raise UserError(
                f"the actions are {actions.shape}; the model takes [B, n >= 1, {spec.rows_per_frame}, {spec.action_dim}]: "
                f"{spec.rows_per_frame} rows of {spec.action_dim} numbers per frame at {self.fps:g} fps"
            )
        if len(actions) != len(context) or (seeds is not None and len(seeds) != len(context)):
            raise UserError(f"{len(context)} contexts, {len(actions)} action sequences and {len(seeds or [])} seeds")

    def _text(self, count: int) -> Tensor:
        """Zero-padded prompt embeddings ``[B, L, D]``; what the checkpoint does not hold is encoded here."""
        texts = self.instructions or [self._only_prompt()] * count
        if len(texts) != count:
            raise UserError(f"{len(texts)} instructions were set for {count} contexts")
        tokens, width = self.base.geometry.text_tokens, self.net.transformer.config.text_dim
        out = torch.zeros(count, tokens, width, device=self.device)
        for row, text in enumerate(texts):
            own = self._embedding(clean(text or ""))[:tokens]
            out[row, : len(own)] = own.to(self.device, torch.float32)
        return out

    def _only_prompt(self) -> str:
        """The text a model was trained with when there was one alone; none otherwise."""
        told = [text for text in self.card.prompts if text]
        return told[0] if len(told) == 1 else ""

    def _embedding(self, text: str) -> Tensor:
        key = prompt_key(text)
        if key not in self.texts:
            encoder = self.base.text_encoder(str(self.device))
            self.texts[key] = torch.from_numpy(encoder.encode(text).astype(np.float16))
        return self.texts[key]


def check_size(base: Base, height: int, width: int, frames: int) -> None:
    """Refuse sizes that the model would round or cut silently."""
    latent_count(frames)
    multiple = base.geometry.multiple
    if height % multiple or width % multiple or min(height, width) < multiple:
        near = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
        raise UserError(
            f"size {height}x{width} does not fit {base.geometry.name}: both sides must be multiples of {multiple}; "
            f"the nearest is {near[0]}x{near[1]}",
            again(size=f"{near[0]}x{near[1]}"),
        )
