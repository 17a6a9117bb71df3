"""What the trainer is handed, clip by clip: rows of their own frames, delayed and normalised by the train split alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import painted
from worldsim.commands import finetune_wan
from worldsim.core.config import build, load_recipe
from worldsim.core.runs import RunContext
from worldsim.data.split import split_episodes
from worldsim.formats import open_dataset
from worldsim.formats.act_hdf5 import ActHdf5
from worldsim.train.loop import Outcome
from worldsim.world_models import _wan_encode
from worldsim.world_models._wan_training import FlowLoss

EPISODES = 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Five painted episodes of 20 … 24 frames; the held-out one's actions are a thousand times as large."""
    folder = tmp_path_factory.mktemp("inputs") / "painted"
    source = painted.PaintedSource(EPISODES, 20, size=(64, 128))
    test = set(source.ids()) - set(split_episodes(source.ids(), source.card.splits).train)
    writer = ActHdf5.create(folder, source.card)
    for index in range(EPISODES):
        episode = source.episode(index)
        wild = replace(episode, actions=1000 * episode.actions) if episode.id in test else episode
        writer.commit(writer.stage(wild))
    writer.finalize(source.card)
    return folder


@pytest.fixture
def handed(dataset, tmp_path, monkeypatch):
    """``handed(rank, world_size, **values)``: the loss and the fetch that the loop would get, and the card. The codec writes
    down which frame of which episode a clip begins with."""
    seen: dict = {}

    def number(vae, plan, frames):
        index = np.array([painted.read_index(clip[0]) for clip in frames], np.int64)
        out = np.zeros((len(frames), 48, 3, 4, 8), np.float32)
        out[:, 0] = (index // 1000)[:, None, None, None]
        out[:, 1] = (index % 1000)[:, None, None, None]
        return out

    def fit(module, fetch, settings, context, save, config):
        seen.update(module=module, fetch=fetch)
        return Outcome(1, 0.0, 1.0, 0.0, 0)

    def look(config, choice, encoded, base, make=finetune_wan._card):
        seen["card"] = make(config, choice, encoded, base)
        return seen["card"]

    monkeypatch.setattr(_wan_encode, "_latents", number)
    monkeypatch.setattr(finetune_wan, "fit", fit)
    monkeypatch.setattr(finetune_wan, "_card", look)
    monkeypatch.setattr(finetune_wan, "_report", lambda *parts: None)

    def run(rank: int = 0, world_size: int = 1, **values):
        (tmp_path / "run").mkdir(exist_ok=True)
        recipe = load_recipe("finetune-wan", "smoke")[1]
        data = {"data": str(dataset), "size": "64x128", "columns": str(tmp_path / "columns"), **values}
        config = build(finetune_wan.Config, {**recipe, **data})
        finetune_wan.run(config, RunContext("finetune-wan", tmp_path / "run", rank=rank, world_size=world_size))
        return seen["module"], seen["fetch"], seen["card"]

    return run


@pytest.mark.parametrize("delay", [0, 2])
def test_a_clips_rows_are_those_of_its_frames_delayed_and_normalised(dataset, handed, delay) -> None:
    """Row t of episode e is known, and so are mean and deviation of the train split's rows; no held-out row counts."""
    module, fetch, card = handed(action_delay=delay)
    source = open_dataset(dataset)
    train = split_episodes(source.ids(), source.card.splits).train
    rows = np.concatenate([np.array(source.episode(source.ids().index(name)).actions, np.float64) for name in train])
    source.close()
    mean, std = rows.mean(0), rows.std(0)
    assert card.normalize.shift == pytest.approx(mean)
    assert card.normalize.scale == pytest.approx(std)
    begins = set()
    for step in range(12):
        batch = fetch(step, 0)
        for latents, actions in zip(batch["latents"].float().numpy(), batch["actions"].numpy()):
            start = int(latents[1, 0, 0, 0])
            begins.add((int(latents[0, 0, 0, 0]), start))
            expected = np.stack([painted.action_at(t - delay) for t in range(start, start + 8)])
            assert actions[:, 0] == pytest.approx((expected - mean) / std, abs=1e-5)
    assert len(begins) > 8
    assert isinstance(module, FlowLoss)


def test_flow_shift_and_ranks_reach_training(handed) -> None:
    module, fetch, _ = handed(flow={"times": "uniform", "shift": 7.0, "weight": "even"})
    assert module.times.shift == 7.0
    alone = fetch(0, 0)
    parts = [handed(rank, 2)[1](0, 0) for rank in range(2)]
    assert torch.equal(parts[0]["latents"], alone["latents"])
    assert not torch.equal(parts[1]["latents"], parts[0]["latents"])
