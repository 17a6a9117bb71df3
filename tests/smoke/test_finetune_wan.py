"""finetune-wan as it is typed: columns once, train split only, exact resume after kill -9, strict words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests import painted
from tests.killed import kill_after_rows
from worldsim import world_models
from worldsim.data import columns
from worldsim.data.split import split_episodes
from worldsim.encoders.umt5 import UMT5
from worldsim.encoders.wan_vae import WanVAE
from worldsim.formats import open_dataset
from worldsim.formats.act_hdf5 import ActHdf5
from worldsim.train.checkpoint import read_about, read_weights
from worldsim.train.tracking import read_rows
from worldsim.world_models._wan_geometries import Base


@pytest.fixture(scope="module")
def painted_set(tmp_path_factory):
    """Five painted episodes of 20 … 24 frames in WorldEval's layout, two cameras."""
    folder = tmp_path_factory.mktemp("data") / "painted"
    source = painted.PaintedSource(5, 20, size=(64, 128))
    writer = ActHdf5.create(folder, source.card)
    for index in range(5):
        writer.commit(writer.stage(source.episode(index)))
    writer.finalize(source.card)
    return folder


@pytest.fixture
def dataset(painted_set, tmp_path):
    """The painted set, with columns of its own."""
    import shutil

    return shutil.copytree(painted_set, tmp_path / "painted", ignore=shutil.ignore_patterns("columns"))


def weights(run) -> bytes:
    return (run / "checkpoint" / "model.safetensors").read_bytes()


def test_the_smoke_recipe_end_to_end(worldsim, dataset, tmp_path):
    run = tmp_path / "run"
    code, out, err = worldsim("finetune-wan", dataset, "--config", "smoke", "--out", run, "--json")
    assert code == 0, err
    result = json.loads(out)
    source = open_dataset(dataset)
    train = split_episodes(source.ids(), source.card.splits).train
    assert result["metrics"]["episodes"] == len(train) == 4
    assert result["metrics"]["steps"] == 6
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert any("camera 'cam_front', the first by name; the others are cam_top" in note for note in result["notes"])

    latents = columns.find(dataset, "latents", "wan-vae")
    assert latents.keys() == sorted(train)  # a held-out episode is never seen
    assert latents.spec.params["camera"] == "cam_front"
    assert latents.load(train[0]).dtype == np.float16

    card = json.loads((run / "checkpoint" / "card.json").read_text())
    assert (card["world_model"], card["height"], card["width"], card["frames"], card["fps"]) == ("wan", 64, 64, 9, 10.0)
    assert card["base"] == {"model": "tiny-ti2v", "geometry": "tiny-ti2v", "revision": None}
    assert str(tmp_path) not in json.dumps(card)
    tensors = read_weights(run / "checkpoint" / "model.safetensors")
    assert {t.dtype for name, t in tensors.items() if not name.startswith("text.")} == {torch.float32}
    assert read_about(run / "checkpoint" / "model.safetensors") == {"step": 6}
    assert sorted(card["prompts"]) == ["", "task 0", "task 1"]

    model = world_models.load(run)
    wants = world_models.needs(model)
    assert (wants.camera, wants.action_column, wants.context_frames, wants.action_spec.dim) == ("cam_front", "raw", 5, 7)
    model.set_instructions(["task 0"])
    video = model.rollout(np.zeros((1, 1, 64, 64, 3), np.uint8), np.zeros((1, 10, 1, 7)))
    assert video.shape == (1, 1, 10, 64, 64, 3)

    before = weights(run)
    code, out, _ = worldsim("finetune-wan", dataset, "--config", "smoke", "--out", run, "--json")
    assert code == 0
    assert "already done" in json.loads(out)["notes"]
    assert weights(run) == before
    source.close()


def test_a_second_training_loads_no_encoder(worldsim, dataset, tmp_path, monkeypatch):
    words = ["finetune-wan", dataset, "--config", "smoke", "--set", "train.steps=2"]
    assert worldsim(*words, "--out", tmp_path / "a")[0] == 0

    def refuse(*args, **kwargs):
        raise AssertionError("an encoder was loaded")

    for name in ("vae", "text_encoder", "image_encoder"):
        monkeypatch.setattr(Base, name, refuse)
    code, _, err = worldsim(*words, "--out", tmp_path / "b")
    assert code == 0, err
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_the_trainer_never_holds_an_encoder(worldsim, dataset, tmp_path, monkeypatch):
    """Encoders are freed before the transformer is built."""
    import gc
    import weakref

    alive: list[weakref.ref] = []
    transformer = Base.transformer

    def watch(cls):
        create = cls.__init__

        def init(self, *args, **kwargs):
            create(self, *args, **kwargs)
            alive.append(weakref.ref(self))

        monkeypatch.setattr(cls, "__init__", init)

    def build(self, dtype=torch.float32):
        gc.collect()
        assert alive
        assert not [ref() for ref in alive if ref() is not None]
        return transformer(self, dtype)

    watch(WanVAE)
    watch(UMT5)
    monkeypatch.setattr(Base, "transformer", build)
    words = ("finetune-wan", dataset, "--config", "smoke", "--set", "train.steps=1", "--out", tmp_path / "run")
    code, _, err = worldsim(*words)
    assert code == 0, err


