"""WorldEval's own training samples, written from the columns: for whoever trains on with that project's script.

``train/<parent folder>_<file name>_<number>.tensors.pth`` beside the columns, one ``torch.save`` of

    latents                  bf16 [16, F', h, w]        normalised mode of the video VAE
    prompt_emb.context       bf16 [1, 512, 4096]        zero after the text's tokens
    image_emb.clip_feature   bf16 [1, 257, 1280]        of the first frame
    image_emb.y              bf16 [1, 20, F', h, w]     mask 4, then the first frame followed by grey, encoded 16
    action_emb               fp32 [1, rows, D]          physical rows from the first frame's to one after the last frame's

and ``train/tensors.json``, which says from which columns. Two things differ from that project's own files on purpose: the
first frame is cut exactly as the video (there it is squashed), and clips start every ``cache.hop`` frames, not at random.
# source: liyaxuanliyaxuan/Worldeval@7c357df:wanvideo/train_wan_t2v_act_embed.py (names, keys and shapes, facts only)
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.commands._finetune_clips import Choice
from worldsim.commands._finetune_encode import Encoded
from worldsim.core.console import progress
from worldsim.core.errors import UserError, again
from worldsim.core.files import read_json, replacing, write_json
from worldsim.core.protocols import EpisodeSource
from worldsim.core.runs import SAMPLES, SAMPLES_ENDING
from worldsim.data.batches import Clips
from worldsim.world_models._wan_conditioning import condition_channels, given_latents
from worldsim.world_models._wan_geometries import Base


def require_samples(base: Base) -> None:
    """
    Raises:
        UserError: the samples hold a given frame's channels and CLIP tokens, which this base does not have.
    """
    if base.geometry.family != "i2v" or not base.geometry.sees_image:
        raise UserError(
            f"cache.export=worldeval: WorldEval's samples are those of Wan 2.1 image-to-video models, and {base.model} is none",
            again(model="wan2.1-i2v-14b-480p"),
        )


def write_samples(
    root: Path, encoded: Encoded, choice: Choice, source: EpisodeSource, *, rank: int = 0, world_size: int = 1
) -> str:
    """Write this rank's share of what is missing, each file whole or not at all. Returns a remark for the user.

    Raises:
        UserError: ``train/`` holds samples of another origin.
    """
    folder = root / SAMPLES.parent
    _claim(root, _origin(encoded), rank)
    names = _names(encoded, choice, source)
    mine = encoded.clips.episodes[rank::world_size]
    with progress("export samples", len(mine), unit="episodes") as bar:
        for clips in encoded.clips.clips:
            for episode in (name for name in mine if name in clips.starts):
                for row in range(len(clips.starts[episode])):
                    path = folder / f"{names[episode]}_{row}{SAMPLES_ENDING}"
                    if not path.exists():
                        _save(path, sample(encoded, clips, episode, row))
                bar.advance()
    return f"{len(encoded.clips)} samples in WorldEval's form lie in {folder}"


def sample(encoded: Encoded, clips: Clips, episode: str, row: int) -> dict[str, Any]:
    """One clip as WorldEval's trainer reads it. Shapes: see the module's docstring."""
    column = {name: torch.from_numpy(np.array(c.load(episode)[row])) for name, c in clips.columns.items()}
    condition = column["condition"][:1].float()  # one given latent comes first among the histories
    given = given_latents(torch.ones(1, dtype=torch.int64), condition.shape[2])
    text = encoded.texts[clips.prompts[episode]][: clips.text_tokens]
    context = torch.zeros(1, clips.text_tokens, text.shape[1])
    context[0, : len(text)] = torch.from_numpy(text)
    begin = clips.starts[episode][row] - clips.spec.delay
    rows = encoded.latents.column.load(episode)[begin : begin + clips.spec.span + 1]
    return {
        "latents": _half(column["latents"]),
        "prompt_emb": {"context": _half(context)},
        "image_emb": {"clip_feature": _half(column["image"][None]), "y": _half(condition_channels(condition, given))},
        "action_emb": torch.from_numpy(np.array(rows, np.float32))[None],
    }


def _half(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16).contiguous()


def _save(path: Path, values: dict[str, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(values, file)


def _origin(encoded: Encoded) -> dict[str, Any]:
    """The columns that the samples are made of, by name: each names all that made it."""
    clips = {str(c.spec.frames): {name: col.folder.name for name, col in c.columns.items()} for c in encoded.clips.clips}
    return {"clips": clips, "actions": encoded.latents.column.folder.name}


def _claim(root: Path, origin: dict[str, Any], rank: int) -> None:
    """Say in ``tensors.json`` what the samples are, before the first one; refuse to mix them with others."""
    manifest = root / SAMPLES
    found = sorted(manifest.parent.glob(f"*{SAMPLES_ENDING}"))[:1]  # before the manifest: another rank may begin meanwhile
    there = read_json(manifest) if manifest.exists() else None
    if there != origin and (there is not None or found):
        what = "samples of another run" if there is not None else f"{found[0].name}, which another program wrote"
        raise UserError(
            f"{manifest.parent} holds {what}; they would be mixed with the new ones",
            f"rm {shlex.quote(str(manifest.parent))}/*{SAMPLES_ENDING} {shlex.quote(str(manifest))}",
        )
    if rank == 0 and there is None:
        write_json(manifest, origin)


def _names(encoded: Encoded, choice: Choice, source: EpisodeSource) -> dict[str, str]:
    """Episode id -> ``<parent folder>_<file name>``; its id where several episodes share a file."""
    files = {name: Path(source.episode(choice.facts[name].index).source) for name in encoded.clips.episodes}
    names = {name: f"{file.parent.name}_{file.name}" for name, file in files.items()}
    shared = Counter(names.values())
    return {n: own if shared[own] == 1 else f"{files[n].parent.name}_{n}" for n, own in names.items()}
