"""Latents of policies that LeRobot's own trainer made, against what LeRobot itself says they do."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest
import torch

from tests.trained_policies import as_lerobot_loads, observation, trained
from worldsim.core.types import Episode
from worldsim.data import columns
from worldsim.formats import open_dataset
from worldsim.latent_actions import Options
from worldsim.latent_actions._policy import _noise_seed
from worldsim.latent_actions.diffusion import Diffusion

CHUNK, FRAMES = 10, 25


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    return trained(tmp_path_factory.getbasetemp().parent / "trained-policies")


@pytest.fixture
def data(worldsim, policies, tmp_path):
    """The demo's data in WorldEval's layout: the policy's camera ``top`` is ``cam_top`` there."""
    code, _, err = worldsim("convert", policies.data, "--to", "act-hdf5", "--out", tmp_path / "hdf5")
    assert code == 0, err
    return tmp_path / "hdf5"


def recorded(data, episode: str):
    with h5py.File(next((data / "episodes").glob(f"{episode}.*"))) as file:
        return file["observations/images/cam_top"][:], file["observations/qpos"][:]


@torch.no_grad()
def test_acts_head_on_the_column_is_the_policys_own_chunk(worldsim, policies, data, tmp_path):
    """Exactly, at every chunk start of every episode; and after the post-processor, in physical units."""
    code, out, err = worldsim(
        "extract-latents", data, "--extractor", "act", "--policy", policies.act, "--out", "run", "--json"
    )
    assert code == 0, err
    metrics = json.loads(out)["metrics"]
    assert (metrics["rows"], metrics["width"]) == (3 * FRAMES, 64)
    assert (metrics["mode"], metrics["chunk"], metrics["teacher_forced"]) == ("chunk", CHUNK, False)
    column = columns.find(data, "actions", "act")
    policy, before, after = as_lerobot_loads(policies.saved("act"))
    for name in map("episode_{:04d}".format, range(3)):
        images, states = recorded(data, name)
        starts = np.arange(0, FRAMES, CHUNK)
        own = policy.predict_action_chunk(before(observation(images[starts], states[starts])))
        rows = np.zeros((len(starts) * CHUNK, 64), np.float32)
        rows[:FRAMES] = column.load(name)
        heads = policy.model.action_head(torch.from_numpy(rows).reshape(len(starts), CHUNK, 64))
        ours, theirs = heads.flatten(0, 1)[:FRAMES], own.flatten(0, 1)[:FRAMES]
        assert torch.equal(ours, theirs)
        assert torch.equal(after(ours), after(theirs))
        assert after(theirs).std() > 1, "pixels: the post-processor has un-normalised"

    saved = torch.load(data / "train" / "all_actions.pt", weights_only=True)
    assert [tuple(rows.shape) for rows in saved["encoded_action"]] == [(FRAMES, 64)] * 3
    assert np.array_equal(saved["encoded_action"][1].numpy(), column.load(column.keys()[1]))


def test_a_copy_is_the_same_policy_and_another_one_another_column(worldsim, policies, data, tmp_path):
    from safetensors.torch import load_file, save_file

    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(policies.saved("act"), copy)
    shutil.copytree(policies.saved("act"), other)
    weights = load_file(other / "model.safetensors")
    weights["model.decoder_pos_embed.weight"] += 1
    save_file(weights, other / "model.safetensors")
    for run, policy in enumerate((policies.act, copy, other)):
        code, _, err = worldsim("extract-latents", data, "--extractor", "act", "--policy", policy, "--out", f"run{run}")
        assert code == 0, err
    folders = sorted((data / "columns" / "actions").glob("act@*"))
    assert len(folders) == 2, "the copy has added none"
    first, second = (columns.Column(folder) for folder in folders)
    assert not np.array_equal(first.load(first.keys()[0]), second.load(second.keys()[0]))
    code, _, err = worldsim("finetune-wan", data, "--config", "smoke", "--actions", "act", "--out", "ft")
    assert code == 1
    assert "several columns actions/act" in err


