"""Fixtures of the commands' tests."""

from __future__ import annotations

import pytest

from tests import dreams
from worldsim.commands import eval_video, infer


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Name -> model, in the place of run folders."""
    known: dict = {"noisy": dreams.Noisy(), "echo": dreams.Echo()}
    from worldsim.world_models import load as real

    def pick(name: str, device: str):
        return known[name] if name in known else real(name, device)

    monkeypatch.setattr(infer, "load", pick)
    monkeypatch.setattr(eval_video, "load_model", pick)
    return known
