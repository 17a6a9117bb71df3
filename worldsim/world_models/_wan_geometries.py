"""Which Wan models there are: their shapes, where their weights come from, and random twins of the same classes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import WanTransformer3DModel

from worldsim.core.config import fingerprint
from worldsim.core.errors import UserError, did_you_mean
from worldsim.core.files import folder_digest, read_json
from worldsim.encoders import clip, from_folder, seeded, umt5, wan_vae
from worldsim.encoders.clip import ClipVision
from worldsim.encoders.no_text import NoText
from worldsim.encoders.umt5 import UMT5
from worldsim.encoders.wan_vae import WanVAE

Family = Literal["t2v", "i2v", "ti2v"]
TEXT_TOKENS = 512
"""Prompt tokens every real Wan is given, zero-padded and unmasked; with a CLIP branch the split at 512 is fixed."""


@dataclass(frozen=True)
class Geometry:
    """One Wan model's shape.

    Attributes:
        name: what a user types.
        family: ``t2v``, ``i2v`` (36 input channels: noise 16, mask 4, condition 16) or ``ti2v`` (2.2: per-token time).
        transformer: arguments of ``WanTransformer3DModel``.
        stride: pixels per latent cell.
        hub: the repository of the weights; None for a random twin or a folder.
        area: pixels (height * width) it was trained at.
        fps: its native frame rate.
        shift: time shift of its sampler and of training.
        text_tokens: length prompts are padded to.
        prediction: what the transformer's output means; a ``sample`` (the clean latents) is turned into a velocity. Real
            Wans predict velocities; a small one cannot carry a token's noise through its width.
        bundled: its weights travel in the package.
        vae, text, clip: arguments of the random twin's encoders; unused with weights.
    """

    name: str
    family: Family
    transformer: dict[str, Any]
    stride: int
    hub: str | None = None
    area: int = 480 * 832
    fps: float = 16.0
    shift: float = 3.0
    text_tokens: int = TEXT_TOKENS
    prediction: Literal["velocity", "sample"] = "velocity"
    bundled: bool = False
    vae: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    clip: dict[str, Any] | None = None

    @property
    def multiple(self) -> int:
        """Frame sides must be multiples of this: latent cells are patched 2 x 2."""
        return self.stride * self.transformer["patch_size"][1]

    @property
    def channels(self) -> int:
        """Latent channels, z."""
        return self.transformer["out_channels"]

    @property
    def width(self) -> int:
        """D of the transformer."""
        return self.transformer["num_attention_heads"] * self.transformer["attention_head_dim"]

    @property
    def sees_image(self) -> bool:
        """Whether it attends to CLIP tokens of the given frame."""
        return self.transformer.get("image_dim") is not None

    @property
    def random(self) -> bool:
        return bool(self.vae)


def _transformer(**changes: Any) -> dict[str, Any]:
    return {
        "patch_size": [1, 2, 2],
        "attention_head_dim": 128,
        "text_dim": 4096,
        "freq_dim": 256,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 1024,
        **changes,
    }


def _tiny(**changes: Any) -> dict[str, Any]:
    """Two layers of width 24; every branch of the real class is there."""
    small = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "ffn_dim": 32, "text_dim": 32}
    return _transformer(**small, rope_max_seq_len=64, **changes)


VAE_22_TINY = {
    **wan_vae.TINY,
    "z_dim": 48,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
# source: config.json of the Wan-AI/*-Diffusers repositories
GEOMETRIES = {
    geometry.name: geometry
    for geometry in (
        Geometry(
            "wan2.1-t2v-1.3b",
            "t2v",
            _transformer(num_attention_heads=12, num_layers=30, ffn_dim=8960, in_channels=16, out_channels=16),
            stride=8,
            hub="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        ),
        Geometry(
            "wan2.1-i2v-14b-480p",
            "i2v",
            _transformer(
                num_attention_heads=40,
                num_layers=40,
                ffn_dim=13824,
                in_channels=36,
                out_channels=16,
                image_dim=1280,
                added_kv_proj_dim=5120,
            ),
            stride=8,
            hub="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        ),
        Geometry(
            "wan2.2-ti2v-5b",
            "ti2v",
            _transformer(num_attention_heads=24, num_layers=30, ffn_dim=14336, in_channels=48, out_channels=48),
            stride=16,
            hub="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            area=704 * 1280,
            fps=24.0,
            shift=5.0,
        ),
        Geometry(
            "tiny-t2v",
            "t2v",
            _tiny(in_channels=16, out_channels=16),
            stride=8,
            text_tokens=32,
            vae=wan_vae.TINY,
            text=umt5.TINY,
        ),
        Geometry(
            "tiny-i2v",
            "i2v",
            _tiny(in_channels=36, out_channels=16, image_dim=4, added_kv_proj_dim=24),
            stride=8,
            vae=wan_vae.TINY,
            text=umt5.TINY,
            clip=clip.TINY,
        ),
        Geometry(
            "tiny-ti2v",
            "ti2v",
            _tiny(in_channels=48, out_channels=48),
            stride=16,
            shift=5.0,
            text_tokens=32,
            vae=VAE_22_TINY,
            text=umt5.TINY,
        ),
        Geometry(
            "worldsim-tiny",
            "ti2v",
            _transformer(
                num_attention_heads=4,
                attention_head_dim=48,
                num_layers=6,
                ffn_dim=576,
                in_channels=64,
                out_channels=64,
                text_dim=16,
                freq_dim=128,
                rope_max_seq_len=64,
            ),
            stride=8,
            area=64 * 64,
            fps=10.0,
            shift=40.0,
            text_tokens=1,
            prediction="sample",
            bundled=True,
        ),
    )
}
BUNDLED = Path(__file__).resolve().parents[1] / "bases"
"""Weights that travel in the package, one folder per model in diffusers' layout."""


