"""`worldsim rlvr` from a twin's run folder: scenes are what they say, the run is whole, and mistakes are one sentence."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import painted
from tests.killed import kill_after_rows
from worldsim.cli.main import main
from worldsim.commands import rlvr
from worldsim.commands._rlvr_scenes import Scenes, Truth
from worldsim.commands._token_windows import prepare
from worldsim.commands._world import load_world
from worldsim.core import registry
from worldsim.core.config import build, load_recipe
from worldsim.core.files import read_json
from worldsim.data.split import split_episodes
from worldsim.data.token_actions import TokenActions
from worldsim.formats import open_dataset
from worldsim.rl.step import Shares
from worldsim.train import checkpoint
from worldsim.train.tracking import read_rows
from worldsim.world_models.token_ar import TokenAR

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["fsq-compressive", "fsq-frame"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data`` (painted, at the twins' size) and a run folder per kind of tokenizer."""
    folder = tmp_path_factory.mktemp("rlvr")
    for kind in KINDS:
        tokenizer = registry.get("tokenizers", kind).tiny()
        twin = TokenAR.tiny(tokenizer)
        bins = TokenActions.fit(
            np.array([[0.0, -1.0], [15.0, 1.0]]), bins=16, kind="minmax"
        )  # entry 0 of a painted row is t
        card = replace(twin.card, bins=bins.card(), camera="cam_front")
        tensors = {name: p.detach() for name, p in twin.net.named_parameters()}
        checkpoint.write_checkpoint(folder / kind / "checkpoint", tensors, card.to_json(), 0)
        tokenizer.save(folder / kind / "checkpoint" / "tokenizer")
        if not (folder / "data").exists():
            size = (tokenizer.height, tokenizer.width)
            source = painted.PaintedSource(6, 12, size=size, cameras=("cam_front",), dim=2)
            writer = registry.get("formats", "act-hdf5").create(folder / "data", source.card)
            for index in range(len(source)):
                writer.commit(writer.stage(source.episode(index)))
            writer.finalize(source.card)
    return folder


def command(world: Path, out: Path, *more: str, kind: str = KINDS[0]) -> list[str]:
    asked = ["--config", "smoke", "--model", str(world / kind), "--device", "cpu", "--out", str(out), "--json"]
    return ["rlvr", str(world / "data"), *asked, *more]


