"""The sampler's distribution is the plain forward's, its log-probabilities are recomputed ones, its noise knows no batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.test_token_net import LAYOUT, batch, net
from worldsim.world_models import _token_sampler as sampler
from worldsim.world_models._token_layout import Layout, Segment
from worldsim.world_models._token_net import NetSpec, TokenNet
from worldsim.world_models._token_sampler import draw, sample, uniforms
from worldsim.world_models._token_step import Step, _attend_plainly

RELEASED = Layout(20, 3, 4, 1, 3, 2, 5, kind="released-multi")
SINGLE = Layout(20, 3, 0, 2, 1, 2, 5, kind="released-single")


def inputs(layout: Layout = LAYOUT, groups: int = 2, seed: int = 0, frames: int | None = None) -> tuple[Tensor, Tensor]:
    """Prompts ``[P, Lp]`` and responses with the actions in place ``[P, Lr]``."""
    made = torch.Generator().manual_seed(seed)
    count = frames or layout.predicted
    context = torch.randint(20, (groups, layout.context_tokens), generator=made)
    blocks = torch.randint(20, (groups, layout.history, layout.frame_tokens), generator=made)
    actions = torch.randint(5, (groups, layout.history + count - 1, layout.action_tokens), generator=made)
    prompt = layout.prompt(context, blocks, actions[:, : layout.history])
    return prompt, layout.forced(actions[:, layout.history :], count)


def model(layout: Layout = LAYOUT, seed: int = 0, scale: float = 6.0) -> TokenNet:
    return net(seed, NetSpec(layout.vocab, 2, 32, 48, 4), scale)


@pytest.mark.parametrize("layout", [LAYOUT, RELEASED, SINGLE, Layout.clean(20, 3, 0, 1, 2, 0)])
@pytest.mark.parametrize("legal", [True, False])
def test_every_logit_is_that_of_a_plain_forward(layout: Layout, legal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All logits that were sampled from, step by step, against one forward over prompt and response, fp32."""
    world, (prompt, forced) = model(layout), inputs(layout)
    seen: list[Tensor] = []

    def spy(logits: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        seen.append(logits.clone())
        return draw(logits, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sampler, "draw", spy)
    found = sample(world, prompt, forced, layout.response, 3, [5, 6], legal=legal)
    with torch.no_grad():
        logits = world(torch.cat([prompt.repeat_interleave(3, 0), found.tokens.flatten(0, 1)], 1))
    chosen = [i for i, g in enumerate(s.generated for s in layout.response for _ in range(s.length)) if g]
    high = 20 if legal else world.spec.vocab
    assert len(seen) == len(chosen)
    for step, position in zip(seen, chosen):
        torch.testing.assert_close(step, logits[:, prompt.shape[1] - 1 + position, :high], atol=1e-4, rtol=1e-5)
    assert float(torch.stack(seen).std()) > 0.4


@pytest.mark.parametrize("legal", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_log_probs_are_the_recomputed_ones(legal: bool, temperature: float) -> None:
    world, (prompt, forced) = model(), inputs()
    found = sample(world, prompt, forced, LAYOUT.response, 4, [1, 2], legal=legal, temperature=temperature)
    with torch.no_grad():
        again = world.log_probs(prompt, found.tokens, LAYOUT.response, legal, temperature)
    torch.testing.assert_close(found.log_probs, again, atol=1e-4, rtol=0)
    assert found.log_probs.std() > 0.1


def test_the_route_of_other_devices_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attention that is not a CPU's, run on one: same samples, same log-probabilities."""
    world, (prompt, forced) = model(), inputs()
    expected = sample(world, prompt, forced, LAYOUT.response, 3, [1, 2])
    used: list[int] = []

    def plain(self: Step, number: int, q: Tensor, own: Tensor, mask: Tensor | None) -> Tensor:
        used.append(number)
        folded = q.reshape(self.groups, -1, self.heads, self.width).transpose(1, 2)
        return _attend_plainly(folded, q.transpose(1, 2), self.prefix[number], own, mask)

    monkeypatch.setattr(Step, "_attend", plain)
    found = sample(world, prompt, forced, LAYOUT.response, 3, [1, 2])
    assert used
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-4, rtol=0)


def test_the_step_of_constant_shapes_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA graphs capture, run on a CPU: same samples, same log-probabilities."""
    world, (prompt, forced) = model(), inputs()
    expected = sample(world, prompt, forced, LAYOUT.response, 3, [1, 2])
    plain, used = Step.__call__, []

    def static(self: Step, ids: Tensor, at: int) -> Tensor:
        if ids.shape[1] > 1:
            return plain(self, ids, at)
        used.append(at)
        return self.static(ids, torch.tensor([at]))

    monkeypatch.setattr(Step, "__call__", static)
    found = sample(world, prompt, forced, LAYOUT.response, 3, [1, 2])
    assert used == [0, 1, 5, 6, 10, 11]
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-4, rtol=0)


def test_given_tokens_stay_and_illegal_ids_never_come() -> None:
    """Even where the network is sure of an illegal id."""
    world, (prompt, forced) = model(RELEASED), inputs(RELEASED)
    with torch.no_grad():
        world.lm_head.weight[20:] *= 50
    tokens = sample(world, prompt, forced, RELEASED.response, 8, [1, 2]).tokens
    at = torch.cat([torch.full((s.length,), s.generated) for s in RELEASED.response])
    assert torch.equal(tokens[..., ~at], forced[:, None, ~at].expand(-1, 8, -1))
    assert (tokens[..., at] < 20).all()
    free = sample(world, prompt, forced, RELEASED.response, 8, [1, 2], legal=False).tokens
    assert (free[..., at] >= 20).any()
    assert torch.equal(free[..., ~at], tokens[..., ~at])


def test_results_do_not_depend_on_batching() -> None:
    """All at once; prompt by prompt; half of the samples at a time; in another order; one alone."""
    world, (prompt, forced) = model(), inputs(groups=3)
    seeds = [7, 8, 2**63 + 9]

    def run(rows: list[int], n: int, first: int) -> tuple[Tensor, Tensor]:
        found = sample(world, prompt[rows], forced[rows], LAYOUT.response, n, [seeds[r] for r in rows], first_sample=first)
        return found.tokens, found.log_probs

    tokens, scores = run([0, 1, 2], 4, 0)
    assert len(torch.unique(tokens.flatten(0, 1), dim=0)) == 12
    for rows, n, first in (([0], 4, 0), ([2, 1], 4, 0), ([0, 1, 2], 2, 0), ([0, 1, 2], 2, 2), ([1], 1, 3)):
        part, part_scores = run(rows, n, first)
        assert torch.equal(part, tokens[rows, first : first + n])
        torch.testing.assert_close(part_scores, scores[rows, first : first + n], atol=1e-4, rtol=0)


def test_any_number_of_frames_begins_alike() -> None:
    """A longer rollout starts with the shorter one: noise belongs to positions."""
    world = model()
    prompt, forced = inputs(frames=4)
    long = sample(world, prompt, forced, LAYOUT.response_for(4), 2, [3, 4]).tokens
    short = sample(world, prompt, forced[:, :13], LAYOUT.response_for(3), 2, [3, 4]).tokens
    assert torch.equal(long[..., :13], short)


def test_it_samples_what_the_network_says() -> None:
    """Frequencies of 4,000 first tokens against the softmax, within 4 standard errors; another temperature is another law."""
    world, (prompt, forced) = model(scale=2.0), inputs(groups=1)
    segments = (Segment(1, 0, 20, True),)
    for temperature in (1.0, 0.5):
        tokens = sample(world, prompt, forced[:, :1], segments, 4000, [11], temperature=temperature).tokens
        with torch.no_grad():
            wanted = (world(prompt)[0, -1, :20] / temperature).softmax(-1)
        error = (tokens.flatten().bincount(minlength=20) / 4000 - wanted).abs()
        assert (error < 4 * (wanted * (1 - wanted) / 4000).sqrt() + 1e-3).all()


def test_greedy_and_top_k() -> None:
    world, (prompt, forced) = model(), inputs()
    greedy = sample(world, prompt, forced, LAYOUT.response, 2, [1, 2], temperature=0.0)
    one = sample(world, prompt, forced, LAYOUT.response, 2, [1, 2], top_k=1)
    assert torch.equal(greedy.tokens, one.tokens)
    torch.testing.assert_close(greedy.log_probs, one.log_probs)
    logits, noise = torch.randn(500, 20), torch.rand(500, dtype=torch.float64)
    ids, scores = draw(logits, noise, 1.0, 3)
    assert (logits.gather(1, ids[:, None]) >= logits.topk(3).values[:, -1:]).all()
    assert len(ids.unique()) > 3
    torch.testing.assert_close(scores, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0])


def test_the_inverse_distribution_at_its_ends() -> None:
    """Noise 0 takes the first possible id and noise just below 1 the last possible one, never one of probability 0."""
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    noise = torch.tensor([0.0, 0.4999, 0.5001, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, noise)[0].tolist() == [1, 1, 3, 3]


def test_noise_belongs_to_seed_sample_and_position() -> None:
    whole = uniforms([3, -1], range(4), 50)
    assert torch.equal(uniforms([-1], range(2, 4), 20), whole[1:, 2:, :20])
    assert len(np.unique(whole)) == 2 * 4 * 50
    assert abs(float(uniforms([1], range(100), 100).mean()) - 0.5) < 0.01


def test_bfloat16_weights_sample_too() -> None:
    world, (prompt, forced) = model().bfloat16(), inputs()
    found = sample(world, prompt, forced, LAYOUT.response, 3, [1, 2])
    with torch.no_grad():
        again = world.log_probs(prompt, found.tokens, LAYOUT.response)
    assert found.log_probs.dtype == torch.float32
    assert float((found.log_probs - again).abs().mean()) < 0.1 * float(again[again != 0].abs().mean())


def test_shapes_that_do_not_fit_are_refused() -> None:
    world, (prompt, forced) = model(), inputs()
    with pytest.raises(ValueError, match="as many seeds"):
        sample(world, prompt, forced, LAYOUT.response, 2, [1])
    with pytest.raises(ValueError, match="given tokens of 13"):
        sample(world, prompt, forced[:, 1:], LAYOUT.response, 2, [1, 2])
    assert batch()[0].shape == prompt.shape
