"""Columns of tokens: entry [t] is frame t, entry [t, k] is frame t + k * stride told from frame t, however it was computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import painted
from worldsim.commands import _tokens, tokenize_world
from worldsim.commands._token_windows import Wish, prepare
from worldsim.commands._tokens import ABSENT, Cut
from worldsim.core import registry
from worldsim.core.config import build, load_recipe
from worldsim.core.errors import PartialResult, UserError
from worldsim.core.runs import RunContext
from worldsim.formats import open_dataset

FRAMES = 11


class Source(painted.PaintedSource):
    """Painted pictures of the twins' size, whose numbers ``painted.read_index`` still reads."""

    def __init__(self, episodes: int = 3) -> None:
        super().__init__(episodes, FRAMES, cameras=("cam_top",), size=(16, 24), dim=2, states=False)


def twin(name: str):
    return registry.get("tokenizers", name).tiny(3)


def fill(root: Path, name: str, cut: Cut, batch: int = 16, **share) -> _tokens.Tokens:
    tokenizer, source = twin(name), Source()
    found = _tokens.specs(tokenizer, "data", cut)
    return _tokens.fill(root, source, tokenizer, found, cut, source.ids(), "cpu", batch=batch, **share)


def frames(index: int) -> torch.Tensor:
    return torch.from_numpy(Source().episode(index).frames["cam_top"].read())


def test_frame_tokens_are_those_of_each_frame_alone(tmp_path: Path) -> None:
    tokens, tokenizer = fill(tmp_path, "fsq-frame", Cut("cam_top", stride=2), batch=4), twin("fsq-frame")
    for index, name in enumerate(Source().ids()):
        own = frames(index)
        alone = torch.cat([tokenizer.encode(own[None, t : t + 1])[0] for t in range(len(own))])
        assert np.array_equal(tokens.frames.load(name), alone)
        context, seen = tokens.window(name, 3, 4)
        assert context.shape == (0,)
        assert np.array_equal(seen, alone[[3, 5, 7, 9]])


@pytest.mark.parametrize(("stride", "reach", "batch"), [(1, 4, 16), (2, 3, 5), (1, 1, 4)])
def test_dynamics_are_told_from_their_context_frame(tmp_path: Path, stride: int, reach: int, batch: int) -> None:
    cut = Cut("cam_top", stride, reach)
    tokens, tokenizer = fill(tmp_path, "fsq-compressive", cut, batch), twin("fsq-compressive")
    for index, name in enumerate(Source().ids()):
        own = frames(index)
        column = tokens.frames.load(name)
        assert column.shape == (len(own), reach, tokenizer.frame_tokens)
        assert np.array_equal(tokens.context.load(name), tokenizer.encode_context(own))
        for t in range(len(own)):
            for k in range(reach):
                at = t + k * stride
                expected = tokenizer.encode(own[None, at : at + 1], own[t][None])[0, 0] if at < len(own) else ABSENT
                assert (column[t, k] == np.asarray(expected)).all()


def test_a_window_looks_back_to_its_context_frame_and_never_beyond_the_episode(tmp_path: Path) -> None:
    tokens, tokenizer, own = fill(tmp_path, "fsq-compressive", Cut("cam_top", 1, 5)), twin("fsq-compressive"), frames(0)
    context, seen = tokens.window("episode_000000", 4, 3, back=2)
    assert np.array_equal(context, tokenizer.encode_context(own[2:3])[0])
    assert np.array_equal(seen, tokenizer.encode(own[None, 4:7], own[2:3])[0])
    with pytest.raises(ValueError, match="beyond the episode"):
        tokens.window("episode_000000", FRAMES - 2, 3)
    with pytest.raises(ValueError, match="not those from 3 to 6"):
        tokens.window("episode_000000", 4, 3, back=3)


def test_two_processes_share_the_work_and_a_second_call_does_none(tmp_path: Path, monkeypatch) -> None:
    cut = Cut("cam_top")
    fill(tmp_path, "fsq-frame", cut, rank=1, world_size=2)
    found = _tokens.specs(twin("fsq-frame"), "data", cut)
    assert len(_tokens.missing(tmp_path, found, Source().ids())) == 2
    fill(tmp_path, "fsq-frame", cut, rank=0, world_size=2)
    monkeypatch.setattr(_tokens.Encoder, "frames", None)
    assert all(name in fill(tmp_path, "fsq-frame", cut) for name in Source().ids())


