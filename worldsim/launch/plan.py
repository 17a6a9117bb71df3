"""``--dry-run``: what would happen, where, with how much memory and for how much money. Needs no token."""

from __future__ import annotations

import inspect
import os
from types import ModuleType
from typing import Any

import yaml

from worldsim.core import config as config_world
from worldsim.core.task import Task
from worldsim.launch import upload
from worldsim.launch.cost import Hardware, hardware
from worldsim.launch.hardware import need
from worldsim.launch.job import Job
from worldsim.launch.local import processes
from worldsim.launch.records import run_id
from worldsim.worker import command_module

IMAGE = "debian-slim, python 3.12, ffmpeg, requirements.lock, this source and its recipes"


def describe(job: Job) -> dict[str, Any]:
    """The plan of a job as plain values: ``command  out  seed  device  config  plan  hardware`` and, with ``--remote``,
    ``remote``: run id, image, volume, uploads, inputs already on the volume. With such an input ``plan`` is empty.

    Raises:
        UserError: what would also stop the real run: a wrong key, a missing input, an unknown GPU, a local path.
    """
    module = command_module(job.command)
    config = config_world.build(module.Config, job.config)
    rented = hardware(need(job.command, job.recipe), job.launch) if job.launch.remote else None
    remote = _remote(job) if rented else None
    there = bool(remote and remote["on_volume"])  # a plan made here could not look at those inputs
    count = _processes(job, rented)
    plan = _plan(module, config, job.seed, count) if hasattr(module, "plan") and not there else {}
    out: dict[str, Any] = {
        "status": "dry-run",
        "command": job.command,
        "out": job.out,
        "seed": job.seed,
        "device": job.device,
        "config": config_world.to_values(config),
        "plan": plan,
    }
    if rented is None:
        return out | {"hardware": {"where": "this machine", "cpus": os.cpu_count(), "processes": count}}
    return out | {"hardware": rented.to_values(), "remote": remote, "fits": fits(plan, rented)}


def _processes(job: Job, rented: Hardware | None) -> int:
    """How many processes the job would get, there or here."""
    if rented is None:
        return processes(job.task, job.launch.nproc)
    return job.launch.nproc or max(rented.gpu_count, 1)


def _plan(module: ModuleType, config: Any, seed: int, count: int) -> dict[str, Any]:
    """The command's own plan; one whose needs depend on the number of processes is told it."""
    told = {"processes": count} if "processes" in inspect.signature(module.plan).parameters else {}
    return module.plan(config, seed=seed, **told)


def _on_volume(task: Task, inputs: list[upload.Input]) -> list[dict[str, str]]:
    """The inputs of a remote task that lie on the volume already, named so or written there by an earlier run."""
    sent = {item.key for item in inputs}
    found: list[dict[str, str]] = []

    def look(key: str, value: str) -> str:
        if value.startswith(upload.VOL) and key not in sent:
            found.append({"key": key, "volume_path": value.removeprefix(upload.VOL)})
        return value

    upload.map_strings(task.config, look)
    return found


def _remote(job: Job) -> dict[str, Any]:
    task, inputs = upload.remote_task(job.task, hashed=False)
    return {
        "run": run_id(task) if not inputs else f"{job.command}-{job.recipe}-<content hash>",
        "function": "worldsim.launch.modal.run",
        "image": IMAGE,
        "volume": job.launch.volume,
        "uploads": list(upload.describe(inputs)),
        "on_volume": _on_volume(task, inputs),
        "detach": job.launch.detach,
    }


def fits(plan: dict[str, Any], rented: Hardware) -> bool | None:
    """Whether the estimated GPU memory fits one of the rented GPUs; None when there is no estimate or no GPU."""
    wanted = plan.get("gpu_memory_gib")
    return None if wanted is None or not rented.gpu else wanted <= rented.gpu_memory_gib


def plan_text(plan: dict[str, Any]) -> str:
    """The plan for a person."""
    lines = [f"{plan['command']} -> {plan['out']}  (seed {plan['seed']}, device {plan['device']})", "config:"]
    lines += _indented(plan["config"])
    if plan["plan"]:
        lines += ["plan:", *_indented(plan["plan"])]
    if "remote" not in plan:
        here = plan["hardware"]
        return "\n".join([*lines, f"hardware: this machine, {here['cpus']} cores, processes: {here['processes']}"])
    return "\n".join([*lines, *_remote_text(plan)])


def _remote_text(plan: dict[str, Any]) -> list[str]:
    remote, rented = plan["remote"], plan["hardware"]
    gpu = f"{rented['gpu']} ({rented['gpu_memory_gib']:g} GiB each)" if rented["gpu"] else "no GPU"
    lines = [
        f"job:      {remote['run']} through {remote['function']}",
        f"image:    {remote['image']}",
        f"volume:   {remote['volume']}",
        *(
            f"upload:   {u['key']} = {u['path']}, {u['bytes'] / 2**20:.1f} MiB -> vol:{u['volume_path']}"
            for u in remote["uploads"]
        ),
        *(
            f"in place: {there['key']} = vol:{there['volume_path']}, on the volume; it is looked at there, not planned here"
            for there in remote["on_volume"]
        ),
        f"hardware: {gpu}, {rented['cpus']:g} cores, {rented['memory_gib']:g} GiB",
    ]
    memory = plan["plan"].get("gpu_memory_gib")
    if memory is not None:
        verdict = {True: "fits", False: "DOES NOT FIT: take a larger --gpu", None: "no GPU is rented"}[plan["fits"]]
        lines.append(f"memory:   about {memory:.1f} GiB per GPU ({verdict})")
    cost = f"${rented['usd_per_hour']:.2f} per hour, at most ${rented['usd_at_most']:.2f}"
    return [*lines, f"cost:     {cost} in {rented['timeout_hours']:g} h (prices: ~/.worldsim/hardware.yaml)"]


def _indented(values: dict[str, Any]) -> list[str]:
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return [f"  {line}" for line in text.splitlines()]
