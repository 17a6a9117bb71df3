"""The token transformer is Llama, and its shared-prefix log-probabilities are the naive ones, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from worldsim.core.errors import UserError
from worldsim.nn.transformer import merge, shared_prefix_attention
from worldsim.world_models._token_layout import Layout, Segment
from worldsim.world_models._token_net import NetSpec, TokenNet

LAYOUT = Layout.clean(codes=20, frame_tokens=3, context_tokens=4, history=2, predicted=3, action_tokens=2, action_bins=5)
SPEC = NetSpec(LAYOUT.vocab, layers=2, width=32, ffn=48, heads=4)


def batch(groups: int = 2, samples: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Prompts ``[P, Lp]`` and, per prompt, responses ``[N, Lr]`` that differ in their frames alone."""
    draw = torch.Generator().manual_seed(seed)
    frames = torch.randint(20, (groups * samples, 5, 3), generator=draw)
    frames = frames.view(groups, samples, 5, 3)
    frames[:, :, :2] = frames[:, :1, :2]
    context = torch.randint(20, (groups, 1, 4), generator=draw).expand(-1, samples, -1)
    actions = torch.randint(5, (groups, 1, 4, 2), generator=draw).expand(-1, samples, -1, -1)
    prompt, response = LAYOUT.split(LAYOUT.sequence(context.flatten(0, 1), frames.flatten(0, 1), actions.flatten(0, 1)))
    return prompt.view(groups, samples, -1)[:, 0], response.view(groups, samples, -1)


def net(seed: int = 0, spec: NetSpec = SPEC, scale: float = 6.0) -> TokenNet:
    """Weights large enough that attention and head are far from uniform."""
    torch.manual_seed(seed)
    made = TokenNet(spec)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(scale) if p.ndim == 2 else p.add_(torch.randn_like(p) * 0.1)
    return made


def naive(
    model: TokenNet, prompt: Tensor, responses: Tensor, segments: tuple[Segment, ...], legal: bool, t: float
) -> Tensor:
    """Every sample with its own copy of the prompt, full logits, then the legal ids picked out."""
    samples, length = responses.shape[1], prompt.shape[1]
    ids = torch.cat([prompt.repeat_interleave(samples, 0), responses.flatten(0, 1)], 1)
    logits = model(ids)[:, length - 1 : -1].float() / t
    out, start = torch.zeros(ids.shape[0], responses.shape[2]), 0
    for s in segments:
        if s.generated:
            low, high = (s.low, s.high) if legal else (0, model.spec.vocab)
            at = slice(start, start + s.length)
            scores = F.log_softmax(logits[:, at, low:high], -1)
            out[:, at] = scores.gather(-1, responses.flatten(0, 1)[:, at, None] - low)[..., 0]
        start += s.length
    return out.view(responses.shape)


