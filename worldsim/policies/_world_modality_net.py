"""The network of a world-modality policy: one sequence of observation, world, future and action tokens through one encoder.

::

    A   [OBS] [ACT 1..H]                                     1 + H
    B   [OBS] [FUT 1..K] [ACT 1..H]                          1 + K + H
    C   [OBS] [WORLD_CUR] [FUT 1..K] [ACT 1..H]              2 + K + H     C_hist: C world tokens instead of one

(for P > 1 positions per frame OBS, WORLD and each FUT are P tokens). OBS sees the last context frame only:
``position + W_img e_t + W_state s_t``. Attention is bidirectional; positions are learned and begin at 0, queries at N(0, 0.02).
# source: world-modality-vla@7b3d6e7:world_modality/model.py
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldsim.core.errors import UserError
from worldsim.policies._world_modality_arms import arm
from worldsim.policies._world_modality_blocks import Encoder, Looking, Memory, Rows
from worldsim.policies._world_modality_sizes import NetSpec, Segments, length

LEAST = 4
"""A smaller batch is filled up with copies while evaluating on a CPU: products of one row are rounded otherwise."""


class Prediction(NamedTuple):
    """What a network says of a batch.

    Attributes:
        actions: float32 ``[B, H, A]``, normalised. logits: float32 ``[B, K, P, N]``; None for an arm that predicts nothing.
        attention: float32 ``[B]``, the share of the action tokens' attention that goes to world input, averaged over heads and
            layers; None unless asked for, and 0 for an arm without such input.
    """

    actions: Tensor
    logits: Tensor | None
    attention: Tensor | None = None


class ModalityNet(nn.Module):
    """See the module's docstring. Weights follow from ``seed`` and a parameter's name: arms begin alike where they are alike."""

    image_shift: Tensor
    image_scale: Tensor

    def __init__(self, spec: NetSpec, seed: int = 0) -> None:
        super().__init__()
        self.spec, self.segments, self.arm = spec, Segments.of(spec), arm(spec.arm)
        d, at = spec.d_model, self.segments
        self.encoder = Encoder(d, spec.layers, spec.heads, spec.inner, spec.dropout, spec.pre_norm)
        self.image = Rows(spec.image_dim, d)
        self.state = Rows(spec.state_dim, d) if spec.state_dim else None
        self.obs_position = nn.Parameter(torch.zeros(length(at.obs), d))
        self.act_query = nn.Parameter(torch.zeros(spec.horizon, d))
        self.action_head = Rows(d, spec.action_dim)
        if self.arm.history:
            self.world = nn.Embedding(spec.codes, d)
            self.world_position = nn.Parameter(torch.zeros(length(at.world), d))
            if spec.world_dropout:
                self.world_absent = nn.Parameter(torch.zeros(d))
        if self.arm.predicts:
            self.future_query = nn.Parameter(torch.zeros(length(at.future), d))
            self.world_head = Rows(d, spec.codes)
        if self.arm.memory != "none":
            self.memory = Memory(d, spec.heads)
            self.memory_position = nn.Parameter(torch.zeros(length(at.future), d))
        if spec.tie_head:
            self.world_head.weight = self.world.weight
        self.register_buffer("image_shift", torch.zeros(spec.image_dim))
        self.register_buffer("image_scale", torch.ones(spec.image_dim))
        self._begin(seed)

    @torch.no_grad()
    def _begin(self, seed: int) -> None:
        """Queries and untied tokens ~ N(0, 0.02) and N(0, 1), products Xavier-uniform, the rest 0 (norms 1)."""
        for name, parameter in self.named_parameters():
            words = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            draw = torch.Generator().manual_seed(int.from_bytes(words[:7], "little"))
            if name == "world.weight":
                parameter.normal_(0.0, 0.02 if self.spec.tie_head else 1.0, generator=draw)
            elif name.endswith("_query") or name == "world_absent":
                parameter.normal_(0.0, 0.02, generator=draw)
            elif parameter.ndim > 1 and not name.endswith("_position"):
                nn.init.xavier_uniform_(parameter, generator=draw)
            elif name.endswith(".bias"):
                parameter.zero_()

    @property
    def reads_world(self) -> bool:
        """Whether it has world tokens as input; interventions on them change nothing otherwise."""
        return bool(self.arm.history)

    @property
    def reads_future(self) -> bool:
        """Whether its actions attend to a future: its own prediction (C_pred) or the true one (C_oracle)."""
        return self.arm.memory != "none"

    def forward(
        self,
        states: Tensor,
        embeddings: Tensor,
        tokens: Tensor,
        future_tokens: Tensor | None = None,
        *,
        block_world: bool = False,
        zero_world: bool = False,
        zero_future: bool = False,
        looking: Looking | None = None,
    ) -> Prediction:
        """
        Args:
            states: float32 ``[B, C, S]``, normalised. embeddings: float32 ``[B, C, P, d]``, as the encoder gave them.
            tokens: int64 ``[B, C, P]``, the last of frame t.
            future_tokens: int64 ``[B, K, P]``: the memory of C_oracle, and of C_pred instead of its own prediction.
            block_world: nothing may attend to WORLD_CUR. zero_world: its embedding is 0. zero_future: the memory is 0.
        """
        at = self.segments
        parts = [self._observation(states, embeddings)]
        if self.arm.history:
            parts.append(self._world(tokens, zero_world))
        if self.arm.predicts:
            parts.append(self.future_query.expand(len(states), -1, -1))
        fixed, act = torch.cat(parts, 1), self.act_query.expand(len(states), -1, -1)
        mask = self._mask(block_world, states.device)
        hidden = self.encoder(torch.cat([fixed, act], 1), mask, looking)
        logits = self._logits(hidden[:, at.future]) if self.arm.predicts else None
        if logits is not None and self.arm.memory != "none":
            memory = self._memory(logits, future_tokens, zero_future)
            act = self.memory(hidden[:, at.act], act, memory)
            hidden = self.encoder(torch.cat([fixed, act], 1), mask, looking)
        return Prediction(self.action_head(hidden[:, at.act]), logits, looking and looking.mean())

    def _observation(self, states: Tensor, embeddings: Tensor) -> Tensor:
        image = self.image((embeddings[:, -1] - self.image_shift) / self.image_scale)
        own = self.obs_position + image
        return own if self.state is None else own + self.state(states[:, -1:])

    def _world(self, tokens: Tensor, zero: bool) -> Tensor:
        """``[B, frames * P, D]``, oldest frame first."""
        frames = self.spec.context if self.arm.history < 0 else self.arm.history
        embedded = self.world(tokens[:, -frames:].flatten(1))
        if zero:
            embedded = torch.zeros_like(embedded)
        if self.training and self.spec.world_dropout:
            gone = torch.rand(len(tokens), 1, 1, device=tokens.device) < self.spec.world_dropout
            embedded = torch.where(gone, self.world_absent, embedded)
        return embedded + self.world_position

    def _mask(self, block_world: bool, device: torch.device) -> Tensor | None:
        """Bool ``[L, L]``, True where a query may look; None where all may."""
        at = self.segments
        if not self.arm.history or not (block_world or self.spec.block_act_to_world):
            return None
        mask = torch.ones(at.total, at.total, dtype=torch.bool, device=device)
        if self.spec.block_act_to_world:
            mask[at.act, at.world] = False
        if block_world:
            mask[:, at.world] = False
            mask[at.world, at.world] = True
        return mask

    def _logits(self, hidden: Tensor) -> Tensor:
        """``[B, K, P, N]`` of ``[B, K * P, D]``."""
        scale = self.spec.d_model**-0.5 if self.spec.tie_head else 1.0
        return (self.world_head(hidden) * scale).unflatten(1, (self.spec.future, self.spec.positions))

    def _memory(self, logits: Tensor, future_tokens: Tensor | None, zero: bool) -> Tensor:
        """What the actions attend to, ``[B, K * P, D]``: soft embeddings ``softmax(logits) E``, or those of given tokens."""
        if zero:
            return self.memory_position.expand(len(logits), -1, -1)
        if future_tokens is not None:
            return self.world(future_tokens.flatten(1)) + self.memory_position
        if self.arm.memory == "true":
            raise UserError(
                f"the arm {self.spec.arm} reads the true future, which only a recording has; it cannot act",
                "worldsim eval offline DATA --model RUN",
            )
        return logits.softmax(-1).flatten(1, 2) @ self.world.weight + self.memory_position

    @torch.no_grad()
    def predict(
        self,
        batch: dict[str, Tensor],
        *,
        cur_tokens: Tensor | None = None,
        future_tokens: Tensor | None = None,
        embeddings: Tensor | None = None,
        block_world: bool = False,
        zero_world: bool = False,
        zero_future: bool = False,
        attention: bool = False,
    ) -> Prediction:
        """Evaluate windows, the same bits for a window in any batch (on a CPU), with or without an intervention.

        Interventions on an input that an arm does not have change nothing (``reads_world``, ``reads_future``).

        Args:
            batch: of ``PolicyWindows.batch``; C_oracle needs its ``future_tokens``, no other arm sees them.
            cur_tokens: int64 ``[B, C, P]`` to read instead of the true ones.
            future_tokens: int64 ``[B, K, P]`` for the memory of C_pred and C_oracle instead of the predicted or true ones.
            embeddings: float32 ``[B, C, P, d]`` to see instead of the true ones.
            block_world, zero_world, zero_future: see :meth:`forward`.
            attention: also say how much the actions look at the world input; slower.
        """
        was, device = self.training, self.act_query.device
        memory = batch.get("future_tokens") if self.arm.memory == "true" else None
        inputs = {
            "states": batch["states"],
            "embeddings": batch["embeddings"] if embeddings is None else embeddings,
            "tokens": batch["tokens"] if cur_tokens is None else cur_tokens,
            "future_tokens": memory if future_tokens is None else future_tokens,
        }
        count = len(batch["states"])
        filled = {name: _filled(part, device) for name, part in inputs.items() if part is not None}
        switches = {"block_world": block_world, "zero_world": zero_world, "zero_future": zero_future}
        looking = Looking(self.segments.act, self.segments.world) if attention else None
        self.eval()
        try:
            said = self(**filled, **switches, looking=looking)
        finally:
            self.train(was)
        return Prediction(*(None if part is None else part[:count] for part in said))


def _filled(part: Tensor, device: torch.device) -> Tensor:
    """On the device, and at least :data:`LEAST` rows on a CPU."""
    lacking = LEAST - len(part) if device.type == "cpu" else 0
    whole = torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])]) if lacking > 0 else part
    return whole.to(device)


def parameters(spec: NetSpec) -> int:
    """How many numbers a network has to learn."""
    with torch.device("meta"):
        return sum(p.numel() for p in _Counted(spec).parameters())


def matched(spec: NetSpec) -> NetSpec:
    """The same with feed-forward layers as wide as gives as many parameters as C has, to the nearest; arms that are not widened
    stay as they are."""
    if not arm(spec.arm).widened:
        return spec
    missing = parameters(replace(spec, arm="C")) - parameters(spec)
    return replace(spec, inner=spec.inner + max(0, round(missing / (spec.layers * (2 * spec.d_model + 1)))))


class _Counted(ModalityNet):
    """A network that is only counted."""

    def _begin(self, seed: int) -> None:
        pass
