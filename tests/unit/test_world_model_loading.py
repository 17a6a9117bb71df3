"""World models are found by name or in a run folder; what is wrong is said in one sentence with a command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from worldsim import world_models
from worldsim.core.errors import UserError
from worldsim.world_models.copy import CopyModel


def make_run(folder: Path, card: dict | None = None, weights: bool = True) -> Path:
    """A run folder as training leaves it, with what is asked for in its checkpoint."""
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "config.yaml").write_text("command: finetune-wan\nseed: 0\n")
    if card is not None:
        (folder / "checkpoint" / "card.json").write_text(json.dumps(card))
    if weights:
        (folder / "checkpoint" / "model.safetensors").write_bytes(b"")
    return folder


def test_by_name_and_by_folder(tmp_path: Path) -> None:
    assert isinstance(world_models.load("copy"), CopyModel)
    run = make_run(tmp_path / "run", {"world_model": "copy"})
    assert isinstance(world_models.load(run), CopyModel)
    assert isinstance(world_models.load(str(run / "checkpoint")), CopyModel)


@pytest.mark.parametrize(
    ("card", "weights", "sentence", "command"),
    [
        (None, False, "unfinished run", "worldsim finetune-wan --config"),
        ({"version": 1}, True, "names no world model", "worldsim models list"),
        ({"world_model": "wam"}, True, "did you mean 'wan'", "worldsim models list"),
        ({"world_model": "wan"}, False, "model.safetensors is missing", "worldsim finetune-wan --config"),
    ],
)
def test_what_is_wrong_with_a_run_is_said(tmp_path: Path, card, weights, sentence, command) -> None:
    run = make_run(tmp_path / "run", card, weights)
    with pytest.raises(UserError, match=sentence) as error:
        world_models.load(run)
    assert error.value.command.startswith(command)


def test_a_finished_run_of_another_kind_is_called_so(tmp_path: Path) -> None:
    run = tmp_path / "imagined"
    run.mkdir()
    (run / "config.yaml").write_text("command: infer\nseed: 0\nmodel: runs/tuned\n")
    (run / "result.json").write_text('{"status": "failed"}')
    with pytest.raises(UserError, match="unfinished run"):
        world_models.load(run)
    (run / "result.json").write_text('{"status": "done"}')
    with pytest.raises(
        UserError, match=r"imagined is a run of infer, not a model; the model that it used is runs/tuned"
    ) as error:
        world_models.load(run)
    assert "runs/tuned" in error.value.command
    (run / "config.yaml").write_text("command: eval-video\nseed: 0\n")
    with pytest.raises(UserError, match="is a run of eval video, not a model"):
        world_models.load(run)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere/run", "no run folder and no world model 'nowhere/run'"),
        ("coppy", "did you mean 'copy'"),
        ("wan", "trained"),
    ],
)
def test_a_name_that_is_none_is_said(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        world_models.load(name)
    assert error.value.command


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder") as error:
        world_models.load(tmp_path)
    assert "worldsim finetune-wan" in error.value.command


def test_needs_fills_in_what_a_model_does_not_state() -> None:
    found = world_models.needs(CopyModel())
    assert (found.camera, found.action_delay, found.action_column, found.context_frames) == (None, 0, "raw", 1)


def test_copy_repeats_the_last_given_frame_for_every_sample_and_step() -> None:
    context = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 10, 3), np.uint8)
    out = CopyModel().rollout(context, np.zeros((2, 5, 1, 4)), num_samples=2, seeds=[0, 1])
    assert out.shape == (2, 2, 5, 8, 10, 3)
    assert (out == context[:, -1][:, None, None]).all()
    with pytest.raises(UserError, match="are not"):
        CopyModel().rollout(context[0], np.zeros((2, 5, 1, 4)))


def test_memory_of_rollouts_needs_no_weights(tmp_path: Path) -> None:
    """From the card alone: the runtime's own share and the activations of large clips; more clips need more."""
    from worldsim.world_models.wan import Wan

    card = Wan.tiny().card.to_json() | {"height": 480, "width": 640, "frames": 49}
    card["base"] = {"model": "tiny-ti2v", "geometry": "tiny-ti2v", "revision": None}
    run = make_run(tmp_path / "run", card)
    one, four = (world_models.rollout_memory(run, batch) for batch in (1, 4))
    assert 1 < one < four < 8
    assert world_models.rollout_memory("copy", 4) is None


def test_another_base_has_a_way_back_and_an_export_says_so(tmp_path: Path) -> None:
    """A bundled base that an upgrade replaced: a run tuned on the old one names what to install, or how to train anew."""
    from worldsim.commands import models_export
    from worldsim.core.runs import RunContext
    from worldsim.train import checkpoint
    from worldsim.world_models._wan_geometries import mismatch, resolve
    from worldsim.world_models.wan import Wan

    with pytest.raises(UserError, match=r"another model .* provenance\.json .* or train anew") as error:
        resolve("worldsim-tiny", "0123456789ab")
    assert "finetune-wan DATA --model worldsim-tiny --out" in error.value.command
    model = Wan.tiny("worldsim-tiny")
    assert mismatch(model.card.base) is None
    assert mismatch({"model": "nowhere", "revision": "0"}) is None
    tensors = {name: p.detach() for name, p in model.net.trained().items()}
    for revision, notes in ((model.card.base["revision"], 0), ("0123456789ab", 1)):
        run = make_run(tmp_path / revision, model.card.to_json() | {"base": {**model.card.base, "revision": revision}})
        checkpoint.write_weights(run / "checkpoint" / checkpoint.WEIGHTS, tensors)
        out = tmp_path / f"{revision}-export"
        out.mkdir()
        context = RunContext("models-export", out)
        models_export.run(models_export.Config(model=str(run)), context)
        assert len(context.notes) == notes
    assert "not the one here" in context.notes[0]
