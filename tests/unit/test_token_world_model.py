"""Token world models from columns to rollouts: which action leads to which frame; see ``tests/token_world.py``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import token_world
from worldsim import tokenizers, world_models
from worldsim.commands import _train_token_model as training
from worldsim.commands._token_windows import TokenWindows, Wish, prepare
from worldsim.commands._tokens import digest_of
from worldsim.commands._world import load_world
from worldsim.core import registry
from worldsim.core.config import assign, build, load_recipe
from worldsim.core.errors import UserError
from worldsim.core.runs import RunContext
from worldsim.data.split import split_episodes
from worldsim.formats import open_dataset
from worldsim.world_models import BUNDLED, _token_rollout
from worldsim.world_models._token_sampler import Sampled

SINGLE = {"tokenizer": "fsq-frame", "history": 2, "predicted": 1, "short_history": 0.3}
MULTI = {"tokenizer": "fsq-compressive", "history": 1, "predicted": 3, "context_back": 4}
LEARN = {"train.steps": 100, "train.batch": 32, "train.lr": 5e-3, "net.width": 64, "net.ffn": 128, "train.warmup": 10}
FRAMES = 6


def train(folder: Path, data: Path, **values) -> Path:
    """A run of ``train --config token_smoke`` on the turning card, with the random twin of a tokenizer."""
    run = folder / "run"
    run.mkdir(parents=True)
    tokenizer = folder / "tokenizer"
    registry.get("tokenizers", values.pop("tokenizer")).tiny(3).save(tokenizer / "checkpoint")
    _, recipe = load_recipe("train", "token_smoke")
    more = {"data": str(data), "tokenizer": str(tokenizer), "train.log_every": 50, "train.checkpoint_every": 1000}
    for key, value in {**more, **values}.items():
        assign(recipe, key, value)
    training.run(build(training.Config, recipe), RunContext("train", run))
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return token_world.write(tmp_path_factory.mktemp("card") / "data")


@pytest.fixture(scope="module", params=[SINGLE, MULTI], ids=["single-step", "multi-step"])
def run(request, data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("run"), data, **request.param)


def held_out(data: Path, start: int, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures ``[E, start + 1 + frames, …]`` of unseen episodes, rows between the given ones, rows after them."""
    source = open_dataset(data)
    episodes = [source.episode(number) for number, name in enumerate(source.ids()) if name in held(source)]
    pictures = np.stack([e.frames["image"].read()[: start + 1 + frames] for e in episodes])
    rows = np.stack([e.actions[: start + frames, None] for e in episodes])
    return pictures, rows[:, :start], rows[:, start:]


def held(source) -> list[str]:
    return split_episodes(source.ids(), source.card.splits).held_out


def windows(run: Path, data: Path, part: str) -> TokenWindows:
    card = load_world(run).card
    layout = card.layout
    wish = Wish(data, data, None, None, layout.history, layout.predicted, back=card.context_back)
    return prepare(wish, open_dataset(data), tokenizers.load(run), "cpu", part=part)


def test_a_sequence_says_which_action_turned_the_card(run: Path, data: Path) -> None:
    """Context, frame and the action after it settle the next frame, in every training sequence; another action does not."""
    model, found = load_world(run), windows(run, data, "train")
    layout, rng = model.layout, np.random.default_rng(0)
    ids = training.sequences(found, np.arange(len(found)), rng, model.bins, layout, 0.0)
    tail = torch.zeros(len(ids), layout.action_tokens, dtype=torch.int64)
    blocks = torch.cat([ids[:, layout.context_tokens :], tail], 1).unflatten(1, (-1, layout.block))

    def outcomes(shift: int) -> list[int]:
        seen: dict[tuple, set] = {}
        for context, row in zip(ids[:, : layout.context_tokens].tolist(), blocks.tolist()):
            for t in range(1, len(row) - 1):
                before, after = row[t][: layout.frame_tokens], row[t + 1][: layout.frame_tokens]
                turned = row[t + shift][layout.frame_tokens]
                seen.setdefault((tuple(context), tuple(before), turned), set()).add(tuple(after))
        return [len(after) for after in seen.values()]

    assert set(outcomes(0)) == {1}
    assert max(outcomes(-1)) > 1


