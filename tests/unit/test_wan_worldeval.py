"""WorldEval's checkpoints: both forms, every tensor in its place, the reference's context to 1e-5, nothing lost silently."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from tests import dreams, worldeval_ckpt
from worldsim import world_models
from worldsim.core.errors import UserError
from worldsim.core.types import ActionSpec
from worldsim.data.predictions import load as load_prediction
from worldsim.world_models import _wan_worldeval, _worldeval_files
from worldsim.world_models._wan_geometries import resolve
from worldsim.world_models._wan_names import to_diffusers, to_original

FORMS = {
    "flat": worldeval_ckpt.write_flat,
    "deepspeed": worldeval_ckpt.write_deepspeed,
    "deepspeed-module": lambda path, flat: worldeval_ckpt.write_deepspeed(path, flat, beside=False),
}
TWINS = ["tiny-t2v", "tiny-i2v", "tiny-ti2v"]


def write(folder: Path, flat: dict, form: str = "flat", **beside) -> Path:
    path = folder / "epoch=29_train_loss=0.0435.ckpt"
    worldeval_ckpt.write_beside(path if folder.exists() else folder / path.name, **beside)
    return FORMS[form](path, flat)


def references_offset(flat: dict, rows: torch.Tensor, scale: float) -> torch.Tensor:
    """alpha * proj(mean over all rows), each layer W + scale B A: the documented formula, in fp64. Rows ``[T, A]``."""
    hidden, number = rows.double().mean(0), 0
    while any(name.startswith(f"action_proj.{number}.") for name in flat):
        stem = f"action_proj.{number}"
        if number:
            hidden = torch.nn.functional.gelu(hidden)
        base = stem if f"{stem}.weight" in flat else f"{stem}.base_layer"
        weight = flat[f"{base}.weight"].double()
        if base != stem:
            weight = (
                weight
                + scale * flat[f"{stem}.lora_B.default.weight"].double() @ flat[f"{stem}.lora_A.default.weight"].double()
            )
        hidden, number = weight @ hidden + flat[f"{base}.bias"].double(), number + 2
    return flat["action_alpha"].double() * hidden


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("action_dim", "wrapped", "alpha"),
    [(512, (0, 2), None), (7, (0, 2, 4), None), (384, (0, 2), 8.0), (1280, (), 2.0)],
)
@torch.no_grad()
def test_the_context_is_the_references(tmp_path, form, action_dim, wrapped, alpha):
    """D < 500 and D >= 500; layers with and without a LoRA (the last one plain is the variant's trap); alpha != rank."""
    flat = worldeval_ckpt.trained(action_dim, rank=4, wrapped=wrapped)
    model = world_models.load(write(tmp_path, flat, form, **({} if alpha is None else {"lora_alpha": alpha})))
    contexts: list[torch.Tensor] = []
    embedder = model.net.transformer.condition_embedder.text_embedder
    embedder.register_forward_hook(lambda module, inputs, output: contexts.append(output))
    torch.manual_seed(1)
    rows, text = torch.randn(1, 8, 1, action_dim), torch.randn(1, 512, 32)
    image, latents = torch.randn(1, 5, 4), torch.randn(1, 16, 3, 4, 8)
    model.net(latents, torch.tensor([500.0]), text, rows, torch.tensor([1]), None, torch.zeros_like(latents), image)
    plain = resolve("tiny-i2v").transformer().condition_embedder.text_embedder(text)
    offset = references_offset(flat, rows[0, :, 0], (alpha or 4.0) / 4)
    assert offset.abs().max() > 0.05
    assert torch.allclose(contexts[0].double(), plain.double() + offset, atol=1e-5)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (8.0, 2.0)])
