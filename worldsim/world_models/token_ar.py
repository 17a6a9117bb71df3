"""Token world models: frames and actions as one sequence of ids, the future drawn token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.core.errors import UserError
from worldsim.core.registry import register
from worldsim.core.types import ActionSpec
from worldsim.data.token_actions import TokenActions
from worldsim.train import checkpoint
from worldsim.world_models._token_card import TokenCard
from worldsim.world_models._token_layout import Layout
from worldsim.world_models._token_net import NetSpec, TokenNet
from worldsim.world_models._token_rollout import Imagination
from worldsim.world_models._token_sampler import Sampled, sample

CARD = {
    "title": "Autoregressive transformer over frame tokens and action bins (RLVR-World, iVideoGPT)",
    "source": "https://github.com/thuml/RLVR-World",
    "size": "120 M to 127 M parameters as released; the small ones a few million",
    "license": "MIT",
}
TOKENIZER = "tokenizer"
"""Folder inside a checkpoint with a copy of the tokenizer."""


@register("world_models")
class TokenAR:
    """A token world model. See :class:`~worldsim.core.protocols.WorldModel` and ``SupportsLogProb``.

    A single-step model imagines frame by frame with a sliding history; a multi-step model imagines ``predicted`` frames, then
    goes on from the last of them. Fewer given frames than its history (or frames whose actions are unknown) are filled up
    with the first given frame and the first known action, as in training.

    Args:
        net: its transformer. card: its meaning. tokenizer: whose codes it speaks; a command may :meth:`attach` it later.
    """

    def __init__(self, net: TokenNet, card: TokenCard, tokenizer: Any = None, device: str = "cpu") -> None:
        self.net = net.to(device).eval()
        self.card, self.layout = card, card.layout
        self.device = torch.device(device)
        self.bins = TokenActions.from_card(card.bins)
        self.height, self.width, self.fps, self.camera = card.height, card.width, card.fps, card.camera
        self.context_frames = card.layout.history
        self.least_context = 1 if card.short_history else card.layout.history
        self.action_spec: ActionSpec | None = card.action_spec
        self.action_delay, self.train_episodes = card.action_delay, card.train_episodes
        self.past: np.ndarray | None = None
        self.repeats: np.ndarray | None = None
        self.told_repeats: np.ndarray | None = None
        self.tokenizer: Any = None
        if tokenizer is not None:
            self.attach(tokenizer)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> TokenAR:
        """From a run folder or its ``checkpoint/``; without its tokenizer, which ``commands._world.load_world`` attaches.

        Raises:
            UserError: a file or key is missing or unknown.
        """
        folder = Path(folder)
        folder = folder if (folder / checkpoint.CARD).exists() else folder / "checkpoint"
        card = TokenCard.read(folder / checkpoint.CARD)
        tensors = checkpoint.read_weights(folder / checkpoint.WEIGHTS)
        return cls(TokenNet.from_llama({k: v.float() for k, v in tensors.items()}, card.net), card, device=device)

    @classmethod
    def tiny(cls, tokenizer: Any) -> TokenAR:
        """A random twin that speaks the codes of ``tokenizer`` (a twin of that shelf), with two actions."""
        history, predicted = (1, 3) if tokenizer.context_tokens else (2, 1)
        shape = (tokenizer.codes, tokenizer.frame_tokens, tokenizer.context_tokens)
        layout = Layout.clean(*shape, history=history, predicted=predicted, action_tokens=2, action_bins=16)
        spec = NetSpec(layout.vocab, layers=2, width=32, ffn=64, heads=2)
        bins = TokenActions.fit(np.array([[-1.0, -1.0], [1.0, 1.0]]), bins=16, kind="minmax")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = TokenNet(spec)
            for parameter in net.parameters():  # larger than at a training's start, so that actions matter
                torch.nn.init.normal_(parameter, std=0.4) if parameter.ndim > 1 else None
        card = TokenCard(
            layout=layout,
            net=spec,
            tokenizer={"name": tokenizer.card()["tokenizer"], "digest": ""},
            height=tokenizer.height,
            width=tokenizer.width,
            fps=10.0,
            camera="camera",
            context_back=3 if tokenizer.context_tokens else 0,
            action_spec=ActionSpec.unknown(2, 10.0),
            action_delay=0,
            rows_per_frame=1,
            bins=bins.card(),
            short_history=True,
        )
        return cls(net, card, tokenizer)

    @classmethod
    def rollout_memory(cls, folder: Path, batch: int) -> float:
        """GiB that rollouts of ``batch`` clips need: weights, and keys and values of every sample; without the tokenizer."""
        card = TokenCard.read(folder / checkpoint.CARD)
        weights = 4 * card.net.layers * card.net.width * (4 * card.net.width + 3 * card.net.ffn)
        return (weights + batch * Imagination.sequence_bytes(card)) / 2**30

    def attach(self, tokenizer: Any) -> None:
        """Take the tokenizer.

        Raises:
            UserError: its codes or sizes are not those that the model was trained on.
        """
        for key, mine in (
            ("codes", self.layout.codes),
            ("frame_tokens", self.layout.frame_tokens),
            ("context_tokens", self.layout.context_tokens),
            ("height", self.height),
            ("width", self.width),
        ):
            if getattr(tokenizer, key) != mine:
                raise UserError(
                    f"the tokenizer has {key} = {getattr(tokenizer, key)}, the token model was trained with {mine}"
                )
        self.tokenizer = tokenizer

    def set_temperature(self, temperature: float | None = None, top_k: int | None = None) -> None:
        """How the next rollouts are drawn; None keeps the card's, ``top_k`` 0 takes every code."""
        self.card = self.card.with_sampling(temperature, top_k)

    def set_past_actions(self, rows: np.ndarray | None) -> None:
        """Rows ``[B, T0 - 1, r, A]`` between the given frames of the next rollouts; None: unknown, the last frame is used."""
        self.past = None if rows is None else np.asarray(rows)

    def rollout(self, context: Any, actions: Any, *, num_samples: int = 1, seeds: list[int] | None = None) -> np.ndarray:
        """uint8 ``[B, N, n, H, W, 3]``: n frames for n action steps, whatever n. See ``core.protocols.WorldModel``."""
        context, actions = np.asarray(context), np.asarray(actions)
        self._check(context, actions, seeds)
        seeds = list(range(len(context))) if seeds is None else seeds
        past = None if self.past is None else self.bin_rows(self.past)
        imagination = Imagination(self.net, self.card, self._codec(), self.device)
        out = imagination.roll(context, past, self.bin_rows(actions), num_samples, seeds)
        self.repeats = imagination.repeats
        return out

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """The truth through the tokenizer: uint8 ``[B, T, H, W, 3]``, any T >= 1; no model of these codes can do better."""
        imagination = Imagination(self.net, self.card, self._codec(), self.device)
        out = imagination.reconstruct(np.asarray(frames))
        self.told_repeats = imagination.repeats[:, 0]
        return out

    def sample(self, prompt: Tensor, forced: Tensor, n: int, seeds: Sequence[int], *, legal: bool = True) -> Sampled:
        """n responses of each prompt at temperature 1; see ``core.protocols.SupportsLogProb``."""
        return sample(self.net, prompt, forced, self.layout.response, n, seeds, legal=legal)

    def log_probs(self, prompt: Tensor, responses: Tensor, *, legal: bool = True) -> Tensor:
        """float32 ``[P, n, Lr]``, 0 where forced; differentiable."""
        return self.net.log_probs(prompt, responses, self.layout.response, legal=legal)

    def bin_rows(self, rows: np.ndarray) -> Tensor:
        """Physical rows ``[..., r, A]`` as bins, int64 ``[..., r * A]``, on the model's device."""
        flat = self.bins.encode(rows.reshape(-1, rows.shape[-1]))
        return torch.from_numpy(flat.reshape(*rows.shape[:-2], rows.shape[-2] * rows.shape[-1])).to(self.device)

    def _codec(self) -> Any:
        if self.tokenizer is None:
            raise UserError("this token world model has no tokenizer attached", "worldsim infer DATA --model RUN")
        return self.tokenizer

    def _check(self, context: np.ndarray, actions: np.ndarray, seeds: list[int] | None) -> None:
        wanted, spec = (self.height, self.width, 3), self.card.action_spec
        rows = (self.card.rows_per_frame, spec.dim)
        if context.ndim != 5 or context.dtype != np.uint8 or context.shape[2:] != wanted or not context.shape[1]:
            raise UserError(f"the context is {context.dtype} {context.shape}; the model takes uint8 [B, T >= 1, {wanted}]")
        if actions.ndim != 4 or actions.shape[2:] != rows or not actions.shape[1]:
            raise UserError(
                f"the actions are {actions.shape}; the model takes [B, n >= 1, {rows[0]}, {rows[1]}]: "
                f"{rows[0]} rows of {rows[1]} numbers per frame at {self.fps:g} fps"
            )
        if len(actions) != len(context) or (seeds is not None and len(seeds) != len(context)):
            raise UserError(f"{len(context)} contexts, {len(actions)} action sequences and {len(seeds or [])} seeds")
        if self.past is not None and self.past.shape != (len(context), context.shape[1] - 1, *rows):
            raise UserError(
                f"the past actions are {self.past.shape}; {context.shape[1]} given frames have {rows} between them"
            )
