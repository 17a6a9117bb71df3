"""Policy latents on tiny twins: which frames a row has seen, what the head makes of it, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import painted
from worldsim.core import registry
from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.types import CameraInfo, FrameStream
from worldsim.latent_actions import Options, _twins
from worldsim.latent_actions._policy import _noise_seed
from worldsim.lerobot_policy import checkpoint as checkpoints
from worldsim.lerobot_policy.bridge import bridged
from worldsim.lerobot_policy.loading import fill, load

NAMES = ("act", "diffusion", "smolvla", "pi0")
FRAMES, CHUNK = 10, 4
WEIGHTS, BEFORE = checkpoints.WEIGHTS, checkpoints.PIPELINES[0]


@pytest.fixture(scope="module")
def twins():
    """Each twin is built once; the tests only read it."""
    return {name: registry.get("latent_actions", name).tiny() for name in NAMES}


@pytest.fixture(scope="module")
def saved(twins, tmp_path_factory):
    """The ACT twin as lerobot-train leaves a policy."""
    folder = tmp_path_factory.mktemp("policy")
    loaded = twins["act"].loaded
    for part in (loaded.policy, loaded.preprocessor, loaded.postprocessor):
        part.save_pretrained(folder)
    return folder


def asked(extractor, **options):
    """The same policy, asked otherwise."""
    return type(extractor)(extractor.checkpoint, "cpu", replace(extractor.options, **options), extractor.loaded)


def repainted(frame: int, camera: str | None = "cam_top"):
    """The painted episode with one other frame (or, without a camera, one other state)."""
    episode = painted.episode(num_frames=FRAMES)
    if camera is None:
        episode.states[frame] += 5.0
    else:
        frames = episode.frames[camera].read()
        frames[frame] = 255 - frames[frame]
        episode.frames[camera] = FrameStream.of(frames)
    return episode


@pytest.mark.parametrize("camera", ["cam_top", "cam_front", None])
@pytest.mark.parametrize("name", NAMES)
def test_a_chunks_rows_have_seen_its_start_and_nothing_after(twins, name, camera):
    """Another frame j changes the rows of the chunk that begins there (or, with two observations, one later), no other."""
    extractor = twins[name]
    before = extractor.extract(painted.episode(num_frames=FRAMES))
    history = 2 if name == "diffusion" else 1
    for frame in (0, 3, 4, 5, 7, 9) if camera == "cam_top" else (3, 4):
        changed = np.abs(extractor.extract(repainted(frame, camera)) - before).max(axis=1) > 0
        starts = [start for start in range(0, FRAMES, CHUNK) if frame <= start < frame + history]
        expected = [any(start <= row < start + CHUNK for start in starts) for row in range(FRAMES)]
        assert changed.tolist() == expected, frame


@pytest.mark.parametrize("name", NAMES)
def test_every_frame_mode_sees_its_own_frame_only(twins, name):
    extractor = asked(twins[name], mode="frame")
    assert extractor.params()["teacher_forced"] is True
    before = extractor.extract(painted.episode(num_frames=FRAMES))
    changed = np.abs(extractor.extract(repainted(5)) - before).max(axis=1) > 0
    assert np.flatnonzero(changed).tolist() == ([5, 6] if name == "diffusion" else [5])
    chunks = twins[name].extract(painted.episode(num_frames=FRAMES))
    if name == "act":  # no noise: the first row of a plan is the same however often it is made
        assert np.allclose(before[::CHUNK], chunks[::CHUNK], atol=1e-5)


def test_a_policy_that_executes_one_step_is_teacher_forced_too(twins):
    config = {**twins["act"].checkpoint.config, "n_action_steps": 1}
    extractor = type(twins["act"])(replace(twins["act"].checkpoint, config=config), "cpu", Options())
    assert extractor.params()["teacher_forced"] is True
    assert twins["act"].params()["teacher_forced"] is False


@torch.no_grad()
def test_acts_head_makes_the_chunk_from_the_latents(twins):
    extractor = twins["act"]
    for plans in extractor.plans(painted.episode(num_frames=FRAMES), np.array([0, 4, 8])):
        assert torch.equal(extractor.head(torch.from_numpy(plans.latents)), plans.chunks)


@torch.no_grad()
@pytest.mark.parametrize("name", ["smolvla", "pi0"])
def test_the_flows_last_step_makes_the_chunk_from_the_latents(twins, name):
    """x_0 = x_dt - dt * head(latent), with x_dt as the policy itself has it at its last of two steps."""
    extractor, samples = twins[name], []
    handle = extractor.loaded.policy.model.action_in_proj.register_forward_pre_hook(
        lambda m, given: samples.append(given[0])
    )
    plans = next(extractor.plans(painted.episode(num_frames=FRAMES), np.array([0, 4])))
    handle.remove()
    assert len(samples) == 2
    ends = samples[-1] - 0.5 * extractor.head(torch.from_numpy(plans.latents))
    assert torch.equal(ends[..., : _twins.DIM], plans.chunks)


def test_the_policys_cameras_are_found_by_name_in_its_own_order(twins):
    """The policy has cam_top before cam_front, the dataset the other way round."""
    extractor, episode = twins["act"], painted.episode(num_frames=FRAMES)
    batch = extractor.observations.at(episode, np.array([3, 7]))
    assert list(batch)[:2] == ["observation.images.cam_top", "observation.images.cam_front"]
    for key, camera in (("cam_top", "cam_top"), ("cam_front", "cam_front")):
        shown = (batch[f"observation.images.{key}"] * 255).round().byte().permute(0, 2, 3, 1).numpy()
        assert np.array_equal(shown, episode.frames[camera].rows([3, 7]))
        assert [painted.read_index(frame) for frame in shown] == [3, 7]
    assert np.array_equal(batch["observation.state"].numpy(), episode.states[[3, 7]])
    swapped = asked(extractor, cameras={"cam_top": "cam_front", "cam_front": "cam_top"})
    other = swapped.observations.at(episode, np.array([3]))
    assert torch.equal(other["observation.images.cam_top"][0], batch["observation.images.cam_front"][0])
    assert swapped.params()["cameras"] == {"cam_front": "cam_top", "cam_top": "cam_front"}


def test_two_observations_begin_by_repeating_the_first_frame(twins):
    batch = twins["diffusion"].observations.at(painted.episode(num_frames=FRAMES), np.array([0, 4]))
    shown = (batch["observation.images.cam_top"] * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    assert [[painted.read_index(frame) for frame in pair] for pair in shown] == [[0, 0], [3, 4]]


def test_names_that_the_policys_pipeline_changes_are_undone(twins, saved, tmp_path):
    """A policy trained with --rename_map takes the dataset's names and renames them itself."""
    folder = shutil.copytree(saved, tmp_path / "renamed")
    steps = json.loads((folder / BEFORE).read_text())
    change = {"observation.images.left": "observation.images.cam_front"}
    steps["steps"][0]["config"]["rename_map"] = change
    (folder / BEFORE).write_text(json.dumps(steps))
    extractor = type(twins["act"]).create(str(folder), None, "cpu")
    episode = painted.episode(num_frames=FRAMES, cameras=("cam_top", "left"))
    extractor.spec(painted.card(cameras=("cam_top", "left")))
    same = painted.episode(num_frames=FRAMES)
    same.frames = {"cam_front": episode.frames["left"], "cam_top": episode.frames["cam_top"]}
    assert np.array_equal(extractor.extract(episode), twins["act"].extract(same))


