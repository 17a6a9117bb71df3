"""eval policy: the same seeds for all, honest rows, trials that are not repeated, dreams beside a simulator, the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import dreams, modality_twins, painted, simulators
from tests.dreams import Echo
from worldsim.commands import _dream_env, _policy_trials, eval_policy
from worldsim.core.config import assign, build, load_recipe
from worldsim.core.errors import UserError
from worldsim.core.runs import RunContext, write_result
from worldsim.core.types import Result
from worldsim.policies import create
from worldsim.report.grid import FAILED, SOLVED, Tile, grid
from worldsim.report.proportions import wilson
from worldsim.rollout import rollout


def run(out: Path, seed: int = 0, **values) -> tuple[Result, RunContext]:
    """The smoke recipe with these keys changed (``env__size`` is ``env.size``)."""
    _, base = load_recipe("eval-policy", "smoke")
    for key, value in values.items():
        assign(base, key.replace("__", "."), value)
    out.mkdir(parents=True, exist_ok=True)
    context = RunContext("eval-policy", out, seed=seed)
    result = eval_policy.run(build(eval_policy.Config, base), context)
    write_result(context, "done", result.metrics, 1.0)
    return result, context


def counted(rows: list[dict]) -> list[dict]:
    """Rows without what a stop-watch says."""
    return [{key: value for key, value in row.items() if "ms_per" not in key} for row in rows]


def test_rows_are_counted_from_rollouts_on_the_same_seeds(tmp_path):
    """An expert and noise on Metaworld's reach: every trial is the rollout of its seed, the row is their number."""
    texts = ("scripted:expert", "scripted:random")
    result, _ = run(tmp_path, seed=2, env={"name": "metaworld:reach-v3", "size": 32}, policy=texts, steps=25)
    env = simulators.make("metaworld:reach-v3", size=32)
    for row, text in zip(result.metrics["rows"], texts):
        trials = [rollout(env, create(text, env), seed=200_000 + k, steps=25, stop_on_success=True) for k in range(3)]
        solved = [trial.solved_at for trial in trials if trial.success]
        assert row["policy"] == text
        assert {key: row[key] for key in wilson(0, 1).to_json()} == wilson(len(solved), 3).to_json()
        assert row["mean_steps_to_success"] == (np.mean(solved) if solved else None)
        assert row["ms_per_step"] > 0
        records = sorted((tmp_path / "episodes").glob(f"?-{text.replace(':', '-')}/*.json"))
        assert [json.loads(path.read_text())["solved_at"] for path in records] == [trial.solved_at for trial in trials]
    env.close()
    assert result.metrics["rows"][0]["rate"] == 1.0, "the expert reaches"
    assert result.metrics["rows"][1]["rate"] < 1.0
    (pair,) = result.metrics["paired"]
    assert (pair["only_first"], pair["only_second"]) == (3 - result.metrics["rows"][1]["successes"], 0)
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(f"{row['successes']} / 3" in page for row in result.metrics["rows"])
    assert all((tmp_path / "report" / name).stat().st_size > 1000 for name in ("films.mp4", "films.png", "rates.png"))


def test_a_killed_run_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole")
    tried: list[int] = []
    real = _policy_trials.attempt

    def counting(env, policy, seed, steps, stop):
        if len(tried) == 4:
            raise KeyboardInterrupt
        tried.append(seed)
        return real(env, policy, seed, steps, stop)

    monkeypatch.setattr(eval_policy, "attempt", counting)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    assert tried == [0, 1, 2, 0]
    monkeypatch.setattr(eval_policy, "attempt", lambda *given: tried.append(given[2]) or real(*given))
    result, _ = run(tmp_path / "killed")
    assert tried == [0, 1, 2, 0, 1, 2], "two trials were left"
    assert counted(result.metrics["rows"]) == counted(whole.metrics["rows"])
    films = [np.load(tmp_path / name / "films" / "1-scripted-random" / "1.npz")["top"] for name in ("whole", "killed")]
    assert np.array_equal(*films)


def test_a_trained_policy_acts_in_the_simulator(tmp_path):
    """A world-modality arm that looks back, with its tokenizer, from its run folder; another camera is refused by name."""
    env = simulators.make("pusht", size=64)
    folder = modality_twins.write(tmp_path / "run", env)
    result, _ = run(tmp_path / "out", policy=(str(folder), "scripted:random"), steps=9)
    assert [row["trials"] for row in result.metrics["rows"]] == [3, 3]
    other = modality_twins.write(tmp_path / "other", env, camera="eye", cameras={"eye": (64, 64)})
    with pytest.raises(UserError, match=r"sees a camera 'eye', pusht shows top") as refused:
        run(tmp_path / "out2", policy=(str(other),), steps=6)
    assert refused.value.command == "again rename.eye=top"
    renamed, _ = run(tmp_path / "out3", policy=(str(other),), steps=9, rename={"eye": "top"})
    assert counted(renamed.metrics["rows"])[0] == {**counted(result.metrics["rows"])[0], "policy": str(other)}
    first, second = (np.load(next((tmp_path / name / "films").glob("0-*/1.npz")))["top"] for name in ("out", "out3"))
    assert np.array_equal(first, second), "the same weights through another name, the frames between two chunks included"
    with pytest.raises(UserError, match=r"rename.wrist: no policy has a camera"):
        run(tmp_path / "out4", policy=(str(folder),), steps=6, rename={"wrist": "top"})


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """Painted data and a world that answers with the recorded frames, as ``--world echo``."""
    spec = painted.PaintedSource(1, 4).card.actions
    monkeypatch.setattr(_dream_env, "load_world", lambda name, device: Echo(spec))
    return dreams.write_painted(tmp_path / "data", 3, 10)


