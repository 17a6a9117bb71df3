"""The protocols on one port: ``POST /act`` (OpenVLA, LAPA, plain JSON), a websocket at ``/`` (openpi), health, metadata.

Every refusal is a real HTTP status with ``{"error": sentence}``; on a websocket it is a text frame, then the connection is
closed, as openpi's client expects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio.to_thread
import numpy as np
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from starlette.exceptions import HTTPException

from worldsim.serving import json_form, msgpack_form
from worldsim.serving.door import Door
from worldsim.serving.limits import Refusal
from worldsim.serving.observations import Call
from worldsim.serving.service import Service

SESSION = "x-session"
CLOSE_CODES = {500: 1011, 503: 1013, 413: 1009}
MALFORMED = 1007


def create_app(service: Service, door: Door) -> FastAPI:
    """The ASGI application over one service."""
    app = FastAPI(title="worldsim", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Refusal, _refused)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _unknown)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _defect)

    @app.get("/healthz")
    async def healthz() -> Response:
        return Response("OK\n", media_type="text/plain")

    @app.get("/health")
    async def health(request: Request) -> Response:
        door.check(request.headers, key=False)
        return _json(service.health(), 503 if service.stopping else 200)

    @app.get("/")
    @app.get("/metadata")
    async def metadata(request: Request) -> Response:
        door.check(request.headers)
        return _json(service.metadata())

    @app.post("/act")
    async def act(request: Request) -> Response:
        try:
            door.check(request.headers)
            response = await _act(service, request)
        except Refusal as refusal:
            service.counts[refusal.status] += 1
            raise
        service.counts[200] += 1
        return response

    @app.websocket("/")
    async def openpi(websocket: WebSocket) -> None:
        await _converse(service, door, websocket)

    return app


async def _act(service: Service, request: Request) -> Response:
    """One request, one answer, in the form that it came in."""
    body = await _body(service, request)
    call, double = await _aside(_read, service, body)
    name = call.session or request.headers.get(SESSION)
    session = service.sessions.of(name) if name else service.sessions.once()
    actions, timing = await service.answer(call, session)
    wanted = json_form.dumps(reply(call, actions, timing))
    text = json_form.dumps(wanted) if double else wanted
    return Response(text, media_type="application/json", headers={"Server-Timing": f"infer;dur={timing['infer_ms']:.3f}"})


async def _aside[T](read: Callable[..., T], service: Service, data: bytes) -> T:
    """Messages are read beside the event loop, a few at a time: a large one takes many times its bytes for a moment."""
    return await anyio.to_thread.run_sync(read, service, data, limiter=service.readers)


def _unpacked(service: Service, data: bytes) -> Call:
    return service.reader.read(msgpack_form.unpackb(data, service.limits))


def _read(service: Service, body: bytes) -> tuple[Call, bool]:
    payload, double = json_form.loads(body, service.limits)
    return service.reader.read(payload), double


def reply(call: Call, actions: np.ndarray | None, timing: Mapping[str, float]) -> Any:
    """The first row, ``[A]``, as OpenVLA's and LAPA's servers give it; or the whole plan, where ``chunk`` asks for it.

    An array where arrays came, else lists of numbers, which read back to the same float32.
    """
    if actions is None:
        return done(call)
    rows = actions if call.chunk else actions[0]
    value = rows if call.as_arrays else rows.tolist()
    return {"actions": value, "server_timing": dict(timing)} if call.chunk else value


def done(call: Call) -> dict[str, bool]:
    """The reply where no actions were asked for."""
    return {"observed" if call.observation is not None else "reset": True}


async def _body(service: Service, request: Request) -> bytes:
    """The body, given up as soon as it is too long or too slow."""
    most, seconds = service.limits.body, service.limits.body_seconds
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "compressed bodies are not accepted; send the JSON as it is")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most:
        raise Refusal(413, f"the body has {declared} bytes; at most {most} are accepted")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise Refusal(413, f"the body has more than {most} bytes")
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {seconds:g} s") from None
    return bytes(body)


async def _converse(service: Service, door: Door, websocket: WebSocket) -> None:
    """One websocket: metadata first, then an answer for each observation, with an episode memory of its own."""
    try:
        door.check(websocket.headers)
        service.enter()
    except Refusal as refusal:
        service.counts[refusal.status] += 1
        await websocket.send_denial_response(_json({"error": refusal.sentence}, refusal.status))
        return
    session = None
    try:
        await websocket.accept()
        session = service.sessions.open()
        await websocket.send_bytes(msgpack_form.packb(service.metadata()))
        while (message := await websocket.receive())["type"] == "websocket.receive":
            await websocket.send_bytes(await _exchange(service, message, session))
            service.counts[200] += 1
    except Refusal as refusal:
        service.counts[refusal.status] += 1
        await _hang_up(websocket, refusal)
    except WebSocketDisconnect:
        pass  # the client left before it was answered
    finally:
        service.leave()
        if session is not None:
            service.sessions.close(session)


async def _hang_up(websocket: WebSocket, refusal: Refusal) -> None:
    """A text frame with the sentence, as openpi's client expects it, and the end."""
    with suppress(WebSocketDisconnect, RuntimeError):  # it may be gone already
        await websocket.send_text(refusal.sentence)
        await websocket.close(CLOSE_CODES.get(refusal.status, MALFORMED), refusal.sentence[:60])


async def _exchange(service: Service, message: Mapping[str, Any], session: Any) -> bytes:
    data = message.get("bytes")
    if data is None:
        raise Refusal(415, "a text frame came; wanted msgpack in a binary frame")
    call = await _aside(_unpacked, service, data)
    actions, timing = await service.answer(call, session)
    return msgpack_form.packb(done(call) if actions is None else {"actions": actions, "server_timing": timing})


async def _refused(request: Request, refusal: Refusal) -> Response:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(refusal.status, {})
    return _json({"error": refusal.sentence}, refusal.status, headers)


async def _unknown(request: Request, error: HTTPException) -> Response:
    """404 and 405 of the router."""
    known = "POST /act, GET /health, GET /healthz, GET /metadata, websocket /"
    sentence = f"{request.method} {request.url.path[:80]}: {error.detail}; there are {known}"
    return _json({"error": sentence}, error.status_code, error.headers)


async def _defect(request: Request, error: Exception) -> Response:
    """A defect of this program; the log has the traceback."""
    return _json({"error": f"unexpected {type(error).__name__}; the server's log has the traceback"}, 500)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json_form.dumps(value), status, headers, media_type="application/json")
