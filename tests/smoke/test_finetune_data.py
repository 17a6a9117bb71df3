"""What finetune-wan reads: stacked cameras, short episodes, frames encoded once, WorldEval's samples, changed inputs."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import h5py
import numpy as np
import pytest
import torch

from tests import painted
from worldsim import world_models
from worldsim.commands._finetune_clips import choose_size
from worldsim.core.errors import UserError
from worldsim.core.types import CameraInfo
from worldsim.data import columns
from worldsim.data.split import split_episodes
from worldsim.data.transforms import Cover
from worldsim.encoders.clip import ClipVision
from worldsim.encoders.wan_vae import WanVAE
from worldsim.formats import open_dataset
from worldsim.formats.act_hdf5 import ActHdf5
from worldsim.train.checkpoint import read_weights
from worldsim.world_models._wan_geometries import GEOMETRIES
from worldsim.world_models._wan_training import FlowLoss

LENGTHS = [20, 21, 12, 23, 7, 16]
"""Frames of the six episodes; three hold no clip of 17 frames."""


@pytest.fixture(scope="module")
def painted_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "painted"
    card = painted.card(size=(64, 128))
    writer = ActHdf5.create(folder, card)
    for index, frames in enumerate(LENGTHS):
        episode = painted.episode(index, frames, size=(64, 128))
        episode.split = "train" if index < 5 else "test"
        writer.commit(writer.stage(episode))
    writer.finalize(card)
    return folder


@pytest.fixture
def dataset(painted_set, tmp_path):
    return shutil.copytree(painted_set, tmp_path / "painted")


def train_ids(dataset) -> list[str]:
    source = open_dataset(dataset)
    ids = split_episodes(source.ids(), source.card.splits).train
    source.close()
    return ids


def weights(run) -> bytes:
    return (run / "checkpoint" / "model.safetensors").read_bytes()


def card_of(run) -> dict:
    return json.loads((run / "checkpoint" / "card.json").read_text())


def smoke(dataset, *words: object) -> list[object]:
    return ["finetune-wan", dataset, "--config", "smoke", *words]


QUICK = ["--set", "train.steps=2", "--set", "train.batch=1"]


def test_stacked_cameras_from_training_to_the_imagined_video(worldsim, dataset, tmp_path, monkeypatch):
    """What the VAE is shown, the card, and infer's truth: cam_top above cam_front, both at the same frame."""
    shown: list[np.ndarray] = []
    encode = WanVAE.encode
    monkeypatch.setattr(
        WanVAE, "encode", lambda self, frames, pad_to=0: shown.append(frames) or encode(self, frames, pad_to)
    )
    run = tmp_path / "run"
    code, out, err = worldsim(*smoke(dataset, "--camera", "cam_top,cam_front", *QUICK, "--out", run, "--json"))
    assert code == 0, err
    assert any("stacked from top to bottom, 32x64 each: cam_top+cam_front" in n for n in json.loads(out)["notes"])
    clips = np.concatenate(shown)
    assert clips.shape[1:] == (9, 64, 64, 3)
    for clip in clips:
        halves = [[painted.read_index(frame[half]) for frame in clip] for half in (slice(32), slice(32, 64))]
        assert halves[0] == halves[1] == list(range(halves[0][0], halves[0][0] + 9))
    source = open_dataset(dataset)
    at = source.ids().index(train_ids(dataset)[0])
    top = source.episode(at).frames["cam_top"].rows([0])
    assert any(np.array_equal(clip[0, :32], Cover(32, 64).forward(top)[0]) for clip in clips)
    source.close()
    assert card_of(run)["camera"] == "cam_top+cam_front"
    assert (card_of(run)["height"], card_of(run)["width"]) == (64, 64)

    words = ["infer", dataset, "--model", run, "--frames", "4", "--set", "save_frames=true", "--set", "steps=1"]
    code, _, err = worldsim(*words, "--out", tmp_path / "dream")
    assert code == 0, err
    with np.load(next((tmp_path / "dream" / "frames").iterdir())) as saved:
        truth = saved["truth"]
    assert truth.shape[1:] == (64, 64, 3)
    halves = [[painted.read_index(frame[half]) for frame in truth] for half in (slice(32), slice(32, 64))]
    assert halves[0] == halves[1]
    assert np.diff(halves[0]).tolist() == [1] * 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--camera", "cam_top,cam_frnt"], "the dataset painted has no camera 'cam_frnt'; did you mean 'cam_front'"),
        (["--camera", "cam_top,cam_top"], "'cam_top' is named twice"),
        (["--camera", "cam_top,cam_front", "--size", "33x64"], "33 cannot be shared out evenly among the 2 stacked"),
        (["--set", "min_frames=13"], "min_frames must be 4k + 1 between 5 and frames = 9, but is 13"),
        (["--set", "min_frames=6"], "min_frames must be 4k + 1 between 5 and frames = 9, but is 6"),
        (["--frames", "17", "--set", "min_frames=5"], "history = 2 given latents leave nothing of a clip of 5 frames"),
        (["--set", "history_noise=-0.1"], "history_noise must not be negative"),
        (["--set", "cache.export=worldeval"], "cache.export=worldeval: WorldEval's samples are those of Wan 2.1 image-to-"),
    ],
)
def test_wrong_words_are_one_sentence(worldsim, dataset, tmp_path, words, sentence):
    code, _, err = worldsim(*smoke(dataset, *words, "--out", tmp_path / "run"))
    assert code == 1
    assert sentence in err
    assert "Traceback" not in err


