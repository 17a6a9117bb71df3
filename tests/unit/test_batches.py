"""Frames and actions of a batch match at every stride, with the frame index painted into the pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests import painted
from worldsim.core.errors import UserError
from worldsim.core.types import FrameStream
from worldsim.data import columns
from worldsim.data.batches import Buckets, Clips, cut, normalised, stream_windows
from worldsim.data.columns import ColumnSpec
from worldsim.data.stats import stats_of
from worldsim.data.transforms import Cover, Normalize
from worldsim.data.windows import WindowSpec

SPECS = [
    WindowSpec(frames=5, stride=1, hop=1),
    WindowSpec(frames=5, stride=2, hop=3),
    WindowSpec(frames=9, stride=3, hop=1),
    WindowSpec(frames=5, stride=3, hop=2, delay=2),
    WindowSpec(frames=9, stride=1, hop=40),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("less", [0, 1], ids=["T rows", "T-1 rows"])
def test_painted_frames_meet_their_actions(tmp_path, spec, less):
    """The whole way: stream, resize, store as a window column, batch; then read the numbers back off the pixels."""
    episodes = {e.id: e for e in (painted.episode(i, 41 + i, rows=41 + i - less) for i in range(2))}
    lengths = {e.id: e.num_frames for e in episodes.values()}
    cover = Cover(32, 64)

    def encode(key: str) -> np.ndarray:
        windows = list(stream_windows(episodes[key].frames["cam_front"], spec, cover.forward))
        assert [start for start, _ in windows] == starts[key]
        return np.stack([frames for _, frames in windows])

    starts = cut(lengths, spec)[spec.frames]
    column = columns.ensure(tmp_path, ColumnSpec("latents", "pixels", "window"), starts, encode)
    identity = Normalize.of(stats_of((e.id, e.actions) for e in episodes.values()), "identity")
    actions = normalised({e.id: e.actions for e in episodes.values()}, identity)
    clips = Clips(spec, starts, actions, {"frames": column})
    assert len(clips) == sum(len(s) for s in starts.values()) > 0

    batch = clips.batch(np.arange(len(clips)))
    assert batch["frames"].shape == (len(clips), spec.frames, 32, 64, 3)
    assert batch["actions"].shape == (len(clips), spec.frames - 1, spec.stride, 7)
    for number, (episode, row) in enumerate(clips.index):
        first = 1000 * int(episode[-1]) + starts[episode][row]
        shown = [painted.read_index(frame) for frame in batch["frames"][number]]
        assert shown == [first + spec.stride * k for k in range(spec.frames)]
        # rows between painted frame t and t + stride, shifted back by the delay
        expected = [[t % 1000 - spec.delay + j for j in range(spec.stride)] for t in shown[:-1]]
        assert batch["actions"][number, :, :, 0].tolist() == expected


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_streamed_windows_equal_windows_cut_from_memory(spec):
    frames = np.random.default_rng(0).integers(0, 256, (53, 4, 6, 3), np.uint8)
    seen = []

    def blocks():
        for at in range(0, 53, 7):
            yield frames[at : at + 7]

    stream = FrameStream(53, 4, 6, blocks)
    for start, window in stream_windows(stream, spec, lambda block: seen.append(len(block)) or block):
        assert np.array_equal(window, frames[start : start + spec.span : spec.stride])
    wanted = {t for s in cut({"e": 53}, spec)[spec.frames]["e"] for t in range(s, s + spec.span, spec.stride)}
    assert sum(seen) == len(wanted)  # no frame is resized twice or in vain


def test_memory_does_not_grow_with_the_episode():
    """A long episode is never held: blocks are produced lazily and windows handed over as soon as they are whole."""
    produced = []

    def blocks():
        for at in range(100):
            produced.append(at)
            yield np.zeros((10, 2, 2, 3), np.uint8)

    stream = FrameStream(1000, 2, 2, blocks)
    iterator = stream_windows(stream, WindowSpec(5, 1, 5), lambda block: block)
    next(iterator)
    assert len(produced) == 1


def test_text_is_padded_with_zeros():
    texts = {"a": np.ones((2, 3), np.float16), "b": np.ones((9, 3), np.float16)}
    actions = {"e": np.zeros((6, 1), np.float32), "f": np.zeros((6, 1), np.float32)}
    clips = Clips(WindowSpec(5), {"e": [0], "f": [0]}, actions, {}, {"e": "a", "f": "b"}, texts, 4)
    text = clips.batch(np.array([0, 1]))["text"]
    assert text.shape == (2, 4, 3)
    assert text.sum((1, 2)).tolist() == [6, 12]
    assert text[0, 2:].sum() == 0


def test_too_short_episodes_are_named():
    with pytest.raises(UserError, match="the longest has 8"):
        cut({"a": 5, "b": 8}, WindowSpec(9))
    assert cut({"a": 5, "b": 9}, WindowSpec(9)) == {9: {"b": [0]}}


@pytest.mark.parametrize(
    ("longest", "spec", "change"),
    [
        (41, WindowSpec(9, delay=39), {"delay": 0}),
        (41, WindowSpec(49), {"frames": 41}),
        (40, WindowSpec(49, stride=2), {"frames": 17}),
        (41, WindowSpec(41, delay=3), {"frames": 37}),
        (4, WindowSpec(9), None),
    ],
)
def test_what_would_fit_is_said_and_fits(longest, spec, change):
    """The delay is named where there is one; no hint repeats what is in use."""
    with pytest.raises(UserError) as error:
        cut({"a": longest}, spec)
    assert (f"action_delay = {spec.delay}" in error.value.sentence) == (spec.delay > 0)
    if change is None:
        assert error.value.command is None
        return
    key = {"frames": "frames", "delay": "action_delay"}[next(iter(change))]
    assert error.value.command.replace(" ", "=").endswith(f"{key}={next(iter(change.values()))}")
    assert cut({"a": longest}, replace(spec, **change))


def test_short_episodes_give_the_longest_clips_they_hold(tmp_path):
    spec = WindowSpec(frames=13, stride=2, hop=3, delay=1)  # spans of 25, 17 and 9 source frames, after frame 1
    lengths = {"long": 30, "nine": 18, "whole": 26, "five": 10, "short": 9}
    assert cut(lengths, spec) == {13: {"long": [1, 4], "whole": [1]}}
    buckets = cut(lengths, spec, range(5, 13, 4))
    assert buckets == {13: {"long": [1, 4], "whole": [1]}, 9: {"nine": [1]}, 5: {"five": [1]}}
    assert list(buckets) == [13, 9, 5]
    with pytest.raises(UserError, match="10 source frames that clips of 5 frames need"):
        cut({"short": 9}, spec, range(5, 13, 4))


def test_batches_of_a_bucket_are_of_one_length_and_read_their_own_clips():
    """Clips are numbered through the buckets; the actions of each say which episode and row they are."""
    spec = WindowSpec(frames=9, stride=1, hop=2)
    lengths = {"a": 12, "b": 6, "c": 9}
    actions = {name: (100 * k + np.arange(n, dtype=np.float32))[:, None] for k, (name, n) in enumerate(lengths.items())}
    cuts = cut(lengths, spec, (5,))
    buckets = Buckets([Clips(replace(spec, frames=f), starts, actions) for f, starts in cuts.items()])
    assert (buckets.counts, len(buckets), buckets.episodes) == ([3, 1], 4, ["a", "b", "c"])
    seen = {}
    for number in range(len(buckets)):
        got = buckets.batch(np.array([number]))["actions"]
        seen[int(got[0, 0, 0, 0])] = got.shape
    assert seen == {0: (1, 8, 1, 1), 2: (1, 8, 1, 1), 200: (1, 8, 1, 1), 100: (1, 4, 1, 1)}
    assert buckets.batch(np.array([2, 0]))["actions"].shape == (2, 8, 1, 1)
    with pytest.raises(ValueError, match="several buckets"):
        buckets.batch(np.array([0, 3]))
