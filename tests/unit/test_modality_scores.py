"""Measuring trained arms: the right windows, the right frames, the right tokens, and what wrong tokens do to a real network."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from worldsim.commands._modality_scores import _add_world, measure, truth_of
from worldsim.commands._modality_summary import Scores, interventions
from worldsim.data.policy_windows import PolicyEpisodes, PolicyWindows, PolicyWindowSpec, Scaling
from worldsim.policies._world_modality_net import ModalityNet, NetSpec, Prediction
from worldsim.policies._world_modality_training import LossSpec, ModalityLoss, validate
from worldsim.report.clusters import Draws
from worldsim.report.verdicts import USED_FROM

LENGTHS = (14, 19, 26)
SPEC = PolicyWindowSpec(3, 2, 4)
CODES = 64
CENTROIDS = np.arange(CODES, dtype=np.float32)[:, None]


def painted() -> PolicyEpisodes:
    """Frame t of episode e has the token ``7 e + t`` (both positions), the state and the action ``[7 e + t, t]``."""
    rows = PolicyEpisodes({}, {}, {}, {})
    for e, length in enumerate(LENGTHS):
        t = np.arange(length)
        rows.actions[f"e{e}"] = np.stack([7.0 * e + t, t], 1)
        rows.states[f"e{e}"] = np.stack([7.0 * e + t, t], 1)
        rows.tokens[f"e{e}"] = np.stack([7 * e + t] * 2, 1).astype(np.int32)
        rows.embeddings[f"e{e}"] = np.zeros((length, 2, 4), np.float16)
    return rows


def windows(spec: PolicyWindowSpec = SPEC) -> PolicyWindows:
    return PolicyWindows(spec, painted(), Scaling.fit(painted()))


class Reader(nn.Module):
    """Stands for a network: it says what the painted tokens tell, so any slip of a frame shows.

    Actions are read off the world token of frame t, and the token of frame ``t + k`` is ``w_t + k + late``.
    """

    reads_world, reads_future = True, False

    def __init__(self, scaling: Scaling, late: int = 0) -> None:
        super().__init__()
        self.scaling, self.late = scaling, late
        self.world, self.image = nn.Embedding(CODES, 3), nn.Linear(4, 3)
        self.arm = SimpleNamespace(memory="none")
        self.seen: list[dict] = []

    def predict(self, batch, *, cur_tokens=None, attention=False, **switches) -> Prediction:
        self.seen.append(switches)
        tokens = batch["tokens"] if cur_tokens is None else cur_tokens
        now = tokens[:, -1]
        ahead = now[:, None, 0].double() + torch.arange(SPEC.horizon)
        physical = torch.stack([ahead, ahead - 7 * self.episode(batch)[:, None]], -1)
        later = now[:, None] + torch.arange(1, SPEC.future + 1)[None, :, None] + self.late
        logits = torch.full((*later.shape, CODES), -20.0).scatter(-1, later.clamp(0, CODES - 1)[..., None], 20.0)
        actions = torch.from_numpy(self.scaling.actions.forward(physical.numpy()))
        return Prediction(actions, logits, torch.full((len(now),), 0.25) if attention else None)

    def episode(self, batch) -> torch.Tensor:
        physical = torch.from_numpy(self.scaling.states.inverse(batch["states"][:, -1].numpy()))
        return torch.round((physical[:, 0] - physical[:, 1]) / 7)

    def forward(self, states, embeddings, tokens, future=None) -> Prediction:
        said = self.world(tokens[:, -1, 0]) + self.image(embeddings[:, -1, 0])
        return Prediction(said[:, None, :2].expand(-1, SPEC.horizon, -1), None)


def test_frames_and_actions_meet() -> None:
    """A reader of painted tokens makes no error at all; one that is a frame late hits no token."""
    w = windows()
    scale = w.scaling.actions.scale
    own = measure(Reader(w.scaling), w, scale, CENTROIDS, [], 0, 8)
    counts = np.array([length - 2 - SPEC.future for length in LENGTHS])
    assert own.error.max() < 1e-10
    np.testing.assert_array_equal(own.world["top1"], np.repeat(counts[:, None] * 2, SPEC.future, 1))
    np.testing.assert_array_equal(own.world["change_top1"], own.world["top1"])
    assert own.attention == pytest.approx(0.25)
    late = measure(Reader(w.scaling, late=1), w, scale, CENTROIDS, [], 0, 8)
    assert late.world["top1"].max() == 0


def test_corrupted_tokens_reach_the_network_window_by_window() -> None:
    """Tokens that are 2 frames stale shift both entries by 2; the nearest wrong centroid is one code off; errors are summed by
    episode, in the reported scale."""
    w = windows()
    own = measure(Reader(w.scaling), w, np.array([1.0, 0.5]), CENTROIDS, ["stale", "nearest_wrong"], 0, 2)
    counts = np.array([length - 2 - SPEC.future for length in LENGTHS], float)
    late = np.repeat((counts * 4)[:, None], SPEC.horizon, 1)  # t = 2 at the start reads frame 0: never before the episode
    np.testing.assert_allclose(own.corrupted["stale"][..., 0], late, rtol=1e-5)
    np.testing.assert_allclose(own.corrupted["stale"][..., 1], late * 4, rtol=1e-5)
    np.testing.assert_allclose(own.corrupted["nearest_wrong"][..., 0], late / 4, rtol=1e-5)
    assert own.distance == {"stale": pytest.approx(2.0, abs=0.2), "nearest_wrong": pytest.approx(1.0)}


def test_token_hits_by_hand() -> None:
    """The first five count for top-5; a token has changed when it is not today's, whatever it was before."""
    orders = [[[3, 0, 1, 2, 4, 5], [0, 1, 5, 2, 4, 3]], [[0, 1, 2, 4, 5, 3], [5, 0, 1, 2, 4, 3]]]
    logits = torch.zeros(2, 2, 1, 6)
    for window, steps in enumerate(orders):
        for k, order in enumerate(steps):
            logits[window, k, 0, order] = torch.arange(6, 0, -1).float()
    batch = {"tokens": torch.tensor([5, 4, 3])[None, :, None].expand(2, -1, 1)}
    batch["future_tokens"] = torch.tensor([3, 5])[None, :, None].expand(2, -1, 1)
    world: dict[str, np.ndarray] = {}
    _add_world(world, np.array([0, 1]), logits, batch, 2)
    assert world["top1"].tolist() == [[1, 0], [0, 1]]
    assert world["top5"].tolist() == [[1, 1], [0, 1]]
    assert world["change_top1"].tolist() == [[0, 0], [0, 1]]
    likely = np.exp(np.arange(6, 0, -1.0))
    bits = -np.log2(likely / likely.sum())
    np.testing.assert_allclose(world["bits"], bits[[[0, 2], [5, 0]]], rtol=1e-6)