def test_compat_takes_whole_chunks_without_pipelines(twins, saved, tmp_path):
    """Neither file is read, so a policy from before LeRobot 0.4 gives what the reference got from it."""
    folder = shutil.copytree(saved, tmp_path / "old")
    for name in checkpoints.PIPELINES:
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_action_steps": 2}))
    extractor = type(twins["act"]).create(str(folder), None, "cpu", Options(compat="worldeval"))
    assert extractor.params()["chunk"] == CHUNK
    episode = painted.episode(num_frames=FRAMES)
    rows = extractor.extract(episode)
    images = [
        torch.from_numpy(episode.frames[c].read()[::CHUNK]).permute(0, 3, 1, 2) / 255 for c in ("cam_top", "cam_front")
    ]
    bare = {"observation.images": images, "observation.state": torch.from_numpy(episode.states[::CHUNK]).float()}
    seen = []
    handle = twins["act"].head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        twins["act"].loaded.policy.model(bare)
    handle.remove()
    assert np.allclose(rows, seen[0].flatten(0, 1)[:FRAMES].numpy(), atol=1e-5)


def broken(folder, name: str):
    """The ways in which a policy's folder can be wrong."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / WEIGHTS)
    if name == "missing file":
        (folder / BEFORE).unlink()
    elif name == "missing state":
        next(folder.glob("policy_preprocessor_step_*.safetensors")).unlink()
    elif name == "missing weights":
        (folder / WEIGHTS).unlink()
    elif name == "torn weights":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    elif name == "no policy":
        (folder / "config.json").write_text('{"a": 1}')
    elif name == "other type":
        (folder / "config.json").write_text(json.dumps(config | {"type": "diffusion"}))
    elif name == "adapter":
        (folder / "config.json").write_text(json.dumps(config | {"use_peft": True}))
    elif name == "unknown key":
        (folder / "config.json").write_text(json.dumps(config | {"wings": 2}))
    elif name == "old":
        save_file(weights | {"normalize_inputs.buffer_observation_state.mean": torch.zeros(7)}, folder / WEIGHTS)
    elif name == "no head":
        save_file({k: v for k, v in weights.items() if "action_head" not in k}, folder / WEIGHTS)
    elif name == "missing tensor":
        save_file({k: v for k, v in weights.items() if k != "model.decoder_pos_embed.weight"}, folder / WEIGHTS)
    elif name == "unknown tensor":
        save_file(weights | {"model.wings": torch.zeros(2)}, folder / WEIGHTS)
    elif name == "other shape":
        save_file(weights | {"model.decoder_pos_embed.weight": torch.zeros(5, 32)}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("name", "sentence", "command"),
    [
        ("missing file", "lacks policy_preprocessor.json, through which it sees its inputs", "ls "),
        ("missing state", "lacks policy_preprocessor_step_3_normalizer_processor.safetensors", None),
        ("missing weights", "lacks model.safetensors", "hf download"),
        ("torn weights", "is damaged", "hf download"),
        ("no policy", "is not the config of a LeRobot policy", None),
        ("other type", "is of type 'diffusion', not 'act'", "extractor=diffusion"),
        ("adapter", "is an adapter on another policy", None),
        ("unknown key", "is not a config of LeRobot 0.6.1", None),
        ("old", "was saved before LeRobot 0.4", "migrate_policy_normalization --pretrained-path"),
        ("no head", "has no tensor model.action_head.weight", None),
        ("missing tensor", "lacks tensor model.decoder_pos_embed.weight", None),
        ("unknown tensor", "holds the unknown tensor model.wings", None),
        ("other shape", "model.decoder_pos_embed.weight has shape (5, 32)", None),
    ],
)
def test_a_broken_policy_is_one_sentence(twins, saved, tmp_path, name, sentence, command):
    folder = shutil.copytree(saved, tmp_path / "policy")
    broken(folder, name)
    with pytest.raises(UserError) as error:
        type(twins["act"]).create(str(folder), None, "cpu").extract(painted.episode(num_frames=2))
    assert sentence in error.value.sentence
    assert command is None or command in error.value.command


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        (painted.card(cameras=("cam_front",)), "sees a camera 'cam_top', the dataset has cam_front"),
        (painted.card(dim=2), "reads a state of 7 numbers, the dataset painted has 2"),
        (painted.card(states=False), "reads a state of 7 numbers, the dataset painted has none"),
        (painted.card(size=(32, 64)), "sees camera 'cam_top' as 64x128, the dataset painted has 'cam_top' as 32x64"),
    ],
)
def test_a_dataset_that_the_policy_cannot_see_is_one_sentence(twins, card, sentence):
    with pytest.raises(UserError, match=sentence):
        twins["act"].spec(card)


def test_cameras_are_told_by_name_or_found_with_worldevals_prefix(twins):
    extractor = twins["act"]
    card = replace(painted.card(), cameras=(CameraInfo("front", 64, 128), CameraInfo("top", 64, 128)))
    assert extractor.spec(card).dim == 32
    told = asked(extractor, cameras={"cam_top": "high"})
    with pytest.raises(UserError, match="the dataset has no camera 'high'; it has front, top"):
        told.spec(card)
    with pytest.raises(UserError, match=r"cameras\.top: the policy the twin has no such camera; it has cam_top, cam_front"):
        asked(extractor, cameras={"top": "front"}).spec(card)


def test_a_policy_that_reads_a_simulators_state_is_refused(twins):
    features = {
        **twins["act"].checkpoint.config["input_features"],
        "observation.environment_state": {"type": "ENV", "shape": [3]},
    }
    found = replace(twins["act"].checkpoint, config={**twins["act"].checkpoint.config, "input_features": features})
    with pytest.raises(UserError, match=r"reads observation\.environment_state"):
        type(twins["act"])(found, "cpu", Options()).spec(painted.card())


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("act", {"policy": None}, "the extractor 'act' reads a policy, and none was named"),
        ("act", {"checkpoint": "runs/x"}, "checkpoint = runs/x: the extractor 'act' reads a policy"),
        ("act", {"policy": "nowhere"}, "the policy nowhere is no folder"),
        (
            "act",
            {"options": Options(mode="frame", compat="worldeval")},
            "takes the policy's whole chunks, not mode = frame",
        ),
        ("pi0", {"options": Options(compat="worldeval")}, "reads ACT policies, not 'pi0'"),
        ("raw", {"policy": None, "options": Options(mode="frame")}, "mode = frame: the extractor 'raw'"),
    ],
)
def test_wrong_words_are_one_sentence(twins, name, words, sentence):
    given = {"policy": "policy", "checkpoint": None, "device": "cpu"} | words
    with pytest.raises(UserError, match=sentence):
        registry.get("latent_actions", name).create(**given)


def test_a_bad_episode_is_named(twins):
    episode = painted.episode(num_frames=FRAMES)
    episode.instruction = None
    assert twins["act"].extract(episode).shape == (FRAMES, 32)
    with pytest.raises(BadEpisode, match="episode_000000: painted/0 has no instruction, which the policy reads"):
        twins["smolvla"].extract(episode)
    episode.states[2, 3] = np.nan
    with pytest.raises(BadEpisode, match="a state is not a finite number"):
        twins["act"].extract(episode)
    del episode.frames["cam_top"]
    with pytest.raises(BadEpisode, match="sees a camera 'cam_top'"):
        twins["act"].extract(episode)
    with pytest.raises(BadEpisode, match="has no states"):
        twins["act"].extract(painted.episode(states=False))


@pytest.mark.parametrize(("name", "small"), [("smolvla", _twins.tiny_smolvlm), ("pi0", _twins.tiny_paligemma)])
def test_language_policies_load_every_weight_of_their_file(twins, tmp_path, name, small):
    """Also from openpi's own names and from those of an older transformers, where LeRobot's loader leaves random weights."""
    extractor = twins[name]
    extractor.loaded.policy.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    if name == "pi0":
        old = {
            k.replace(".vision_tower.", ".vision_tower.vision_model.").removeprefix("model."): v for k, v in weights.items()
        }
        assert old.keys() != weights.keys()
        save_file(old, tmp_path / WEIGHTS)
    found = checkpoints.read(str(tmp_path), name, extractor.HEAD, pipelines=False)
    assert found.width == extractor.checkpoint.width
    fresh = type(extractor)(found, "cpu", Options())
    with small():
        loaded = load(found, "cpu", prepare=fresh.quirks.prepare, rename_keys=fresh.quirks.rename_keys, pipelines=False)
    own, theirs = loaded.policy.state_dict(), extractor.loaded.policy.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)


def test_what_smolvlas_language_model_needs_is_said(twins, tmp_path, monkeypatch):
    """Its config and tokenizer are not in the policy's file; LeRobot would run it in bfloat16 where it asked for weights."""
    from lerobot.policies.smolvla import smolvlm_with_expert

    extractor = twins["smolvla"]
    extractor.loaded.policy.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"load_vlm_weights": True}))
    found = checkpoints.read(str(tmp_path), "smolvla", extractor.HEAD, pipelines=False)
    fresh = type(extractor)(found, "cpu", Options())
    parts = {"prepare": fresh.quirks.prepare, "rename_keys": fresh.quirks.rename_keys, "pipelines": False}
    with pytest.raises(UserError, match="cannot be built") as error:
        load(found, "cpu", **parts)
    assert error.value.command == "hf download HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    with _twins.tiny_smolvlm():
        model = load(found, "cpu", **parts).policy.model
        assert model.vlm_with_expert.vlm.dtype == torch.bfloat16
        assert model.action_out_proj.weight.dtype == torch.float32

        def lacking(name):
            raise ImportError("Package `num2words` is required to run SmolVLM processor.")

        monkeypatch.setattr(smolvlm_with_expert.AutoProcessor, "from_pretrained", lacking)
        with pytest.raises(UserError, match="needs a package") as error:
            load(found, "cpu", **parts)
        assert error.value.command == "uv pip install num2words"


