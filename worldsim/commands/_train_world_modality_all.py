"""``train --config world_modality_all DATA --tokenizer RUN``: every arm with every seed, then the comparison.

``OUT/runs/<arm>-<seed>/`` are run folders as ``train`` leaves them: ``--model`` takes them, finished ones are skipped, a killed
one goes on where it stopped. Dataset and columns are read once for all.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from worldsim.commands import _modality_compare
from worldsim.commands._train_world_modality import Prepared, plan_for, prepare, run_arm
from worldsim.commands._world_modality_config import AllArms, OneArm, Shared
from worldsim.core import runs
from worldsim.core.console import say
from worldsim.core.files import read_json
from worldsim.core.runs import RunContext
from worldsim.core.types import Result
from worldsim.policies._world_modality_training import VAL_ACTION, VAL_WORLD
from worldsim.train import distributed

Config = AllArms
RUNS = "runs"


def run(config: AllArms, context: RunContext) -> Result:
    """Train what is not trained yet, arm by arm within a seed, and compare."""
    context.reads("data", Path(str(config.wish().data)))
    context.reads("tokenizer", Path(str(config.tokenizer)))
    prepared = prepare(config, context)
    results: dict[str, dict[str, Any]] = {}
    order = [(arm, context.seed + k) for k in range(config.seeds) for arm in config.arms]
    for number, (arm, seed) in enumerate(order, start=1):
        name = f"{arm}-{seed}"
        results[name] = train_one(one_arm(config, arm), seed, context, prepared)
        if context.rank == 0:
            say(f"run {number} of {len(order)}, {name}: {results[name].get('summary', '')}")
    if context.rank != 0:
        return Result()
    metrics = {
        "runs": len(results),
        "train_windows": len(prepared.train),
        "training": training_summary(config, context.seed, results),
    }
    own = Result(metrics=metrics, summary=f"{len(results)} runs of {len(config.arms)} arms: {context.out / RUNS}")
    return _compared(config, context, own) if config.compare and prepared.held_out else own


def one_arm(config: AllArms, arm: str) -> OneArm:
    """The config that ``train`` would have for this arm alone; a run folder can be typed again by itself."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(Shared)}  # type: ignore[arg-type]
    return OneArm(**shared, arm=arm)


def train_one(config: OneArm, seed: int, context: RunContext, prepared: Prepared) -> dict[str, Any]:
    """One run in its own folder; what its ``result.json`` holds. Nothing is trained where that says done."""
    out = context.out / RUNS / f"{config.arm}-{seed}"
    if context.rank == 0:
        runs.claim(out, context.command, config, seed)
    distributed.barrier()
    result = out / "result.json"
    if result.exists() and read_json(result)["status"] == "done":
        return read_json(result)
    own = RunContext(
        command=context.command,
        out=out,
        device=context.device,
        seed=seed,
        rank=context.rank,
        world_size=context.world_size,
    )
    began = time.monotonic()
    said = run_arm(config, own, prepared)
    if context.rank != 0:
        return {}
    runs.write_provenance(own, config)
    more = {"next": said.next, "summary": said.summary}
    return runs.write_result(own, "done", said.metrics, time.monotonic() - began, **more)


def training_summary(config: AllArms, seed: int, results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per arm: parameters, and each seed's last validation."""
    out: dict[str, dict[str, Any]] = {}
    for arm in config.arms:
        own = [results[f"{arm}-{seed + k}"]["metrics"] for k in range(config.seeds)]
        keys = [key for key in (VAL_ACTION, VAL_WORLD) if all(key in metrics for metrics in own)]
        out[arm] = {"parameters": own[0]["parameters"], **{key: [metrics[key] for metrics in own] for key in keys}}
    return out


def _compared(config: AllArms, context: RunContext, own: Result) -> Result:
    """The comparison of ``eval offline`` on the held-out episodes: ``comparison.json`` and ``report/``."""
    folders = [context.out / RUNS / f"{arm}-{context.seed + k}" for arm in config.arms for k in range(config.seeds)]
    options = _modality_compare.Options(columns=config.columns, batch=config.encode_batch, max_rejected=config.max_rejected)
    said = _modality_compare.compare(
        folders,
        config.wish().data,
        context.out,
        options=options,
        device=context.device,
        seed=context.seed,
        note=context.note,
    )
    return dataclasses.replace(said, metrics={**own.metrics, **said.metrics}, summary=f"{own.summary}\n{said.summary}")


def plan(config: AllArms, seed: int = 0, processes: int = 1) -> dict[str, Any]:
    """What would be trained on, and each arm's parameters; encodes nothing."""
    return {"runs": len(config.arms) * config.seeds, **plan_for(config, config.arms)}