def test_corruptions_follow_from_the_seed() -> None:
    w = windows()
    first, same, other = (
        measure(Reader(w.scaling), w, w.scaling.actions.scale, CENTROIDS, ["random"], seed, 8).corrupted["random"]
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_switches_reach_the_network() -> None:
    w = windows()
    net = Reader(w.scaling)
    own = measure(net, w, w.scaling.actions.scale, CENTROIDS, ["block", "zero", "oracle", "zero_future"], 0, 8)
    assert list(own.corrupted) == ["block", "zero"], "it attends to no future"
    assert {"block_world": True} in net.seen
    assert {"zero_world": True} in net.seen


def test_baselines_count_held_out_windows() -> None:
    """Painted tokens always change, by one a frame: copying never hits, the bigram always does where it was trained."""
    w = windows()
    truth = truth_of(w, painted().tokens, CODES, w.scaling.actions.scale)
    counts = np.array([length - 2 - SPEC.future for length in LENGTHS], float)
    np.testing.assert_array_equal(truth.windows, counts)
    np.testing.assert_array_equal(truth.baselines["change"], np.repeat(counts[:, None] * 2, SPEC.future, 1))
    assert truth.baselines["copy_top1"].max() == 0
    np.testing.assert_array_equal(truth.baselines["bigram_top1"], truth.baselines["change"])
    assert truth.places == 2


def episodes(redundant: bool, count: int, seed: int) -> tuple[PolicyEpisodes, np.ndarray]:
    """Frames of a robot that should go to one of eight places, told in the world token and, if ``redundant``, in the image.

    Redundant: the embedding holds the place beside clutter, and the token is the centroid nearest to that embedding, as
    k-means gives it: a function of what every arm sees. Otherwise the place is in the token alone.
    """
    book = np.random.default_rng(99).normal(size=(8, 8)) * [0.3, 0.3, 1, 1, 1, 1, 1, 1]
    rows = PolicyEpisodes({}, {}, {}, {})
    for e in range(count):
        rng, name = np.random.default_rng([seed, e]), f"{seed}-{e}"
        place = rng.integers(0, 8, 24)
        goal = np.stack([np.sin(place * np.pi / 4), np.cos(place * np.pi / 4)], 1)
        embedding, tokens = rng.normal(size=(24, 8)), place
        if redundant:
            embedding[:, :2] = goal
            tokens = ((embedding[:, None] - book) ** 2).sum(-1).argmin(1)
        rows.tokens[name] = tokens[:, None].astype(np.int32)
        rows.embeddings[name] = embedding[:, None].astype(np.float16)
        rows.states[name] = rng.normal(size=(24, 2))
        rows.actions[name] = goal + 0.5 * rng.normal(size=goal.shape)
    return rows, book


def trained(redundant: bool) -> tuple[ModalityNet, PolicyWindows, PolicyWindows, np.ndarray]:
    """Arm C after 300 steps, its training and held-out windows, and the codebook."""
    (train, book), (held, _) = episodes(redundant, 80, 1), episodes(redundant, 16, 2)
    spec, scaling = PolicyWindowSpec(2, 1, 2), Scaling.fit(train)
    sizes = {"d_model": 32, "layers": 2, "heads": 2, "inner": 64, "dropout": 0.0}
    net = ModalityNet(NetSpec("C", 2, 1, 2, 2, 2, 8, 1, 8, **sizes), 0)
    loss, seen = ModalityLoss(net, LossSpec()), PolicyWindows(spec, train, scaling)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-4)
    slower = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=300)
    draw = np.random.default_rng(0)
    net.train()
    for _ in range(300):
        optimiser.zero_grad()
        loss(**seen.batch(draw.integers(0, len(seen), 64))).backward()
        optimiser.step()
        slower.step()
    return net, seen, PolicyWindows(spec, held, scaling), book


