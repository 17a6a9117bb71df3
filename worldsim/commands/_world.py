"""World models ready for use: a token model is handed its tokenizer, which its own shelf may not import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldsim import tokenizers
from worldsim.core import registry
from worldsim.core.errors import UserError
from worldsim.core.protocols import WorldModel
from worldsim.world_models import SupportsTokenizer, load, located, resolve_checkpoint
from worldsim.world_models.token_ar import TOKENIZER


def load_world(name_or_run: str | Path, device: str = "cpu") -> WorldModel:
    """``world_models.load``, with the tokenizer that lies in the checkpoint's ``tokenizer/`` where the model speaks in codes.

    Raises:
        UserError: as ``world_models.load``; or the tokenizer is missing or another.
    """
    model = load(name_or_run, device)
    if isinstance(model, SupportsTokenizer):
        folder = resolve_checkpoint(located(name_or_run)) / TOKENIZER
        if not folder.is_dir():
            raise UserError(
                f"{folder} is missing: the token model needs its tokenizer", "worldsim train --config token_multi_step"
            )
        model.attach(tokenizers.load(folder, device))
    return model


def tiny_world(name: str, tokenizer: str = "fsq-compressive") -> WorldModel:
    """The random twin of a registered world model, with a tokenizer's twin where it needs one. For tests."""
    plugin: Any = registry.get("world_models", name)
    if issubclass(plugin, SupportsTokenizer):
        return plugin.tiny(registry.get("tokenizers", tokenizer).tiny())
    return plugin.tiny()