@torch.no_grad()
def test_every_lora_reaches_its_layer_at_its_scale(tmp_path, alpha, scale):
    flat = worldeval_ckpt.trained(16)
    model = world_models.load(write(tmp_path, flat, **({} if alpha is None else {"lora_alpha": alpha})))
    base = dict(resolve("tiny-i2v").transformer().named_parameters())
    model.net.merge()
    merged = dict(model.net.transformer.named_parameters())
    places = {f"{a}.{p}": f"{b}.to_{p}" for a, b in (("self_attn", "attn1"), ("cross_attn", "attn2")) for p in "qkv"}
    places |= {"self_attn.o": "attn1.to_out.0", "cross_attn.o": "attn2.to_out.0"}
    places |= {"ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}
    for block in range(2):
        for theirs, ours in places.items():
            a, b = (flat[f"blocks.{block}.{theirs}.lora_{part}.default.weight"] for part in "AB")
            name = f"blocks.{block}.{ours}.weight"
            assert torch.allclose(merged.pop(name), base.pop(name) + scale * b @ a, atol=1e-5)
    assert all(torch.equal(merged[name], base[name]) for name in base)


def test_forms_agree_and_say_what_they_are(tmp_path):
    flat = worldeval_ckpt.trained(384)
    read = {
        form: _wan_worldeval.read(write(tmp_path / form, flat, form)) for form in FORMS if (tmp_path / form).mkdir() is None
    }
    card, tensors = read["flat"]
    for other, theirs in read.values():
        assert other.to_json() == card.to_json()
        assert theirs.keys() == tensors.keys()
        assert all(torch.equal(theirs[name], tensors[name]) for name in tensors)
    assert (card.net.rank, card.net.alpha, card.net.action_dim, card.net.hidden) == (4, 4.0, 384, 40)
    assert (card.height, card.width, card.fps, card.camera, card.frames) == (32, 64, 10.0, "cam_front", 9)
    assert card.histories == (1,)
    assert np.array_equal(card.normalize.forward(np.full((2, 384), 3.0)), np.full((2, 384), 3.0, np.float32))


def test_a_folder_with_one_checkpoint_is_taken_and_memory_is_known(tmp_path):
    path = write(tmp_path, worldeval_ckpt.trained(8))
    assert world_models.load(tmp_path).card.net.action_dim == 8
    assert world_models.rollout_memory(path, 1) == world_models.rollout_memory(tmp_path, 1) > 1
    write(tmp_path, worldeval_ckpt.trained(8)).rename(tmp_path / "last.ckpt")
    write(tmp_path, worldeval_ckpt.trained(8))
    with pytest.raises(UserError, match="several checkpoints: epoch=29"):
        world_models.load(tmp_path)


EVERY = sorted(worldeval_ckpt.trained(8))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "key",
    [
        *EVERY[1::8],
        "action_alpha",
        "action_proj.4.bias",
        "action_proj.0.base_layer.weight",
        "action_proj.2.lora_A.default.weight",
    ],
)
def test_a_missing_key_is_named(tmp_path, form, key):
    flat = worldeval_ckpt.trained(8)
    del flat[key]
    with pytest.raises(UserError) as error:
        world_models.load(write(tmp_path, flat, form))
    assert f"lacks {key}" in error.value.sentence
    assert "epoch=29_train_loss=0.0435.ckpt" in error.value.sentence


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "key",
    ["blocks.0.cross_attn.k_img.lora_A.default.weight", "blocks.2.ffn.0.lora_A.default.weight", "action_proj.6.weight"],
)
def test_an_unknown_key_is_named(tmp_path, form, key):
    flat = {**worldeval_ckpt.trained(8), key: torch.ones(4, 24)}
    with pytest.raises(UserError) as error:
        world_models.load(write(tmp_path, flat, form))
    assert f"has an unknown key {key}" in error.value.sentence
    assert ("lora_targets" in error.value.sentence) == key.startswith("blocks")


def test_the_four_layer_form_of_wide_latents_is_unknown(tmp_path):
    """D decides how many layers there are, as in the reference: a fifth entry would never be read by it."""
    flat = worldeval_ckpt.trained(512) | {"action_proj.4.weight": torch.ones(24, 24), "action_proj.4.bias": torch.ones(24)}
    with pytest.raises(UserError, match=r"unknown key action_proj\.4\.bias"):
        world_models.load(write(tmp_path, flat))


def test_a_wrong_shape_is_named(tmp_path):
    flat = worldeval_ckpt.trained(8)
    flat["blocks.1.ffn.2.lora_B.default.weight"] = torch.ones(24, 5)
    with pytest.raises(UserError, match=r"blocks\.1\.ffn\.net\.2\.lora_B\.weight has shape \[24, 5\], not \[24, 4\]"):
        world_models.load(write(tmp_path, flat))


