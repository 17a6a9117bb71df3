"""``worldsim train`` of tokenizers as it is typed: any format, train episodes alone, critic, exact resume, strict words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests import moving, painted
from tests.killed import kill_after_rows
from worldsim import tokenizers
from worldsim.commands import _train_tokenizer, train
from worldsim.core.config import build, load_recipe
from worldsim.data.segments import Segments, SegmentSpec
from worldsim.data.split import split_episodes
from worldsim.formats import open_dataset
from worldsim.formats.act_hdf5 import ActHdf5
from worldsim.tokenizers._training import Loss, TokenizerLoss
from worldsim.train.checkpoint import read_about
from worldsim.train.settings import Training
from worldsim.train.tracking import read_rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Five episodes of 13 frames, 32x32, of a block that moves."""
    return moving.write(tmp_path_factory.mktemp("data") / "moving", 5, 12)


def weights(run) -> bytes:
    return (run / "checkpoint" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("tokenizer", ["fsq-compressive", "fsq-frame"])
def test_the_smoke_recipe_end_to_end(worldsim, dataset, tmp_path, tokenizer):
    run, more = tmp_path / "run", []
    if tokenizer == "fsq-frame":
        net = {"channels": [8, 8, 16, 16], "resnets": 1, "groups": 4, "latent": 8, "levels": [5, 5, 5], "centre": True}
        recipe = {**load_recipe("train", "smoke")[1], "tokenizer": tokenizer, "net": {**net, "attention": True}}
        (tmp_path / "frame.yaml").write_text(json.dumps(recipe))
        more = ["--config", tmp_path / "frame.yaml"]
    code, out, err = worldsim("train", dataset, *(more or ["--config", "smoke"]), "--out", run, "--json")
    assert code == 0, err
    result = json.loads(out)
    source = open_dataset(dataset)
    part = split_episodes(source.ids(), source.card.splits).train
    assert (result["metrics"]["steps"], result["metrics"]["episodes"]) == (6, len(part)) == (6, 4)
    assert 0 < result["metrics"]["held_out"]["mse"] < 1
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert ["critic" in row for row in rows] == [False, False, False, True, True, True]  # gan_start: 3

    card = json.loads((run / "checkpoint" / "card.json").read_text())
    assert (card["tokenizer"], card["height"], card["width"], card["camera"]) == (tokenizer, 32, 32, "camera")
    assert card["train_episodes"] == sorted(part)
    assert (card["codes"], card["frame_tokens"]) == (125, 16)
    assert str(tmp_path) not in json.dumps(card)
    assert read_about(run / "checkpoint" / "model.safetensors") == {"step": 6}
    film = source.episode(0).frames["camera"].read()[None, :4]
    assert tokenizers.load(run).reconstruct(film).shape == film.shape


def test_kill_9_then_the_same_command_gives_the_same_bytes(worldsim, dataset, tmp_path):
    """The critic, its moments and the moments before rounding included."""
    words = ["train", str(dataset), "--config", "smoke", "--set", "train.steps=10", "--out"]
    assert worldsim(*words, tmp_path / "straight")[0] == 0
    killed = tmp_path / "killed"
    kill_after_rows([*words, killed], killed, 4)
    code, _, err = worldsim(*words, killed)
    assert code == 0, err
    assert weights(killed) == weights(tmp_path / "straight")
    assert [row["step"] for row in read_rows(killed / "metrics.jsonl")] == list(range(1, 11))


def test_two_processes_train_together(worldsim, dataset, tmp_path):
    words = ["--set", "train.steps=4", "--set", "train.batch=1", "--nproc", "2", "--device", "cpu"]
    code, out, err = worldsim("train", dataset, "--config", "smoke", *words, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert json.loads(out)["metrics"]["held_out"]["mse"] > 0


def test_frames_come_from_the_dataset_when_they_do_not_fit_into_memory(worldsim, dataset, tmp_path):
    for name, gib in (("kept", "4.0"), ("streamed", "0")):
        more = ["--set", f"cache_gib={gib}", "--set", "train.steps=2"]
        code, out, err = worldsim("train", dataset, "--config", "smoke", *more, "--out", tmp_path / name, "--json")
        assert code == 0, err
        assert any("read as needed" in note for note in json.loads(out)["notes"]) == (name == "streamed")
    assert weights(tmp_path / "kept") == weights(tmp_path / "streamed")


def test_one_camera_of_several_resized_by_name(worldsim, tmp_path):
    source = painted.PaintedSource(3, 12, size=(64, 128))
    writer = ActHdf5.create(tmp_path / "painted", source.card)
    for index in range(3):
        writer.commit(writer.stage(source.episode(index)))
    writer.finalize(source.card)
    words = ["--camera", "cam_top", "--size", "16x32", "--set", "train.steps=1"]
    code, _, err = worldsim("train", tmp_path / "painted", "--config", "smoke", *words, "--out", tmp_path / "run")
    assert code == 0, err
    card = json.loads((tmp_path / "run" / "checkpoint" / "card.json").read_text())
    assert (card["camera"], card["height"], card["width"]) == ("cam_top", 16, 32)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "trains=tokeniser"], "'trains' = 'tokeniser' is nothing that can be trained; did you mean 'tokenizer'?"),
        (["--tokenizer", "fsq-frmae"], "there is no tokenizer named 'fsq-frmae'; did you mean 'fsq-frame'?"),
        (["--set", "net.chanels=[8]"], "unknown key 'net.chanels'; did you mean 'channels'?"),
        (["--set", "net.channels=[8,9]"], "every entry of channels must be a multiple of groups = 4, but 9 is not"),
        (["--size", "36x32"], "size = 36x32: a frame of 36x32 does not divide into cells of 8x8 pixels"),
        (["--camera", "left"], "has no camera 'left'"),
        (["--set", "loss.distance=lpips"], "LPIPS on VGG16 needs"),
        (["--set", "train.conditioner_lr=0.1"], "its critic has loss.gan_lr"),
        (["--set", "train.sharding=fsdp2"], "a tokenizer fits every device whole"),
    ],
)
def test_wrong_words_are_one_sentence(worldsim, dataset, tmp_path, words, sentence, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))
    code, _, err = worldsim("train", dataset, "--config", "smoke", "--out", tmp_path / "run", *words)
    assert code == 1
    assert sentence in err
    assert "Traceback" not in err


