"""A world-modality policy on disk: ``checkpoint/`` (card, weights, tokenizer) and one ``.pt`` per epoch as the experiment's
first program wrote them.

# source: world-modality-vla@7b3d6e7: ``logs/model_<A|B|C>_epoch<e>.pt`` = dict(model_state_dict, config, meta)
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldsim.core.errors import UserError
from worldsim.core.files import replacing
from worldsim.policies._world_modality_card import ModalityCard
from worldsim.policies._world_modality_net import ModalityNet
from worldsim.train import checkpoint

TOKENIZER = "tokenizer"
"""Folder inside ``checkpoint/`` with a copy of the tokenizer."""
BUFFERS = ("image_shift", "image_scale")


def net_of(card: ModalityCard, seed: int = 0) -> ModalityNet:
    """A network with random weights that sees embeddings on the card's scale."""
    net = ModalityNet(card.net, seed)
    for name in BUFFERS:
        getattr(net, name).copy_(torch.from_numpy(getattr(card.scaling, name)))
    return net


def read(folder: Path) -> tuple[ModalityNet, ModalityCard]:
    """From a run folder, its ``checkpoint/`` or an epoch's ``.pt``.

    Raises:
        UserError: see :meth:`WorldModality.load`.
    """
    if folder.suffix == ".pt":
        return _read_epoch(folder)
    folder = folder if (folder / checkpoint.CARD).exists() else folder / "checkpoint"
    card = ModalityCard.read(folder / checkpoint.CARD)
    tensors = checkpoint.read_weights(folder / checkpoint.WEIGHTS)
    return _filled(card, tensors, folder / checkpoint.WEIGHTS), card


def _filled(card: ModalityCard, tensors: dict[str, Tensor], source: Path) -> ModalityNet:
    net = net_of(card)
    wanted = dict(net.named_parameters())
    for name, parameter in wanted.items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            found = "none" if name not in tensors else f"one of {tuple(tensors[name].shape)}"
            raise UserError(f"{source}: the card wants a tensor {name} of {tuple(parameter.shape)}, the file has {found}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])
    return net


def epoch_file(out: Path, arm: str, epoch: int) -> Path:
    """``OUT/logs/model_<arm>_epoch<e>.pt``, epochs from 1."""
    return out / "logs" / f"model_{arm}_epoch{epoch}.pt"


def write_epoch(
    path: Path, net: ModalityNet, config: dict[str, Any], card: ModalityCard, tokenizer: dict[str, Any]
) -> None:
    """One epoch's weights with all that inference needs.

    Args:
        config: the run's, plain values. tokenizer: ``centroids`` (float32 tensor ``[N, d]``) and what else is known of it.
    """
    weights = {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}
    whole = {"model_state_dict": weights, "config": config, "meta": meta(card, tokenizer)}
    with replacing(path) as temporary:
        torch.save(whole, temporary)


def meta(card: ModalityCard, tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The first program's keys, and what it lacked: sizes, encoder, codebook, scaling, names, units, rate, split, revision."""
    scaling = card.scaling.to_json()
    return {
        "model_type": card.arm,
        "state_dim": card.net.state_dim,
        "action_dim": card.net.action_dim,
        "img_emb_dim": card.net.image_dim,
        "world_vocab_size": card.net.codes,
        "action_horizon": card.net.horizon,
        "future_offset": card.net.future,
        "context_frames": card.net.context,
        "transformer": card.net.card(),
        "normalisation": {"actions": scaling["actions"], "states": scaling["states"]},
        "action_names": list(card.action_spec.names),
        "action_units": list(card.action_spec.units),
        "state_names": list(card.state_names),
        "fps": card.fps,
        "camera": card.camera,
        "split": {"train": list(card.train_episodes), "held_out": list(card.held_out_episodes)},
        "git_sha": card.revision,
        "tokenizer": tokenizer,
        "card": card.to_json(),
    }


def _read_epoch(path: Path) -> tuple[ModalityNet, ModalityCard]:
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True)
        weights, about = whole["model_state_dict"], whole["meta"]["card"]
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (KeyError, TypeError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{path} is no epoch of a world-modality policy of this program: {error}") from error
    card = ModalityCard.from_json(about, str(path))
    return _filled(card, weights, path), card
