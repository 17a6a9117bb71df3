"""Every registered policy can act for several clients at once: two forks in turn give what each gives alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests import simulators
from worldsim.core import registry
from worldsim.core.protocols import SupportsFork


@pytest.mark.parametrize("name", registry.names("policies"))
def test_forks_do_not_disturb_each_other(name):
    env = simulators.tiny("pusht")
    policy = registry.get("policies", name).tiny(env)
    assert isinstance(policy, SupportsFork)
    shown = [env.reset(seed=seed)[0] for seed in range(6)]
    turns = {11: shown[:3], 12: shown[3:]}

    def alone(seed: int) -> list[np.ndarray]:
        policy.reset(seed)
        return [policy.act(seen) for seen in turns[seed]]

    wanted = {seed: alone(seed) for seed in turns}
    forks = {seed: policy.fork() for seed in turns}
    for seed, fork in forks.items():
        fork.reset(seed)
    for k in range(3):
        for seed, fork in forks.items():
            assert np.array_equal(fork.act(turns[seed][k]), wanted[seed][k])
