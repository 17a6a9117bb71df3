"""``eval offline`` and ``eval intervene`` as a user types them, on small runs of a dataset that is written in a moment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from PIL import Image

from tests import modality_twins, moving
from worldsim.core import registry
from worldsim.core.files import read_json, write_json
from worldsim.core.types import ActionSpec
from worldsim.formats import open_dataset

EPISODES, STEPS = 30, 16
SPEC = ActionSpec(("x",), ("1",), mode="absolute", space="planar", rate=10.0)


def world() -> SimpleNamespace:
    """The numbers of the moving block's dataset, as an environment would give them."""
    pixels = Dict({"camera": Box(0, 255, (moving.SIDE, moving.SIDE, 3), np.uint8)})
    space = Dict({"pixels": pixels})
    numbers = {"fps": 10.0, "action_spec": SPEC, "state_names": ("x",)}
    return SimpleNamespace(observation_space=space, action_space=Box(-1, 1, (1,), np.float32), **numbers)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data/`` and ``arms/runs/<arm>-<seed>``; the weights are random, those of a seed differ by nothing but it."""
    root = tmp_path_factory.mktemp("modality")
    data = moving.write(root / "data", EPISODES, STEPS)
    held = held_out(data)
    train = tuple(name for name in open_dataset(data).ids() if name not in held)
    for arm in ("A", "B", "C", "C_pred", "C_oracle"):
        for seed in range(3):
            known = {"seed": seed, "train_episodes": train, "held_out_episodes": held}
            modality_twins.write(root / "arms" / "runs" / f"{arm}-{seed}", world(), arm, **known)
    small = {"seed": 0, "train_episodes": train[:6], "held_out_episodes": held, "data_fraction": 0.25}
    modality_twins.write(root / "small", world(), "A", **small)
    rows = [{"step": k, "train/loss": 2.0 / k, "train/action_loss": 1.0 / k, "val/action_mse": 1.1 / k} for k in (1, 2, 3)]
    (root / "arms" / "runs" / "A-0" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def held_out(data: Path) -> tuple[str, ...]:
    source = open_dataset(data)
    return tuple(source.card.splits["test"])


def test_all_arms(worldsim, made: Path) -> None:
    """One command from runs to report: the table, the sentence, charts, pictures, and a result for machines."""
    words = ("--all-arms", "--seeds", 3, "--runs", made / "arms", "--out", "out", "--set", "resamples=200", "--json")
    code, out, err = worldsim("eval", "offline", made / "data", *words)
    assert code == 0, err
    result = json.loads(out)
    c = read_json(Path("out/comparison.json"))
    assert result["metrics"]["conclusion"] == c["conclusion"]
    assert list(c["arms"]) == ["A", "B", "C", "C_pred", "C_oracle"]
    assert all(s["seeds"] == [0, 1, 2] for s in c["arms"].values())
    held = held_out(made / "data")
    assert c["episodes"] == [name for name in open_dataset(made / "data").ids() if name in held]
    spec = (modality_twins.CONTEXT, modality_twins.HORIZON, modality_twins.FUTURE)
    assert (c["context"], c["horizon"], c["future"]) == spec
    per_episode = (STEPS + 1) - max(spec[2], spec[1] - 1) - (spec[0] - 1)  # the formula of the specification, 1.3
    assert c["windows"] <= per_episode * len(held)
    assert c["windows"] >= (per_episode - 1) * len(held)
    assert set(c["arms"]["C"]["interventions"]) == {"random", "other_episode", "block"}
    assert "oracle" in c["arms"]["C_pred"]["interventions"]
    assert c["arms"]["A"]["interventions"] == {}
    assert c["arms"]["A"]["ms_per_step"] > 0
    assert c["arms"]["C_oracle"]["ms_per_step"] is None, "it cannot act"
    assert (c["arms"]["C"]["parameters"] > c["arms"]["B"]["parameters"] > c["arms"]["A"]["parameters"]) is True
    text = Path("out/report/REPORT.md").read_text()
    for part in (c["conclusion"], "## 3. Training Curves", "worldsim eval policy", "| A (BC) | 3 |"):
        assert part in text
    assert f"{c['arms']['B']['action_mse']['mean']:.4g}" in text
    for name in ("codebook.png", "error_by_step.png", "token_accuracy.png"):
        assert Image.open(Path("out/report") / name).width > 100
    films = sorted(Path("out/report").glob("predicted_*"))
    assert {film.suffix for film in films} == {".png", ".gif", ".mp4"}
    assert len(films) == 6
    assert "already done" in worldsim("eval", "offline", made / "data", *words)[1]


def test_curves_come_from_the_runs(worldsim, made: Path) -> None:
    run = made / "arms" / "runs" / "A-0"
    code, _, err = worldsim("eval", "offline", made / "data", "--model", run, "--out", "out", "--set", "resamples=50")
    assert code == 0, err
    assert Image.open("out/report/curves/action_mse.png").width > 100
    assert "cannot be judged" not in Path("out/report/REPORT.md").read_text()


def test_shares_of_the_data_and_trials(worldsim, made: Path) -> None:
    """Runs on less data make a table of their own; counts of ``eval policy`` fill section 5."""
    runs = [made / "arms" / "runs" / name for name in ("A-0", "C-0")]
    rows = [{"policy": str(run), "successes": k, "trials": 10, "rate": k / 10} for k, run in zip((3, 8), runs)]
    counted = {"env": "pusht", "steps": 50, "episodes": 10, "rows": rows}
    write_json(Path("tried/result.json"), {"command": "eval-policy", "metrics": counted})
    words = [word for run in (*runs, made / "small") for word in ("--model", run)]
    sets = ("success=tried", "resamples=50", "interventions=[]", "clips=0")
    more = [*(word for pair in sets for word in ("--set", pair)), "--out", "out"]
    code, out, err = worldsim("eval", "offline", made / "data", *words, *more)
    assert code == 0, err
    c = read_json(Path("out/comparison.json"))
    assert [(row["arm"], row["fraction"]) for row in c["efficiency"]] == [("A", 0.25), ("A", 1.0), ("C", 1.0)]
    assert "C against A cannot be judged (1 of at least 3 seeds)" in out
    text = Path("out/report/REPORT.md").read_text()
    assert "### 4.4 Data efficiency" in text
    assert "| C (World modality) | 8 / 10 | 80.0% [" in text
    assert "predicted_" not in text


def test_intervene(worldsim, made: Path) -> None:
    runs = [made / "arms" / "runs" / name for name in ("C_pred-0", "C_pred-1")]
    words = [word for run in runs for word in ("--model", run)]
    code, out, err = worldsim("eval", "intervene", made / "data", *words, "--out", "out", "--set", "resamples=50", "--json")
    assert code == 0, err
    c = read_json(Path("out/intervention.json"))
    found = c["arms"]["C_pred"]["interventions"]
    graded = [name for name in found if name.startswith("graded:")]
    assert len(graded) == 5
    far = [found[name]["distance"] for name in graded]
    assert far == sorted(far)
    assert {"random", "stale", "other_episode", "nearest_wrong", "shuffle", "block", "zero", "oracle"} < set(found)
    assert len(found["random"]["by_step"]["mean"]) == modality_twins.HORIZON
    text = Path("out/report/REPORT.md").read_text()
    assert c["conclusion"] in text
    assert f"{found['random']['ratio']['mean']:.3f}" in text
    assert json.loads(out)["metrics"]["arms"]["C_pred"]["interventions"]["zero"]["reading"] == found["zero"]["reading"]


@pytest.mark.parametrize(
    ("words", "said", "typed"),
    [
        (("offline", "--all-arms", "--seeds", "4", "--runs", "{arms}"), "3 of 4 seeds of arm A", "world_modality_all"),
        (("offline", "--all-arms", "--runs", "{arms}/nothing"), "no folder of runs", "world_modality_all"),
        (("offline", "--model", "{arms}/runs/A-0", "--episodes", "all"), "were trained on", "--model"),
        (("offline", "--model", "{arms}/runs/A-0", "--model", "{arms}/runs/A-0"), "the same arm A", ""),
        (("offline", "--model", "{data}"), "is no world-modality policy", "world_modality_c"),
        (("offline", "--set", "interventions=[randm]"), "did you mean 'random'", ""),
        (("offline", "--model", "{arms}/runs/A-0", "--set", "success={arms}/runs/A-0"), "result.json is missing", ""),
        (("intervene", "--model", "{arms}/runs/A-0"), "reads no world tokens", ""),
        (("intervene", "--model", "{arms}/runs/C-7"), "there is no run", "world_modality_c"),
        (("intervene", "--set", "shares=[2.0]"), "0 … 1", ""),
    ],
)
def test_mistakes_end_in_one_sentence(worldsim, made: Path, words: tuple[str, ...], said: str, typed: str) -> None:
    told = [word.format(arms=made / "arms", data=made / "data") for word in words]
    code, _, err = worldsim("eval", told[0], made / "data", *told[1:], "--out", "out")
    assert code == 1
    assert said in err
    assert typed in err
    assert "Traceback" not in err
    assert not Path("out/report").exists()


def test_runs_of_two_codebooks_are_not_compared(worldsim, made: Path, tmp_path: Path) -> None:
    other = modality_twins.write(tmp_path / "other", world(), "B", seed=1, held_out_episodes=held_out(made / "data"))
    run = made / "arms" / "runs" / "A-0"
    card = read_json(other / "checkpoint" / "card.json")
    write_json(other / "checkpoint" / "card.json", {**card, "net": {**card["net"], "horizon": 5}})
    code, _, err = worldsim("eval", "offline", made / "data", "--model", run, "--model", other, "--out", "out")
    assert code == 1
    assert "act_query" in err or "differ in windows" in err


def test_data_that_the_runs_cannot_read_is_refused(worldsim, made: Path, tmp_path: Path) -> None:
    """Without states, or at another rate, a number of theirs would mean something else."""
    bare, fast = tmp_path / "bare", tmp_path / "fast"
    for folder, more in ((bare, {"state_names": None}), (fast, {"fps": 20.0})):
        source = open_dataset(made / "data")
        card = replace(source.card, splits={}, **more)
        writer = registry.get("formats", "act-hdf5").create(folder, card)
        for index in range(4):
            episode = source.episode(index)
            changes = {"states": None} if folder == bare else {"fps": 20.0}
            writer.commit(writer.stage(replace(episode, **changes)))
        writer.finalize(card)
    run = modality_twins.write(tmp_path / "run", world(), "A", dataset="elsewhere")
    for folder, said in ((bare, "reads a state of 1 numbers"), (fast, "10 observations per second")):
        code, _, err = worldsim("eval", "offline", folder, "--model", run, "--out", "out")
        assert code == 1
        assert said in err
        assert "Traceback" not in err
    other = {"camera": "wrist", "cameras": {"wrist": (moving.SIDE, moving.SIDE)}}
    blind = modality_twins.write(tmp_path / "blind", world(), "A", dataset="elsewhere", **other)
    code, _, err = worldsim("eval", "offline", made / "data", "--model", blind, "--out", "out")
    assert code == 1
    assert "sees a camera 'wrist'" in err
    assert "--camera" not in err, "eval offline has no such option"


def test_baselines_know_all_episodes_that_any_run_was_trained_on(worldsim, made: Path) -> None:
    """In whatever order the runs are named: the run on a quarter of the data must not weaken the copy baseline."""
    told = []
    for order in ((made / "small", made / "arms" / "runs" / "C-0"), (made / "arms" / "runs" / "C-0", made / "small")):
        words = [word for run in order for word in ("--model", run)]
        sets = [word for pair in ("resamples=20", "interventions=[]", "clips=0") for word in ("--set", pair)]
        code, _, err = worldsim("eval", "offline", made / "data", *words, *sets, "--out", f"out{len(told)}")
        assert code == 0, err
        told.append(read_json(Path(f"out{len(told)}/comparison.json"))["baselines"])
    assert told[0] == told[1]


def test_dry_run_opens_nothing(worldsim, made: Path) -> None:
    code, out, err = worldsim(
        "eval", "offline", made / "data", "--all-arms", "--runs", made / "arms", "--dry-run", "--json"
    )
    assert code == 0, err
    assert len(json.loads(out)["plan"]["runs"]) == 15
    assert not Path("runs").exists()
