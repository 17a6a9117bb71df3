"""A weight or a frame that is no finite number ends in one sentence, never in pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import worldeval_ckpt
from worldsim import world_models
from worldsim.core.errors import UserError
from worldsim.core.files import write_json
from worldsim.train import checkpoint
from worldsim.world_models import _wan_export
from worldsim.world_models.wan import Wan

BAD = [float("nan"), float("inf")]


@pytest.mark.parametrize("value", BAD)
def test_a_run_with_such_a_weight_is_not_loaded_nor_exported(tmp_path, value):
    model = Wan.tiny()
    tensors = {name: p.detach().clone() for name, p in model.net.trained().items()}
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    folder = tmp_path / "run" / "checkpoint"
    write_json(folder / checkpoint.CARD, model.card.to_json())
    checkpoint.write_weights(folder / checkpoint.WEIGHTS, tensors)
    for read in (world_models.load, _wan_export.source):
        with pytest.raises(UserError) as error:
            read(str(tmp_path / "run"))
        assert str(folder / checkpoint.WEIGHTS) in error.value.sentence
        assert f"1 of {tensors[name].numel()} numbers of {name} are not finite" in error.value.sentence


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("form", [worldeval_ckpt.write_flat, worldeval_ckpt.write_deepspeed])
def test_a_worldeval_checkpoint_with_such_a_weight_is_not_loaded(tmp_path, form, value):
    flat = worldeval_ckpt.trained(8)
    flat["action_proj.4.bias"][3] = value
    path = form(tmp_path / "x.ckpt", flat)
    worldeval_ckpt.write_beside(path)
    with pytest.raises(UserError, match=r"1 of 24 numbers of action_proj\.4\.bias are not finite") as error:
        world_models.load(path)
    assert "x.ckpt" in error.value.sentence


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_frames_that_are_not_finite_are_no_pixels(part):
    """Weights of the base are not read by this program; what comes of them is looked at before it is cast."""
    model = Wan.tiny()
    module = model.net.transformer if part == "transformer" else model.vae.module
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = float("nan")
    context = np.full((1, 1, 32, 64, 3), 90, np.uint8)
    with pytest.raises(UserError, match="not finite"):
        model.rollout(context, np.zeros((1, 3, 1, 2), np.float32))