def test_a_lora_on_clips_keys_and_values_is_declared(tmp_path):
    flat = worldeval_ckpt.trained(8)
    for block in range(2):
        for part in ("k_img", "v_img"):
            flat |= worldeval_ckpt.lora(f"blocks.{block}.cross_attn.{part}", (24, 24), 4)
    path = write(tmp_path, flat, lora_targets=["q", "k", "v", "o", "ffn.0", "ffn.2", "k_img", "v_img"])
    trained = world_models.load(path).net.trained()
    found = trained["transformer.blocks.1.attn2.add_v_proj.lora_B.weight"]
    assert torch.equal(found, flat["blocks.1.cross_attn.v_img.lora_B.default.weight"])


@torch.no_grad()
def test_a_fully_trained_transformer_comes_whole(tmp_path):
    """``--train_architecture full``: every weight under the original's name; the swapped norms land where they belong."""
    torch.manual_seed(7)
    state = {name: torch.randn_like(p) for name, p in resolve("tiny-i2v").transformer().named_parameters()}
    flat = {to_original(name): value for name, value in state.items()}
    flat |= {name: value for name, value in worldeval_ckpt.trained(8, wrapped=()).items() if name.startswith("action_")}
    model = world_models.load(write(tmp_path, flat))
    assert model.card.net.rank == 0
    loaded = dict(model.net.transformer.named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert torch.equal(loaded["blocks.1.norm2.weight"], flat["blocks.1.norm3.weight"])


@pytest.mark.parametrize("twin", TWINS)
def test_names_are_those_of_diffusers_own_converter(twin):
    state = dict(resolve(twin).transformer().named_parameters())
    original = {to_original(name): value for name, value in state.items()}
    assert len(original) == len(state)
    assert all(to_diffusers(to_original(name)) == name for name in state)
    converted = convert_wan_transformer_to_diffusers(dict(original))
    assert converted.keys() == state.keys()
    assert all(converted[name] is state[name] for name in state)


# --- what is beside it, and what is wrong -----------------------------------------------------------------------------


def test_what_the_checkpoint_does_not_hold_is_asked_for(tmp_path):
    path = write(tmp_path, worldeval_ckpt.trained(8))
    note = path.with_suffix(".yaml")
    note.unlink()
    with pytest.raises(UserError, match="write fps, size, camera and actions") as error:
        world_models.load(path)
    assert str(note) in error.value.sentence
    assert error.value.command.endswith(f"> {note}")
    note.write_text("fps: 10\nsize: 32x64\n")
    with pytest.raises(UserError, match="lacks camera and actions"):
        world_models.load(path)
    worldeval_ckpt.write_beside(path, cameras="a")
    with pytest.raises(UserError, match=r"unknown key 'cameras'; did you mean 'camera'"):
        world_models.load(path)
    worldeval_ckpt.write_beside(path, size="32x60")
    with pytest.raises(UserError, match="multiples of 16"):
        world_models.load(path)
    worldeval_ckpt.write_beside(path, size="wide")
    with pytest.raises(UserError, match="not of the form HxW"):
        world_models.load(path)
    worldeval_ckpt.write_beside(path, normalise={"shift": [0.0], "scale": [1.0]})
    with pytest.raises(UserError, match="must have 8 numbers each"):
        world_models.load(path)
    note.unlink()
    values = {"fps": 10, "size": "32x64", "camera": "c", "actions": "act@0123", "base": "tiny-i2v", "frames": 9}
    path.with_suffix(".json").write_text(json.dumps({**values, "normalise": {"shift": [1.0] * 8, "scale": [2.0] * 8}}))
    model = world_models.load(path)
    assert model.action_column == "act@0123"
    assert np.allclose(model.card.normalize.forward(np.full((1, 8), 5.0)), 2.0)


def test_the_commands_of_the_errors_can_be_typed(tmp_path):
    """The file that the printf writes has the keys that are needed."""
    import subprocess

    path = write(tmp_path, worldeval_ckpt.trained(8))
    path.with_suffix(".yaml").unlink()
    with pytest.raises(UserError) as error:
        _worldeval_files.beside(path)
    subprocess.run(error.value.command, shell=True, check=True)
    assert _worldeval_files.beside(path).actions == "act"


@pytest.mark.parametrize(
    ("text", "said", "after"),
    [
        ("fps: 10\nsize: 32x64\ncamera: top\nactons: raw\nsteps: 7", "unknown key 'actons'; did you mean 'actions'", "raw"),
        ("fps: 10\nsize: 32x64\ncamera: top\nsteps: 7", "lacks actions", "act"),
        ('{"fps": 10, "size": "32x64", "camera": "top", "actons": "raw", "steps": 7}', "did you mean 'actions'", "raw"),
    ],
)
def test_what_a_person_wrote_is_kept(tmp_path, text, said, after):
    """The command that mends an existing file loses nothing of it, even where its last line has no end."""
    import subprocess

    path = tmp_path / "a model.ckpt"
    path.with_suffix(".json" if text[0] == "{" else ".yaml").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        _worldeval_files.beside(path)
    subprocess.run(error.value.command, shell=True, check=True)
    beside = _worldeval_files.beside(path)
    assert (beside.actions, beside.camera, beside.steps) == (after, "top", 7)


class Harmful:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_pickled_objects_are_not_run(tmp_path, capsys):
    path = write(tmp_path, {**worldeval_ckpt.trained(8), "hyper_parameters": Harmful()})
    with pytest.raises(UserError, match="nothing else is unpickled") as error:
        world_models.load(path)
    assert "unpickled" not in capsys.readouterr().out
    assert error.value.command.startswith("python -c")
    write(tmp_path, {**worldeval_ckpt.trained(8), "epoch": 3})
    with pytest.raises(UserError, match="epoch is no weight but a int"):
        world_models.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="is no torch file"):
        world_models.load(path)


