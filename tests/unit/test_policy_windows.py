"""Windows for policies: which t are legal, that frame t meets action t, and that nothing crosses an episode or the split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.painted import PaintedSource, action_at, read_index
from worldsim.core.errors import UserError
from worldsim.data.policy_windows import (
    PolicyEpisodes,
    PolicyWindows,
    PolicyWindowSpec,
    Scaling,
    fraction_of,
    starts,
)

SPEC = PolicyWindowSpec(context=3, horizon=4, future=5)


def episodes(counts: dict[str, int], *, rows_less: int = 0, states: bool = True, width: int = 1) -> PolicyEpisodes:
    """Episode number n of T frames: tokens ``1000 n + t``, embeddings ``t``, actions and states ``(1000 n + t, n)``."""
    out = PolicyEpisodes({}, {}, {}, {})
    for n, (name, count) in enumerate(counts.items()):
        at = 1000 * n + np.arange(count)
        rows = np.stack([at, np.full(count, n)], 1).astype(np.float32)
        out.actions[name] = rows[: count - rows_less]
        out.tokens[name] = np.repeat(at[:, None], width, 1).astype(np.int32)
        out.embeddings[name] = np.repeat(np.arange(count)[:, None, None], width, 1).astype(np.float16)
        if states:
            out.states[name] = rows
    return out


@pytest.mark.parametrize("rows_less", [0, 1])
@pytest.mark.parametrize(("context", "horizon", "future"), [(3, 8, 8), (1, 1, 1), (3, 4, 5), (2, 6, 1), (4, 1, 7)])
def test_legal_starts_are_those_of_the_definition(context, horizon, future, rows_less):
    spec = PolicyWindowSpec(context, horizon, future)
    for frames in range(1, 25):
        actions = frames - rows_less
        by_hand = [t for t in range(frames) if t - context + 1 >= 0 and t + horizon - 1 < actions and t + future < frames]
        assert list(starts(frames, actions, spec)) == by_hand
        if not rows_less:  # the count of the specification
            assert len(by_hand) == max(0, frames - max(future, horizon - 1) - (context - 1))


@pytest.mark.parametrize("rows_less", [0, 1])
@pytest.mark.parametrize("width", [1, 4])
def test_every_entry_of_a_window_lies_where_it_should(rows_less, width):
    rows = episodes({"a": 12, "b": 3, "c": 15}, rows_less=rows_less, width=width)
    windows = PolicyWindows(SPEC, rows, Scaling.fit(rows))
    assert windows.episodes == ["a", "c"]
    assert set(windows.episode_of) == {"a", "c"}
    batch = windows.batch(np.arange(len(windows)))
    actions = windows.scaling.actions.inverse(batch["actions"].numpy())
    states = windows.scaling.states.inverse(batch["states"].numpy())
    for i in range(len(windows)):
        number, t = {"a": 0, "c": 2}[windows.episode_of[i]], int(windows.start_of[i])
        seen, ahead, chunk = np.arange(t - 2, t + 1), np.arange(t + 1, t + 6), np.arange(t, t + 4)
        assert (batch["tokens"][i].numpy() == (1000 * number + seen)[:, None]).all()
        assert (batch["future_tokens"][i].numpy() == (1000 * number + ahead)[:, None]).all()
        assert (batch["embeddings"][i, :, :, 0].numpy() == seen[:, None]).all()
        np.testing.assert_allclose(actions[i, :, 0], 1000 * number + chunk, atol=1e-2)
        np.testing.assert_allclose(states[i, :, 0], 1000 * number + seen, atol=1e-2)
        np.testing.assert_allclose(actions[i, :, 1], number, atol=1e-4)  # a constant per episode: nothing crosses
    assert batch["tokens"].shape == (len(windows), 3, width)
    assert batch["embeddings"].dtype == batch["actions"].dtype == batch["states"].dtype == torch.float32


def test_the_frame_that_is_seen_and_the_action_that_follows_belong_together():
    """Through pictures: tokens are read out of painted frames, and must name the same t as the actions."""
    source = PaintedSource(3, 14, cameras=("cam",))
    rows = PolicyEpisodes({}, {}, {}, {})
    for k, name in enumerate(source.ids()):
        one = source.episode(k)
        at = np.array([read_index(frame) - 1000 * k for frame in one.frames["cam"].read()])
        rows.tokens[name], rows.embeddings[name] = at[:, None], at[:, None, None].astype(np.float16)
        rows.actions[name], rows.states[name] = one.actions, one.states
    windows = PolicyWindows(SPEC, rows, Scaling.fit(rows))
    batch = windows.batch(np.arange(len(windows)))
    actions = windows.scaling.actions.inverse(batch["actions"].numpy())
    assert len(windows)
    for i, t in enumerate(windows.start_of):
        assert batch["tokens"][i, -1, 0] == t
        assert batch["future_tokens"][i, 0, 0] == t + 1
        np.testing.assert_allclose(actions[i], [action_at(t + k) for k in range(SPEC.horizon)], atol=1e-4)


def test_a_dataset_without_states_gives_states_of_no_width():
    rows = episodes({"a": 12}, states=False)
    windows = PolicyWindows(SPEC, rows, Scaling.fit(rows))
    assert windows.scaling.state_dim == 0
    assert windows.batch([0, 1])["states"].shape == (2, 3, 0)


def test_scaling_is_that_of_training_episodes_and_leaves_constants_in_place():
    rows = episodes({"a": 12, "held out": 12})
    rows.actions["a"][:, 1] = 5.0
    train = rows.only(["a"])
    scaling = Scaling.fit(train)
    windows = PolicyWindows(SPEC, rows, scaling)
    values = windows.batch(np.nonzero(windows.episode_of == "a")[0])["actions"][..., 1]
    assert (values == 0).all(), "a constant is shifted to 0 and not scaled up"
    assert scaling.actions.inverse(np.zeros((1, 2), np.float32))[0, 1] == 5.0
    rows.actions["held out"][:] = 1e6
    rows.embeddings["held out"][:] = 1e4
    again = Scaling.fit(rows.only(["a"]))
    assert again.to_json() == scaling.to_json()
    held = PolicyWindows(SPEC, rows.only(["held out"]), scaling)
    assert held.batch([0])["actions"].max() > 1e4, "held-out numbers are scaled by the training's, not their own"


def test_scaling_of_embeddings_is_their_mean_and_deviation():
    rng = np.random.default_rng(0)
    rows = episodes({"a": 12, "b": 9}, width=2)
    for name in rows.embeddings:
        rows.embeddings[name] = rng.normal(3, 2, (len(rows.tokens[name]), 2, 5)).astype(np.float16)
        rows.embeddings[name][..., 4] = 7
    scaling = Scaling.fit(rows)
    together = np.concatenate([part.reshape(-1, 5) for part in rows.embeddings.values()]).astype(np.float64)
    np.testing.assert_allclose(scaling.image_shift, together.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scaling.image_scale, [*together.std(0)[:4], 1.0], rtol=1e-5)
    assert Scaling.from_json(scaling.to_json()).to_json() == scaling.to_json()


def test_smaller_shares_of_the_episodes_lie_within_larger_ones():
    names = [f"episode_{k}" for k in range(40)]
    shares = {share: fraction_of(names, share) for share in (0.1, 0.25, 0.5, 1.0)}
    assert [len(part) for part in shares.values()] == [4, 10, 20, 40]
    assert set(shares[0.1]) < set(shares[0.25]) < set(shares[0.5]) < set(shares[1.0])
    assert shares[1.0] == names
    assert fraction_of(names[:3], 0.01) != []
    with pytest.raises(UserError, match="data_fraction"):
        fraction_of(names, 0)