@pytest.mark.parametrize("start", [1, 4])
def test_a_rollout_asks_what_training_taught(run: Path, data: Path, monkeypatch, start: int) -> None:
    """Told the true tokens, every chunk's prompt and given actions are those of the training window that begins there."""
    model, found = load_world(run), windows(run, data, "held-out")
    layout, asked = model.layout, []
    first = start - layout.history + 1

    def expected(done: int) -> torch.Tensor:
        rows = []
        for episode in found.starts:
            number = found.index.index((episode, first + done))
            back = done if layout.context_tokens else 0
            context, frames = found.tokens.window(episode, first + done, found.spec.frames, back)
            bins = training.encode_rows(model.bins, found.batch([number])["actions"])
            rows.append(layout.sequence(*(torch.from_numpy(x) for x in (context[None], frames[None], bins))))
        return torch.cat(rows)

    def truthful(net, prompt, forced, segments, n, seeds, **how) -> Sampled:
        done = len(asked) * layout.predicted
        true = expected(done)
        asked.append(torch.cat([prompt, forced], 1))
        given = torch.cat([torch.full((s.length,), not s.generated) for s in segments])
        assert torch.equal(prompt, true[:, : layout.prompt_length])
        assert torch.equal(forced[:, given], true[:, layout.prompt_length :][:, given])
        tokens = layout.split(true)[1]
        return Sampled(tokens[:, None], torch.zeros(tokens[:, None].shape))

    monkeypatch.setattr(_token_rollout, "sample", truthful)
    pictures, past, rows = held_out(data, start, FRAMES)
    model.set_past_actions(past[:, first:])
    made = model.rollout(pictures[:, first : start + 1], rows)[:, 0]
    assert len(asked) == FRAMES // layout.predicted
    assert np.array_equal(made, model.reconstruct(pictures[:, first:])[:, layout.history :])


def test_it_learns_and_its_own_actions_lead_to_the_true_frames(tmp_path: Path, data: Path) -> None:
    """Frame by frame on unseen episodes, also from the first frame alone; with actions that are one row off it does not."""
    model = load_world(train(tmp_path, data, **SINGLE, **LEARN))
    model.set_temperature(0.0)
    for start in (0, 3):
        pictures, past, rows = held_out(data, start, FRAMES)
        given = pictures[:, max(0, start - 1) : start + 1]
        truth = model.reconstruct(pictures[:, start:])[:, 1:]
        right = []
        for shift in (0, 1, -1):
            model.set_past_actions(past[:, past.shape[1] - given.shape[1] + 1 :])
            made = model.rollout(given, np.roll(rows, shift, axis=1))[:, 0]
            right.append((made == truth).all(axis=(2, 3, 4)).mean())
        assert right[0] > 0.9
        assert max(right[1:]) < 0.85
    rows[..., 0] = 0
    model.set_past_actions(None)
    model.rollout(pictures[:, 3:4], rows)
    assert model.repeats.shape == (len(rows), 1, FRAMES)
    assert model.repeats.mean() > 0.9, "a card that is not turned shows the same side"


def test_a_longer_rollout_begins_with_the_shorter_one(run: Path, data: Path) -> None:
    model = load_world(run)
    pictures, _, rows = held_out(data, 0, FRAMES)
    short = model.rollout(pictures[:, :1], rows[:, :4], num_samples=2, seeds=[1, 2, 3, 4])
    long = model.rollout(pictures[:, :1], rows, num_samples=2, seeds=[1, 2, 3, 4])
    assert np.array_equal(long[:, :, :4], short)


def test_samples_are_the_same_however_they_are_grouped(run: Path, data: Path, monkeypatch) -> None:
    """But for a code whose uniform number lies on the edge within rounding, which then changes what follows it."""
    model = load_world(run)
    pictures, _, rows = held_out(data, 0, 4)
    together = model.rollout(pictures[:, :1], rows, num_samples=3, seeds=[1, 2, 3, 4])
    monkeypatch.setattr(_token_rollout, "SEQUENCE_BUDGET", 1)
    alone = model.rollout(pictures[:, :1], rows, num_samples=3, seeds=[1, 2, 3, 4])
    same = (alone == together).all(axis=(2, 3, 4, 5))
    assert same.mean() >= 11 / 12