def test_another_tokenizer_or_dataset_has_columns_of_its_own(tmp_path: Path) -> None:
    """By content: a copy of the same weights finds the same columns."""
    cut, one, other = Cut("cam_top"), twin("fsq-frame"), registry.get("tokenizers", "fsq-frame").tiny(4)
    mine = _tokens.specs(one, "data", cut)["frames"].path
    assert _tokens.specs(twin("fsq-frame"), "data", cut)["frames"].path == mine
    assert _tokens.specs(other, "data", cut)["frames"].path != mine
    assert _tokens.specs(one, "changed", cut)["frames"].path != mine


@pytest.mark.parametrize(("fps", "delay"), [(None, 0), (5.0, 0), (None, 2)])
def test_windows_pair_frame_t_with_the_action_that_leads_on(tmp_path: Path, fps: float | None, delay: int) -> None:
    source, tokenizer = Source(), twin("fsq-compressive")
    (tmp_path / "empty").mkdir()
    wish = Wish(tmp_path / "empty", tmp_path, None, fps, history=2, predicted=2, back=1, delay=delay)
    found = prepare(wish, source, tokenizer, "cpu", part="all")
    stride = found.cut.stride
    batch = found.batch(range(len(found)))
    drawn = found.batch(range(len(found)), np.random.default_rng(0))
    pixels = found.pixels(range(len(found)))
    for row, (name, start) in enumerate(found.index):
        own = frames(int(name[-1]))
        at = start + stride * np.arange(4)
        assert np.array_equal(pixels[row], own[at])
        assert np.array_equal(batch["frames"][row], tokenizer.encode(own[None, at], own[start][None])[0])
        assert batch["actions"][row, :, :, 0].ravel().tolist() == list(range(start - delay, start - delay + 3 * stride))
        backs = [own[start - back * stride] for back in range(found.furthest(start) + 1)]
        told = [tokenizer.encode_context(one[None])[0].numpy() for one in backs]
        assert any(np.array_equal(drawn["context"][row], one) for one in told)
    assert found.furthest(found.index[-1][1]) == 1
    assert min(start for _, start in found.index) == delay


def run(tmp_path: Path, data: Path, **values):
    twin("fsq-frame").save(tmp_path / "tokenizer" / "checkpoint")
    _, recipe = load_recipe("tokenize-world", "smoke")
    recipe |= {"data": str(data), "tokenizer": "fsq-frame", "checkpoint": str(tmp_path / "tokenizer"), **values}
    out = tmp_path / "run"
    out.mkdir(exist_ok=True)
    return tokenize_world.run(build(tokenize_world.Config, recipe), RunContext("tokenize-world", out))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    writer = registry.get("formats", "oxe-npz").create(tmp_path / "data", replace(Source().card))
    for index in range(3):
        writer.commit(writer.stage(Source().episode(index)))
    writer.finalize(Source().card)
    return tmp_path / "data"


def test_the_command_fills_a_part_of_the_split_or_all(tmp_path: Path, data: Path) -> None:
    first = run(tmp_path, data, split="train")
    assert first.metrics["episodes"] == 2
    every = run(tmp_path, data)
    assert every.metrics["episodes"] == 3
    assert every.metrics["columns"] == first.metrics["columns"]
    assert every.metrics["tokens"] == 6 * sum(open_dataset(data).episode(i).num_frames for i in range(3))


def test_a_broken_episode_is_named_and_the_others_are_tokenised(tmp_path: Path, data: Path) -> None:
    path = sorted(data.glob("painted/*.npz"))[0]
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(PartialResult, match="1 episodes cannot be tokenised, the first is train_eps_00000000") as error:
        run(tmp_path, data)
    assert error.value.result.metrics["episodes"] == 2


def test_the_command_refuses_in_one_sentence(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UserError, match="holds the tokenizer fsq-frame, not fsq-compressive"):
        run(tmp_path, data, tokenizer="fsq-compressive")
    with pytest.raises(UserError, match="there is no run nowhere"):
        run(tmp_path, data, checkpoint="nowhere")
    with pytest.raises(UserError, match="there is no tokenizer 'fsq-fram'"):
        run(tmp_path, data, tokenizer="fsq-fram")
