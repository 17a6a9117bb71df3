"""A policy whose rows are action tokens, made physical by bins: what ``--action-scale`` is for.

source: spec lapa 1.5, 1.6. LAPA's server turned a token out of range into 1.0, a full-scale command; here it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.core.errors import UserError
from worldsim.core.protocols import LearnedPolicy, Policy, SupportsFork
from worldsim.core.types import PolicyNeeds
from worldsim.data.action_bins import ActionBins

TOKEN = "token"
"""The unit of an action entry that is the number of a bin."""


class Scaled:
    """``core.protocols.LearnedPolicy``: another policy's tokens as the middle of their bins, LAPA's own rule."""

    def __init__(self, policy: LearnedPolicy, bins: ActionBins) -> None:
        self.policy, self.bins = policy, bins
        spec = replace(policy.needs.action_spec, names=bins.names, units=("?",) * len(bins.names), gripper=bins.gripper)
        self.needs: PolicyNeeds = replace(policy.needs, action_spec=spec, low=None, high=None)

    def reset(self, seed: int | None = None) -> None:
        self.policy.reset(seed)

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """float32 ``[K, A]``.

        Raises:
            UserError: a token that no bin has.
        """
        tokens = np.asarray(self.policy.act(observation))
        return self.bins.decode(np.rint(tokens).astype(np.int64), "midpoint").astype(np.float32)

    def fork(self) -> Scaled:
        if not isinstance(self.policy, SupportsFork):
            raise TypeError(f"{type(self.policy).__name__} keeps one episode at a time")
        return Scaled(self.policy.fork(), self.bins)  # type: ignore[arg-type]


def scaled(policy: Policy, path: Path, name: str) -> Policy:
    """
    Raises:
        UserError: the policy's rows are no tokens, or the file holds bins of another width.
    """
    needs = getattr(policy, "needs", None)
    if needs is None or set(needs.action_spec.units) != {TOKEN}:
        raise UserError(f"--action-scale {path}: the policy {name} gives actions in physical units, not action tokens")
    read = ActionBins.load_json if path.suffix == ".json" else ActionBins.load_csv
    bins = read(path)
    if len(bins.names) != needs.action_spec.dim:
        raise UserError(f"{path} has bins for {len(bins.names)} entries; the policy {name} gives {needs.action_spec.dim}")
    return Scaled(policy, bins)  # type: ignore[arg-type]
