"""``worldsim train --config world_modality_…`` as it is typed: windows, lines, files, exact resume, all arms."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import moving
from tests.killed import kill_after_rows
from tests.painted import PaintedSource, action_at
from worldsim import tokenizers
from worldsim.commands import _train_world_modality
from worldsim.commands._policy_windows import Wish, gather
from worldsim.data.policy_windows import PolicyWindows, PolicyWindowSpec, Scaling
from worldsim.data.split import split_episodes
from worldsim.formats import open_dataset
from worldsim.policies.world_modality import WorldModality
from worldsim.tokenizers.kmeans import KMeans
from worldsim.train.tracking import read_rows

SMALL = ["--set", "d_model=16", "--set", "layers=1", "--set", "horizon=4", "--set", "future=3"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Six episodes of 17 frames, 32x32, of a block that moves; two are held out."""
    return moving.write(tmp_path_factory.mktemp("data") / "moving", 6, 16)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    """A tokenizer as ``tokenize-world`` leaves it."""
    run = tmp_path_factory.mktemp("tokens")
    KMeans.tiny().save(run / "checkpoint")
    return run


def weights(run: Path) -> bytes:
    return (run / "checkpoint" / "model.safetensors").read_bytes()


def test_the_smoke_recipe_end_to_end(worldsim, dataset, tokens, tmp_path):
    run = tmp_path / "run"
    words = ["train", "--config", "world_modality_smoke", dataset, "--tokenizer", tokens, "--out", run, *SMALL]
    words += ["--columns", tmp_path / "columns"]
    code, out, err = worldsim(*words, "--set", "train.log_every=2", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["next"] == f"worldsim eval offline {dataset} --model {run} --set columns={tmp_path / 'columns'}"
    metrics = said["metrics"]
    assert metrics["arm"] == "C"
    assert metrics["windows"] == 4 * (17 - 3 - 2)
    assert metrics["held_out_windows"] == 2 * (17 - 3 - 2)
    assert (metrics["episodes"], metrics["steps"]) == (4, 2 * 6)
    lines = (run / "logs" / "train.log").read_text().splitlines()
    number = r"\d+\.\d{4}"
    steps = [
        line
        for line in lines
        if re.fullmatch(rf"Epoch \d Step \d+ \| loss {number} \| act {number} \| world {number}", line)
    ]
    scores = [
        line for line in lines if re.fullmatch(rf"\[VAL\] Epoch \d \| action MSE {number} \| world acc {number}", line)
    ]
    assert (len(steps), len(scores), len(lines)) == (6, 2, 8)
    assert [line in err for line in lines] == [True] * 8
    rows = read_rows(run / "metrics.jsonl")
    assert {"train/loss", "train/action_loss", "train/world_loss"} <= rows[0].keys()
    assert [row["step"] for row in rows if {"val/action_mse", "val/world_acc"} <= row.keys()] == [6, 12]
    assert sorted(p.name for p in (run / "logs").glob("*.pt")) == ["model_C_epoch1.pt", "model_C_epoch2.pt"]
    check_validation(dataset, run, rows[-1])
    code, _, _ = worldsim(*words, "--set", "train.log_every=2")
    assert code == 0, "the same command says that it is done"


def check_validation(dataset: Path, run: Path, last: dict) -> None:
    """The last row of scores, by plain arithmetic from the checkpoint, window by window as the policy acts."""
    tokenizer = tokenizers.load(run, "cpu")
    policy = WorldModality.load(run, tokenizer=tokenizer)
    assert policy.card.needs.cameras == {"camera": (32, 32)}
    source = open_dataset(dataset)
    squares, hits, near = [], [], []
    names = source.ids()
    for name in policy.card.held_out_episodes:
        episode = source.episode(names.index(name))
        frames, codes = episode.frames["camera"].read(), tokenizer.encode(episode.frames["camera"].read()).numpy()
        policy.reset()
        for t, frame in enumerate(frames):
            chunk = policy.act({"pixels": {"camera": frame}, "agent_pos": episode.states[t]})
            if 2 <= t < 17 - 3 and t + 4 <= 17:
                scale = policy.card.scaling.actions.scale
                squares.append((((chunk - episode.actions[t : t + 4]) / scale) ** 2).mean())
                hits.append((policy.last_world["future"] == codes[t + 1 : t + 4]).mean())
                best = policy.net.predict(policy.batch()).logits[0].argsort(descending=True)[..., :5].numpy()
                near.append((best == codes[t + 1 : t + 4, :, None]).any(-1).mean())
    assert len(squares) == 24
    assert np.mean(squares) == pytest.approx(last["val/action_mse"], rel=1e-4)
    assert np.mean(hits) == pytest.approx(last["val/world_acc"], abs=1e-6)
    assert np.mean(near) == pytest.approx(last["val/world_top5"], abs=1e-6)
    assert np.mean(near) > np.mean(hits)


def test_nothing_held_out_reaches_the_weights(worldsim, tokens, tmp_path):
    """Other pictures, actions and states in the held-out episodes: the same weights and scaling, bit for bit."""
    one, two = moving.write(tmp_path / "one", 6, 16), moving.write(tmp_path / "two", 6, 16)
    source = open_dataset(one)
    held = split_episodes(source.ids(), source.card.splits).held_out
    assert len(held) == 2
    other = sorted((moving.write(tmp_path / "other", 20, 16) / "episodes").iterdir())
    for name, file in zip(held, other[10:]):
        assert (two / "episodes" / f"{name}.h5").exists()
        shutil.copyfile(file, two / "episodes" / f"{name}.h5")
    runs = [tmp_path / "run one", tmp_path / "run two"]
    for folder, run in zip((one, two), runs):
        words = ["--config", "world_modality_smoke", folder, "--tokenizer", tokens, "--out", run, *SMALL]
        code, _, err = worldsim("train", *words, "--set", "epochs=1")
        assert code == 0, err
    assert weights(runs[0]) == weights(runs[1])
    cards = [WorldModality.load(run).card for run in runs]
    assert cards[0].scaling.to_json() == cards[1].scaling.to_json()
    assert list(cards[0].held_out_episodes) == list(cards[1].held_out_episodes) == held
    scores = [read_rows(run / "metrics.jsonl")[-1]["val/action_mse"] for run in runs]
    assert scores[0] != scores[1], "the held-out episodes do differ"


@pytest.mark.parametrize("rows_less", [0, 1])
@pytest.mark.parametrize("states", [True, False])
def test_frames_and_actions_of_a_dataset_meet(tmp_path, states, rows_less):
    """T or T - 1 rows, with or without states: tokens are those of frame t, actions those of t, in painted episodes."""

    class Recorded(PaintedSource):
        def episode(self, index: int):
            out = super().episode(index)
            out.actions = out.actions[: len(out.actions) - rows_less]
            return out

    (tmp_path / "about.txt").write_text("painted")
    source, tokenizer = Recorded(6, 12, states=states), KMeans.tiny()
    found = gather(Wish(tmp_path, tmp_path, "cam_top"), source, tokenizer, "cpu")
    assert found.cameras == {"cam_top": (64, 128)}
    assert len(found.rows.tokens) == 6
    spec = PolicyWindowSpec(3, 4, 4)
    train = found.rows.only(found.split.train)
    windows = PolicyWindows(spec, train, Scaling.fit(train))
    batch = windows.batch(np.arange(len(windows)))
    assert batch["states"].shape[-1] == (7 if states else 0)
    actions = windows.scaling.actions.inverse(batch["actions"].numpy())
    for i in range(0, len(windows), 5):
        t, number = int(windows.start_of[i]), source.ids().index(str(windows.episode_of[i]))
        frames = source.episode(number).frames["cam_top"].read()
        assert torch.equal(batch["tokens"][i], tokenizer.encode(frames[t - 2 : t + 1]))
        assert torch.equal(batch["future_tokens"][i], tokenizer.encode(frames[t + 1 : t + 5]))
        np.testing.assert_allclose(actions[i], [action_at(t + k) for k in range(4)], atol=1e-4)


def test_a_killed_run_ends_in_the_same_weights_and_lines(worldsim, dataset, tokens, tmp_path):
    words = ["train", "--config", "world_modality_smoke", dataset, "--tokenizer", tokens, *SMALL]
    words += ["--set", "epochs=24", "--set", "dropout=0.1", "--set", "world_dropout=0.2", "--set", "train.log_every=3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kill_after_rows([*words, "--out", killed], killed, 15)
    for run in (whole, killed):
        code, _, err = worldsim(*words, "--out", run)
        assert code == 0, err
    assert weights(killed) == weights(whole)
    assert (killed / "logs" / "train.log").read_text() == (whole / "logs" / "train.log").read_text()
    files = [sorted(p.name for p in (run / "logs").glob("*.pt")) for run in (whole, killed)]
    assert files[0] == files[1]
    assert len(files[0]) == 24


def test_all_arms_are_run_folders_that_are_not_trained_twice(worldsim, dataset, tokens, tmp_path, monkeypatch):
    drawn: dict[str, set[int]] = {"weights": set(), "order": set()}
    make, order = _train_world_modality.files.net_of, _train_world_modality.Order

    def net_of(card, seed=0):
        drawn["weights"].add(seed)
        return make(card, seed)

    def ordered(count, seed, *share):
        drawn["order"].add(seed)
        return order(count, seed, *share)

    monkeypatch.setattr(_train_world_modality.files, "net_of", net_of)
    monkeypatch.setattr(_train_world_modality, "Order", ordered)
    out = tmp_path / "all"
    words = ["train", "--config", "world_modality_tiny_all", dataset, "--tokenizer", tokens, "--out", out, *SMALL]
    words += ["--set", "seeds=2", "--set", "epochs=1", "--set", "arms=[B,C_no_input,A_plus,C]", "--set", "train.batch=16"]
    code, text, err = worldsim(*words, "--json")
    assert code == 0, err
    metrics = json.loads(text)["metrics"]
    assert metrics["runs"] == 8
    found = {arm: told["parameters"] for arm, told in metrics["training"].items()}
    assert found["B"] == found["C_no_input"] < found["C"]
    assert abs(found["A_plus"] / found["C"] - 1) < 0.02
    runs = sorted((out / "runs").iterdir())
    assert [run.name for run in runs] == sorted(f"{arm}-{seed}" for arm in found for seed in (0, 1))
    for seed in (0, 1):
        assert weights(out / "runs" / f"B-{seed}") == weights(out / "runs" / f"C_no_input-{seed}"), (
            "the path of C without input"
        )
    assert weights(runs[0]) != weights(runs[1])
    assert drawn == {"weights": {0, 1}, "order": {0, 1}}, "a seed draws both the first weights and the order of windows"
    assert WorldModality.load(runs[2]).card.arm == "B"
    assert (out / "report" / "index.html").exists()
    assert set(json.loads((out / "comparison.json").read_text())["arms"]) == set(found)
    before = {run: (run / "checkpoint" / "model.safetensors").stat().st_mtime_ns for run in runs}
    one = out / "runs" / "C-0"
    (one / "result.json").unlink()
    (out / "result.json").unlink()
    code, _, err = worldsim(*words)
    assert code == 0, err
    after = {run: (run / "checkpoint" / "model.safetensors").stat().st_mtime_ns for run in runs}
    assert {run for run in runs if after[run] != before[run]} <= {one}
    assert json.loads((one / "result.json").read_text())["status"] == "done"


def test_mistakes_are_said_with_a_command(worldsim, dataset, tokens, tmp_path):
    for words, match in (
        ([dataset], "no tokenizer run"),
        ([dataset, "--tokenizer", tokens, "--set", "arm=D"], "no arm 'D'"),
        ([dataset, "--tokenizer", tokens, "--set", "horizon=40"], "needs? .*frames|has the"),
        ([dataset, "--tokenizer", tokens, "--set", "data_fraction=0"], "data_fraction"),
        ([dataset, "--tokenizer", tokens, "--camera", "side"], "no camera 'side'"),
    ):
        code, _, err = worldsim("train", "--config", "world_modality_smoke", *words, "--out", tmp_path / "run")
        assert code == 1, words
        assert re.search(match, err), err