def test_dry_run_counts_without_decoding(worldsim, dataset, tmp_path):
    code, out, err = worldsim("train", dataset, "--config", "fsq_compressive", "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)["plan"]
    assert plan["parameters"] == 129448016
    assert (plan["tokens_per_frame"], plan["context_tokens"], plan["segments"]) == (80, 1280, 4 * 12)


def test_segments_are_a_context_and_targets_of_its_horizon():
    film = np.stack([painted.paint(t, 32, 64) for t in range(60)])
    read: list[str] = []

    def frames(episode: str, rows: np.ndarray) -> np.ndarray:
        read.append(episode)
        return film[rows]

    segments = Segments({"a": 60, "b": 4, "c": 1}, SegmentSpec(5, 8, stride=3), frames)
    assert [episode for episode, _ in segments.index].count("b") == 1  # frames 0 and 3
    seen: set[int] = set()
    for number in range(len(segments)):
        episode, start = segments.index[number]
        shown = [painted.read_index(frame) for frame in segments.frames(number, seed=number)]
        assert shown[0] == start
        ahead = [frame - start for frame in shown[1:]]
        assert ahead == sorted(ahead)
        assert all(a % 3 == 0 and 0 <= a < 8 * 3 for a in ahead)
        if episode == "a" and start + 7 * 3 < 60:
            assert len(set(ahead)) == 5  # without replacement where there are enough
            seen |= set(ahead)
    assert seen == set(range(0, 24, 3))
    assert set(read) == {"a", "b"}
    again = segments.rows(3, 11)
    assert np.array_equal(again[1], segments.rows(3, 11)[1])


def make(gan_start: int, **weights: float) -> TokenizerLoss:
    values = {"distance": "pyramid", "gan_width": 16, "gan_depth": 3, "gan_start": gan_start, **weights}
    torch.manual_seed(0)
    net = tokenizers.registry.get("tokenizers", "fsq-compressive").tiny().train().requires_grad_(True)
    from worldsim.nn.perceptual import perceptual

    return TokenizerLoss(net, build(Loss, values), perceptual)


def gradients(module: TokenizerLoss, step: int) -> dict[str, torch.Tensor]:
    module.zero_grad()
    torch.manual_seed(1)
    frames = torch.randint(0, 256, (2, 3, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    module(frames, torch.tensor(step)).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def test_each_side_learns_from_its_own_loss_alone():
    """The tokenizer's gradient has no part of the critic's loss, the critic's none of the tokenizer's."""
    begun, before = gradients(make(0), 0), gradients(make(5), 4)
    critic = [name for name in begun if name.startswith("critic.")]
    assert all(before[name].abs().sum() == 0 for name in critic)
    assert all(begun[name].abs().sum() > 0 for name in critic if not name.endswith("bias"))
    assert any((begun[name] - before[name]).abs().max() > 1e-8 for name in begun if name not in critic)

    without_verdict, loud = gradients(make(0, gan=1e-12), 0), gradients(make(0, gan=10.0), 0)
    for name in begun:
        if name in critic:  # its own loss does not depend on how loud its verdict is
            assert torch.allclose(loud[name], begun[name], atol=1e-6), name
        else:  # and without its verdict the tokenizer learns as if it had not begun
            assert torch.allclose(without_verdict[name], before[name], atol=1e-7), name


def test_recomputed_activations_give_the_same_gradients():
    plain, frugal = make(0), make(0)
    frugal.net.recompute(True)
    kept, again = gradients(plain, 0), gradients(frugal, 0)
    assert all(torch.allclose(kept[name], again[name], atol=1e-6) for name in kept)
    assert frugal.net.decoder.checkpointing
    assert not plain.net.decoder.checkpointing


def test_the_critic_is_a_group_of_its_own():
    module = make(7, gan_lr=3e-4)
    net, critic = module.groups(build(Training, {"lr": 1e-3}))
    assert (critic["start"], critic["alone"], critic["lr"], net["lr"]) == (7, True, 3e-4, 1e-3)
    ids = {id(p) for group in (net, critic) for p in group["params"]}
    assert ids == {id(p) for p in module.parameters()}
    kept = module.trained().keys() - dict(module.named_parameters()).keys()
    assert {"net.centre.mean", "net.context_centre.variance"} <= kept
    assert any(name.endswith("_u") for name in kept)  # of the spectral norms


def test_motion_counts_more_where_pixels_moved():
    weights = {"l1": 1.0, "perceptual": 0.0, "gan": 0.0}
    decoded, truth, still = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    truth[..., 8, 8] = 1.0  # one pixel moved: 5x5 count
    plain = make(0, **weights)._pixels(decoded, truth, still)[0]
    heavy = make(0, **weights, motion=3.0)._pixels(decoded, truth, still)[0]
    assert heavy == pytest.approx(4 * plain.item())
    decoded[..., 0, 0] = 1.0  # an error far from motion counts once
    assert make(0, **weights, motion=3.0)._pixels(decoded, truth, still)[0] == pytest.approx(5 * plain.item())


def test_every_trainable_file_keeps_the_contract():
    assert {"tokenizer", "token-model"} <= set(train.names())
    for name in train.names():
        module = train.trainable(name)
        assert callable(module.run)
        assert module.Config
    assert _train_tokenizer.config_of("fsq-frame") is _train_tokenizer.config_of("fsq-frame")


def test_lost_episodes_are_counted_and_named(worldsim, dataset, tmp_path):
    """A train episode without its frames is refused by name, accepted on request; a held-out one is left out of the floor."""
    import shutil

    import h5py

    folder = shutil.copytree(dataset, tmp_path / "moving")
    source = open_dataset(folder)
    split = split_episodes(source.ids(), source.card.splits)
    for name in (split.train[0], split.held_out[0]):
        with h5py.File(source.episode(source.ids().index(name)).source, "r+") as file:
            images = next(iter(file["observations/images"]))
            del file[f"observations/images/{images}"]
    source.close()
    words = ["train", folder, "--config", "smoke", "--set", "train.steps=1", "--out", tmp_path / "run"]
    code, _, err = worldsim(*words)
    assert code == 1
    assert f"1 of 4 train episodes cannot be used, the first is {split.train[0]}" in err
    code, out, err = worldsim(*words, "--set", "max_rejected=1", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert [bad["episode"] for bad in result["metrics"]["rejected"]] == [split.train[0]]
    assert any(split.held_out[0] in note for note in result["notes"])
    assert result["metrics"]["held_out"]["mse"] > 0  # nothing is held out any more: measured on train episodes
