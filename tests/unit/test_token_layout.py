"""Token arithmetic of the released layouts, id ranges, and that frames, actions and offsets come back where they went in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldsim.world_models._token_layout import Layout, Segment

CLEAN = Layout.clean(codes=20, frame_tokens=3, context_tokens=4, history=2, predicted=3, action_tokens=2, action_bins=5)
MULTI = Layout(20, 3, 4, 1, 3, 2, 5, kind="released-multi")
SINGLE = Layout(20, 3, 0, 2, 1, 2, 5, kind="released-single")


def material(layout: Layout, frames: int | None = None, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Context, frames and actions in which every token tells its row, frame and place."""
    count = layout.history + (frames or layout.predicted)
    context = torch.arange(layout.context_tokens).expand(rows, -1)
    index = torch.arange(rows * count * layout.frame_tokens) % layout.codes
    actions = torch.arange(rows * count * layout.action_tokens) % layout.action_bins
    return context, index.view(rows, count, -1), actions.view(rows, count, layout.action_tokens)


def test_single_step_arithmetic() -> None:
    layout = Layout.released_single()
    assert (layout.prompt_length, layout.response_length, layout.vocab) == (1333, 321, 4633)
    assert layout.loss_mask().shape == (1654,)
    assert (layout.action_start, layout.bos) == (4375, 4631)
    assert layout.response == (Segment(320, 0, 4375, True), Segment(1, 4632, 4633, False))
    assert int(layout.loss_mask().sum()) == 322
    ids = layout.sequence(*material(layout))
    assert ids.shape == (2, 1654)
    assert (ids[:, 1332] == 4631).all()
    assert (ids[:, -1] == 4632).all()
    for frame in range(4):
        block = ids[:, frame * 333 : (frame + 1) * 333]
        assert (block[:, :320] < 4375).all()
        assert ((block[:, 320:] >= 4375) & (block[:, 320:] < 4631)).all()


def test_multi_step_arithmetic() -> None:
    layout = Layout.released_multi()
    assert (layout.prompt_length, layout.response_length, layout.vocab) == (1373, 651, 9008)
    assert (layout.context_start, layout.action_start, layout.bos) == (4375, 8750, 9006)
    assert sum(s.length for s in layout.response if s.generated) == int(layout.loss_mask().sum()) == 560
    assert layout.response == (Segment(80, 0, 4375, True), Segment(13, 8750, 9006, False)) * 7
    ids = layout.sequence(*material(layout))
    assert ids.shape == (2, 2024)
    assert ((ids[:, :1280] >= 4375) & (ids[:, :1280] < 8750)).all()
    assert int(ids.max()) < 9006
    assert (ids[:, 1280:1360] < 4375).all()
    assert (ids[:, 1360:1373] >= 8750).all()


@pytest.mark.parametrize("layout", [CLEAN, MULTI, SINGLE, Layout.clean(20, 3, 0, 1, 2, 0)])
def test_what_goes_in_comes_out(layout: Layout) -> None:
    context, frames, actions = material(layout)
    prompt, response = layout.split(layout.sequence(context, frames, actions))
    assert prompt.shape[1] == layout.prompt_length
    assert response.shape[1] == layout.response_length
    assert torch.equal(layout.context_of(prompt), context)
    assert torch.equal(layout.history_of(prompt), frames[:, : layout.history])
    assert torch.equal(layout.frames_of(response), frames[:, layout.history :])
    assert torch.equal(layout.frames_of(response[:, None].expand(-1, 4, -1))[:, 3], frames[:, layout.history :])
    start = 0
    for segment in layout.response:
        part = response[:, start : start + segment.length]
        assert ((part >= segment.low) & (part < segment.high)).all()
        start += segment.length
    assert torch.equal(layout.prompt(context, frames[:, : layout.history], actions[:, : layout.history]), prompt)


def test_an_action_stands_between_the_frames_it_connects() -> None:
    """Frame t is painted with t, the action from t to t + 1 with t: reading the sequence must give f0 a0 f1 a1 f2 …"""
    for layout in (CLEAN, MULTI):
        count = layout.history + layout.predicted
        frames = torch.arange(count)[None, :, None].expand(1, -1, layout.frame_tokens)
        actions = torch.arange(count - 1)[None, :, None].expand(1, -1, layout.action_tokens) % 5
        ids = layout.sequence(torch.zeros(1, 4, dtype=torch.int64), frames, actions)[0, layout.context_tokens :]
        for t in range(count):
            block = ids[t * layout.block : (t + 1) * layout.block]
            assert (block[: layout.frame_tokens] == t).all()
            if t < count - 1:
                assert (block[layout.frame_tokens :] == layout.action_start + t).all()


def test_any_number_of_predicted_frames() -> None:
    for layout in (CLEAN, MULTI):
        for frames in (1, 2, 7):
            context, blocks, actions = material(layout, frames)
            _, response = layout.split(layout.sequence(context, blocks, actions[:, : layout.history + frames - 1]))
            assert (
                response.shape[1]
                == sum(s.length for s in layout.response_for(frames))
                == len(layout.loss_mask(frames)) - (layout.prompt_length)
            )
            assert layout.frames_in(response.shape[1]) == frames
            assert torch.equal(layout.frames_of(response), blocks[:, layout.history :])


def test_forced_tokens_are_those_of_the_sequence() -> None:
    for layout in (CLEAN, MULTI, SINGLE):
        context, frames, actions = material(layout)
        _, response = layout.split(layout.sequence(context, frames, actions))
        forced = layout.forced(actions[:, layout.history :], layout.predicted)
        start = 0
        for segment in layout.response:
            at = slice(start, start + segment.length)
            assert torch.equal(forced[:, at], torch.zeros_like(forced[:, at]) if segment.generated else response[:, at])
            start += segment.length


def test_the_clean_layout_has_no_extra_tokens() -> None:
    assert CLEAN.vocab == 20 + 20 + 5
    assert CLEAN.prompt_length == 4 + 2 * 5
    assert CLEAN.response_length == 3 * 3 + 2 * 2
    assert Layout.clean(20, 3, 0, 1, 2, 0).vocab == 20
    assert Layout.clean(20, 3, 0, 2, 1, 0).response == (Segment(3, 0, 20, True),)


def test_ids_out_of_range_are_errors_or_clamped_on_request() -> None:
    context, frames, actions = material(CLEAN)
    for bad in ((context + 20, frames, actions), (context, frames + 1, actions), (context, frames, actions - 1)):
        with pytest.raises(ValueError, match="outside"):
            CLEAN.sequence(*bad)
    _, response = CLEAN.split(CLEAN.sequence(context, frames, actions))
    response[0, 0] = CLEAN.action_start
    with pytest.raises(ValueError, match="frame token is outside"):
        CLEAN.frames_of(response)
    assert int(CLEAN.frames_of(response, clamp=True)[0, 0, 0]) == 19
    with pytest.raises(ValueError, match="no whole number of frames"):
        CLEAN.frames_of(response[:, :-1])
    with pytest.raises(ValueError, match="context tokens have shape"):
        CLEAN.sequence(context[:, 1:], frames, actions)


def test_the_card_reads_back() -> None:
    for layout in (CLEAN, MULTI, Layout.released_single()):
        assert Layout(**layout.card()) == layout
