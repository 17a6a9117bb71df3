"""Scores of frames that are there already are no better than those of the model that imagined them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import dreams
from tests.dreams import run_eval, run_infer
from worldsim.core.errors import UserError
from worldsim.formats import open_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dreams.write_painted(tmp_path_factory.mktemp("painted") / "data", 6, 14)


def test_saved_frames_of_a_teacher_forced_model_stay_so(tmp_path, data, models, capsys) -> None:
    """Also where only the frames were kept, without the run that made them."""
    models["echo"].teacher_forced = True
    result, context = run_infer(tmp_path / "run", data, episodes="0,1", frames=3)
    assert result.metrics["teacher_forced"] is True
    assert any("have seen true frames" in note for note in context.notes)
    shutil.copytree(tmp_path / "run" / "frames", tmp_path / "bare")
    for place in ("run", "bare"):
        with pytest.raises(UserError, match="have seen the true frames") as error:
            run_eval(tmp_path / "no", data, predictions=str(tmp_path / place))
        assert "allow_teacher_forced=true" in error.value.command
    out = tmp_path / "yes"
    scored, context = run_eval(out, data, predictions=str(tmp_path / "bare"), allow_teacher_forced=True)
    assert scored.metrics["teacher_forced"] is True
    assert "TEACHER-FORCED" in capsys.readouterr().err
    assert "model (TEACHER-FORCED)" in scored.summary
    assert json.loads((out / "scores.json").read_text())["teacher_forced"] is True
    assert 'role="alert">TEACHER-FORCED' in (out / "report" / "index.html").read_text()


def test_saved_frames_of_an_honest_model_say_what_was_not_tested(tmp_path, data, models) -> None:
    ids = open_dataset(data).ids()
    models["echo"].train_episodes = (ids[3],)
    result, _ = run_infer(tmp_path / "run", data, episodes="2,3", frames=3)
    assert "teacher_forced" not in result.metrics
    scored, context = run_eval(tmp_path / "eval", data, predictions=str(tmp_path / "run"))
    assert "teacher_forced" not in scored.metrics
    assert any(note.startswith("1 of 2 episodes are training episodes") and ids[3] in note for note in context.notes)
    assert "whether the model follows its actions was not tested; use --model" in context.notes
    run_infer(tmp_path / "tested", data, episodes="0,1", frames=3, permutations=1)
    _, context = run_eval(tmp_path / "again", data, predictions=str(tmp_path / "tested"))
    assert not any("not tested" in note or "training episodes" in note for note in context.notes)
