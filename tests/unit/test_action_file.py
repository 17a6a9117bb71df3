"""Actions in a file: what is wrong is said with the file, and with the row and column where that helps."""

from __future__ import annotations

import numpy as np
import pytest

from worldsim.commands._action_file import ActionFile
from worldsim.commands.finetune_wan import Config
from worldsim.core.config import build
from worldsim.core.errors import UserError
from worldsim.core.types import ActionSpec


def saved(path, rows):
    {".npy": np.save, ".npz": lambda p, r: np.savez(p, e3=r), ".csv": lambda p, r: np.savetxt(p, r, delimiter=",")}[
        path.suffix
    ](path, rows)
    return path


@pytest.mark.parametrize("kind", [".npy", ".npz", ".csv"])
def test_a_number_that_is_not_finite_has_a_row_and_a_column(tmp_path, kind):
    rows = np.zeros((5, 3), np.float32)
    rows[2, 1] = rows[4, 0] = np.nan
    with pytest.raises(UserError, match=r"row 2, column 1 \(from 0\) is nan, and 1 others are not finite either") as error:
        ActionFile.read(saved(tmp_path / f"a{kind}", rows))
    assert str(tmp_path / f"a{kind}") in error.value.sentence
    assert ("(e3)" in error.value.sentence) == (kind == ".npz")


@pytest.mark.parametrize("kind", [".npy", ".npz"])
def test_rows_of_another_width_name_the_file(tmp_path, kind):
    file = ActionFile.read(saved(tmp_path / f"a{kind}", np.zeros((5, 3), np.float32)))
    file.require(ActionSpec.unknown(3, 10.0))
    with pytest.raises(UserError, match=r"rows of 3 numbers; the model takes 2: x, y$") as error:
        file.require(ActionSpec(("x", "y"), ("m", "m")))
    assert str(tmp_path / f"a{kind}") in error.value.sentence


@pytest.mark.parametrize("kind", [".npy", ".npz"])
def test_junk_is_not_advised_to_be_unpickled(tmp_path, kind):
    path = tmp_path / f"a{kind}"
    path.write_bytes(b"abc")
    with pytest.raises(UserError, match="cannot be read: it is damaged, or no NumPy file") as error:
        ActionFile.read(path)
    assert "pickle" not in error.value.sentence
    np.save(tmp_path / "b.npy", np.zeros(5, np.float32))
    with pytest.raises(UserError, match=r"must hold numbers \[rows, A\]; it holds float32, 5$"):
        ActionFile.read(tmp_path / "b.npy")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"action_delay": -1}, "action_delay must be at least 0, but is -1"),
        ({"train": {"lr": float("nan")}}, "'train.lr' = nan: input should be a finite number"),
        ({"sampling": {"guidance": float("inf")}}, "'sampling.guidance' = inf: input should be a finite number"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_anything_starts(values, said):
    with pytest.raises(UserError) as error:
        build(Config, values)
    assert said in error.value.sentence
    assert "Spec(" not in error.value.sentence
