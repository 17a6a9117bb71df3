"""Iterations of reinforcement: the same update however it is cut up, exact resume, and what a run leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import rl_ranks, rl_twins
from worldsim.core.errors import UserError
from worldsim.rl.groups import frame_of
from worldsim.rl.objectives import advantages
from worldsim.rl.step import Feed, GroupLoss, Shares, Weights, shared_scale
from worldsim.train import checkpoint
from worldsim.train.tracking import read_rows

ROOT = Path(__file__).resolve().parents[2]


def weights(run: Path, folder: str = "checkpoint") -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(run / folder / "model.safetensors")


def rows(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "second" not in k} for row in read_rows(run / "metrics.jsonl")]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, atol=atol, rtol=0, msg=name)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three iterations on one rank, undisturbed."""
    out = tmp_path_factory.mktemp("rl") / "straight"
    found = rl_ranks.run(out)
    assert (found.iterations, found.resumed_at) == (3, 0)
    return out


def test_a_run_moves_the_weights_and_tells_what_happened(straight: Path) -> None:
    start = dict(rl_twins.policy(rl_twins.Cells()).net.named_parameters())
    moved = weights(straight)
    assert moved.keys() == start.keys()
    assert all((moved[name] - tensor).abs().max() > 0 for name, tensor in start.items())
    told = read_rows(straight / "metrics.jsonl")
    assert [row["step"] for row in told] == [0, 1, 2, 3]
    for row in told[1:]:
        assert {"sample_seconds", "decode_seconds", "reward_seconds", "reference_seconds", "update_seconds"} <= row.keys()
        assert {"reward", "reward_mse", "repetition", "kl", "clipped", "entropy", "sampled_tokens_per_second"} <= row.keys()
        assert row["sampler_gap"] < 1e-4
        assert 0 < row["entropy"] < torch.tensor(16.0).log()
    assert [("held_out_reward" in row) for row in told] == [True, False, True, True]
    assert 0 < told[1]["kl"] < told[2]["kl"] < told[3]["kl"], "it starts at the reference and leaves it"


def test_the_best_checkpoint_is_the_one_whose_held_out_reward_is_highest(straight: Path) -> None:
    scores = {row["step"]: row["held_out_reward"] for row in rows(straight) if "held_out_reward" in row}
    best = max(scores, key=lambda step: scores[step])
    assert checkpoint.read_about(straight / "best" / "model.safetensors") == {"step": best}
    if best == 3:
        same(weights(straight), weights(straight, "best"), 0)


def test_passes_do_not_change_the_update(straight: Path, tmp_path: Path) -> None:
    for micro in (2, 4, 9):
        rl_ranks.run(tmp_path / str(micro), micro=micro)
        same(weights(straight), weights(tmp_path / str(micro)), 2e-5)


def test_one_two_and_four_ranks_learn_the_same(straight: Path, tmp_path: Path) -> None:
    """Whole groups per rank, over gloo; noise belongs to a scene, not to a rank. Also with a deviation shared by all."""
    rl_ranks.run(tmp_path / "1" / "uniform", uniform_std=True, iterations=1)
    for size in (2, 4):
        spread(tmp_path / str(size), size)
        same(weights(straight), weights(tmp_path / str(size)), 2e-5)
        same(weights(tmp_path / "1" / "uniform"), weights(tmp_path / str(size) / "uniform"), 2e-5)
        for expected, found in zip(rows(straight), rows(tmp_path / str(size)), strict=True):
            assert expected.keys() == found.keys()
            for name, value in expected.items():
                assert found[name] == pytest.approx(value, abs=2e-4), name