@pytest.mark.parametrize(
    ("model", "route"),
    [
        ("tiny-t2v", "patch-add"),
        ("tiny-t2v", "adaln"),
        ("tiny-i2v", "adaln"),
        ("tiny-i2v", "tokens"),
        ("tiny-i2v", "worldeval"),
    ],
)
def test_every_family_and_route_trains(worldsim, dataset, tmp_path, model, route):
    run = tmp_path / "run"
    words = ["--model", model, "--route", route, "--size", "32x32", "--frames", "5", "--fps", "5"]
    quick = ["--set", "train.steps=2", "--set", "history=1", "--set", "cache.hop=9"]
    code, _, err = worldsim("finetune-wan", dataset, "--config", "smoke", *words, *quick, "--out", run)
    assert code == 0, err
    model_ = world_models.load(run)
    assert (model_.fps, model_.card.net.rows_per_frame) == (5.0, 2)
    video = model_.rollout(np.zeros((1, 1, 32, 32, 3), np.uint8), np.zeros((1, 3, 2, 7)))
    assert video.shape == (1, 1, 3, 32, 32, 3)


def test_kill_9_then_the_same_command_gives_the_same_bytes(worldsim, dataset, tmp_path):
    words = ["finetune-wan", str(dataset), "--config", "smoke", "--set", "train.steps=40", "--out"]
    assert worldsim(*words, tmp_path / "straight")[0] == 0
    killed = tmp_path / "killed"
    kill_after_rows([*words, killed], killed, 5)
    code, _, err = worldsim(*words, killed)
    assert code == 0, err
    assert weights(killed) == weights(tmp_path / "straight")
    assert [row["step"] for row in read_rows(killed / "metrics.jsonl")] == list(range(1, 41))


def test_two_processes_share_the_work(worldsim, dataset, tmp_path):
    """Columns, samples and weights (FSDP2) are shared out; one row per step, one whole checkpoint. Clips of two lengths."""
    run = tmp_path / "run"
    quick = ["--set", "train.steps=4", "--set", "train.batch=1", "--model", "tiny-i2v", "--size", "32x32"]
    lengths = ["--frames", "21", "--set", "min_frames=17", "--set", "cache.hop=1", "--set", "cache.export=worldeval"]
    processes = ["--nproc", "2", "--set", "train.sharding=fsdp2", "--device", "cpu", "--out", run, "--json"]
    code, out, err = worldsim("finetune-wan", dataset, "--config", "smoke", *quick, *lengths, *processes)
    assert code == 0, err
    result = json.loads(out)
    assert result["metrics"]["episodes"] == 4
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3, 4]
    assert "clips of 17 to 21 frames" in result["summary"]
    assert world_models.load(run).card.frames == 21
    samples = [torch.load(path)["latents"].shape[1] for path in sorted((dataset / "train").glob("*.tensors.pth"))]
    assert len(samples) == result["metrics"]["clips"]
    assert set(samples) == {5, 6}


