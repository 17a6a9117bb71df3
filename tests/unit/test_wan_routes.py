"""Routes: nothing changes before training, actions meet their latents, and the pooled one is the reference's formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from tests.wan_nets import ROUTES, TWINS, A, B, K, R, batch_of, make_inputs, make_net
from worldsim.core.errors import UserError
from worldsim.nn.action_embedder import index_waves
from worldsim.nn.flow import TimeSampling
from worldsim.train import checkpoint
from worldsim.world_models import _wan_routes
from worldsim.world_models._wan_conditioning import SpreadTime
from worldsim.world_models._wan_geometries import resolve
from worldsim.world_models._wan_net import NetSpec, WanNet
from worldsim.world_models._wan_routes.worldeval import PooledActions
from worldsim.world_models._wan_training import FlowLoss
from worldsim.world_models.wan import Wan

ALIGNED = [name for name, route in _wan_routes.ROUTES.items() if route.aligned]


def calls_of(net: WanNet, monkeypatch) -> list[dict]:
    """What every call of a transformer of this class is given from now on."""
    seen: list[dict] = []
    forward = WanTransformer3DModel.forward

    def spy(self, *args, **kwargs):
        seen.append(kwargs)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(WanTransformer3DModel, "forward", spy)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("twin", TWINS)
@torch.no_grad()
def test_before_training_not_a_bit_of_the_base_changes(twin, route, dtype, monkeypatch):
    """The same call of a transformer without route, conditioner and LoRA gives the same bits; short and long prompts."""
    base = resolve(twin)
    net = WanNet(base.transformer(dtype), base.geometry, NetSpec(A, R, route, hidden=16, rank=2, alpha=4.0)).eval()
    plain, inputs = base.transformer(dtype), make_inputs(net)
    seen = calls_of(net, monkeypatch)
    for length in (7, base.geometry.text_tokens):
        text = inputs["text"].clone()
        text[:, length:] = 0
        ours = net(**{**inputs, "text": text})
        spread = SpreadTime()
        spread.tokens = net.spread.tokens
        handle = plain.condition_embedder.register_forward_hook(spread)
        theirs = plain(**seen[-1])[0].float()
        handle.remove()
        assert theirs.abs().mean() > 0.1
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("twin", TWINS)
@torch.no_grad()
def test_actions_drive_the_video_and_dropping_hides_them(twin, route):
    net = make_net(twin, route, moved=True)
    inputs = make_inputs(net)
    other = {**inputs, "actions": inputs["actions"] + torch.linspace(-1, 1, 4 * K)[:, None, None] + 0.5}
    assert not torch.allclose(net(**inputs), net(**other), atol=1e-4)
    hidden = torch.ones(B, dtype=torch.bool)
    assert torch.equal(net(**inputs, dropped=hidden), net(**other, dropped=hidden))
    assert not torch.allclose(net(**inputs), net(**inputs, dropped=hidden), atol=1e-4)
    half = net(**inputs, dropped=torch.tensor([True, False]))
    assert torch.allclose(half[0], net(**inputs, dropped=hidden)[0], atol=1e-5)
    assert torch.allclose(half[1], net(**inputs)[1], atol=1e-5)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("twin", TWINS)
@torch.no_grad()
def test_only_the_pooled_route_is_blind_to_order(twin, route):
    net = make_net(twin, route, moved=True)
    inputs = make_inputs(net)
    backwards = net(**{**inputs, "actions": inputs["actions"].flip(1)})
    same = torch.allclose(net(**inputs), backwards, atol=1e-5)
    assert same == (route not in ALIGNED) == (route == "worldeval")


def added(net: WanNet, route: str) -> list[torch.Tensor]:
    """A list that receives, at each forward pass, what a route's place holds afterwards: ``[B, F', …]``."""
    seen: list[torch.Tensor] = []
    embedder = net.transformer.condition_embedder
    if route == "patch-add":
        keep = lambda module, inputs, output: seen.append(output.transpose(1, 2).clone())  # noqa: E731
        net.transformer.patch_embedding.register_forward_hook(keep)
    elif route == "adaln":
        embedder.time_embedder.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    else:
        embedder.text_embedder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, -(1 + K) :]))
    return seen


@pytest.mark.parametrize("route", ALIGNED)
@torch.no_grad()
def test_action_t_enters_at_latent_t_over_4_plus_1_alone(route):
    """What the route adds, seen where it is added: the vector of one latent changes, no other."""
    net = make_net("tiny-ti2v", route, moved=True)
    seen, inputs = added(net, route), make_inputs(net)
    for t in range(4 * K):
        seen.clear()
        moved = inputs["actions"].clone()
        moved[:, t] += 1.0
        net(**inputs)
        net(**{**inputs, "actions": moved})
        changed = (seen[0] != seen[1]).flatten(2).any(dim=2).any(dim=0)
        assert changed.tolist() == [k == t // 4 + 1 for k in range(1 + K)]


@torch.no_grad()
def test_action_tokens_leave_the_text_its_length_and_words():
    """512 places stay 512 (CLIP's tokens are split off there); only the last 1 + K change, each told its latent."""
    net = make_net("tiny-i2v", "tokens", moved=True)
    places: list[torch.Tensor] = []
    net.transformer.condition_embedder.text_embedder.register_forward_pre_hook(lambda m, inputs: places.append(inputs[0]))
    inputs = make_inputs(net)
    inputs["text"][:, 9:] = 0
    net(**inputs)
    assert places[0].shape == (B, 512, 32)
    assert torch.equal(places[0][:, : 512 - (1 + K)], inputs["text"][:, : 512 - (1 + K)])
    assert torch.equal(places[0][:, 512 - (1 + K) :], net.conditioner(inputs["actions"], inputs["history"]))
    # equal groups of actions at different latents are different tokens
    still = net.conditioner(torch.ones(1, 4 * K, R, A))[0, 1:]
    assert not torch.allclose(still[0], still[1], atol=1e-3)
    assert len({tuple(row) for row in index_waves(300, 24).tolist()}) == 300


def test_action_tokens_need_places():
    net = make_net("tiny-ti2v", "tokens")
    inputs = make_inputs(net)
    with pytest.raises(UserError, match="needs 3 places at the end of the text, and this model's text has 2"):
        net(**{**inputs, "text": inputs["text"][:, :2]})


@torch.no_grad()
def test_a_model_without_text_has_places_all_the_same():
    """Its text is one token of zeros; before training the longer row of zeros reads the same."""
    net, inputs = make_net("tiny-t2v", "tokens"), make_inputs(make_net("tiny-t2v"))
    silent = {**inputs, "text": torch.zeros(B, 1, 32)}
    assert torch.allclose(net(**silent), make_net("tiny-t2v", "adaln")(**silent), atol=1e-6)
    moved = make_net("tiny-t2v", "tokens", moved=True)
    assert not torch.allclose(moved(**silent), moved(**{**silent, "actions": inputs["actions"].flip(1)}), atol=1e-4)


@pytest.mark.parametrize("action_dim", [3, 499, 500, 512])
@torch.no_grad()
def test_pooled_context_is_the_references_formula(action_dim):
    """context' = text_embedding(text) + alpha * proj(mean over time) on every token, padding included, to 1e-5."""
    base = resolve("tiny-i2v")
    spec = NetSpec(action_dim, 1, "worldeval", hidden=40, rank=0, alpha=1.0)
    net = WanNet(base.transformer(), base.geometry, spec).eval()
    torch.manual_seed(3)
    state = {name: torch.randn_like(p) * 0.2 for name, p in net.conditioner.named_parameters()}
    net.conditioner.load_state_dict(state)
    contexts: list[torch.Tensor] = []
    net.transformer.condition_embedder.text_embedder.register_forward_hook(lambda m, i, out: contexts.append(out))
    inputs = make_inputs(net)
    inputs["actions"] = torch.randn(B, 4 * K, 1, action_dim)
    net(**inputs)

    layers = sorted({int(name.split(".")[1]) for name in state if name.startswith("action_proj")})
    assert layers == ([0, 2, 4] if action_dim < 500 else [0, 2])
    hidden = inputs["actions"][:, :, 0].double().mean(1)
    for layer in layers:
        if layer:
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        weight, bias = (state[f"action_proj.{layer}.{part}"].double() for part in ("weight", "bias"))
        hidden = hidden @ weight.T + bias
    plain = base.transformer().condition_embedder.text_embedder(inputs["text"])
    expected = plain + state["action_alpha"] * hidden[:, None]
    assert contexts[0].shape == (B, 512, 24)
    assert torch.allclose(contexts[0].double(), expected.double(), atol=1e-5)


def test_pooled_sizes_are_the_references():
    wide, narrow = (
        PooledActions(dim, 5120, _wan_routes.ROUTES["worldeval"].hidden(resolve_14b(), dim)) for dim in (1280, 384)
    )
    count = [sum(p.numel() for name, p in m.named_parameters() if name.startswith("action_proj")) for m in (wide, narrow)]
    assert [round(n / 1e6, 1) for n in count] == [32.8, 33.3]  # source: worldeval-wan study, parameter counts
    assert wide.action_alpha.item() == pytest.approx(0.3)


def resolve_14b():
    from worldsim.world_models._wan_geometries import GEOMETRIES

    return GEOMETRIES["wan2.1-i2v-14b-480p"]


@torch.no_grad()
def test_pooled_rows_of_the_past_do_not_count():
    """Two given latents: the four rows between their frames lead nowhere new."""
    pooled = PooledActions(A, 8, 16)
    torch.nn.init.normal_(pooled.action_proj[-1].weight)
    actions = torch.randn(2, 4 * K, R, A)
    moved = actions.clone()
    moved[:, :4] += 1.0
    history = torch.tensor([1, 2])
    assert torch.equal(pooled(actions, history)[1], pooled(moved, history)[1])
    assert not torch.allclose(pooled(actions, history)[0], pooled(moved, history)[0])
    assert torch.allclose(pooled(actions, 2), pooled(actions[:, 4:], 1), atol=1e-6)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("twin", TWINS)
@torch.no_grad()
def test_merged_equals_unmerged(twin, route):
    net = make_net(twin, route, moved=True)
    inputs = make_inputs(net)
    before, fresh = net(**inputs), make_net(twin, route)(**inputs)
    net.merge()
    after = net(**inputs)
    assert not torch.allclose(before, fresh, atol=1e-3)
    assert torch.allclose(before, after, atol=1e-4)
    assert not [name for name, _ in net.transformer.named_parameters() if "lora" in name]


@pytest.mark.parametrize("route", ROUTES)
def test_every_part_of_a_conditioner_learns(route):
    net = make_net("tiny-i2v", route)
    for parameter in net.trained().values():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(0)
    FlowLoss(net, (1, 2), TimeSampling(), dropout=0.5)(**batch_of(net, count=8)).backward()
    assert not [name for name, p in net.trained().items() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("route", ROUTES)
def test_action_guidance_moves_a_rollout_away_from_the_null(route):
    """Guidance 0 imagines without actions, 1 with them, 2 goes further; a checkpoint of each route is whole."""
    model = Wan.tiny("tiny-ti2v", route)
    rng = np.random.default_rng(0)
    context = rng.integers(0, 256, (1, 1, 32, 64, 3), np.uint8)
    actions = rng.normal(size=(2, 1, 8, 1, 2)).astype(np.float32)
    videos = {}
    for guidance in (0.0, 1.0, 2.0):
        model.set_sampling(guidance=guidance)
        videos[guidance] = [model.rollout(context, rows, seeds=[1]) for rows in actions]
    assert np.array_equal(*videos[0.0])
    assert not np.array_equal(*videos[1.0])
    assert not np.array_equal(videos[1.0][0], videos[2.0][0])


@pytest.mark.parametrize("route", ROUTES)
def test_a_checkpoint_of_each_route_is_whole(tmp_path, route):
    model = Wan.tiny("tiny-i2v", route)
    tensors = {name: p.detach() for name, p in model.net.trained().items()}
    checkpoint.write_checkpoint(tmp_path / "checkpoint", tensors, model.card.to_json(), step=1)
    loaded = Wan.load(tmp_path)
    assert loaded.card.net == model.card.net
    assert all(torch.equal(p, loaded.net.trained()[name]) for name, p in model.net.trained().items())


def test_an_unknown_route_lists_the_known():
    with pytest.raises(UserError, match="no route 'patch-ad'; did you mean 'patch-add'") as error:
        make_net("tiny-t2v", "patch-ad")
    assert all(route in error.value.sentence for route in ROUTES)