@pytest.mark.parametrize("kind", KINDS)
def test_truth_tokens_and_actions_of_a_scene_belong_together(world: Path, kind: str) -> None:
    """Every frame of a painted dataset is another, and entry 0 of action t is t: any slip shows."""
    model: Any = load_world(world / kind)
    model.card = replace(model.card, context_back=2 if model.layout.context_tokens else 0)
    _, values = load_recipe("rlvr", "smoke")
    config = build(rlvr.Config, {**values, "data": str(world / "data"), "model": str(world / kind)})
    source = open_dataset(world / "data")
    found = prepare(rlvr._wish(config, model), source, model.tokenizer, "cpu")
    scenes, layout = Scenes(found, model, seed=3), model.layout
    shares = Shares(8, 4)
    prompts = scenes.iteration(5, shares, 0)
    assert len(prompts) == 8
    assert len(set(prompts.seeds)) == 8
    backs = set()
    for p in range(8):
        name, number = re.fullmatch(r"episode (\S+), given frame (\d+)", prompts.where[p]).groups()  # type: ignore[union-attr]
        given = int(number)
        episode = source.episode(source.ids().index(name))
        frames = torch.from_numpy(episode.frames["cam_front"].read())
        assert torch.equal(prompts.last[p], frames[given])
        assert torch.equal(prompts.truth[p], frames[given + 1 : given + 1 + layout.predicted])
        rows = model.bins.encode(episode.actions)
        sequence = torch.cat([prompts.prompt[p], prompts.forced[p]])
        actions = sequence[sequence >= layout.action_start] - layout.action_start
        first = given - layout.history + 1
        assert actions.tolist() == rows[first : given + layout.predicted].flatten().tolist()
        contexts = frames[max(first - 2, 0) : first + 1]
        if layout.context_tokens:
            told = [model.tokenizer.encode(frames[None, given : given + 1], c[None])[0, 0] for c in contexts]
            owned = [model.tokenizer.encode_context(c[None])[0] for c in contexts]
            fitting = [k for k in range(len(contexts)) if torch.equal(owned[k], prompts.context[p])]
            assert any(torch.equal(told[k], prompts.given[p]) for k in fitting)
            backs |= {len(contexts) - 1 - fitting[0]} if len(fitting) == 1 else set()
        else:
            assert torch.equal(model.tokenizer.encode(frames[None, given : given + 1], None)[0, 0], prompts.given[p])
    if layout.context_tokens:
        assert max(backs) > 0, "context frames are drawn, not always the first given one"
    again = scenes.iteration(5, shares, 0)
    assert torch.equal(again.prompt, prompts.prompt)
    assert again.seeds == prompts.seeds
    noises = [prompts.seeds, scenes.iteration(6, shares, 0).seeds, scenes.spread(8, 0, 1).seeds]
    assert len(set().union(*noises)) == 24, "every iteration has noise of its own, and so have held-out scenes"
    halves = [scenes.iteration(5, Shares(8, 4, world_size=2), rank) for rank in range(2)]
    assert halves[0].where + halves[1].where == [prompts.where[k] for k in (0, 1, 4, 5, 2, 3, 6, 7)]
    assert halves[0].seeds + halves[1].seeds == [prompts.seeds[k] for k in (0, 1, 4, 5, 2, 3, 6, 7)]
    whole, parts = scenes.spread(5, 0, 1), [scenes.spread(5, rank, 2) for rank in range(2)]
    assert [parts[k % 2].seeds[k // 2] for k in range(5)] == whole.seeds
    assert [parts[k % 2].where[k // 2] for k in range(5)] == whole.where
    assert len(set(whole.where)) == 5
    read_rowwise = Truth(found)
    read_rowwise.keeps = False
    name, start = found.index[3]
    np.testing.assert_array_equal(read_rowwise.frames(name, start), scenes.truth.frames(name, start))
    source.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_a_whole_token_model(world: Path, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(command(world, tmp_path / "rl", "--reward", "0.5*mse+repetition", kind=kind)) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["status"] == "done"
    assert result["metrics"]["iterations"] == 2
    assert len(result["metrics"]["held_out_episodes"]) == 1
    assert {"reward_mse", "reward_repetition"} <= result["metrics"]["held_out_after"].keys()
    for folder in ("rl", "rl/best"):
        model: Any = load_world(tmp_path / folder)
        frames = np.zeros((1, model.context_frames, model.height, model.width, 3), np.uint8)
        assert model.rollout(frames, np.zeros((1, 4, 1, 2)), seeds=[1]).shape == (1, 1, 4, model.height, model.width, 3)
    before, after = (
        checkpoint.read_weights(run / "checkpoint/model.safetensors") for run in (world / kind, tmp_path / "rl")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "rl/rollouts.png").stat().st_size > 0
    told = read_json(tmp_path / "rl/checkpoint/card.json")
    source = open_dataset(world / "data")
    tested = split_episodes(source.ids(), source.card.splits).held_out
    source.close()
    assert tested
    assert not set(tested) & set(told["train_episodes"]), "no test episode is learnt from or looked at"
    assert set(result["metrics"]["held_out_episodes"]) <= set(told["train_episodes"])
    assert main(command(world, tmp_path / "rl", "--reward", "0.5*mse+repetition", kind=kind)) == 0
    assert "already done" in json.loads(capfd.readouterr().out)["notes"]


def test_a_run_is_held_to_its_base_and_chosen_on_episodes_that_it_does_not_learn_from(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, list[Any]] = {}

    def spy(name: str) -> None:
        build_one, kept = getattr(rlvr, name), made.setdefault(name, [])

        def spied(*args: Any, **options: Any) -> Any:
            kept.append(build_one(*args, **options))
            return kept[-1]

        monkeypatch.setattr(rlvr, name, spied)

    for name in ("Collector", "GroupLoss", "Scenes"):
        spy(name)
    asked = ["--set", "kl=0.25", "--set", "iterations=1", "--reward", "mse"]
    assert main(command(world, tmp_path / "rl", *asked, kind="fsq-frame")) == 0
    (collector,), (loss,), (train, look) = made["Collector"], made["GroupLoss"], made["Scenes"]
    assert loss.weights.kl == 0.25
    base: Any = load_world(world / "fsq-frame")
    start, held, now = (dict(m.net.named_parameters()) for m in (base, collector.reference, collector.policy))
    assert all(torch.equal(start[name], held[name]) for name in start)
    assert any(not torch.equal(start[name], now[name]) for name in start)
    assert len(look.found.episodes) == 1
    assert len(train.found.episodes) == 3
    assert not set(train.found.episodes) & set(look.found.episodes)


def test_kill_9_in_an_iteration_then_the_same_command_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    longer = ["--set", "iterations=24", "--set", "save_every=3", "--set", "validate.every=4"]
    assert main(command(world, tmp_path / "straight", *longer, kind="fsq-frame")) == 0
    out = tmp_path / "killed"
    words = command(world, out, *longer, kind="fsq-frame")
    kill_after_rows(words, out, 6, later=0.05)  # in the next iteration
    assert (out / "state").exists()
    assert main(words) == 0
    for name in ("checkpoint/model.safetensors", "best/model.safetensors", "rollouts.png"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert [row["step"] for row in read_rows(out / "metrics.jsonl")] == list(range(25))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--reward", "mea"), "there is no reward 'mea'; known: lpips, mae"),
        (("--set", "group_size=1"), "group_size must be at least 2, not 1"),
        (("--set", "minibatch=3"), "prompts = 4 is not a multiple of minibatch = 3"),
        (("--model", "copy"), "only token world models can be reinforced"),
        (("--set", "update.clip=1"), "unknown key 'update.clip'; did you mean 'clip_norm'?"),
        (("--reward", "lpips"), "the reward lpips needs"),
        (("--camera", "wrist"), "has no camera 'wrist'"),
    ],
)
def test_mistakes_are_one_sentence(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch, more: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.setenv("WORLDSIM_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert main(command(world, tmp_path / "rl", *more)) == 1
    said = capfd.readouterr().err
    assert sentence in said.replace("\n", " ")
    assert "Traceback" not in said


def test_other_actions_than_the_models_are_refused(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = painted.PaintedSource(3, 12, size=(16, 24), cameras=("cam_front",), dim=3)
    writer = registry.get("formats", "act-hdf5").create(tmp_path / "data", source.card)
    for index in range(len(source)):
        writer.commit(writer.stage(source.episode(index)))
    writer.finalize(source.card)
    words = command(world, tmp_path / "rl")
    words[1] = str(tmp_path / "data")
    assert main(words) == 1
    assert "differ in dim: 2 and 3" in capfd.readouterr().err


def test_compat_draws_from_the_whole_vocabulary_and_a_dry_run_says_what_it_takes(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, build_one = [], rlvr.Collector

    def spied(*args: Any, **options: Any) -> Any:
        made.append(build_one(*args, **options))
        return made[-1]

    monkeypatch.setattr(rlvr, "Collector", spied)
    assert (
        main(command(world, tmp_path / "rl", "--set", "compat=released", "--set", "kl=0", "--set", "update.bf16=true")) == 0
    )
    capfd.readouterr()
    rows = read_rows(tmp_path / "rl/metrics.jsonl")
    assert all(np.isfinite(row["reward"]) for row in rows[1:])
    assert [(collector.legal, collector.reference) for collector in made] == [(False, None)]
    assert main(command(world, tmp_path / "dry", "--dry-run")) == 0
    plan = json.loads(capfd.readouterr().out)["plan"]
    assert plan["futures_per_iteration"] == 16
    assert plan["updates"] == 4
    assert plan["episodes"] == 4


def test_another_temperature_is_where_learning_begins_and_what_the_checkpoint_draws_at(world: Path, tmp_path: Path) -> None:
    """Probabilities are those of the base at 0.5; a run that learns nothing leaves its weights and says 0.5."""
    _, values = load_recipe("rlvr", "smoke")
    model = rlvr._model(build(rlvr.Config, {**values, "model": str(world / KINDS[1]), "temperature": 0.5}), "cpu")
    base: Any = load_world(world / KINDS[1])
    layout, generator = base.layout, torch.Generator().manual_seed(0)
    prompt = torch.randint(0, layout.codes, (2, layout.prompt_length), generator=generator)
    responses = torch.randint(0, layout.codes, (2, 3, layout.response_length), generator=generator)
    expected = base.net.log_probs(prompt, responses, layout.response, temperature=0.5)
    torch.testing.assert_close(model.log_probs(prompt, responses), expected)
    still = ["--set", "temperature=0.5", "--set", "update.lr=0", "--set", "validate.every=0"]
    assert main(command(world, tmp_path / "rl", *still, kind=KINDS[1])) == 0
    before, after = (
        checkpoint.read_weights(run / "checkpoint/model.safetensors") for run in (world / KINDS[1], tmp_path / "rl")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    tuned: Any = load_world(tmp_path / "rl")
    assert (base.card.sampling.temperature, tuned.card.sampling.temperature) == (1.0, 0.5)


def test_every_key_of_the_update_and_the_credit_reaches_its_place(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the recipe says is what the collector and the optimiser are given; nothing is read and dropped."""
    seen: dict[str, Any] = {}
    real = rlvr.improve

    def spied(collector: Any, loss: Any, *rest: Any) -> Any:
        seen.update(collector=collector, loss=loss, plan=rest[2], settings=rest[3])
        return real(collector, loss, *rest)

    monkeypatch.setattr(rlvr, "improve", spied)
    credit = {"per_frame": "true", "per_cell": "true", "discount": "0.25", "reward": "mse"}
    update = {"schedule": "cosine", "bf16": "true", "lr": "0.003", "warmup": "1", "ema": "0.5", "clip_norm": "0.75"}
    pairs = {**credit, **{f"update.{key}": value for key, value in update.items()}, "iterations": "1"}
    words = [word for key, value in pairs.items() for word in ("--set", f"{key}={value}")]
    assert main(command(world, tmp_path / "run", *words)) == 0
    collector, settings = seen["collector"], seen["settings"]
    assert (collector.per_frame, collector.per_cell, collector.discount) == (True, True, 0.25)
    assert (collector.bf16, collector.recompute, seen["loss"].bf16) == (True, True, True)
    assert (settings.schedule, settings.lr, settings.warmup, settings.ema, settings.clip) == ("cosine", 0.003, 1, 0.5, 0.75)