@dataclass(frozen=True)
class Base:
    """A base model that can be loaded, part by part: a geometry and where its weights lie.

    Attributes:
        model: what the user typed: a name or a folder.
        revision: commit of the weights, a digest of a folder's content, or None for a random twin.
    """

    geometry: Geometry
    model: str
    revision: str | None = None

    def folder(self, parts: tuple[str, ...]) -> Path:
        """The folder that holds these parts; nothing is downloaded here.

        Raises:
            UserError: the weights are not on this machine.
        """
        if self.geometry.bundled:
            return BUNDLED / self.geometry.name
        return Path(self.model) if self.geometry.hub is None else _snapshot(self.geometry, self.revision, parts)

    def transformer(self, dtype: torch.dtype = torch.float32) -> WanTransformer3DModel:
        """The transformer, in ``dtype`` except for the parts that Wan keeps in fp32; on the CPU, frozen."""
        if self.geometry.random:
            module = seeded(lambda: WanTransformer3DModel(**self.geometry.transformer))
            cast(module, dtype)
        else:
            folder = self.folder(("transformer",))
            module = from_folder(WanTransformer3DModel, folder, "transformer", torch_dtype=dtype)
        return module.eval().requires_grad_(False)

    def vae(self, device: str) -> WanVAE:
        return (
            WanVAE.random(self.geometry.vae, device) if self.geometry.random else WanVAE.load(self.folder(("vae",)), device)
        )

    def text_encoder(self, device: str) -> UMT5 | NoText:
        if self.geometry.bundled:
            return NoText(self.geometry.transformer["text_dim"])
        if self.geometry.random:
            return UMT5.random(self.geometry.text, device)
        return UMT5.load(self.folder(("text_encoder", "tokenizer")), device)

    def image_encoder(self, device: str) -> ClipVision:
        if self.geometry.clip is not None:
            return ClipVision.random(self.geometry.clip, device)
        return ClipVision.load(self.folder(("image_encoder", "image_processor")), device)

    def to_json(self) -> dict[str, Any]:
        return {"model": self.model, "geometry": self.geometry.name, "revision": self.revision}


def cast(module: WanTransformer3DModel, dtype: torch.dtype) -> None:
    """To ``dtype``, except for the parts that Wan keeps in fp32."""
    kept = module._keep_in_fp32_modules or ()
    for name, parameter in module.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)


