"""Groups: what is shared is computed once, nothing depends on batching, and a reward that is not finite has an address."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import rl_twins
from worldsim.core.errors import UserError
from worldsim.core.protocols import SupportsLogProb
from worldsim.rl.groups import Collector, Prompts, frame_of, unit
from worldsim.rl.memo import distinct, repeats
from worldsim.world_models._token_layout import Layout


@pytest.fixture(scope="module", params=["fsq-compressive", "fsq-frame"])
def parts(request: pytest.FixtureRequest) -> tuple[rl_twins.Policy, Any, Prompts]:
    tokenizer = rl_twins.codec(request.param)
    model = rl_twins.policy(tokenizer)
    return model, tokenizer, rl_twins.scenes(model, tokenizer, range(5))


class Counting:
    """A tokenizer that remembers what it was asked to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.opened, self.frames = tokenizer, 0, 0

    def open(self, context: Tensor) -> Any:
        self.opened += len(context)
        return self.tokenizer.open(context)

    def pixels(self, features: Any, tokens: Tensor) -> Tensor:
        self.frames += tokens.shape[0] * tokens.shape[1]
        return self.tokenizer.pixels(features, tokens)


def test_rows_are_told_apart_in_order_of_occurrence() -> None:
    rows = torch.tensor([[5, 1], [2, 2], [5, 1], [0, 9], [2, 2]])
    first, which = distinct(rows)
    assert first.tolist() == [0, 1, 3]
    assert which.tolist() == [0, 1, 0, 2, 1]
    assert torch.equal(rows[first][which], rows)


def test_repeats_compare_each_frame_with_the_one_before_it() -> None:
    tokens = torch.tensor([1, 1, 2, 1, 1]).view(1, 1, 5, 1)
    assert repeats(tokens)[0, 0].tolist() == [False, True, False, False, True]
    assert repeats(tokens, torch.tensor([[1]]))[0, 0].tolist() == [True, True, False, False, True]


def test_positions_know_their_frame() -> None:
    clean = Layout.clean(codes=9, frame_tokens=2, context_tokens=0, history=1, predicted=3, action_tokens=1, action_bins=4)
    assert frame_of(clean.response).tolist() == [0, 0, -1, 1, 1, -1, 2, 2]
    single = frame_of(Layout.released_single().response)
    assert single.tolist() == [0] * 320 + [-1], "EOS is given, never drawn"
    multi = frame_of(Layout.released_multi().response)
    assert [int((multi == frame).sum()) for frame in range(-1, 7)] == [91, *[80] * 7]


def test_a_model_that_says_how_likely_is_one_that_can_be_improved(parts: tuple[Any, Any, Prompts]) -> None:
    assert isinstance(parts[0], SupportsLogProb)
    assert not isinstance(parts[1], SupportsLogProb)


def test_groups_equal_a_plain_pass_sample_by_sample(parts: tuple[Any, Any, Prompts]) -> None:
    """Tokens from the sampler; pictures decoded one sample at a time; the reward as its formula."""
    model, tokenizer, prompts = parts
    found = rl_twins.collector(model, tokenizer).collect(prompts, 1)
    tokens = model.layout.frames_of(found.responses)
    assert tokens.shape == (5, 4, 3, tokenizer.frame_tokens)
    for p in range(5):
        for n in range(4):
            pictures = tokenizer.pixels(tokenizer.open(prompts.context[p : p + 1]), tokens[p : p + 1, n])[0]
            reward = -(pictures - unit(prompts.truth[p])).square().mean()
            torch.testing.assert_close(found.values[p, n], reward.expand(3), atol=1e-6, rtol=1e-5)
    again = model.log_probs(found.prompt, found.responses)
    torch.testing.assert_close(again.detach(), found.old, atol=1e-4, rtol=1e-4)
    frames = frame_of(model.layout.response)
    assert not found.old[..., frames < 0].any()
    assert (found.old[..., frames >= 0] < 0).all()
    assert torch.equal(
        found.responses[..., frames < 0], prompts.forced[:, None].expand_as(found.responses)[..., frames < 0]
    )