SHORT = ["--frames", "17", "--set", "min_frames=5", "--set", "history=1", "--set", "history_noise=0.1"]


def test_each_stacked_camera_has_whole_latent_cells_of_its_own():
    geometry, four = GEOMETRIES["tiny-i2v"], CameraInfo("a+b+c+d", 4 * 24, 40)
    assert choose_size(four, "32x32", geometry, 4) == (32, 32)
    with pytest.raises(
        UserError, match="each of the 4 stacked cameras gets 4 pixels of the height, which is no multiple of 8"
    ):
        choose_size(four, "16x32", geometry, 4)
    assert choose_size(four, None, geometry, 4) == (128, 32)  # from 24 x 40 each, in steps of 16


def test_short_episodes_train_in_buckets_and_a_crash_changes_no_byte(worldsim, dataset, tmp_path, monkeypatch):
    lengths: list[int] = []
    forward = FlowLoss.forward

    def look(self, latents, *args, **kwargs):
        lengths.append(latents.shape[2])
        if len(lengths) == crash_at:
            raise RuntimeError("power cut")
        return forward(self, latents, *args, **kwargs)

    monkeypatch.setattr(FlowLoss, "forward", look)
    words, crash_at = smoke(dataset, *SHORT, "--set", "train.steps=12"), 0
    code, out, err = worldsim(*words, "--out", tmp_path / "straight", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["metrics"]["episodes"] == 5
    assert any("2 train episodes are too short for 17 frames and give shorter clips" in n for n in result["notes"])
    assert card_of(tmp_path / "straight")["frames"] == 17
    assert card_of(tmp_path / "straight")["train_episodes"] == train_ids(dataset)
    # 20, 21 and 23 frames give 1, 2 and 2 clips of 5 latents at a hop of 4; 12 frames one of 3; 7 frames one of 2
    assert result["metrics"]["clips"] == 7
    assert set(lengths) == {5, 3, 2}
    assert Counter(lengths)[5] > 6

    crash_at = len(lengths) + 8
    code, _, _ = worldsim(*words, "--out", tmp_path / "crashed")
    assert code != 0
    code, _, err = worldsim(*words, "--out", tmp_path / "crashed")
    assert code == 0, err
    assert weights(tmp_path / "crashed") == weights(tmp_path / "straight")


def test_a_dry_run_counts_clips_per_length(worldsim, dataset):
    code, out, err = worldsim(*smoke(dataset, *SHORT, "--dry-run", "--json"))
    assert code == 0, err
    plan = json.loads(out)["plan"]
    assert (plan["episodes"], plan["clips"], plan["clips_of_frames"]) == (5, 7, {"17": 5, "9": 1, "5": 1})
    code, out, err = worldsim(*smoke(dataset, "--frames", "17", "--set", "history=1", "--dry-run", "--json"))
    assert json.loads(out)["plan"]["episodes"] == 3
    assert any("2 train episodes are too short" in n and "min_frames=5" in n for n in json.loads(out)["plan"]["notes"])


I2V = ["--model", "tiny-i2v", "--size", "32x32", "--set", "cache.hop=2", *QUICK]


def test_overlapping_clips_encode_each_prompt_and_each_first_frame_once(worldsim, dataset, tmp_path, monkeypatch):
    pictures: list[bytes] = []
    encode = ClipVision.encode

    def look(self, frames):
        pictures.extend(frame.tobytes() for frame in frames)
        return encode(self, frames)

    monkeypatch.setattr(ClipVision, "encode", look)
    code, out, err = worldsim(*smoke(dataset, *I2V, "--out", tmp_path / "run", "--json"))
    assert code == 0, err
    assert max(Counter(pictures).values()) == 1
    assert len(pictures) == json.loads(out)["metrics"]["clips"] == sum((n - 9) // 2 + 1 for n in LENGTHS[:5] if n >= 9)
    assert len(columns.find(dataset, "text", "umt5").keys()) == 3  # two tasks and no text
    before = len(pictures)
    assert worldsim(*smoke(dataset, *I2V, "--route", "adaln", "--out", tmp_path / "again"))[0] == 0
    assert len(pictures) == before


def test_worldevals_samples_are_as_specified(worldsim, dataset, tmp_path, monkeypatch):
    """Names, keys, shapes and types of the spec's table; content by the encoders themselves; kept on a second run."""
    run = tmp_path / "run"
    export = [*I2V, "--set", "cache.export=worldeval"]
    code, out, err = worldsim(*smoke(dataset, *export, "--out", run, "--json"))
    assert code == 0, err
    folder = dataset / "train"
    clips = json.loads(out)["metrics"]["clips"]
    files = sorted(folder.glob("*.tensors.pth"))
    assert len(files) == clips
    base = world_models.load(run).base
    source = open_dataset(dataset)
    name = train_ids(dataset)[1]
    episode = source.episode(source.ids().index(name))
    file = episode.source.rpartition("/")[2]
    start = 2
    sample = torch.load(folder / f"episodes_{file}_1.tensors.pth", weights_only=True)

    assert sample.keys() == {"latents", "prompt_emb", "image_emb", "action_emb"}
    assert sample["prompt_emb"].keys() == {"context"}
    assert sample["image_emb"].keys() == {"clip_feature", "y"}
    tensors = {
        "latents": sample["latents"],
        "context": sample["prompt_emb"]["context"],
        "clip_feature": sample["image_emb"]["clip_feature"],
        "y": sample["image_emb"]["y"],
    }
    shapes = {"latents": (16, 3, 4, 4), "context": (1, 512, 32), "clip_feature": (1, 5, 4), "y": (1, 20, 3, 4, 4)}
    assert {key: tuple(t.shape) for key, t in tensors.items()} == shapes
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert (sample["action_emb"].dtype, sample["action_emb"].shape) == (torch.float32, (1, 10, 7))

    frames = Cover(32, 32).forward(episode.frames["cam_front"].read())
    vae, close = base.vae("cpu"), {"atol": 2e-2, "rtol": 2e-2}  # bf16 keeps three digits
    assert torch.allclose(tensors["latents"].float(), torch.from_numpy(vae.encode(frames[None, 2:11]))[0], **close)
    condition = torch.from_numpy(vae.encode(frames[None, 2:3], pad_to=9))
    assert torch.allclose(tensors["y"][:, 4:].float(), condition, **close)
    assert tensors["y"][0, :4].float().mean((0, 2, 3)).tolist() == [1, 0, 0]
    picture = torch.from_numpy(base.image_encoder("cpu").encode(frames[start : start + 1]))
    assert torch.allclose(tensors["clip_feature"].float(), picture, **close)
    text = torch.from_numpy(base.text_encoder("cpu").encode(episode.instruction))
    assert torch.allclose(tensors["context"][0, : len(text)].float(), text, **close)
    assert not tensors["context"][0, len(text) :].any()
    assert np.array_equal(sample["action_emb"][0].numpy(), episode.actions[2:12])  # inclusive end, as in that project
    source.close()

    before = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    digest = columns.dataset_fingerprint(dataset)
    code, _, err = worldsim(*smoke(dataset, *export, "--out", tmp_path / "again"))
    assert code == 0, err
    assert {p: p.stat().st_mtime_ns for p in files[1:]} == {p: before[p] for p in files[1:]}
    assert files[0].exists()
    assert columns.dataset_fingerprint(dataset) == digest

    code, _, err = worldsim(*smoke(dataset, *export, "--frames", "5", "--set", "history=1", "--out", tmp_path / "other"))
    assert code == 1
    assert "holds samples of another run" in err
    assert f"rm {folder}/*.tensors.pth {folder}/tensors.json" in err


def touch(dataset) -> None:
    with h5py.File(sorted((dataset / "episodes").iterdir())[0], "r+") as file:
        file["action"][0, 1] += 1.0


def test_done_is_not_done_when_the_data_have_changed(worldsim, dataset, tmp_path):
    runs = {
        "finetune-wan": smoke(dataset, *QUICK, "--out", tmp_path / "run"),
        "extract-latents": ["extract-latents", dataset, "--out", tmp_path / "latents"],
        "infer": ["infer", dataset, "--model", "copy", "--frames", "3", "--out", tmp_path / "dream"],
    }
    for words in runs.values():
        assert worldsim(*words)[0] == 0
    for words in runs.values():  # columns written by one command do not make the others' input another
        code, out, err = worldsim(*words, "--json")
        assert code == 0, err
        assert "already done" in json.loads(out)["notes"]
    touch(dataset)
    for words in runs.values():
        code, _, err = worldsim(*words)
        assert code == 1
        assert f"{dataset} has changed since {words[-1]} was made from it" in err
    shutil.rmtree(dataset)
    assert worldsim(*runs["infer"])[0] == 0  # what is no longer there cannot have changed


def test_a_training_that_began_on_other_data_is_not_continued(worldsim, dataset, tmp_path, monkeypatch):
    forward, calls = FlowLoss.forward, []

    def crash(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("power cut")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(FlowLoss, "forward", crash)
    words = smoke(dataset, "--out", tmp_path / "run")
    assert worldsim(*words)[0] != 0
    assert (tmp_path / "run" / "state").exists()
    touch(dataset)
    code, _, err = worldsim(*words)
    assert code == 1
    assert f"{dataset} has changed since {tmp_path / 'run'} was made from it" in err


def test_teacher_forced_actions_mark_the_checkpoint(worldsim, dataset, tmp_path):
    """The column says so in its parameters; the card repeats it."""
    digest = columns.dataset_fingerprint(dataset)
    source = open_dataset(dataset)
    for plugin, forced in (("seer", True), ("honest", False)):
        params = {"spec": source.card.actions.to_json(), "teacher_forced": forced}
        rows = {name: source.episode(k).actions for k, name in enumerate(source.ids())}
        columns.ensure(
            dataset, columns.ColumnSpec("actions", plugin, "frame", params, {"dataset": digest}), rows, rows.__getitem__
        )
        run = tmp_path / plugin
        assert worldsim(*smoke(dataset, *QUICK, "--actions", plugin, "--out", run))[0] == 0
        assert card_of(run)["teacher_forced"] is forced
    source.close()
    assert read_weights(tmp_path / "seer" / "checkpoint" / "model.safetensors")


def test_a_wrong_action_delay_is_remarked_upon(worldsim, tmp_path):
    """Three joints that obey two rows late: the dry run and the run say so, until the delay is set."""
    card = painted.card(("cam",), (32, 32), dim=3)
    writer = ActHdf5.create(tmp_path / "late", card)
    rng = np.random.default_rng(0)
    for index in range(4):
        episode = painted.episode(index, 60, ("cam",), (32, 32), dim=3)
        episode.actions = rng.normal(size=(60, 3)).astype(np.float32)
        late = np.concatenate([np.zeros((3, 3)), episode.actions[:-3]])
        episode.states, episode.split = np.cumsum(late, 0).astype(np.float32), "test" if index == 3 else "train"
        writer.commit(writer.stage(episode))
    writer.finalize(card)
    words = smoke(tmp_path / "late", "--dry-run", "--json")
    code, out, err = worldsim(*words)
    assert code == 0, err
    found = [note for note in json.loads(out)["plan"]["notes"] if "action_delay" in note]
    assert len(found) == 1
    assert "explained best by the action 2 rows before it (100% of its variance" in found[0]
    assert "--set action_delay=2 would train on that" in found[0]
    code, out, _ = worldsim(*words, "--set", "action_delay=2")
    assert code == 0
    assert not [note for note in json.loads(out)["plan"]["notes"] if "action_delay" in note]