def test_parity_with_llama_both_ways() -> None:
    torch.manual_seed(1)
    llama = LlamaForCausalLM(LlamaConfig(**SPEC.llama())).eval()
    ours = TokenNet.from_llama(llama.state_dict(), NetSpec.from_llama(llama.config.to_dict()))
    ids = torch.randint(SPEC.vocab, (2, 19))
    with torch.no_grad():
        expected = llama(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(net().to_llama()(ids).logits, net()(ids), atol=1e-5, rtol=1e-5)
    assert float(expected.std()) > 0.05


def test_a_llama_that_this_is_not_is_refused() -> None:
    state = net().state_dict()
    with pytest.raises(UserError, match=r"lacks lm_head\.weight"):
        TokenNet.from_llama({k: v for k, v in state.items() if k != "lm_head.weight"}, SPEC)
    with pytest.raises(UserError, match=r"unknown extra\.bias"):
        TokenNet.from_llama(state | {"extra.bias": torch.zeros(1)}, SPEC)
    with pytest.raises(UserError, match=r"lm_head\.weight has shape"):
        TokenNet.from_llama(state | {"lm_head.weight": torch.zeros(3, 32)}, SPEC)
    for key, value in (
        ("num_key_value_heads", 2),
        ("rope_theta", 5e5),
        ("tie_word_embeddings", True),
        ("rms_norm_eps", 1e-5),
    ):
        with pytest.raises(UserError, match=key):
            NetSpec.from_llama(SPEC.llama() | {key: value})


@pytest.mark.parametrize(("layout", "millions"), [(Layout.released_single(), 120.4), (Layout.released_multi(), 127.1)])
def test_released_sizes(layout: Layout, millions: float) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in TokenNet(NetSpec(layout.vocab)).parameters())
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("legal", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_shared_prefix_equals_naive(legal: bool, temperature: float) -> None:
    """Values, and the gradient of every weight, against one plain forward per sample."""
    model, (prompt, responses) = net(), batch()
    weights = torch.randn(responses.shape, generator=torch.Generator().manual_seed(3))
    found = []
    for route in (model.log_probs, lambda *a: naive(model, *a)):
        model.zero_grad()
        values = route(prompt, responses, LAYOUT.response, legal, temperature)
        (values * weights).sum().backward()
        found.append((values.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    assert found[0][0].std() > 0.1
    for name, grad in found[0][1].items():
        scale = float(found[1][1][name].abs().max())
        assert scale > 0, name
        torch.testing.assert_close(grad, found[1][1][name], atol=1e-5 * max(scale, 1.0), rtol=1e-5, msg=name)


def test_released_layouts_have_the_naive_log_probs() -> None:
    """EOS and trailing actions included: what is not generated is 0 and changes nothing."""
    layout = Layout(20, 3, 0, 2, 1, 2, 5, kind="released-single")
    model = net(spec=NetSpec(layout.vocab, 2, 32, 48, 4))
    ids = layout.sequence(torch.zeros(2, 0), torch.randint(20, (2, 3, 3)), torch.randint(5, (2, 2, 2)))
    prompt, response = layout.split(ids)
    with torch.no_grad():
        found = model.log_probs(prompt, response[:, None], layout.response)
        torch.testing.assert_close(
            found, naive(model, prompt, response[:, None], layout.response, True, 1.0), atol=1e-5, rtol=0
        )
    assert (found[..., :3] < 0).all()
    assert (found[..., 3:] == 0).all()


def test_one_generated_token() -> None:
    model, prompt = net(), torch.randint(20, (2, 7))
    responses = torch.randint(20, (2, 3, 1))
    segments = (Segment(1, 0, 20, True),)
    with torch.no_grad():
        found = model.log_probs(prompt, responses, segments)
        torch.testing.assert_close(found, naive(model, prompt, responses, segments, True, 1.0), atol=1e-5, rtol=0)


def test_both_routes_of_shared_attention_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The merged flash calls of a CPU against one masked attention over copies of the prefix, which other devices run."""
    q, k, v = (torch.randn(6, 5, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    far_k, far_v = (torch.randn(2, 7, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    inputs = (q, k, v, far_k, far_v)
    found = shared_prefix_attention(*inputs)
    grads = torch.autograd.grad((found**2).sum(), inputs)
    whole_k, whole_v = (torch.cat([far.repeat_interleave(3, 0), own], 1) for far, own in ((far_k, k), (far_v, v)))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, whole_k) / 8**0.5
    mask = torch.ones(5, 12, dtype=torch.bool).tril(7)
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), whole_v)
    torch.testing.assert_close(found, expected)
    for one, two in zip(grads, torch.autograd.grad((expected**2).sum(), inputs)):
        torch.testing.assert_close(one, two)
    monkeypatch.setattr(torch.Tensor, "device", property(lambda _: torch.device("meta")))
    torch.testing.assert_close(shared_prefix_attention(*inputs), expected)


def test_merging_with_nothing_changes_nothing() -> None:
    one, lse = torch.randn(3, 4), torch.randn(3)
    out, total = merge(one, lse, torch.randn(3, 4), torch.full((3,), -torch.inf))
    torch.testing.assert_close(out, one)
    torch.testing.assert_close(total, lse)
