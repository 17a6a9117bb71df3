"""World modality: a policy that predicts discrete world tokens besides actions, and reads them (arms A, B, C and controls).

Frame -> embedding -> world token -> one transformer -> a chunk of actions and the tokens of the next frames. What each arm may
see is in ``_world_modality_arms``; how it is trained in ``commands._train_world_modality``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldsim.core.errors import UserError
from worldsim.core.protocols import Environment
from worldsim.core.registry import register
from worldsim.core.types import PolicyNeeds
from worldsim.data.transforms import Cover
from worldsim.policies import _world_modality_files as files
from worldsim.policies._world_modality_card import ModalityCard
from worldsim.policies._world_modality_net import ModalityNet, Prediction

CARD = {
    "title": "World modality: actions and discrete world tokens from one transformer (arms A, B, C, …)",
    "source": "https://github.com/charbelsan/world-modality-vla",
    "size": "19 M to 22 M parameters as published; the small ones under one million",
    "license": "Apache-2.0",
}


class WorldTokens(Protocol):
    """What the policy asks of a tokenizer of the shelf ``tokenizers`` (``kmeans``)."""

    codes: int
    frame_tokens: int
    codebook_hash: str

    def embed(self, frames: Any) -> Tensor:
        """uint8 ``[B, H, W, 3]`` -> float16 ``[B, P, d]``."""
        ...

    def assign(self, embeddings: Any) -> Tensor:
        """float16 ``[B, P, d]`` -> int64 ``[B, P]``."""
        ...


@register("policies")
class WorldModality:
    """A trained arm. See :class:`~worldsim.core.protocols.LearnedPolicy`.

    A policy acts on what it was shown last: call :meth:`act` for a chunk, and :meth:`observe` with each frame on which it is
    not asked to act, so that arms that read several frames (``looks_back``) see consecutive ones. Before it has seen C frames
    the first one stands for those before it.

    Args:
        net, card: of one training. tokenizer: whose tokens it speaks; :meth:`attach` it later.

    Attributes:
        needs: see ``PolicyNeeds``. execute: rows of a chunk that :meth:`act` gives, 1 … H.
        last_world: after :meth:`act`, the world token of the frame ``token`` int64 ``[P]``, the likeliest ones of the next
            frames ``future`` int64 ``[K, P]`` (None for an arm that predicts nothing).
        looks_back: whether it reads tokens of frames before the last.
    """

    def __init__(
        self, net: ModalityNet, card: ModalityCard, tokenizer: WorldTokens | None = None, device: str = "cpu"
    ) -> None:
        self.net, self.card, self.device = net.to(device).eval(), card, device
        self.needs: PolicyNeeds = card.needs
        self.execute = card.net.horizon
        self.looks_back = net.arm.history < 0
        self.last_world: dict[str, np.ndarray | None] = {}
        self.tokenizer: WorldTokens | None = None
        if tokenizer is not None:
            self.attach(tokenizer)
        self.reset()

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu", tokenizer: WorldTokens | None = None) -> WorldModality:
        """From a run folder, its ``checkpoint/``, or one epoch's ``logs/model_<arm>_epoch<e>.pt``.

        Raises:
            UserError: a file or key is missing, unknown or damaged; the tokenizer is another one.
        """
        net, card = files.read(Path(folder))
        return cls(net, card, tokenizer, device)

    @classmethod
    def tiny(cls, env: Environment) -> WorldModality:
        """A random twin of C for ``env``, whose actions stay in its box."""
        from worldsim.policies._world_modality_twin import twin

        net, card, tokenizer = twin(env)
        return cls(net, card, tokenizer)

    def attach(self, tokenizer: WorldTokens) -> None:
        """Take the tokenizer.

        Raises:
            UserError: its codebook is not the one that this policy was trained on.
        """
        wanted = self.card.tokenizer["codebook_hash"]
        if tokenizer.codebook_hash != wanted:
            raise UserError(f"the policy speaks the codebook {wanted}, the tokenizer is {tokenizer.codebook_hash}")
        self.tokenizer = tokenizer

    def reset(self, seed: int | None = None) -> None:
        """Forget what was seen. Nothing is drawn at random, so the seed changes nothing."""
        self._seen: list[tuple[Tensor, Tensor, np.ndarray]] = []

    def fork(self) -> WorldModality:
        """Another with the same network and nothing seen yet; both may act in turn."""
        twin = copy.copy(self)
        twin.last_world = {}
        twin.reset()
        return twin

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Remember one observation without acting. A dream's holds all ``frames`` and ``states`` so far: they count instead of
        what was remembered, for a policy that looks back."""
        seen: Sequence[Mapping[str, Any]] = [observation]
        if self.looks_back and "frames" in observation:
            self._seen, seen = [], _so_far(observation, self.card.net.context)
        for one in seen:
            self._seen = [*self._seen, self._look(one)][-self.card.net.context :]

    @torch.no_grad()
    def _look(self, observation: Mapping[str, Any]) -> tuple[Tensor, Tensor, np.ndarray]:
        """Embedding float16 ``[1, P, d]``, token int64 ``[1, P]`` and normalised state of one observation."""
        if self.tokenizer is None:
            raise UserError("this policy has no tokenizer; load it through a command, or attach one")
        embedding = self.tokenizer.embed(self._picture(observation)[None]).cpu()
        return embedding, self.tokenizer.assign(embedding), self._state(observation)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The next ``execute`` actions, float32 ``[execute, A]``, physical units."""
        self.observe(observation)
        batch = self.batch()
        said = self.net.predict(batch)
        future = None if said.logits is None else said.logits[0].argmax(-1).cpu().numpy()
        self.last_world = {"token": batch["tokens"][0, -1].numpy(), "future": future}
        return self.chunks(said)[0][: self.execute]

    def chunks(self, said: Prediction) -> np.ndarray:
        """Predicted actions in physical units, float32 ``[B, H, A]``."""
        return self.card.scaling.actions.inverse(said.actions.cpu().numpy())

    def batch(self) -> dict[str, Tensor]:
        """What was seen last as a batch of one window, as ``PolicyWindows.batch`` gives it (without a future)."""
        lacking = self.card.net.context - len(self._seen)
        rows = [self._seen[0]] * lacking + self._seen
        embeddings, tokens, states = zip(*rows)
        return {
            "states": torch.from_numpy(np.stack(states))[None],
            "tokens": torch.stack(tokens, 1),
            "embeddings": torch.stack(embeddings, 1).float(),
        }

    def _picture(self, observation: Mapping[str, Any]) -> np.ndarray:
        """uint8 ``[H, W, 3]``: the camera it was trained on, or several stacked as in training."""
        shown = observation["pixels"]
        for name in self.card.cameras:
            if name not in shown:
                raise UserError(f"the policy sees a camera '{name}'; here are {', '.join(sorted(shown)) or 'none'}")
        frames = [np.asarray(shown[name], np.uint8) for name in self.card.cameras]
        if len(frames) == 1:
            return frames[0]
        cover = Cover(*next(iter(self.card.cameras.values())))
        return np.concatenate([cover.forward(frame[None])[0] for frame in frames])

    def _state(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Normalised, float32 ``[S]``; S = 0 for a policy that reads none."""
        scaling = self.card.scaling.states
        if scaling is None:
            return np.zeros(0, np.float32)
        if "agent_pos" not in observation:
            raise UserError(f"the policy reads a state of {scaling.dim} numbers (agent_pos); the observation has none")
        state = np.asarray(observation["agent_pos"])
        if state.shape != (scaling.dim,):
            raise UserError(f"the policy reads a state of {scaling.dim} numbers; the observation's is {state.shape}")
        return scaling.forward(state)


def _so_far(observation: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The last ``count`` observations of a dream, from what it has shown so far."""
    frames, states = observation["frames"], observation.get("states")
    total = len(next(iter(frames.values())))
    return [
        {
            "pixels": {name: views[at] for name, views in frames.items()},
            **({} if states is None else {"agent_pos": states[at]}),
        }
        for at in range(max(0, total - count), total)
    ]