def test_lost_episodes_are_counted_together_and_named(worldsim, dataset, tmp_path):
    """One train episode without its camera (seen in the survey), one with a NaN action (seen while encoding, by rank 1)."""
    import h5py

    source = open_dataset(dataset)
    ids = source.ids()
    train = split_episodes(ids, source.card.splits).train
    source.close()
    unseen = next(name for name in train if ids.index(name) % 2)
    blind = next(name for name in train if name != unseen)
    files = dict(zip(ids, sorted((dataset / "episodes").iterdir()), strict=True))
    with h5py.File(files[blind], "r+") as file:
        del file["observations/images/cam_front"]
    with h5py.File(files[unseen], "r+") as file:
        file["action"][3, 1] = np.nan
    words = ["finetune-wan", dataset, "--config", "smoke", "--set", "train.steps=1", "--set", "train.batch=1"]

    code, _, err = worldsim(*words, "--set", "max_rejected=1", "--out", tmp_path / "one")
    assert code == 1
    assert f"2 of 4 train episodes cannot be used, the first is {blind}" in err
    assert "max_rejected=2" in err
    code, out, err = worldsim(*words, "--set", "max_rejected=1", "--dry-run", "--json")
    assert code == 0, err
    assert any(note.startswith(f"episode {blind} was left out: ") for note in json.loads(out)["plan"]["notes"])
    both = ["--set", "max_rejected=2", "--nproc", "2", "--device", "cpu"]
    code, out, err = worldsim(*words, *both, "--out", tmp_path / "two", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["metrics"]["episodes"] == 2
    rejected = {entry["episode"]: entry["reason"] for entry in result["metrics"]["rejected"]}
    assert rejected.keys() == {blind, unseen}
    assert "lacks camera 'cam_front'" in rejected[blind]
    assert "an action is not a finite number" in rejected[unseen]
    assert {f"episode {name} was left out: {reason}" for name, reason in rejected.items()} <= set(result["notes"])


def test_a_changed_dataset_makes_the_column_stale(worldsim, dataset, tmp_path):
    import h5py

    assert worldsim("extract-latents", dataset, "--out", tmp_path / "latents")[0] == 0
    old = columns.find(dataset, "actions", "raw").folder.name
    victim = sorted((dataset / "episodes").iterdir())[0]
    with h5py.File(victim, "r+") as file:
        file["action"][0, 1] = 9.0
    quick = ["--config", "smoke", "--set", "train.steps=1"]
    code, _, err = worldsim("finetune-wan", dataset, *quick, "--actions", old, "--out", tmp_path / "run")
    assert code == 1
    assert "is stale" in err
    assert f"worldsim extract-latents {dataset} --extractor raw" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--frames", "12"], "frames = 12 is not 4k + 1: the video VAE packs 4 frames into one latent"),
        (["--frames", "49"], "no episode has the 49 source frames that clips of 49 frames need"),
        (["--size", "60x64"], "size 60x64 does not fit tiny-ti2v: both sides must be multiples of 32"),
        (["--size", "60"], "size 60 is not of the form HxW"),
        (["--camera", "cam_frnt"], "the dataset painted has no camera 'cam_frnt'; did you mean 'cam_front'"),
        (["--fps", "4"], "--fps 4 does not divide the dataset's 10 fps"),
        (["--route", "token"], "there is no route 'token'"),
        (["--actions", "act"], "has no column actions/act"),
        (["--model", "tiny-ti2"], "there is no Wan model 'tiny-ti2'; did you mean 'tiny-ti2v'"),
        (["--model", "wan2.2-ti2v-5b"], "the weights of wan2.2-ti2v-5b"),
        (["--set", "history=3"], "history = 3 given latents leave nothing of a clip of 9 frames"),
        (["--set", "train.stps=3"], "unknown key 'train.stps'; did you mean 'steps'"),
        (["--set", "lora.rank=-1"], "rank must not be negative, but is -1"),
    ],
)
def test_wrong_words_are_one_sentence(worldsim, dataset, tmp_path, words, sentence):
    code, _, err = worldsim("finetune-wan", dataset, "--config", "smoke", *words, "--out", tmp_path / "run")
    assert code == 1
    assert sentence in err
    assert "Traceback" not in err


def test_dry_run_estimates_memory(worldsim, dataset, tmp_path):
    words = ["finetune-wan", dataset, "--model", "wan2.2-ti2v-5b", "--frames", "17", "--dry-run", "--json"]
    code, out, err = worldsim(*words)
    assert code == 0, err
    plan = json.loads(out)["plan"]
    assert plan["size"] == "64x128"
    assert plan["parameters"] == pytest.approx(5.0e9, rel=0.05)
    assert 10 < plan["gpu_memory_gib"] < 16
    assert plan["tokens_per_clip"] == 5 * 2 * 4
    code, out, err = worldsim(*words, "--set", "train.sharding=fsdp2", "--nproc", "8")
    assert code == 0, err
    shared = json.loads(out)["plan"]
    assert (plan["processes"], shared["processes"]) == (1, 8)
    assert shared["weights_gib"] < 0.3 * plan["weights_gib"]
    assert shared["loading_main_memory_gib"] == pytest.approx(8 * plan["loading_main_memory_gib"], rel=0.02)
    assert not (dataset / "columns").exists()


def test_real_lerobot_episodes_straight_from_their_folder(worldsim, shared_data, tmp_path):
    """GR1 (LeRobot v2.0, 20 fps, 44 joints) without conversion, from a folder that is not written to."""
    data = shared_data / "lerobot_v20_gr1_sim"
    before = sorted(data.rglob("*"))
    quick = ["--set", "train.steps=2", "--set", "cache.hop=80", "--fps", "5", "--columns", tmp_path / "columns"]
    code, _, err = worldsim("finetune-wan", data, "--config", "smoke", *quick, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    card = json.loads((tmp_path / "run" / "checkpoint" / "card.json").read_text())
    assert (card["fps"], card["net"]["rows_per_frame"], card["net"]["action_dim"]) == (5.0, 4, 44)
    assert sorted(data.rglob("*")) == before
