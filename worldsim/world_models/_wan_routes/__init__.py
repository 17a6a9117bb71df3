"""Routes: how actions enter a Wan transformer. One file each; docs/routes.md says which to take.

# source: additive and frame-wise adaLN conditioning both beat cross-attention tokens in nano-world-model's ablation
(docs/training.md) and in IRASim; the pooled offset is WorldEval's
"""

from __future__ import annotations

from worldsim.core.errors import UserError, again, did_you_mean
from worldsim.world_models._wan_routes import adaln, patch_add, tokens, worldeval
from worldsim.world_models._wan_routes._route import Injection, Route

ROUTES: dict[str, Route] = {
    "patch-add": patch_add.ROUTE,
    "adaln": adaln.ROUTE,
    "tokens": tokens.ROUTE,
    "worldeval": worldeval.ROUTE,
}

__all__ = ["ROUTES", "Injection", "Route", "find"]


def find(name: str) -> Route:
    """
    Raises:
        UserError: an unknown route; lists those there are.
    """
    if name not in ROUTES:
        near = did_you_mean(name, ROUTES)
        listed = f" The routes are {', '.join(ROUTES)}" if near.endswith("?") else ""
        raise UserError(f"there is no route '{name}'{near}{listed}", again(route="patch-add"))
    return ROUTES[name]
