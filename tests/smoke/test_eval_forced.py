"""What a score may not be: that of a model whose latent actions have seen the frames it imagines. And guidance from nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import dreams
from tests.dreams import run_eval, run_infer
from worldsim.core.errors import UserError
from worldsim.data import columns
from worldsim.data.columns import ColumnSpec
from worldsim.formats import open_dataset


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return dreams.write_painted(tmp_path / "data", 3, 14)


def driven_by(data: Path, model: dreams.Echo, **params) -> None:
    """Give the model a column of rows like the dataset's own, said to come from such a policy."""
    source = open_dataset(data)
    spec = ColumnSpec("actions", "act", "frame", params, {"dataset": columns.dataset_fingerprint(data)})
    at = {episode: k for k, episode in enumerate(source.ids())}
    columns.ensure(data, spec, at, lambda episode: np.array(source.episode(at[episode]).actions))
    model.action_column = spec.maker


def test_a_policy_that_looks_again_is_not_scored_unless_told(tmp_path, data, models) -> None:
    """Chunks of 2 from frame 0: rows 0 and 1 come from the given frame, row 2 has seen frame 2, which is imagined."""
    driven_by(data, models["echo"], chunk=2, teacher_forced=False)
    with pytest.raises(UserError, match=r"in 3 of 3 scenes the policy looks again.*with frames = 2 it does not") as error:
        run_eval(tmp_path / "no", data, episodes="all", frames=3)
    assert "frames=2" in error.value.command
    assert not list((tmp_path / "no").rglob("*.npz")), "nothing was imagined"
    result, context = run_eval(tmp_path / "short", data, episodes="all", frames=2)
    assert "teacher_forced" not in result.metrics
    assert not any("TEACHER-FORCED" in note for note in context.notes)
    result, context = run_eval(tmp_path / "yes", data, episodes="all", frames=3, allow_teacher_forced=True)
    assert result.metrics["teacher_forced"] is True
    assert any(note.startswith("TEACHER-FORCED") for note in context.notes)
    assert json.loads((tmp_path / "yes" / "scores.json").read_text())["teacher_forced"] is True
    assert "TEACHER-FORCED" in (tmp_path / "yes" / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("start", "frames", "stride", "said"),
    [(1, 2, 1, "frames = 1"), (0, 2, 2, "frames = 1"), (1, 2, 2, "start = 2; frames = 1"), (4, 3, 1, "frames = 2")],
)
def test_the_refusal_says_what_would_not_look_again(tmp_path, data, models, start, frames, stride, said) -> None:
    """And what it says is taken."""
    models["echo"].fps = 0.0
    driven_by(data, models["echo"], chunk=2, teacher_forced=False)
    values = {"start": start, "frames": frames, "fps": 10.0 / stride, "episodes": "all", "metrics": ["motion_psnr"]}
    with pytest.raises(UserError, match=f"with {said} it does not"):
        run_eval(tmp_path / "no", data, **values)
    told = {key: int(value) for key, value in (part.split(" = ") for part in said.split("; "))}
    run_eval(tmp_path / "yes", data, **values | told)
    with pytest.raises(UserError, match="looks again"):
        run_eval(tmp_path / "one-more", data, **values | told | {"frames": told["frames"] + 1})


def test_the_column_is_asked_where_the_card_does_not_know(tmp_path, data, models) -> None:
    """A model from elsewhere says nothing about its actions; infer imagines with them all the same."""
    driven_by(data, models["echo"], chunk=1, teacher_forced=True)
    with pytest.raises(UserError, match="have seen the true frames") as error:
        run_eval(tmp_path / "no", data, episodes="all", frames=1)
    assert "allow_teacher_forced=true" in error.value.command
    run_infer(tmp_path / "infer", data, episodes="all", frames=1)


def test_a_forced_baseline_marks_the_page_too(tmp_path, data, models) -> None:
    models["other"] = dreams.Echo()
    models["other"].teacher_forced = True
    result, _ = run_eval(tmp_path, data, baseline="other", episodes="all", frames=2, allow_teacher_forced=True)
    assert result.metrics["teacher_forced"] is True


@pytest.mark.parametrize(
    ("dropout", "guidance", "noted"), [(0.0, 2.0, True), (0.0, 1.0, False), (0.1, 2.0, False), (None, 2.0, False)]
)
def test_guidance_without_a_trained_null_is_said(tmp_path, data, models, dropout, guidance, noted) -> None:
    models["echo"].action_dropout, models["echo"].guidance = dropout, guidance
    _, context = run_infer(tmp_path, data, frames=1, max_episodes=1)
    assert any("action_dropout = 0" in note for note in context.notes) == noted
