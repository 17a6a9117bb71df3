"""A fine-tuned Wan as other programs read it: a LoRA file under their names, the conditioner beside it, and how to use both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save
from torch import Tensor

from worldsim.core.errors import UserError
from worldsim.core.files import read_json, replacing, write_json, write_text
from worldsim.train import checkpoint
from worldsim.world_models import CARD_FILE, WEIGHTS_FILE, _wan_worldeval, foreign, resolve_checkpoint
from worldsim.world_models._wan_card import WanCard
from worldsim.world_models._wan_geometries import GEOMETRIES, Geometry, resolve
from worldsim.world_models._wan_names import to_original
from worldsim.world_models._wan_routes import Injection, find
from worldsim.world_models.wan import TEXT, Wan

Target = Literal["diffusers", "comfyui"]
LORA_FILE = {"diffusers": "pytorch_lora_weights.safetensors", "comfyui": "lora_comfyui.safetensors"}
WHOLE_FILE = "transformer_comfyui.safetensors"
CONDITIONER, ABOUT = "conditioner.safetensors", "conditioner.json"


def source(model: str) -> tuple[WanCard, dict[str, Tensor]]:
    """Card and trained tensors of a run folder, a WorldEval checkpoint or, by name, a random twin; no base is loaded.

    Raises:
        UserError: it is none of these, or another kind of world model.
    """
    path = Path(model)
    if not path.exists() and model in GEOMETRIES and GEOMETRIES[model].random:
        twin = Wan.tiny(model)
        return twin.card, {name: p.detach() for name, p in twin.net.trained().items()}
    other = foreign(path)
    if other is not None:
        return _wan_worldeval.read(other)
    folder = resolve_checkpoint(path)
    kind = read_json(folder / CARD_FILE).get("world_model")
    if kind != "wan":
        raise UserError(f"{path} is a world model '{kind}'; only a fine-tuned Wan is exported", "worldsim models list")
    tensors = checkpoint.read_weights(folder / WEIGHTS_FILE)
    return WanCard.read(folder / CARD_FILE), {name: t for name, t in tensors.items() if not name.startswith(TEXT)}


def export(card: WanCard, tensors: dict[str, Tensor], to: Target, out: Path) -> list[str]:
    """Write the files of one target into ``out``; returns their names. Each appears whole or not at all."""
    own = {name.removeprefix("transformer."): t for name, t in tensors.items() if name.startswith("transformer.")}
    if card.net.rank:
        _write(out / LORA_FILE[to], *(_diffusers_lora(own, card) if to == "diffusers" else (_comfyui_lora(own, card), {})))
        files = [LORA_FILE[to]]
    elif to == "diffusers":
        files = _diffusers_transformer(own, card, out)
    else:
        _write(out / WHOLE_FILE, {to_original(name): tensor for name, tensor in own.items()}, {})
        files = [WHOLE_FILE]
    part = {name.removeprefix("conditioner."): t for name, t in tensors.items() if name.startswith("conditioner.")}
    _write(out / CONDITIONER, part, {})
    write_json(out / ABOUT, card.to_json() | {"prompts": {}})
    write_text(out / "README.md", readme(card, to))
    return [*files, CONDITIONER, ABOUT, "README.md"]


def _diffusers_lora(own: dict[str, Tensor], card: WanCard) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Keys ``transformer.….lora_A.weight``; rank and alpha in the header, where diffusers >= 0.35 looks for them."""
    spec = card.net
    # diffusers itself fills in zeros for the layers of CLIP's branch that a LoRA leaves out, and expects them to be declared
    silent = {"add_k_proj", "add_v_proj"} if _geometry(card).sees_image else set()
    config = {"r": spec.rank, "lora_alpha": spec.alpha, "target_modules": sorted({*spec.targets, *silent})}
    about = json.dumps({f"transformer.{key}": value for key, value in config.items()}, sort_keys=True)
    return {f"transformer.{name}": tensor for name, tensor in own.items()}, {"lora_adapter_metadata": about}


def _comfyui_lora(own: dict[str, Tensor], card: WanCard) -> dict[str, Tensor]:
    """Keys ``diffusion_model.<the original's name>.lora_A.weight``, and ``.alpha`` per layer."""
    out = {f"diffusion_model.{to_original(name)}": tensor for name, tensor in own.items()}
    layers = {name.rpartition(".lora_")[0] for name in out}
    return out | {f"{layer}.alpha": torch.tensor(card.net.alpha) for layer in layers}


def _diffusers_transformer(own: dict[str, Tensor], card: WanCard, out: Path) -> list[str]:
    """``transformer/`` as ``WanTransformer3DModel.from_pretrained`` takes it."""
    geometry = _geometry(card)
    with torch.device("meta"):
        module = WanTransformer3DModel(**geometry.transformer)
    module.load_state_dict(own, strict=True, assign=True)
    with replacing(out / "transformer") as temporary:
        module.save_pretrained(temporary)
    return ["transformer/"]


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """One safetensors file, sorted, with at most one entry in its header: the same bytes every time."""
    whole = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with replacing(path) as temporary:
        temporary.write_bytes(save(whole, metadata=header or None))