def test_every_frame_is_marked_teacher_forced(worldsim, policies, data, tmp_path):
    words = (
        "extract-latents",
        data,
        "--extractor",
        "act",
        "--policy",
        policies.act,
        "--mode",
        "frame",
        "--out",
        "run",
        "--json",
    )
    code, out, err = worldsim(*words)
    assert code == 0, err
    result = json.loads(out)
    assert result["metrics"]["teacher_forced"] is True
    assert any("refuses it headline scores" in note for note in result["notes"])
    column = columns.find(data, "actions", "act")
    assert column.spec.params["teacher_forced"] is True
    policy, before, _ = as_lerobot_loads(policies.saved("act"))
    images, states = recorded(data, column.keys()[0])
    own = policy.predict_action_chunk(before(observation(images, states)))[:, 0]
    with torch.no_grad():
        heads = policy.model.action_head(torch.from_numpy(np.array(column.load(column.keys()[0]))))
    assert torch.allclose(heads, own, atol=1e-5), "16 observations per pass there, 25 here"


@torch.no_grad()
def test_compat_is_the_references_formula(worldsim, policies, data, tmp_path):
    """Bare model, images in 0..1, states as recorded, one start after the other, whole chunks, rows cut to the episode."""
    words = ("--extractor", "act", "--policy", policies.act, "--set", "compat=worldeval")
    code, _, err = worldsim("extract-latents", data, *words, "--out", "run")
    assert code == 0, err
    column = columns.find(data, "actions", "act")
    policy, _, _ = as_lerobot_loads(policies.saved("act"))
    images, states = recorded(data, column.keys()[2])
    rows, seen = [], []
    policy.model.action_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for start in range(0, FRAMES, policy.config.chunk_size):
        picture = torch.from_numpy(images[start]).permute(2, 0, 1)[None].float().contiguous() / 255.0
        state = torch.from_numpy(states[start])[None].float()
        policy.model({"observation.images": [picture], "observation.state": state})
        rows.append(seen.pop()[0, : FRAMES - start])
    expected = torch.cat(rows)[:FRAMES].numpy()
    assert np.array_equal(column.load(column.keys()[2]), expected)
    normalised = worldsim("extract-latents", data, *words[:4], "--out", "run2")
    assert normalised[0] == 0
    both = [columns.Column(folder).load(column.keys()[2]) for folder in sorted((data / "columns/actions").glob("act@*"))]
    assert np.abs(both[0] - both[1]).max() > 1e-3, "the policy's own normalisation matters"


def test_a_model_trains_on_the_column(worldsim, policies, data, tmp_path):
    """64 numbers per frame pair instead of 2, and infer finds the column by itself."""
    assert worldsim("extract-latents", data, "--extractor", "act", "--policy", policies.act, "--out", "latents")[0] == 0
    code, _, err = worldsim("finetune-wan", data, "--config", "smoke", "--actions", "act", "--out", "ft")
    assert code == 0, err
    card = json.loads((tmp_path / "ft" / "checkpoint" / "card.json").read_text())
    assert card["action_column"] == columns.find(data, "actions", "act").spec.maker
    assert card["action_spec"]["names"][63] == "act_63"
    for frames, told in ((8, 0), (CHUNK, 0), (CHUNK + 1, 2)):  # the row after the first chunk has seen frame CHUNK
        out = tmp_path / f"dream-{frames}"
        code, _, err = worldsim("infer", data, "--model", "ft", "--episodes", "0,1", "--frames", frames, "--out", out)
        assert code == 0, err
        notes = json.loads((out / "result.json").read_text())["notes"]
        assert any(f"in {told} of 2 scenes the policy of act" in note for note in notes) == bool(told)

    other = tmp_path / "other"  # one episode less: another dataset
    shutil.copytree(data, other, ignore=shutil.ignore_patterns("columns"))
    max((other / "episodes").iterdir()).unlink()
    words = ("infer", other, "--model", "ft", "--episodes", "0", "--frames", 4, "--out", "elsewhere")
    code, _, err = worldsim(*words)
    assert code == 1
    assert "worldsim extract-latents" in err
    wrong = ("--extractor", "act", "--policy", policies.act, "--set", "mode=frame", "--out", "latents-frame")
    assert worldsim("extract-latents", other, *wrong)[0] == 0
    code, _, err = worldsim(*words)
    assert code == 1
    assert "made with other settings" in err
    assert worldsim("extract-latents", other, "--extractor", "act", "--policy", policies.act, "--out", "latents-2")[0] == 0
    code, _, err = worldsim(*words)
    assert code == 0, err


def one(data, index: int) -> Episode:
    source = open_dataset(data)
    return source.episode(index)