CORRUPTIONS = ["random", "stale", "other_episode", "nearest_wrong", "shuffle", "graded:1", "block", "zero"]


@pytest.fixture(scope="module")
def both() -> dict[bool, tuple[ModalityNet, PolicyWindows, Scores]]:
    out = {}
    for redundant in (False, True):
        net, _, held, book = trained(redundant)
        scale = held.scaling.actions.scale
        out[redundant] = (net, held, measure(net, held, scale, book, CORRUPTIONS, 0, 8))
    return out


def test_token_that_tells_what_the_observation_hides_is_used(both) -> None:
    """Acceptance 6, one direction: every way of taking the token away costs, beyond 1.1 with the whole interval."""
    scores = both[False][2]
    found = interventions([scores], Draws.of(16))
    for name in CORRUPTIONS:
        assert found[name]["reading"] == "used", name
        assert found[name]["ratio"]["low"] > 2 * USED_FROM
    assert min(found["random"]["by_joint"]["low"]) > USED_FROM


def test_token_that_repeats_the_observation_is_not_used(both) -> None:
    """The other direction: the same network, training and noise; only what the image shows differs. Ratio about 1."""
    found = interventions([both[True][2]], Draws.of(16))
    for name in ("random", "stale", "other_episode", "shuffle", "block"):
        ratio = found[name]["ratio"]
        assert ratio["mean"] == pytest.approx(1.0, abs=0.06), name
        assert ratio["high"] < USED_FROM, name
        assert found[name]["reading"] in ("unused", "weak"), name


def test_attention_and_gradient_tell_the_two_apart(both) -> None:
    used, unused = both[False][2], both[True][2]
    assert used.attention > 1.5 * unused.attention
    assert used.gradient > 2 * unused.gradient


def test_two_ways_to_one_number(both) -> None:
    """The error and accuracy that training logs for the same held-out windows."""
    net, held, scores = both[False]
    logged = validate(net, held)
    assert scores.error.mean(axis=(1, 2)).sum() / len(held) == pytest.approx(logged["val/action_mse"], rel=1e-6)
    hits = scores.world["top1"].sum() / (len(held) * 2)
    assert hits == pytest.approx(logged["val/world_acc"], rel=1e-6)
    for part in (scores.world["bits"], scores.world["top5"]):
        assert np.isfinite(part).all()
    assert (scores.world["top5"] >= scores.world["top1"]).all()


def test_an_arm_without_world_input_has_nothing_to_corrupt() -> None:
    held = windows()
    net = ModalityNet(NetSpec("B", 3, 2, 4, 2, 2, 4, 2, CODES, d_model=16, layers=1, heads=2, inner=16), 0)
    scores = measure(net, held, held.scaling.actions.scale, CENTROIDS, CORRUPTIONS, 0, 8)
    assert scores.corrupted == {}
    assert scores.gradient is None
    assert scores.world["top1"].shape == (3, 4)


@pytest.mark.parametrize(("arm", "futures"), [("C_pred", 4), ("C_oracle", 3)])
def test_arms_that_attend_to_a_future_have_it_corrupted(arm: str, futures: int) -> None:
    """With an open gate every change of the future changes actions; C_oracle needs no oracle, it is one."""
    held = windows()
    net = ModalityNet(NetSpec(arm, 3, 2, 4, 2, 2, 4, 2, CODES, d_model=16, layers=1, heads=2, inner=16), 0)
    with torch.no_grad():
        net.memory.gate.fill_(1.0)
    names = ["zero_future", "random_future", "shuffle_future", "oracle"]
    scores = measure(net, held, held.scaling.actions.scale, CENTROIDS, names, 0, 8)
    assert list(scores.corrupted) == names[:futures]
    for changed in scores.corrupted.values():
        assert not np.allclose(changed, scores.error)
    if arm == "C_oracle":
        own = net.predict(held.batch([0]), future_tokens=held.batch([0])["future_tokens"]).actions
        assert torch.equal(own, net.predict(held.batch([0])).actions)