def test_in_bf16_all_three_log_probabilities_are_of_one_precision(parts: tuple[Any, Any, Prompts]) -> None:
    """Where the policy is its reference, nothing may look like learning: no KL, and a ratio of exactly 1."""
    model, tokenizer, prompts = parts
    reference = copy.deepcopy(model)
    found = rl_twins.collector(model, tokenizer, reference=reference, bf16=True, recompute=True).collect(prompts, 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        update = torch.cat([model.log_probs(p, r) for p, r in zip(found.prompt.split(1), found.responses.split(1))])
    assert torch.equal(found.reference, update)
    assert torch.equal(found.old, update)
    sampled = rl_twins.collector(model, tokenizer, reference=reference).collect(prompts, 1)
    assert torch.equal(sampled.responses, found.responses)
    assert 1e-3 < (sampled.old - found.old).abs().max() < 0.5  # what bf16 does to a log-probability


def test_nothing_depends_on_what_it_is_batched_with(parts: tuple[Any, Any, Prompts]) -> None:
    model, tokenizer, prompts = parts
    whole = rl_twins.collector(model, tokenizer, "mae+repetition", together=5).collect(prompts, 1)
    single = rl_twins.collector(model, tokenizer, "mae+repetition", together=1).collect(prompts, 1)
    third = rl_twins.collector(model, tokenizer, "mae+repetition").collect(prompts.part(slice(3, 4)), 1)
    assert torch.equal(whole.responses, single.responses)
    assert torch.equal(whole.responses[3:4], third.responses)
    torch.testing.assert_close(whole.values, single.values, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole.values[3:4], third.values, atol=1e-6, rtol=1e-5)


def test_a_context_is_decoded_once_per_group_and_equal_frames_once(parts: tuple[Any, Any, Prompts]) -> None:
    model, tokenizer, prompts = parts
    counting = Counting(tokenizer)
    collector = rl_twins.collector(model, counting)
    tokens = torch.randint(
        0, tokenizer.codes, (1, 4, 3, tokenizer.frame_tokens), generator=torch.Generator().manual_seed(0)
    )
    tokens[0, 2] = tokens[0, 1, 0]
    prediction, share = collector.decode(prompts.context[:1], tokens)
    assert (counting.opened, counting.frames) == (1, 9)
    assert share == 9 / 12
    features = tokenizer.open(prompts.context[:1])
    plain = torch.stack([tokenizer.pixels(features, tokens[:, n])[0] for n in range(4)])
    torch.testing.assert_close(prediction[0], plain, atol=1e-6, rtol=1e-5)
    counting.opened = 0
    collector.collect(prompts, 1)
    assert counting.opened == len(prompts)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_stops_with_its_address(parts: tuple[Any, Any, Prompts], value: float) -> None:
    model, tokenizer, prompts = parts

    class Broken:
        def parts(self, prediction: Tensor, truth: Tensor, *more: Any) -> dict[str, Tensor]:
            good = -(prediction - truth[:, None]).square().mean((-3, -2, -1))
            bad = good.clone()
            if torch.equal(truth, unit(prompts.truth[3:4])):
                bad[0, 2, 1] = value
            return {"mse": good, "mine": bad}

        def total(self, parts: dict[str, Tensor]) -> Tensor:
            return parts["mse"] + parts["mine"]

    with pytest.raises(
        UserError, match=r"reward mine is (nan|inf) in iteration 6: episode 3, frame 3, sample 2, predicted frame 2"
    ):
        Collector(model, None, tokenizer, Broken(), 4).collect(prompts, 6)


def test_illegal_ids_are_never_drawn_unless_asked_for(parts: tuple[Any, Any, Prompts]) -> None:
    """With the whole vocabulary a random net draws ids of other ranges; they count as the last code."""
    model, tokenizer, prompts = parts
    frames = frame_of(model.layout.response) >= 0
    legal = rl_twins.collector(model, tokenizer).collect(prompts, 1).responses[..., frames]
    assert int(legal.min()) >= 0
    assert int(legal.max()) < tokenizer.codes
    released = rl_twins.collector(model, tokenizer, legal=False).collect(prompts, 1)
    assert int(released.responses[..., frames].max()) >= tokenizer.codes
    assert torch.isfinite(released.values).all()
    again = model.log_probs(released.prompt, released.responses, legal=False)
    torch.testing.assert_close(again.detach(), released.old, atol=1e-4, rtol=1e-4)