def resolve(model: str, revision: str | None = None) -> Base:
    """A base by name, or a folder in diffusers' layout.

    Args:
        revision: the one a checkpoint was trained on; another one is refused.
    """
    if model in GEOMETRIES:
        geometry = GEOMETRIES[model]
        if geometry.bundled:
            return Base(geometry, model, _same(BUNDLED / model, revision, bundled_revision(model)))
        found = None if geometry.hub is None else revision or _revision(geometry)
        return Base(geometry, model, found)
    folder = Path(model)
    if not folder.is_dir():
        raise UserError(
            f"there is no Wan model '{model}'{did_you_mean(model, GEOMETRIES)}, and no folder of that name",
            "worldsim models list world-models",
        )
    return Base(read_geometry(folder), model, _same(folder, revision, _folder_revision(folder)))


@cache
def bundled_revision(model: str) -> str:
    """Identifies bundled weights by their bytes; the model card and the training log beside them may be reworded."""
    parts = ("transformer", "vae")
    return fingerprint([folder_digest(BUNDLED / model / part, quick=False) for part in parts])


def _same(folder: Path, revision: str | None, found: str) -> str:
    """``found``, the revision of a folder's weights.

    Raises:
        UserError: it is another one than ``revision``; says how to get that one back, or to train anew.
    """
    if revision not in (None, found):
        bundled = folder.parent == BUNDLED
        back = "install the worldsim of that run's provenance.json (key 'worldsim')" if bundled else "put that one back"
        model = folder.name if bundled else str(folder)
        raise UserError(
            f"{folder} is another model (revision {found}) than the one trained on (revision {revision}); {back}, or train "
            "anew into another folder",
            f"worldsim finetune-wan DATA --model {shlex.quote(model)} --out runs/finetune-wan/{found}",
        )
    return found


def mismatch(base: dict[str, Any]) -> str | None:
    """Why the base of a card can no longer be had here as it was trained on; None where it can, or is not here at all."""
    model, revision = base["model"], base["revision"]
    if not ((model in GEOMETRIES and GEOMETRIES[model].bundled) or Path(model).is_dir()):
        return None
    try:
        resolve(model, revision)
    except UserError as error:
        return error.sentence
    return None


def read_geometry(folder: Path) -> Geometry:
    """The geometry of a folder in diffusers' layout, from its own configs."""
    settings = {k: v for k, v in read_json(folder / "transformer" / "config.json").items() if not k.startswith("_")}
    vae = read_json(folder / "vae" / "config.json")
    index = folder / "model_index.json"
    per_token = bool(read_json(index).get("expand_timesteps")) if index.exists() else vae.get("is_residual", False)
    image = settings["in_channels"] > settings["out_channels"]
    family: Family = "i2v" if image else "ti2v" if per_token else "t2v"
    like = next(g for g in GEOMETRIES.values() if g.family == family and g.hub)
    stride = int(vae.get("scale_factor_spatial", 8))
    for known in GEOMETRIES.values():
        if known.hub and known.transformer.items() <= settings.items():
            like = known
    return replace(like, name=folder.name, transformer=settings, stride=stride, hub=None)


PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder", "image_processor")
"""The folders of a model in diffusers' layout that are read here."""


def _folder_revision(folder: Path) -> str:
    """Identifies a folder's transformer and encoders by samples of their content: cached latents depend on the weights."""
    return folder_digest(folder, skip=lambda path: path.parts[0] not in PARTS)


def _snapshot(geometry: Geometry, revision: str | None, parts: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    assert geometry.hub is not None
    patterns = [f"{part}/*" for part in parts] + ["model_index.json"]
    try:
        return Path(snapshot_download(geometry.hub, revision=revision, allow_patterns=patterns, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"the weights of {geometry.name} ({geometry.hub}: {', '.join(parts)}) are not on this machine",
            f"worldsim models pull {geometry.name}",
        ) from error


def _revision(geometry: Geometry) -> str | None:
    """The commit of the cached weights, or None when there are none (a later load says so)."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(geometry.hub or "", "model_index.json")
    return Path(path).parent.name if isinstance(path, str) else None
