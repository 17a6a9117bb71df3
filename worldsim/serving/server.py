"""A service on a socket: in the foreground until a signal comes, or in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from worldsim.core.errors import UserError, again
from worldsim.serving.door import Door, is_local
from worldsim.serving.service import Service

SPARE = 16
"""Connections beyond the sessions, sockets and waiting requests: for health checks."""
STOP_SECONDS = 5
"""How long answers that are under way may take once the server is told to stop."""


class PolicyServer:
    """Binds when it is made, so that its address is known before it serves.

    Args:
        service: what answers.
        host, port: where to listen; port 0 takes a free one.
        sealed_key: :func:`worldsim.serving.door.seal` of the API key; None lets everyone in.

    Raises:
        UserError: the address cannot be had, or the packages of the extra ``serve`` are not there.
    """

    def __init__(self, service: Service, host: str = "127.0.0.1", port: int = 0, sealed_key: str | None = None) -> None:
        uvicorn = _uvicorn()
        from worldsim.serving.app import create_app

        self.service, self.host = service, host
        self.socket = _bind(host, port)
        self.port: int = self.socket.getsockname()[1]
        app = create_app(service, Door(sealed_key, local=is_local(host)))
        self.server: Any = _quiet(uvicorn)(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                ws_max_size=service.limits.body,
                ws_per_message_deflate=False,  # openpi's client sends none, and what is not unpacked cannot explode
                limit_concurrency=2 * service.limits.sessions + service.limits.waiting + SPARE,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        self.thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """``127.0.0.1:8000``, to put behind ``http://`` or ``ws://``."""
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{shown}]:{self.port}" if ":" in shown else f"{shown}:{self.port}"

    def run(self, seconds: float | None = None, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGINT, SIGTERM or ``seconds`` are over; answers that are under way are still given."""
        ready()  # the socket listens already: who connects now is answered as soon as the loop runs
        timer = threading.Timer(seconds, self._tell) if seconds is not None else None
        try:
            if timer:
                timer.daemon = True
                timer.start()
            self.server.run(sockets=[self.socket])
        finally:
            if timer:
                timer.cancel()
            self.service.stop()
            self.socket.close()

    def _tell(self) -> None:
        self.server.should_exit = True

    def __enter__(self) -> PolicyServer:
        """Serve in a thread."""
        self.thread = threading.Thread(target=self.run, name="server", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._tell()
        if self.thread is not None:
            self.thread.join(STOP_SECONDS + 5)


def _quiet(uvicorn: Any) -> Any:
    class Server(uvicorn.Server):
        """Ends on a signal as on any other wish to stop, without raising it again: the run is done, not interrupted."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.force_exit = bool(self.should_exit)  # a second signal does not wait for anyone
            self.should_exit: bool = True

    return Server


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except (OSError, UnicodeError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: cannot listen there ({why})", again(port=port + 1)) from error
    bound.set_inheritable(False)
    return bound


def _uvicorn() -> Any:
    try:
        import fastapi  # noqa: F401
        import msgpack  # noqa: F401
        import uvicorn
        import websockets  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"serving needs a package that is not installed: {error}", "pip install 'worldsim[serve]'"
        ) from error
    return uvicorn