@torch.no_grad()
def test_diffusion_latents_are_those_of_lerobots_own_sampling(policies):
    """One start at a time with the same noise: the latent is what LeRobot's last denoising step hands its last layer, and
    the scheduler's last step on head(latent) is LeRobot's chunk, exactly."""
    episode = one(policies.data, 1)
    extractor = Diffusion.create(str(policies.diffusion), None, "cpu", Options(batch=1, seed=7))
    policy, before, _ = as_lerobot_loads(policies.saved("diffusion"))
    head, inputs, samples = policy.diffusion.unet.final_conv[1], [], []
    head.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    policy.diffusion.unet.register_forward_pre_hook(lambda module, given: samples.append(given[0]))
    images, states = next(iter(episode.frames.values())).read(), episode.states
    for plans in extractor.plans(episode, np.array([0, 4, 20])):
        start = int(plans.starts[0])
        torch.manual_seed(_noise_seed(7, episode.id, start))
        noise = torch.randn(8, 2)[None]
        rows = np.maximum([start - 1, start], 0)
        given = observation(images[rows][None], states[rows][None])
        inputs.clear()
        own = policy.predict_action_chunk(before(given), noise=noise)
        assert torch.equal(plans.chunks, own)
        assert len(inputs) == 3
        assert np.array_equal(plans.latents[0], inputs[-1][0].T[1:].numpy())
        scheduler = policy.diffusion.noise_scheduler
        last = scheduler.step(head(inputs[-1]).transpose(1, 2), scheduler.timesteps[-1], samples[-1]).prev_sample
        assert torch.equal(last[:, 1:5], own)


def test_diffusion_rows_do_not_depend_on_their_neighbours(worldsim, policies, data, tmp_path):
    """The same noise per (episode, start) in batches of one and of sixteen, and through the command twice."""
    episode = one(policies.data, 0)
    rows = [
        Diffusion.create(str(policies.diffusion), None, "cpu", Options(batch=batch)).extract(episode)
        for batch in (1, 16, 16)
    ]
    assert np.array_equal(rows[1], rows[2])
    assert np.allclose(rows[0], rows[1], atol=1e-4)
    assert rows[0].shape == (FRAMES, 16)
    other = Diffusion.create(str(policies.diffusion), None, "cpu", Options(seed=1)).extract(episode)
    assert not np.allclose(other, rows[1], atol=1e-2)


def test_a_policys_name_on_the_hub_is_what_its_cache_holds(worldsim, policies, data, tmp_path, monkeypatch):
    """As a download leaves it; offline and absent it is one sentence with the command that fetches it."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    words = ("extract-latents", data, "--extractor", "act", "--policy", "someone/act")
    code, _, err = worldsim(*words, "--out", "run")
    assert code == 1
    assert "the Hub cannot be reached and its cache does not hold the model someone/act" in err
    assert "hf download --repo-type model someone/act" in err
    code, out, _ = worldsim(*words, "--dry-run", "--json")
    assert json.loads(out)["plan"]["policy"] == "someone/act is downloaded from the Hub first"

    commit, repository = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hub" / "models--someone--act"
    shutil.copytree(policies.saved("act"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code, _, err = worldsim(*words, "--out", "run")
    assert code == 0, err
    assert worldsim("extract-latents", data, "--extractor", "act", "--policy", policies.act, "--out", "run2")[0] == 0
    assert len(list((data / "columns" / "actions").glob("act@*"))) == 1


def test_a_dataset_that_the_policy_cannot_see_is_refused_at_the_door(worldsim, policies, tmp_path):
    """Before the policy is built, and nothing is written into the data."""
    from tests import painted
    from worldsim.formats.act_hdf5 import ActHdf5

    source = painted.PaintedSource(2, 12, cameras=("cam_front",), size=(64, 64), dim=7)
    writer = ActHdf5.create(tmp_path / "painted", source.card)
    for index in range(2):
        writer.commit(writer.stage(source.episode(index)))
    writer.finalize(source.card)
    words = ("extract-latents", tmp_path / "painted", "--extractor", "act", "--policy", policies.act, "--out", "run")
    code, _, err = worldsim(*words)
    assert code == 1
    assert "sees a camera 'top', the dataset has cam_front" in err
    assert "--set cameras.top=cam_front" in err
    code, _, err = worldsim(*words, "--set", "cameras.top=cam_front")
    assert code == 1
    assert "reads a state of 2 numbers, the dataset painted has 7" in err
    assert not (tmp_path / "painted" / "columns").exists()