def spread(folder: Path, size: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.rl_ranks", str(folder)],
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * size, "\n".join(said)[-4000:]


@pytest.mark.parametrize(("stop", "save_every"), [(1, 1), (2, 2), (2, 1)])
def test_a_broken_off_run_ends_in_the_same_bytes(straight: Path, tmp_path: Path, stop: int, save_every: int) -> None:
    """Also where the last save lies further back than the last iteration."""
    with pytest.raises(RuntimeError, match="killed"):
        rl_ranks.run(tmp_path, stop=stop, save_every=save_every)
    found = rl_ranks.run(tmp_path, save_every=save_every)
    assert found.iterations == 3
    for folder in ("checkpoint", "best"):
        name = f"{folder}/model.safetensors"
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()
    assert rows(tmp_path) == rows(straight)


def test_sigterm_ends_the_iteration_and_saves_it(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, calls = rl_twins.scenes, []

    def asked(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:  # held-out scenes, iteration 1, iteration 2
            os.kill(os.getpid(), signal.SIGTERM)
        return scenes(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rl_twins, "scenes", asked)
        with pytest.raises(KeyboardInterrupt):
            rl_ranks.run(tmp_path, save_every=100)
    assert 1 <= rl_ranks.run(tmp_path, save_every=100).resumed_at <= 2
    same(weights(straight), weights(tmp_path), 0)


def test_equal_rewards_leave_the_weights_alone(tmp_path: Path) -> None:
    """Without weight decay and KL, groups of equal rewards move nothing: a reward that no sample can change."""
    codec, out = rl_twins.Cells(), tmp_path / "run"
    model = rl_twins.policy(codec)
    groups = rl_twins.collector(model, codec).collect(rl_twins.scenes(model, codec, range(4)), 1)
    groups.values = torch.full_like(groups.values, 0.37)
    loss = GroupLoss(model, Weights(kl=0.0))
    feed = Feed(groups, Shares(4, 4, micro=4), None, 0)
    loss(**feed.take(0, 0)).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.net.parameters())
    assert not out.exists()


def test_the_first_update_is_the_plain_policy_gradient_and_later_ones_are_not() -> None:
    """Fresh: ratio exactly 1, whatever was recorded. Stale: the recorded log-probabilities count."""
    codec = rl_twins.Cells()
    model = rl_twins.policy(codec)
    groups = rl_twins.collector(model, codec).collect(rl_twins.scenes(model, codec, range(4)), 1)
    feed, loss = Feed(groups, Shares(4, 4, epochs=2, micro=4), None, 0), GroupLoss(model, Weights(kl=0.0))
    first, second = feed.take(0, 0), feed.take(1, 0)
    assert (bool(first["fresh"]), bool(second["fresh"])) == (True, False)
    loss(**first).backward()
    found = [p.grad.clone() for p in model.net.parameters()]
    model.net.zero_grad()
    frames = frame_of(model.layout.response)
    advantage = advantages(groups.values)[..., frames.clamp(min=0)] * (frames >= 0)
    log_probs = model.log_probs(groups.prompt, groups.responses)
    (-(advantage * log_probs).sum() / (log_probs.shape[:2].numel() * (frames >= 0).sum())).backward()
    for parameter, gradient in zip(model.net.parameters(), found):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-7, rtol=1e-4)
    moved = {**second, "old": second["old"] - 1.0}  # as if every token had become e times likelier since
    loss.seen.clear()
    loss(**moved)
    total, count = loss.seen[0]["clipped"]
    assert 0.2 < total / count < 1.0
    loss(**{**moved, "fresh": torch.tensor(True)})
    assert loss.seen[1]["clipped"][0] == 0


def test_epochs_go_over_the_same_groups_again() -> None:
    shares = Shares(8, 4, epochs=2, micro=3, world_size=2)
    assert (shares.rounds, shares.updates, shares.own, shares.per_pass, shares.passes) == (2, 4, 2, 2, 1)
    assert shares.numbers(0) == [0, 1, 4, 5]
    assert shares.numbers(1) == [2, 3, 6, 7]
    codec = rl_twins.Cells()
    model = rl_twins.policy(codec)
    groups = rl_twins.collector(model, codec).collect(rl_twins.scenes(model, codec, shares.numbers(1)), 1)
    feed = Feed(groups, shares, None, 40)
    taken = [feed.take(40 + update, 0) for update in range(4)]
    assert [bool(batch["fresh"]) for batch in taken] == [True, False, False, False]
    assert torch.equal(taken[0]["responses"], groups.responses[:2])
    assert torch.equal(taken[1]["responses"], groups.responses[2:])
    assert torch.equal(taken[2]["old"], taken[0]["old"])
    assert torch.equal(taken[3]["advantage"], taken[1]["advantage"])


def test_a_shared_deviation_is_the_mean_over_groups() -> None:
    values = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shared_scale(values), values.std(1).mean(0)[None, None])


@pytest.mark.parametrize(
    ("prompts", "minibatch", "ranks", "message", "command"),
    [
        (8, 3, 1, "prompts = 8 is not a multiple of minibatch = 3", "minibatch=8"),
        (8, 4, 3, "over 3 processes", "nproc=2"),
    ],
)
def test_shares_that_do_not_work_out_are_one_sentence(
    prompts: int, minibatch: int, ranks: int, message: str, command: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        Shares(prompts, minibatch, world_size=ranks)
    assert command in error.value.command


def test_what_is_looked_at_is_what_is_saved(tmp_path: Path) -> None:
    """With averaged weights too: the held-out reward, ``best/`` and ``checkpoint/`` are about the same model."""
    rl_ranks.run(tmp_path, iterations=8, micro=8, lr=3e-3, ema=0.9, kl=0.0)
    told = {row["step"]: row["held_out_reward"] for row in rows(tmp_path) if "held_out_reward" in row}
    assert max(told, key=lambda step: told[step]) == 8
    same(weights(tmp_path), weights(tmp_path, "best"), 0)
    raw = checkpoint.read_state(checkpoint.latest_state(tmp_path / "state"), ("trained",))[1]["trained"]
    assert any((raw[name] - value).abs().max() > 1e-4 for name, value in weights(tmp_path).items())


def test_a_loss_that_is_not_finite_names_this_commands_rate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not finite at step 1") as error:
        rl_ranks.run(tmp_path, iterations=1, micro=8, kl=float("inf"))
    assert "update.lr=" in error.value.command


def test_it_learns(tmp_path: Path) -> None:
    """Reward on held-out scenes rises on a CPU in seconds, from groups alone."""
    rl_ranks.run(tmp_path, iterations=20, micro=8, size=8, lr=3e-3, kl=0.0, save_every=100)
    told = [row["held_out_reward"] for row in rows(tmp_path) if "held_out_reward" in row]
    assert told[-1] > 0.7 * told[0]  # rewards are negative errors
    assert not any("kl" in row for row in rows(tmp_path)), "no reference was asked"