def test_partitioned_weights_are_joined_by_deepspeeds_own_script(tmp_path):
    path = write(tmp_path, worldeval_ckpt.trained(8), "deepspeed")
    (path / "checkpoint" / "mp_rank_00_model_states.pt").rename(
        path / "checkpoint" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    )
    with pytest.raises(UserError, match="cut into pieces, one per ZeRO-3 rank") as error:
        world_models.load(path)
    assert "zero_to_fp32.py" in error.value.command
    joined = {f"pipe.dit.{name}": value for name, value in worldeval_ckpt.trained(8).items()}
    joined["pipe.dit.blocks.0.self_attn.q.base_layer.weight"] = torch.ones(24, 24)
    single = worldeval_ckpt.write_flat(tmp_path / "joined.pt", joined)
    worldeval_ckpt.write_beside(single)
    assert world_models.load(single).card.net.rank == 4


# --- end to end -------------------------------------------------------------------------------------------------------


def test_raw_actions_without_names_are_compared_by_their_number(tmp_path):
    """``action_names: null`` beside it: no name is asked for; names that are given must be those of the dataset."""
    theirs = ActionSpec(("v_right", "v_down"), ("px", "px"), rate=10.0)
    unnamed = world_models.load(write(tmp_path, worldeval_ckpt.trained(2)))
    unnamed.action_spec.require(theirs, mine="the model", theirs="data")
    named = world_models.load(write(tmp_path, worldeval_ckpt.trained(2), action_names=["v_down", "v_right"]))
    with pytest.raises(UserError, match="differ in names"):
        named.action_spec.require(theirs, mine="the model", theirs="data")
    wide = world_models.load(write(tmp_path, worldeval_ckpt.trained(3)))
    with pytest.raises(UserError, match="differ in dim"):
        wide.action_spec.require(theirs, mine="the model", theirs="data")


@pytest.mark.parametrize("form", ["flat", "deepspeed"])
def test_infer_imagines_with_it(worldsim, tmp_path, form):
    data = dreams.write_painted(tmp_path / "data", 2, 12)
    path = write(tmp_path, worldeval_ckpt.trained(7), form)
    words = ["--model", path, "--frames", 5, "--episodes", "all", "--set", "save_frames=true", "--out", "out", "--json"]
    code, out, err = worldsim("infer", data, *words)
    assert code == 0, err
    assert json.loads(out)["metrics"]["episodes"] == 2
    prediction = load_prediction(next((tmp_path / "out" / "frames").glob("*.npz")))
    assert prediction.pred.shape == (6, 32, 64, 3)
    code, out, err = worldsim("infer", data, "--model", path, "--frames", 5, "--out", "plan", "--dry-run", "--json")
    assert code == 0, err
    path.with_suffix(".yaml").unlink()
    code, _, err = worldsim("infer", data, "--model", path, "--out", "other")
    assert code == 1
    assert "write fps, size, camera and actions" in err
