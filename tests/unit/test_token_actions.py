"""Action ranges: the ends go to the outermost bins, outliers do not eat the bins, and files read back exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from worldsim.core.errors import UserError
from worldsim.data.token_actions import TokenActions


def rows(width: int = 3, count: int = 4000) -> np.ndarray:
    draw = np.random.default_rng(0)
    return draw.normal(size=(count, width)) * [0.01, 1.0, 100.0][:width] + 5.0


@pytest.mark.parametrize("width", [1, 3, 13])
@pytest.mark.parametrize("bins", [2, 256, 1000])
def test_the_ends_are_the_outermost_bins(width: int, bins: int) -> None:
    actions = np.random.default_rng(1).normal(size=(50, width))
    made = TokenActions.fit(actions, bins, "minmax")
    tokens = made.encode(np.stack([actions.min(0), actions.max(0), actions.min(0) - 9, actions.max(0) + 9]))
    assert tokens[[0, 2]].tolist() == [[0] * width] * 2
    assert tokens[[1, 3]].tolist() == [[bins - 1] * width] * 2
    assert made.width == width


def test_middles_come_back_to_their_bins() -> None:
    made = TokenActions.fit(rows(), 256, "minmax")
    tokens = np.tile(np.arange(256)[:, None], 3)
    assert np.array_equal(made.encode(made.decode(tokens)), tokens)
    found = made.decode(made.encode(rows()))
    assert (np.abs(found - rows()) <= (np.array(made.high) - made.low) / 512 * 1.001).all()


def test_the_released_formula() -> None:
    """Bins of RT-1's dimension 11, written out: floor(256 (a - min) / (max - min + 1e-8))."""
    made = TokenActions((-5.5,), (22.09,))
    values = np.array([[-5.5], [-1.0], [0.0], [1.0], [22.09]])
    wanted = [min(int(256 * (v + 5.5) / (27.59 + 1e-8)), 255) for v in values[:, 0]]
    assert made.encode(values)[:, 0].tolist() == wanted
    assert wanted[3] - wanted[1] < 20


def test_quantiles_are_not_stretched_by_an_outlier() -> None:
    actions = rows()
    actions[0] = [1e3, -1e3, 1e6]
    used = {
        kind: len(np.unique(TokenActions.fit(actions, 256, kind).encode(actions)[:, 0])) for kind in ("quantile", "minmax")
    }
    assert used["minmax"] <= 3
    assert used["quantile"] > 200


def test_a_rare_flag_and_a_constant_keep_their_meaning() -> None:
    actions = np.zeros((1000, 2))
    actions[3, 0] = 1.0
    made = TokenActions.fit(actions, 256)
    assert made.encode(np.array([[0.0, 0.0], [1.0, 0.0]])).tolist() == [[0, 0], [255, 0]]


def test_any_leading_shape() -> None:
    made, actions = TokenActions.fit(rows(), 8), rows(count=24)
    assert np.array_equal(made.encode(actions.reshape(2, 3, 4, 3)), made.encode(actions).reshape(2, 3, 4, 3))


def test_the_file_reads_back_exactly(tmp_path: Path) -> None:
    made = TokenActions.fit(rows(), 100)
    made.save(tmp_path / "actions.json")
    assert TokenActions.load(tmp_path / "actions.json") == made
    assert TokenActions.from_card(made.card()) == made


def test_what_cannot_be_is_a_sentence() -> None:
    made = TokenActions((0.0,), (1.0,))
    for call, said in (
        (lambda: TokenActions.fit(np.empty((0, 2))), "need rows"),
        (lambda: TokenActions.fit(np.array([[0.0, np.inf]])), "dimension 1"),
        (lambda: made.encode(np.array([[np.nan]])), "not a number"),
        (lambda: made.encode(np.zeros((2, 3))), "take 1 values"),
        (lambda: made.decode(np.array([[256]])), "between 0 and 255"),
        (lambda: made.decode(np.array([[0.5]])), "whole numbers"),
        (lambda: TokenActions((1.0,), (0.0,)), "ends below"),
        (lambda: TokenActions.from_card({"low": [0]}), "cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            call()
