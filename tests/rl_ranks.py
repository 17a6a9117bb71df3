"""What one rank does in the tests of reinforcement: ``python -m tests.rl_ranks FOLDER``, under torchrun's variables."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tests import rl_twins
from worldsim.core.config import build
from worldsim.core.runs import RunContext
from worldsim.rl.groups import Prompts
from worldsim.rl.loop import Improved, Plan, improve
from worldsim.rl.step import GroupLoss, Shares, Weights
from worldsim.train import checkpoint, distributed
from worldsim.train.settings import Training

PROMPTS, MINIBATCH = 8, 4


def settings(**changes: object) -> Training:
    wanted = {"steps": 1, "lr": 3e-4, "warmup": 0, "clip": 0.5, "ema": 0.0, "weight_decay": 0.01, "betas": (0.9, 0.999)}
    return build(Training, {**wanted, **changes})


def run(
    out: Path,
    iterations: int = 3,
    micro: int = 1,
    epochs: int = 1,
    uniform_std: bool = False,
    stop: int | None = None,
    reward: str = "mse",
    save_every: int = 1,
    size: int = 4,
    lr: float = 3e-4,
    ema: float = 0.0,
    **weights: float,
) -> Improved:
    """Improve the tiny model in ``out`` on this rank; ``stop`` breaks off when that iteration's prompts are fetched."""
    me = distributed.ranks()
    out.mkdir(parents=True, exist_ok=True)
    context = RunContext("rlvr", out, rank=me.rank, world_size=me.world_size)
    codec = rl_twins.Cells()
    model, reference = rl_twins.policy(codec), rl_twins.policy(codec)
    shares = Shares(PROMPTS, MINIBATCH, epochs, micro, me.world_size)
    plan = Plan(iterations, shares, uniform_std, every=2, save_every=save_every)
    collector = rl_twins.collector(model, codec, reward, size, reference=reference, per_frame=True)

    def fetch(iteration: int) -> Prompts:
        if iteration == stop:
            raise RuntimeError("killed")
        return rl_twins.scenes(model, codec, [100 * iteration + number for number in shares.numbers(me.rank)])

    def save_to(folder: str):
        return lambda tensors, step: checkpoint.write_checkpoint(out / folder, tensors, {"world_model": "none"}, step)

    held_out = [rl_twins.scenes(model, codec, range(9000 + me.rank, 9004, me.world_size))]
    loss = GroupLoss(model, replace(Weights(kl=0.05), **weights))
    return improve(
        collector,
        loss,
        fetch,
        held_out,
        plan,
        settings(lr=lr, ema=ema),
        context,
        save_to("checkpoint"),
        save_to("best"),
        {},
    )


if __name__ == "__main__":
    distributed.start("cpu")
    run(Path(sys.argv[1]))
    run(Path(sys.argv[1]) / "uniform", uniform_std=True, iterations=1)
    distributed.barrier()
    distributed.stop()
