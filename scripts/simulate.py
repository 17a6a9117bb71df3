"""Simulate a robot dataset: an environment, one or more policies, and a seed per episode.

    python scripts/simulate.py data/pusht --env pusht --policy scripted:wander --episodes 80 --steps 40 --set size=64
    python scripts/simulate.py data/drawer --env metaworld:drawer-close-v3 --policy scripted:expert,noise=0.3 \\
        --policy scripted:random

Several policies take turns. An ``--set key=value`` is an option of the environment (see ``worldsim/envs``). Episode i
depends on its own seed alone, so the same command writes the same dataset, and continues one that was interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldsim import envs, policies
from worldsim.core import registry
from worldsim.core.config import parse_overrides
from worldsim.core.console import say, track
from worldsim.core.errors import UserError
from worldsim.data.card import read_card
from worldsim.rollout import SimulatedSource


def simulate(
    out: Path,
    *,
    env: str,
    policy: Sequence[str],
    episodes: int,
    steps: int,
    seed: int = 0,
    to: str = "lerobot",
    options: dict[str, Any] | None = None,
) -> int:
    """Write a dataset of ``episodes`` simulated episodes to ``out``; returns how many were simulated now.

    Args:
        env: ``pusht``, ``metaworld:TASK``.
        policy: ``scripted:NAME[,option=value…]``, taking turns.
        steps: actions per episode, which has one frame more.
        seed: episode i is simulated with seed ``seed + i``.
        to: registered format to write.
        options: the environment's.
    """
    recipe = f"simulated: {env} {options or {}}, {' and '.join(policy)}, {episodes} episodes of {steps} steps, seed {seed}"
    card = read_card(out)
    if card is not None:
        if recipe in card.card.notes:
            return 0
        raise UserError(f"{out} holds another dataset; choose another folder or delete it")
    simulator = envs.make(env, **(options or {}))
    try:
        actors = {text: policies.load(text, env=simulator) for text in policy}
        source = SimulatedSource(simulator, actors, range(seed, seed + episodes), steps, name=out.name)
        source.card.notes.append(recipe)
        writer = registry.get("formats", to).create(out, source.card)
        missing = [index for index in range(episodes) if not writer.has(index)]
        for index in track(missing, "simulate", unit="episodes"):
            writer.commit(writer.stage(source.episode(index)))
        writer.finalize(source.card)
        return len(missing)
    finally:
        simulator.close()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="dataset folder to write")
    parser.add_argument("--env", required=True, help="pusht or metaworld:TASK")
    parser.add_argument(
        "--policy", action="append", required=True, help="scripted:NAME[,option=value]; repeat to take turns"
    )
    parser.add_argument("--episodes", type=int, default=80)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", default="lerobot", help="format to write")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="option of the environment")
    given = parser.parse_args(argv)
    began = time.monotonic()
    try:
        fresh = simulate(
            given.out,
            env=given.env,
            policy=given.policy,
            episodes=given.episodes,
            steps=given.steps,
            seed=given.seed,
            to=given.to,
            options=parse_overrides(given.set),
        )
    except UserError as error:
        say(f"{error.sentence}\n{error.command}" if error.command else error.sentence)
        return error.exit_code
    if fresh == 0:
        print(f"simulate: already done -> {given.out}")
        return 0
    seconds = time.monotonic() - began
    frames = fresh * (given.steps + 1)
    print(f"simulate: {fresh} episodes, {frames} frames in {seconds:.1f} s -> {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
