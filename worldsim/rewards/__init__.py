"""Rewards: each file holds one, a pure function of decoded frames, the truth and the tokens that were drawn.

``reward(prediction, truth, tokens, last, given=None) -> float32 [P, n, F]``, one value per predicted frame, higher is better,
and at its maximum (``best`` in the ``CARD``) when the prediction is the truth. Shapes as in ``worldsim.rl``:

- ``prediction``: float32 ``[P, n, F, 3, H, W]`` in 0..1. Equal tokens within a group mean equal pictures.
- ``truth``: float32 ``[P, F, 3, H, W]``; ``last``: the last given frame, ``[P, 3, H, W]``. Their features are computed once
  per group.
- ``tokens``: int64 ``[P, n, F, L]``, codes of the predicted frames; ``given``: ``[P, L]``, those of the last given frame in
  the same code, where it has any.

A reward is a function, or a class when it needs weights: ``load`` builds it, ``unavailable`` says what is missing. Several
add up: ``mae+lpips``, ``0.5*mse+repetition`` (:func:`parse`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldsim.core import registry
from worldsim.core.errors import UserError, again
from worldsim.rewards._cells import PIXELWISE, cells

Reward = Callable[..., Tensor]
EXAMPLE = again(reward="0.5*mse+repetition")


class Combined:
    """A weighted sum of rewards; :meth:`parts` keeps them apart for the records."""

    def __init__(self, terms: list[tuple[float, str, Reward]]) -> None:
        self.terms = terms

    @property
    def names(self) -> list[str]:
        return [name for _, name, _ in self.terms]

    def parts(
        self, prediction: Tensor, truth: Tensor, tokens: Tensor, last: Tensor, given: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Name -> ``[P, n, F]``, unweighted."""
        return {name: reward(prediction, truth, tokens, last, given) for _, name, reward in self.terms}

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum of :meth:`parts`, ``[P, n, F]``."""
        weighted = [weight * parts[name] for weight, name, _ in self.terms]
        return sum(weighted[1:], start=weighted[0])

    def cells(
        self, parts: dict[str, Tensor], prediction: Tensor, truth: Tensor, last: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """The weighted sum with each token's own share of what is a sum over pixels (:mod:`worldsim.rewards._cells`) and the
        whole of everything else, ``[P, n, F, L]``.

        Args:
            parts: from :meth:`parts`. grid: rows and columns of a frame's tokens.
        """
        total = torch.zeros(*prediction.shape[:3], grid[0] * grid[1], device=prediction.device)
        for weight, name, _ in self.terms:
            own = cells(name, prediction, truth, last, grid) if name in PIXELWISE else parts[name][..., None]
            total = total + weight * own
        return total

    def __call__(
        self, prediction: Tensor, truth: Tensor, tokens: Tensor, last: Tensor, given: Tensor | None = None
    ) -> Tensor:
        return self.total(self.parts(prediction, truth, tokens, last, given))


def parse(text: str) -> list[tuple[float, str]]:
    """``0.5*mse+repetition`` -> ``[(0.5, "mse"), (1.0, "repetition")]``; names are checked, nothing is loaded.

    Raises:
        UserError: no such reward, a weight that is no positive number, or a reward that is named twice.
    """
    terms: list[tuple[float, str]] = []
    for term in text.split("+"):
        weight, times, name = term.rpartition("*")
        name = name.strip().replace("_", "-")
        try:
            factor = float(weight) if times else 1.0
        except ValueError:
            factor = -1.0
        if not 0 < factor < float("inf"):
            raise UserError(f"--reward {text}: the weight '{weight.strip()}' is not a positive number", EXAMPLE)
        if not name:
            raise UserError(
                f"--reward {text}: a name is missing" + (f" after '{weight.strip()}*'" if times else ""), EXAMPLE
            )
        if registry.card("rewards", name) is None:
            known = ", ".join(registry.names("rewards"))
            raise UserError(f"--reward {text}: there is no reward '{name}'; known: {known}", EXAMPLE)
        if name in [other for _, other in terms]:
            raise UserError(f"--reward {text}: '{name}' is named twice", EXAMPLE)
        terms.append((factor, name))
    return terms


def load(text: str, device: str = "cpu") -> Combined:
    """The reward that ``text`` describes, with its weights on ``device``.

    Raises:
        UserError: as :func:`parse`, or weights are missing; the sentence says how to get them.
    """
    return Combined([(weight, name, _build(name, device)) for weight, name in parse(text)])


def unavailable(name: str) -> str | None:
    """Why ``name`` cannot be computed on this machine and how to change that, in one line; None when it can."""
    ask = getattr(registry.get("rewards", name), "unavailable", None)
    return ask() if ask is not None else None


def _build(name: str, device: str) -> Reward:
    plugin: Any = registry.get("rewards", name)
    if not isinstance(plugin, type):
        return plugin
    missing = unavailable(name)
    if missing:
        raise UserError(f"the reward {missing}", "worldsim rlvr DATA --model RUN --reward mae+perceptual")
    return plugin(device)  # type: ignore[call-arg]
