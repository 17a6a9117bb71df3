"""What hardware costs. The built-in table can be changed in ``~/.worldsim/hardware.yaml``, same shape."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import yaml

from worldsim.core.errors import UserError, again, did_you_mean
from worldsim.launch.hardware import Need
from worldsim.launch.job import HOUR, Gpu, Launch
from worldsim.launch.records import home

# source: modal.com/pricing, per-second prices of 2026-05 times 3600; region and plan can change them.
CPU_CORE_USD = 0.0473
"""Dollars per physical core and hour."""
MEMORY_GIB_USD = 0.0080
"""Dollars per GiB and hour."""


@dataclass(frozen=True)
class Price:
    """One kind of GPU: dollars per GPU and hour, memory in GiB."""

    usd_per_hour: float
    memory_gib: float


GPUS = {
    "T4": Price(0.5904, 16),
    "L4": Price(0.7992, 24),
    "A10": Price(1.1016, 24),
    "L40S": Price(1.9512, 48),
    "A100-40GB": Price(2.0988, 40),
    "A100-80GB": Price(2.4984, 80),
    "RTX-PRO-6000": Price(3.0312, 96),
    "H100": Price(3.9492, 80),
    "H200": Price(4.5396, 141),
    "B200": Price(6.2496, 180),
}


@dataclass(frozen=True)
class Hardware:
    """What will be rented, and its price in dollars."""

    gpu: str | None
    gpu_count: int
    gpu_memory_gib: float
    cpus: float
    memory_gib: float
    timeout_hours: float
    usd_per_hour: float
    usd_at_most: float

    def to_values(self) -> dict[str, Any]:
        return asdict(self)


def prices() -> dict[str, Price]:
    """The table with the user's own changes."""
    path = home() / "hardware.yaml"
    if not path.exists():
        return GPUS
    try:
        changes = (yaml.safe_load(path.read_text(encoding="utf8")) or {})["gpus"]
        return GPUS | {name.upper(): Price(**{k: float(v) for k, v in row.items()}) for name, row in changes.items()}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} must look like 'gpus: {{H100: {{usd_per_hour: 3.95, memory_gib: 80}}}}' ({error})", ["cat", path]
        ) from error


def price_of(gpu: Gpu) -> Price:
    table = prices()
    if gpu.name not in table:
        raise UserError(f"--gpu {gpu}: there is no GPU '{gpu.name}'{did_you_mean(gpu.name, table)}", again(gpu="H100"))
    return table[gpu.name]


def hardware(need: Need, launch: Launch) -> Hardware:
    """What a command's need and the launch options come to."""
    gpu = launch.gpu or (Gpu(need.gpu) if need.gpu else None)
    price = price_of(gpu) if gpu else Price(0.0, 0.0)
    count = gpu.count if gpu else 0
    if count > 1 and not need.distributed:
        raise UserError(f"--gpu {gpu}: this command uses one GPU", again(gpu=gpu.name if gpu else None))
    timeout = launch.timeout or need.timeout
    cpus, memory = need.cpus * max(count, 1), need.memory_gib * max(count, 1)
    hourly = count * price.usd_per_hour + cpus * CPU_CORE_USD + memory * MEMORY_GIB_USD
    return Hardware(
        gpu=str(gpu) if gpu else None,
        gpu_count=count,
        gpu_memory_gib=price.memory_gib,
        cpus=cpus,
        memory_gib=memory,
        timeout_hours=timeout / HOUR,
        usd_per_hour=round(hourly, 2),
        usd_at_most=round(hourly * timeout / HOUR, 2),
    )