class Attached:
    """A conditioner on a transformer that another program calls. Until :meth:`set`, actions are hidden (the learned null).

    Args:
        transformer: diffusers' own, of the base that the export names.
        folder: what :func:`export` wrote.
    """

    def __init__(self, transformer: WanTransformer3DModel, folder: str | Path) -> None:
        self.card = WanCard.read(Path(folder) / ABOUT)
        geometry = _geometry(self.card)
        route = find(self.card.net.route)
        self.module = route.conditioner(geometry, self.card.net)
        self.module.load_state_dict(checkpoint.read_weights(Path(folder) / CONDITIONER), strict=True)
        self.module.to(transformer.device).requires_grad_(False)
        self.injection, self.device = Injection(), transformer.device
        route.attach(transformer, self.injection)
        self.set(None)

    def set(self, actions: np.ndarray | None, history: int = 1) -> None:
        """The actions of the next calls: rows in physical units, ``[F - 1, r, A]``; None hides them.

        Args:
            history: given latents at the start; diffusers' image-to-video pipelines give one.
        """
        spec, steps = self.card.net, self.card.frames - 1
        wanted = (spec.rows_per_frame, spec.action_dim)
        rows = np.zeros((steps, *wanted)) if actions is None else np.asarray(actions)
        if rows.ndim != 3 or rows.shape[1:] != wanted:
            raise UserError(f"the actions are {rows.shape}; this conditioner takes [F - 1, {wanted[0]}, {wanted[1]}]")
        normal = torch.from_numpy(self.card.normalize.forward(rows))[None].to(self.device)
        hidden = torch.tensor([actions is None], device=self.device)
        self.injection.vectors = self.module(normal, history, hidden)


def readme(card: WanCard, to: Target) -> str:
    """How the exported files are applied."""
    return "\n".join([*_about(card), *(_with_diffusers(card) if to == "diffusers" else _with_comfyui(card))])


def _about(card: WanCard) -> list[str]:
    spec, base = card.net, card.base["model"]
    lines = [
        f"# A fine-tuned {base}",
        "",
        f"Trained on {card.frames} frames of {card.height}x{card.width} at {card.fps:g} fps (camera {card.camera}), with "
        f"{spec.rows_per_frame} action row(s) of {spec.action_dim} numbers per frame through the route `{spec.route}`.",
        f"Base: {base}, revision {card.base['revision']}.",
        "",
        f"- `{CONDITIONER}`, `{ABOUT}`: the action conditioner and everything it needs to be used: sizes, action names,",
        "  normalisation. The action row t acts between frame t and frame t + 1.",
    ]
    if _geometry(card).prediction == "sample":
        lines += ["- This base predicts clean samples where Wan's pipelines expect velocities: use it through worldsim."]
    return lines


def _with_diffusers(card: WanCard) -> list[str]:
    rank, spec, geometry = card.net.rank, card.net, _geometry(card)
    pipeline = "WanPipeline" if geometry.family == "t2v" else "WanImageToVideoPipeline"
    base = f'"{geometry.hub or card.base["model"]}"'
    if rank:
        what = f"`{LORA_FILE['diffusers']}`: the LoRA, rank {rank}, alpha {spec.alpha:g} (diffusers >= 0.35 reads both)."
        load = f'from diffusers import {pipeline}\n\npipe = {pipeline}.from_pretrained({base})\npipe.load_lora_weights("FOLDER")'
    else:
        what = "`transformer/`: the whole transformer."
        load = (
            f"from diffusers import {pipeline}, WanTransformer3DModel\n\n"
            'transformer = WanTransformer3DModel.from_pretrained("FOLDER", subfolder="transformer")\n'
            f"pipe = {pipeline}.from_pretrained({base}, transformer=transformer)"
        )
    attach = (
        "from worldsim.world_models._wan_export import Attached\n\n"
        'conditioner = Attached(pipe.transformer, "FOLDER")\nconditioner.set(actions)'
    )
    return [
        f"- {what}",
        "",
        "Without the conditioner the pipeline imagines what usually happens (`FOLDER` is this folder):",
        "",
        f"```python\n{load}\n```",
        "",
        f"With it, the video follows actions (`[F - 1, {spec.rows_per_frame}, {spec.action_dim}]`, physical units):",
        "",
        f"```python\n{attach}\n```",
        "",
        *_limits(geometry, spec.route),
        "The pipeline's own guidance is about text; action guidance, history longer than a frame and long rollouts are",
        "`worldsim infer`'s.",
        "",
    ]


def _limits(geometry: Geometry, route: str) -> list[str]:
    """What this family's pipeline in diffusers cannot do with this route."""
    out = []
    if find(route).own_times and geometry.family != "ti2v":
        out.append(f"This pipeline tells a clip one time, the route `{route}` needs one per latent: it is refused there.")
    if geometry.family == "t2v":
        out.append("This pipeline takes no given frame; `worldsim infer` puts it into the sequence at time 0.")
    return out


def _geometry(card: WanCard) -> Geometry:
    return GEOMETRIES.get(card.base["geometry"]) or resolve(card.base["model"], card.base["revision"]).geometry


def _with_comfyui(card: WanCard) -> list[str]:
    spec = card.net
    if spec.rank:
        what = f"- `{LORA_FILE['comfyui']}`: the LoRA, rank {spec.rank}, alpha {spec.alpha:g}: into `models/loras`, then"
        what += " `LoraLoaderModelOnly` at strength 1."
    else:
        what = f"- `{WHOLE_FILE}`: the whole transformer: into `models/diffusion_models`."
    return [
        what,
        "",
        "ComfyUI has no node for the conditioner: there the model imagines what usually happens. To follow actions, use",
        "`worldsim infer`, or the export for diffusers.",
        "",
    ]
