"""Two processes on a CPU: FSDP2 learns what DDP learns, to rounding; both what one process learns from twice the batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import train_ranks
from worldsim.core.runs import RunContext
from worldsim.train import checkpoint
from worldsim.train.loop import fit
from worldsim.train.tracking import read_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two ranks have trained every arm of ``tests/train_ranks.py``."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train_ranks", str(folder)],
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(said)[-4000:]
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(run / "checkpoint" / "model.safetensors")


def numbers(run: Path, name: str) -> list[float]:
    return [row[name] for row in read_rows(run / "metrics.jsonl")]


@pytest.mark.parametrize("arm", ["lora", "bf16", "twice"])
def test_fsdp2_equals_ddp_to_the_bit(trained: Path, arm: str) -> None:
    """Losses and the saved average. ``bf16``: a frozen bf16 base and a fp32 LoRA in one group; ``twice`` accumulates."""
    ddp, fsdp = trained / f"none-{arm}", trained / f"fsdp2-{arm}"
    assert numbers(fsdp, "loss") == numbers(ddp, "loss")
    assert (fsdp / "checkpoint/model.safetensors").read_bytes() == (ddp / "checkpoint/model.safetensors").read_bytes()
    assert {tensor.dtype for tensor in weights(fsdp).values()} == {torch.float32}


@pytest.mark.parametrize("arm", ["clipped", "all"])
def test_fsdp2_clips_by_the_norm_of_all_slices(trained: Path, arm: str) -> None:
    """The norm is summed in another order, hence 1e-6; ``all`` trains every weight."""
    ddp, fsdp = trained / f"none-{arm}", trained / f"fsdp2-{arm}"
    for name in ("loss", "grad_norm"):
        assert numbers(fsdp, name) == pytest.approx(numbers(ddp, name), abs=1e-6)
    assert max(numbers(ddp, "grad_norm")) > 0.1  # the bound was reached
    expected, found = weights(ddp), weights(fsdp)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0, msg=name)


def test_a_killed_sharded_run_ends_in_the_same_bytes(trained: Path) -> None:
    straight, killed = trained / "fsdp2-lora", trained / "fsdp2-killed"
    for name in ("checkpoint/model.safetensors", "state/step_000000006/trained.pt", "state/step_000000006/optimizer.pt"):
        assert (straight / name).read_bytes() == (killed / name).read_bytes(), name
    assert numbers(killed, "step") == [1, 2, 3, 4, 5, 6]
    assert numbers(killed, "loss") == numbers(straight, "loss")


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_equal_one_with_twice_the_batch(trained: Path, tmp_path: Path, sharding: str) -> None:
    data = {"x": torch.randn(train_ranks.CLIPS, 6, generator=torch.Generator().manual_seed(0))}
    train_ranks.train(tmp_path, train_ranks.Still(), data, train_ranks.settings(batch=4))
    together = trained / f"{sharding}-still"
    for name in ("loss", "grad_norm"):
        assert numbers(together, name) == pytest.approx(numbers(tmp_path, name), abs=1e-6)
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(weights(together)[name], tensor, atol=1e-6, rtol=0, msg=name)


def test_what_two_sharded_processes_saved_one_process_goes_on_with(trained: Path, tmp_path: Path) -> None:
    """The state is whole whatever wrote it: one more step from it in one process, with a note."""
    import shutil

    run = Path(shutil.copytree(trained / "fsdp2-lora", tmp_path / "run"))
    train_ranks.train(run, train_ranks.tiny(), train_ranks.clips(), train_ranks.settings(steps=7))
    assert numbers(run, "step") == [1, 2, 3, 4, 5, 6, 7]


def test_one_process_has_nothing_to_shard(tmp_path: Path) -> None:
    context = RunContext("train", tmp_path)
    chosen = train_ranks.settings(steps=1, sharding="fsdp2")
    fit(train_ranks.Still(), lambda step, micro: {"x": torch.zeros(2, 6)}, chosen, context, lambda tensors, step: None)
    assert context.notes == ["train.sharding=fsdp2 changes nothing in one process; --nproc N starts more"]