def test_dreams_are_judged_and_agree_with_a_simulators_rows(tmp_path, echo):
    """The recorded actions lead a perfect dream to its goal every time, noise does not; without a judge there is no rate at all."""
    texts = (f"replay:{echo}", "scripted:random")
    dream = {"world": "echo", "data": str(echo), "scenes": "all", "judge": "goal-frame"}
    result, _ = run(tmp_path / "dream", env={"name": "dream"}, policy=texts, steps=11, dream=_dream(dream))
    assert result.metrics["rows"][0]["rate"] == 1.0 > result.metrics["rows"][1]["rate"]
    unjudged, context = run(
        tmp_path / "open", env={"name": "dream"}, policy=texts, steps=3, dream=_dream({**dream, "judge": None})
    )
    assert unjudged.metrics["judged"] is False
    assert [row["rate"] for row in unjudged.metrics["rows"]] == [None, None]
    assert unjudged.metrics["paired"] == []
    assert any("no judge" in note for note in context.notes)
    again, _ = run(
        tmp_path / "again",
        env={"name": "dream"},
        policy=texts,
        steps=11,
        dream=_dream(dream),
        truth=str(tmp_path / "dream"),
    )
    found = again.metrics["truth"]
    assert (found["policies"], found["violations"], found["mean_maximum"]) == (2, 0, 0.0)
    assert found["pearson"] == pytest.approx(1.0)
    with pytest.raises(UserError, match="has a rate for 0 of the policies"):
        run(tmp_path / "no", env={"name": "pusht"}, policy=("scripted:push",), steps=2, truth=str(tmp_path / "dream"))


def test_a_policy_that_reads_the_state_is_not_misled_by_a_dream(tmp_path, echo):
    """Painted actions are no joint targets, so the dream cannot know the state; told how to take it, the policy acts."""
    texts = (f"replay:{echo}",)
    dream = _dream({"world": "echo", "data": str(echo), "scenes": "all"})
    env, context = {"name": "dream"}, RunContext("eval-policy", tmp_path)
    _, base = load_recipe("eval-policy", "smoke")
    stage = eval_policy.open_env(build(eval_policy.Config, {**base, "env": env, "dream": dream}), context)
    folder = modality_twins.write(tmp_path / "run", stage)
    with pytest.raises(UserError, match="reads the robot's state, which a dream does not show") as refused:
        run(tmp_path / "a", env=env, policy=(str(folder), *texts), steps=5, dream=dream)
    assert refused.value.command == "again dream.state=targets"
    told, _ = run(tmp_path / "b", env=env, policy=(str(folder), *texts), steps=5, dream={**dream, "state": "targets"})
    assert [row["policy"] for row in told.metrics["rows"]] == [str(folder), *texts]


def _dream(values: dict) -> dict:
    _, base = load_recipe("eval-policy", "smoke")
    return {**base["dream"], **values}


def test_from_the_command_line(worldsim, tmp_path):
    """Also the second time, when it is done, and a folder of another run in its place."""
    words = [
        "eval",
        "policy",
        "--config",
        "smoke",
        "--env",
        "pusht",
        "--policy",
        "scripted:push",
        "--set",
        "steps=3",
        "--json",
    ]
    for _ in range(2):
        code, out, err = worldsim(*words, "--out", str(tmp_path / "run"))
        assert code == 0, err
        (row,) = json.loads(out)["metrics"]["rows"]
        assert (row["policy"], row["trials"]) == ("scripted:push", 3)
    code, _, err = worldsim(*words, "--out", str(tmp_path / "run"), "--policy", "scripted:sine")
    assert code == 1
    assert "another config" in err


def test_what_is_wrong_is_said_by_key(tmp_path):
    with pytest.raises(UserError, match=r"env.siez: pusht has no such option; did you mean 'size'"):
        run(tmp_path / "a", env={"name": "pusht", "siez": 64})
    with pytest.raises(UserError, match="no policy was named"):
        run(tmp_path / "b", policy=())
    with pytest.raises(UserError, match="named twice"):
        run(tmp_path / "c", policy=("scripted:push", "scripted:push"))
    with pytest.raises(UserError, match="a dream needs a world model: --world RUN"):
        run(tmp_path / "d", env={"name": "dream"})


def test_the_grid_marks_the_moment_of_success():
    """Border colours per tile and moment: dark while acting, green from the solving frame on, red where it ended without."""
    short, long = np.zeros((3, 16, 16, 3), np.uint8), np.full((6, 16, 16, 3), 255, np.uint8)
    film = grid([[Tile("a", long, 4), Tile("b", short, None)]], least=16)
    assert len(film) == 6
    left, right = film[:, 0, 0], film[:, 0, -1]
    assert [tuple(pixel) == SOLVED for pixel in left] == [False] * 4 + [True] * 2
    assert [tuple(pixel) == FAILED for pixel in right] == [False] * 2 + [True] * 4
