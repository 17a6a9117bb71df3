"""Every registered extractor keeps the protocol, through its tiny twin."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests import painted
from worldsim.core import registry
from worldsim.core.errors import BadEpisode, UserError

NAMES = registry.names("latent_actions")


@pytest.fixture(params=NAMES)
def extractor(request):
    return registry.get("latent_actions", request.param).tiny()


def test_shelf_is_found():
    assert {"raw", "act", "diffusion", "smolvla", "pi0"} <= set(NAMES)


def test_one_finite_row_per_frame(extractor):
    episode = painted.episode(num_frames=9)
    rows = extractor.extract(episode)
    assert len(rows) in (9, 8)
    assert rows.ndim == 2
    assert np.isfinite(rows).all()
    assert np.array_equal(extractor.extract(painted.episode(num_frames=9)), rows)
    spec = extractor.spec(painted.card())
    assert spec.dim == rows.shape[1]
    json.dumps(extractor.params())


def test_raw_refuses_what_has_no_actions():
    raw = registry.get("latent_actions", "raw").tiny()
    episode = painted.episode()
    episode.actions = None
    with pytest.raises(BadEpisode, match="has no actions"):
        raw.extract(episode)
    card = painted.card()
    card.actions = None
    with pytest.raises(UserError, match="has no actions"):
        raw.spec(card)
    episode = painted.episode(num_frames=9, rows=7)
    with pytest.raises(BadEpisode, match="9 frames but 7 actions"):
        raw.extract(episode)