def test_unknown_past_actions_leave_the_last_frame_alone(run: Path, data: Path) -> None:
    """Frames whose actions are unknown cannot be used: the answer is that of the last frame on its own."""
    model = load_world(run)
    pictures, _, rows = held_out(data, 3, 2)
    alone = model.rollout(pictures[:, 3:4], rows)
    assert np.array_equal(model.rollout(pictures[:, :4], rows), alone)
    model.set_past_actions(rows[:, :1])
    with pytest.raises(UserError, match="past actions"):
        model.rollout(pictures[:, :4], rows)


def test_the_codecs_repeats_are_the_truths(run: Path, data: Path) -> None:
    model = load_world(run)
    one = token_world.pictures()[[0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 0]][None]
    model.reconstruct(one)
    assert model.told_repeats[0].tolist() == [True, False, True, True, False, False, True, False, True, True]


def test_the_checkpoint_stands_alone(run: Path, data: Path) -> None:
    """Ranges from training episodes, the tokenizer's copy, and the episodes it has seen travel in it."""
    model = load_world(run)
    assert set(model.train_episodes).isdisjoint(held(open_dataset(data)))
    assert (model.bins.low[0], model.bins.high[0]) == (0, 1)
    assert (run / "checkpoint" / "tokenizer" / "model.safetensors").exists()
    other = registry.get("tokenizers", "fsq-frame").tiny()
    other.height = 8
    with pytest.raises(UserError, match="the tokenizer has"):
        model.attach(other)


def test_it_begins_from_a_run_or_from_transformers_own_files(tmp_path: Path, data: Path, run: Path) -> None:
    """With a learning rate of 0 the weights stay those of ``init``, through transformers' class and back."""
    model = load_world(run)
    model.net.to_llama().save_pretrained(tmp_path / "llama")
    layout, name = model.layout, model.card.tokenizer["name"]
    same = {
        "history": layout.history,
        "predicted": layout.predicted,
        "tokenizer": name,
        "context_back": model.card.context_back,
    }
    model.bins.save(tmp_path / "ranges.json")
    for number, init in enumerate((run, tmp_path / "llama")):
        more = {"init": str(init), "actions.ranges": str(tmp_path / "ranges.json"), "train.lr": 0.0, "train.steps": 1}
        again = load_world(train(tmp_path / str(number), data, **same, **more))
        assert all(torch.equal(a, b) for a, b in zip(again.net.parameters(), model.net.parameters(), strict=True))
        assert again.bins == model.bins
    with pytest.raises(UserError, match="this recipe NetSpec"):
        train(tmp_path / "other", data, **same, **{"init": str(run), "net.width": 64})


def test_a_checkpoint_in_the_package_has_a_name(tmp_path: Path, run: Path, monkeypatch) -> None:
    monkeypatch.setattr(world_models, "BUNDLED", tmp_path)
    shutil.copytree(run / "checkpoint", tmp_path / "token-some")
    again = load_world("token-some")
    assert again.card == load_world(run).card
    with pytest.raises(UserError, match="did you mean 'token-some'"):
        load_world("token-sone")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"layout": "released"}, "the released layout has codes = 4375, not 75"),
        ({"predicted": 40, "history": 1}, "no episode of 16 has the 41 source frames"),
        ({"tokenizer": "nowhere"}, "there is no tokenizer run nowhere"),
        ({"tokenizer": None}, "no tokenizer was named"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, data: Path, values: dict, sentence: str) -> None:
    registry.get("tokenizers", "fsq-frame").tiny(3).save(tmp_path / "tokenizer" / "checkpoint")
    _, recipe = load_recipe("train", "token_smoke")
    recipe |= {"data": str(data), "tokenizer": str(tmp_path / "tokenizer"), **values}
    with pytest.raises(UserError, match=sentence):
        training.run(build(training.Config, recipe), RunContext("train", tmp_path))


def test_the_bundled_bases_are_small_and_share_a_tokenizer() -> None:
    folders = sorted(BUNDLED.glob("token-tiny-*"))
    assert [folder.name for folder in folders] == ["token-tiny-multi", "token-tiny-single"]
    assert sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file()) <= 8e6
    for folder in folders:
        world = load_world(folder.name)
        assert digest_of(world.tokenizer) == world.card.tokenizer["digest"]
