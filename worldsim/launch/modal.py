"""Modal: one function for every command, re-shaped for each run by ``with_options``.

Nothing here needs a token until something is submitted. The container calls :func:`worldsim.launch.container.run_job`,
which is the same worker that runs here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import modal

from worldsim.core.config import recipes_folder
from worldsim.core.console import say
from worldsim.core.errors import RemoteError
from worldsim.core.files import replacing
from worldsim.launch import container
from worldsim.launch.backend import Call, Request
from worldsim.launch.cost import Hardware
from worldsim.launch.hardware import ATTEMPT_SECONDS, GRACE_SECONDS
from worldsim.launch.records import Record

PACKAGE = Path(__file__).resolve().parents[1]
MOUNT = Path("/vol")
"""Where the volume lies in the container."""
SECRETS = {"huggingface": "HF_TOKEN=$HF_TOKEN", "wandb": "WANDB_API_KEY=$WANDB_API_KEY"}
"""Secrets that a run is given when they exist, and what they hold."""
RETRIES = 10
TOKEN_COMMAND = "modal setup"


def lock_file() -> Path:
    """``requirements.lock``: beside the package in a checkout, inside it in an installed wheel."""
    inside = PACKAGE / "requirements.lock"
    return inside if inside.exists() else PACKAGE.parent / "requirements.lock"


def build_image() -> modal.Image:
    """Python 3.12, ffmpeg, the locked requirements; this program's source and recipes are mounted last."""
    # source: modal 1.6.4, Image.add_local_*: must follow every build step, because it is mounted at start
    return (
        modal.Image.debian_slim(python_version="3.12")
        .apt_install("ffmpeg", "git")
        .uv_pip_install(requirements=[str(lock_file())], extra_options="--no-deps --require-hashes")
        .env({"HF_HOME": f"{MOUNT}/huggingface", "WANDB_DIR": "/tmp", "TOKENIZERS_PARALLELISM": "false"})
        .add_local_file(str(lock_file()), "/root/requirements.lock")
        .add_local_dir(str(recipes_folder()), "/root/configs")
        .add_local_dir(str(PACKAGE), "/root/worldsim", ignore=["**/__pycache__", "**/*.pyc"])
    )


app = modal.App("worldsim", image=build_image() if modal.is_local() else None, include_source=False)


@app.function(
    timeout=ATTEMPT_SECONDS,
    retries=modal.Retries(max_retries=RETRIES, initial_delay=0.0),
    single_use_containers=True,
    include_source=False,
)
def run(request: dict[str, Any], volume: str, root: str = str(MOUNT)) -> dict[str, Any]:
    """Run one request in this container; ``with_options`` has given it its hardware and its volume."""
    if modal.is_local():
        return container.run_job(request, Path(root))
    with container.committing(modal.Volume.from_name(volume).commit):
        return container.run_job(request, Path(root))