def test_a_tensor_that_is_shared_may_be_absent(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    tied = Tied()
    fill(tied, {"a.weight": torch.ones(2, 2)}, tmp_path)
    assert torch.equal(tied.b.weight, torch.ones(2, 2))
    with pytest.raises(UserError, match=r"lacks tensor a\.weight"):
        fill(tied, {}, tmp_path)


def test_the_bridge_crops_to_a_length_and_leaves_no_trace():
    from lerobot.policies import pi_gemma
    from transformers.cache_utils import DynamicLayer

    before = DynamicLayer.crop, pi_gemma.create_causal_mask
    layer = DynamicLayer()
    layer.update(torch.arange(12.0).reshape(1, 1, 6, 2), torch.zeros(1, 1, 6, 2))
    with bridged():
        layer.crop(8)
        assert layer.get_seq_length() == 6
        layer.crop(4)
        layer.crop(4)
        assert layer.keys.flatten().tolist() == list(range(8))
    assert (DynamicLayer.crop, pi_gemma.create_causal_mask) == before


def test_noise_depends_on_seed_episode_and_start():
    seeds = {_noise_seed(s, e, t) for s in (0, 1) for e in ("a", "b") for t in (0, 1)}
    assert len(seeds) == 8
    assert _noise_seed(0, "a", 0) == _noise_seed(0, "a", 0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_last_policy_of_a_training_run_is_found(saved, tmp_path):
    for step in ("000100", "000020"):
        shutil.copytree(saved, tmp_path / "checkpoints" / step / "pretrained_model")
    assert checkpoints.find(str(tmp_path)).parent.name == "000100", "no link named last, as after an upload"
    (tmp_path / "checkpoints" / "last").symlink_to("000020")
    assert checkpoints.find(str(tmp_path)).parent.name == "last"
    assert checkpoints.find(str(tmp_path / "checkpoints" / "000020")).parent.name == "000020"
