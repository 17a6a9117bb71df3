"""Backbones of transformers: loaded with their own classes and processors, from a repository or a folder.

A model whose file lacks a weight is refused: ``from_pretrained`` would draw it at random with a warning.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from worldsim.core import registry
from worldsim.core.errors import UserError, again
from worldsim.core.files import folder_digest
from worldsim.encoders import seeded
from worldsim.encoders._preparation import Preparation
from worldsim.encoders._vision import Features, VisionEncoder

FAMILIES = {"dinov2": "dinov2", "vjepa2": "vjepa2", "siglip": "siglip", "siglip_vision_model": "siglip"}
"""``model_type`` of a config -> who reads it; any other is read by ``hf-vision``."""

UNKNOWN = "unknown"
"""Revision of a repository that does not tell its commit."""


class HFEncoder(VisionEncoder):
    """A vision transformer of transformers: patches are the last tokens, what stands before them is a class token (and
    registers).

    Attributes:
        Model: its class, by name. Processor: its processor's class, by name. REPO: what its registered name stands for.
    """

    Model: ClassVar[str] = "AutoModel"
    Processor: ClassVar[str] = "AutoImageProcessor"
    REPO: ClassVar[str] = ""
    name = "hf-vision"

    def __init__(self, module: Any, preparation: Preparation, source: str, revision: str) -> None:
        super().__init__()
        self.module, self.preparation = module.eval().requires_grad_(False), preparation
        self.source, self.revision = source, revision
        height, width = preparation.input
        patch = self._patch(module.config)
        self.grid, self.dim = (height // patch, width // patch), int(module.config.hidden_size)
        with torch.no_grad():
            told = self._told(torch.zeros(1, 3, height, width))
        self.summary_dim = 0 if told.summary is None else told.summary.shape[-1]

    @classmethod
    def create(cls, revision: str | None = None) -> VisionEncoder:
        """What the registered name stands for."""
        return load(cls.REPO, revision)

    @classmethod
    def read(cls, text: str, commit: str | None) -> Self:
        """From a repository or a folder.

        Raises:
            UserError: not there, damaged, or without some of its weights.
        """
        import transformers

        if not sys.stderr.isatty():
            transformers.utils.logging.disable_progress_bar()
        where = {"revision": commit} if commit else {}
        try:
            module, told = getattr(transformers, cls.Model).from_pretrained(
                text, dtype=torch.float32, output_loading_info=True, **where
            )
            processor = getattr(transformers, cls.Processor).from_pretrained(text, **where)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"{text} cannot be loaded: {_first_line(error)}", again(vision_model="random-conv")) from error
        absent = sorted(told["missing_keys"])
        if absent:
            raise UserError(f"{text} lacks {len(absent)} weights of a {type(module).__name__}, the first is {absent[0]}")
        preparation = Preparation.of_processor(processor, text)
        return cls(module, preparation, text, _revision(text, module))

    @classmethod
    def random(cls, config: Any, preparation: Preparation, seed: int = 0) -> Self:
        """Random weights, the same everywhere; for tests and benchmarks, never for a score."""
        import transformers

        model = getattr(transformers, cls.Model)
        module = seeded(lambda: model.from_config(config) if cls.Model == "AutoModel" else model(config), seed)
        return cls(module, preparation, f"random {config.model_type}", f"seed {seed}")

    @torch.no_grad()
    def features(self, view: Tensor) -> Features:
        return self._told(self.preparation.normalise(view.to(self.device)))

    def _told(self, pixels: Tensor) -> Features:
        """float32 ``[B, 3, h, w]``, normalised -> features."""
        out = self.module(pixel_values=pixels)
        return self._split(out.last_hidden_state, getattr(out, "pooler_output", None))

    def _split(self, tokens: Tensor, summary: Tensor | None) -> Features:
        count = self.grid[0] * self.grid[1]
        ahead = tokens.shape[1] - count
        if tokens.ndim != 3 or ahead < 0:
            raise UserError(
                f"{self.source} gives {tuple(tokens.shape)}, not tokens of {self.grid[0]}x{self.grid[1]} patches"
            )
        if summary is None and ahead:
            summary = tokens[:, 0]
        return Features(tokens[:, ahead:].float(), None if summary is None else summary.float())

    @staticmethod
    def _patch(config: Any) -> int:
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int):
            raise UserError(f"a {config.model_type} has no square patches: it is no vision transformer that is read here")
        return patch


def load(text: str, revision: str | None = None) -> VisionEncoder:
    """Any vision transformer of transformers, by its config.

    Args:
        revision: the commit of a repository; what a folder holds is compared by the caller.
    """
    import transformers

    commit = revision if revision not in (None, UNKNOWN) and not Path(text).is_dir() else None
    try:
        config = transformers.AutoConfig.from_pretrained(text, **({"revision": commit} if commit else {}))
    except (OSError, ValueError) as error:
        raise UserError(f"{text} cannot be loaded: {_first_line(error)}", again(vision_model="random-conv")) from error
    plugin: Any = registry.get("encoders", FAMILIES.get(config.model_type, "hf-vision"))
    return plugin.read(text, commit)


def _revision(text: str, module: Any) -> str:
    """A repository's commit, or what a folder holds."""
    if Path(text).is_dir():
        return folder_digest(Path(text))
    return str(getattr(module.config, "_commit_hash", None) or UNKNOWN)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
