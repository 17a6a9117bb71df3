"""The arms' network: sequences, what each arm may see, losses, and the same bits in any batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from worldsim.core.errors import UserError
from worldsim.policies._world_modality_arms import ARMS
from worldsim.policies._world_modality_blocks import Block
from worldsim.policies._world_modality_net import ModalityNet, matched, parameters
from worldsim.policies._world_modality_sizes import NetSpec, Segments
from worldsim.policies._world_modality_training import ACTION, LOSS, WORLD, LossSpec, ModalityLoss

SMALL = NetSpec("C", 3, 8, 8, 5, 7, 24, 1, 32, d_model=32, layers=2, heads=4, inner=64, dropout=0.0)


def net(arm: str, seed: int = 0, **more: object) -> ModalityNet:
    return ModalityNet(dataclasses.replace(SMALL, arm=arm, **more), seed).eval()


def windows(count: int = 6, positions: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "states": torch.randn(count, 3, 5, generator=draw),
        "actions": torch.randn(count, 8, 7, generator=draw),
        "tokens": torch.randint(0, 32, (count, 3, positions), generator=draw),
        "future_tokens": torch.randint(0, 32, (count, 8, positions), generator=draw),
        "embeddings": torch.randn(count, 3, positions, 24, generator=draw),
    }


def changed(model: ModalityNet, name: str, index: object = slice(None), **options: object) -> tuple[bool, bool | None]:
    """Whether another content of an input changes actions and logits."""
    batch, other = windows(), windows(seed=9)[name]
    one = model.predict(batch, **options)
    swapped = batch[name].clone()
    swapped[index] = other[index]
    two = model.predict({**batch, name: swapped}, **options)
    logits = None if one.logits is None else not torch.equal(one.logits, two.logits)
    return not torch.equal(one.actions, two.actions), logits


def test_sequences_are_as_long_as_the_experiment_says():
    lengths = {"A": 9, "B": 17, "C": 18, "C_no_input": 17, "C_hist": 20, "C_pred": 18, "C_oracle": 18, "A_plus": 9}
    assert {arm: Segments.of(dataclasses.replace(SMALL, arm=arm)).total for arm in ARMS} == lengths
    grid = {arm: Segments.of(dataclasses.replace(SMALL, arm=arm, positions=4)).total for arm in ("A", "B", "C", "C_hist")}
    assert grid == {"A": 4 + 8, "B": 4 + 32 + 8, "C": 4 + 4 + 32 + 8, "C_hist": 4 + 12 + 32 + 8}


@pytest.mark.parametrize("positions", [1, 4])
@pytest.mark.parametrize("arm", ARMS)
def test_heads_have_their_shapes_and_a_window_gives_the_same_bits_in_any_batch(arm, positions):
    model, batch = net(arm, positions=positions), windows(21, positions)
    whole = model.predict(batch)
    assert whole.actions.shape == (21, 8, 7)
    assert (whole.logits is None) == (arm in ("A", "A_plus"))
    for rows in ([3], [20, 3], [7, 3, 5, 3, 11, 0, 19]):
        part = model.predict({name: value[rows] for name, value in batch.items()})
        assert torch.equal(part.actions, whole.actions[rows])
        if whole.logits is not None:
            assert whole.logits.shape == (21, 8, positions, 32)
            assert torch.equal(part.logits, whole.logits[rows])


@pytest.mark.parametrize("pre_norm", [True, False])
def test_a_block_is_torch_s_own_encoder_layer(pre_norm):
    torch.manual_seed(0)
    ours = Block(32, 4, 64, 0.0, pre_norm).eval()
    theirs = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=pre_norm).eval()
    pairs = {
        "self_attn.in_proj_": "qkv.",
        "self_attn.out_proj.": "out.",
        "linear1.": "up.",
        "linear2.": "down.",
        "norm1.": "norm_attention.",
        "norm2.": "norm_feed.",
    }
    state = ours.state_dict()
    theirs.load_state_dict({a + end: state[b + end] for a, b in pairs.items() for end in ("weight", "bias")})
    x, mask = torch.randn(3, 9, 32), torch.rand(9, 9) < 0.7
    mask |= torch.eye(9, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(x, mask), theirs(x, src_mask=~mask), rtol=1e-5, atol=1e-5)


def test_a_sees_no_world_and_learns_nothing_of_it():
    model = net("A")
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "world" in name or "future" in name or "memory" in name]
    assert changed(model, "tokens") == (False, None)
    loss = ModalityLoss(model, LossSpec())
    batch = windows()
    one, two = loss(**batch), loss(**{**batch, "future_tokens": windows(seed=5)["future_tokens"]})
    assert one == two
    assert set(loss.numbers) == {ACTION, LOSS}


@pytest.mark.parametrize("arm", ["B", "C", "C_hist", "C_pred", "C_oracle"])
def test_without_lambda_the_loss_is_a_s_and_the_world_head_learns_nothing(arm):
    loss, batch = ModalityLoss(net(arm), LossSpec(lambda_world=0.0)), windows()
    memory = batch["future_tokens"] if arm == "C_oracle" else None
    said = loss.net.predict(batch, future_tokens=memory)
    value = loss(**batch)
    torch.testing.assert_close(value, (said.actions - batch["actions"]).square().mean())
    value.backward()
    grad = loss.net.world_head.weight.grad
    assert grad is None or not grad.any()


def test_the_loss_is_mse_and_a_weighted_share_of_the_mean_cross_entropy_over_all_horizons():
    batch = windows()
    for settings in (LossSpec(), LossSpec(1.0, 0.1, 1.0), LossSpec(0.5, 0.0, 3.0)):
        loss = ModalityLoss(net("B"), settings)
        value = float(loss(**batch).detach())
        said = loss.net.predict(batch)
        logp = said.logits.double().log_softmax(-1).numpy()
        total = weight = 0.0
        for i, k in np.ndindex(6, 8):
            now, then = int(batch["tokens"][i, -1, 0]), int(batch["future_tokens"][i, k, 0])
            smooth = settings.label_smoothing
            nats = -(1 - smooth) * logp[i, k, 0, then] - smooth * logp[i, k, 0].mean()
            w = settings.change_point_weight if then != now else 1.0
            total, weight = total + w * nats, weight + w
        by_hand = float((said.actions - batch["actions"]).square().mean()) + settings.lambda_world * total / weight
        assert value == pytest.approx(by_hand, rel=1e-5)
        assert float(loss.numbers[WORLD]) == pytest.approx(total / weight, rel=1e-5)


def test_each_arm_reads_what_it_may_and_nothing_else():
    last, before = (slice(None), -1), (slice(None), slice(0, 2))
    for arm in ARMS:
        model = net(arm)
        with torch.no_grad():
            if hasattr(model, "memory"):
                model.memory.gate.fill_(0.7)
        reads = model.reads_world
        options = {"future_tokens": windows()["future_tokens"]} if arm == "C_oracle" else {}
        assert changed(model, "tokens", last, **options)[0] is reads, arm
        assert changed(model, "tokens", before, **options)[0] is (arm == "C_hist"), arm
        assert changed(model, "embeddings", last, **options)[0], arm
        assert not changed(model, "embeddings", before, **options)[0], f"{arm}: only the last frame is observed"
        assert not changed(model, "states", before, **options)[0], arm
        assert changed(model, "future_tokens")[0] is (arm == "C_oracle"), f"{arm} sees the future"
        assert not changed(model, "actions", **options)[0]


def test_the_true_future_reaches_actions_alone_and_never_the_prediction_of_itself():
    model = net("C_oracle")
    with torch.no_grad():
        model.memory.gate.fill_(0.7)
    assert changed(model, "future_tokens") == (True, False)
    batch = windows()
    del batch["future_tokens"]
    with pytest.raises(UserError, match="true future"):
        model.predict(batch)


def test_arms_begin_alike_where_they_are_alike():
    batch = windows()
    b, same, c, pred, oracle = (net(arm).predict(batch) for arm in ("B", "C_no_input", "C", "C_pred", "C_oracle"))
    assert torch.equal(b.actions, same.actions)
    assert torch.equal(b.logits, same.logits)
    for other in (pred, oracle):  # the gate is 0: the second pass is the first
        assert torch.equal(other.actions, c.actions)
    assert not torch.equal(net("C", seed=1).predict(batch).actions, c.actions)


def test_the_predicted_memory_is_the_mean_embedding_under_its_own_probabilities():
    model, batch = net("C_pred"), windows()
    with torch.no_grad():
        model.memory.gate.fill_(0.7)
        model.world_head.weight.mul_(0)
        model.world_head.bias.fill_(-1e4)
        model.world_head.bias[5] = 0.0  # certain of code 5 everywhere
    own = model.predict(batch)
    told = model.predict(batch, future_tokens=torch.full((6, 8, 1), 5))
    torch.testing.assert_close(own.actions, told.actions, rtol=1e-5, atol=1e-5)
    other = model.predict(batch, future_tokens=torch.full((6, 8, 1), 6))
    assert not torch.allclose(own.actions, other.actions, atol=1e-4)
    assert not torch.allclose(own.actions, model.predict(batch, zero_future=True).actions, atol=1e-4)


def test_interventions_cut_the_token_off():
    for arm in ("C", "C_hist"):
        model = net(arm)
        assert changed(model, "tokens", block_world=True) == (False, False)
        assert changed(model, "tokens", zero_world=True) == (False, False)
        batch, other = windows(), windows(seed=9)["tokens"]
        swapped = model.predict(batch, cur_tokens=other)
        assert torch.equal(swapped.actions, model.predict({**batch, "tokens": other}).actions)
        blind = windows(seed=3)["embeddings"]
        assert torch.equal(
            model.predict(batch, embeddings=blind).actions, model.predict({**batch, "embeddings": blind}).actions
        )


def test_actions_that_may_not_look_at_the_token_meet_it_only_through_others():
    one = net("C", layers=1, block_act_to_world=True)
    assert changed(one, "tokens") == (False, True)
    said = one.predict(windows(), attention=True)
    assert not said.attention.any()
    assert changed(net("C", layers=2, block_act_to_world=True), "tokens") == (True, True)


def test_attention_to_the_world_is_a_share_and_asking_for_it_changes_nothing():
    model, batch = net("C_hist"), windows()
    plain, said = model.predict(batch), model.predict(batch, attention=True)
    torch.testing.assert_close(plain.actions, said.actions, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for block in model.encoder.blocks:
            block.qkv.weight.zero_()
            block.qkv.bias.zero_()
    uniform = model.predict(batch, attention=True).attention
    torch.testing.assert_close(uniform, torch.full((6,), 3 / 20))
    assert (said.attention > 0).all()
    assert (said.attention < 1).all()
    assert not net("A").predict(batch, attention=True).attention.any()


def test_world_dropout_hides_the_token_while_training_only():
    model = net("C", world_dropout=0.999999)
    model.train()
    batch = {key: windows()[key] for key in ("states", "embeddings", "tokens")}
    other = {**batch, "tokens": windows(seed=9)["tokens"]}
    with torch.no_grad():
        torch.manual_seed(0)
        assert torch.equal(model(**batch).actions, model(**other).actions)
    assert changed(model, "tokens")[0]
    assert model.training, "predict leaves the mode as it was"


def test_a_tied_head_is_the_embedding():
    model = net("C", tie_head=True)
    assert model.world_head.weight is model.world.weight
    assert parameters(model.spec) == parameters(net("C").spec) - 32 * 32
    assert not net("B", tie_head=True).spec.tie_head


def test_a_plus_has_as_many_parameters_as_c():
    real = NetSpec("A_plus", 3, 8, 8, 8, 7, 768, 1, 1024)
    wide, c = matched(real), dataclasses.replace(real, arm="C")
    assert abs(parameters(wide) / parameters(c) - 1) < 1e-3
    assert matched(c) == c
    assert parameters(c) == sum(p.numel() for p in ModalityNet(dataclasses.replace(c)).parameters())


@pytest.mark.parametrize("arm", ["C", "C_hist"])
def test_32_windows_are_learnt_by_heart(arm):
    """Action MSE < 1e-3 and world accuracy > 0.95 at width 64 with 2 layers."""
    model = ModalityNet(dataclasses.replace(SMALL, arm=arm, d_model=64, inner=256), 0)
    loss, batch = ModalityLoss(model, LossSpec()).train(), windows(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        loss(**batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    said = model.predict(batch)
    assert (said.actions - batch["actions"]).square().mean() < 1e-3
    assert (said.logits.argmax(-1) == batch["future_tokens"]).double().mean() > 0.95