class ModalBackend:
    """The :class:`~worldsim.launch.backend.Backend` that rents on Modal."""

    def has(self, volume: str, path: str) -> bool:
        with reaching():
            try:
                return bool(open_volume(volume).listdir(path))
            except (modal.exception.NotFoundError, FileNotFoundError):
                return False

    def send(self, volume: str, files: list[tuple[Path | bytes, str]]) -> None:
        with reaching(), open_volume(volume).batch_upload(force=True) as batch:
            for content, path in files:
                batch.put_file(BytesIO(content) if isinstance(content, bytes) else content, f"/{path}")

    @contextmanager
    def submit(self, request: Request, hardware: Hardware, volume: str, secrets: tuple[str, ...]) -> Iterator[Call]:
        with reaching():
            function = shaped(hardware, request.timeout, open_volume(volume), find_secrets(secrets))
            # Detached also when someone watches: a closed laptop must not end a run that was paid for.
            with modal.enable_output(), app.run(detach=True):
                call = function.spawn(asdict(request), volume)
                yield Call(call.object_id, app.get_dashboard_url(), partial(_wait, call))

    def status(self, record: Record) -> dict[str, Any] | None:
        with reaching():
            try:
                return modal.FunctionCall.from_id(record.call).get(timeout=0)
            except modal.exception.OutputExpiredError:
                return {
                    "status": "expired",
                    "notes": [f"its files are still on the volume: worldsim runs pull {record.run}"],
                }
            except (modal.exception.FunctionTimeoutError, modal.exception.RemoteError) as error:
                return {"status": "failed", "notes": [str(error)]}
            except TimeoutError:  # not Modal's: the result is not there yet
                return None

    def logs(self, record: Record, follow: bool) -> Iterator[str]:
        with reaching():
            logs = modal.FunctionCall.from_id(record.call).logs
            for entry in logs.stream() if follow else logs.fetch():
                yield entry.message

    def fetch(self, volume: str, path: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
        with reaching():
            opened = open_volume(volume)
            for entry in opened.iterdir(path, recursive=True):
                if entry.type == modal.volume.FileEntryType.FILE:
                    relative = entry.path.strip("/").removeprefix(path.strip("/")).lstrip("/")
                    yield relative, partial(_download, opened, entry.path)

    def cancel(self, record: Record) -> None:
        with reaching():
            modal.FunctionCall.from_id(record.call).cancel(terminate_containers=True)


def shaped(hardware: Hardware, timeout: int, volume: modal.Volume, secrets: list[modal.Secret]) -> modal.Function:
    """The one function with a run's hardware, time and volume. The platform's limit lies above the run's own budget."""
    return run.with_options(
        gpu=hardware.gpu,
        cpu=hardware.cpus,
        memory=round(hardware.memory_gib * 1024),
        timeout=min(timeout + GRACE_SECONDS, ATTEMPT_SECONDS),
        volumes={str(MOUNT): volume},
        secrets=secrets,
    )


def open_volume(name: str) -> modal.Volume:
    """The volume, made when missing. A volume of version 1 that has the name already is used as it is."""
    volume = modal.Volume.from_name(name, create_if_missing=True, version=2)
    try:
        return volume.hydrate()
    except modal.exception.InvalidError as error:
        if "version" not in str(error):
            raise
        say(f"the volume '{name}' is of version 1, which slows down with many files; --volume NAME makes a new one")
        return modal.Volume.from_name(name).hydrate()


def find_secrets(wanted: tuple[str, ...]) -> list[modal.Secret]:
    """The secrets asked for, which must exist, and the usual ones, which are only missed aloud."""
    found = []
    for name in dict.fromkeys([*wanted, *SECRETS]):
        make = f"modal secret create {name} {SECRETS.get(name, 'KEY=value')}"
        try:
            found.append(modal.Secret.from_name(name).hydrate())
        except modal.exception.NotFoundError:
            if name in wanted:
                raise RemoteError(f"there is no Modal secret named '{name}'", make) from None
            say(f"no Modal secret '{name}', going on without it; to add it: {make}")
    return found


def _wait(call: modal.FunctionCall) -> dict[str, Any]:
    with reaching():
        return call.get()


def _download(volume: modal.Volume, remote: str, local: Path) -> None:
    with reaching(), replacing(local) as temporary, temporary.open("wb") as file:
        for block in volume.read_file(remote):
            file.write(block)


@contextmanager
def reaching() -> Iterator[None]:
    """Modal's own errors as one sentence and a command to type."""
    try:
        yield
    except modal.exception.AuthError as error:
        raise RemoteError("Modal knows no valid token of yours on this machine", TOKEN_COMMAND) from error
    except modal.exception.ConnectionError as error:
        raise RemoteError(f"Modal cannot be reached: {error}", "worldsim doctor") from error
    except modal.exception.Error as error:
        kind = type(error).__name__
        raise RemoteError(f"Modal refused ({kind}): {error}", "modal app list") from error
