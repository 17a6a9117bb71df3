"""The other end of the line: observations to a policy server, action chunks back, over HTTP or openpi's websocket.

A server of this program says so in its metadata and is sent everything, with a session and seeds of its own. Any other is
sent what OpenVLA's REST server, or openpi's LIBERO policy, reads.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from worldsim.core.errors import UserError
from worldsim.serving import json_form, msgpack_form
from worldsim.serving.limits import Limits, Refusal

SENT = ("pixels", "agent_pos", "environment_state", "task")
METADATA_SECONDS = 10.0
START = "worldsim robot serve --policy RUN --port 8000"


@dataclass(frozen=True)
class Address:
    """Where a server is and how long to wait for it.

    Attributes:
        url: ``http(s)://…`` or ``ws(s)://…``. seconds: for one answer. key: the API key, or None.
    """

    url: str
    seconds: float = 30.0
    key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


class Line(Protocol):
    """An open line to a server.

    Attributes:
        metadata: what the server says of itself; empty when it says nothing.
    """

    metadata: dict[str, Any]

    def ask(self, observation: Mapping[str, Any], begin: Mapping[str, Any]) -> np.ndarray:
        """Actions float32 ``[K, A]``.

        Args:
            observation: see ``core.protocols.Environment``. begin: ``reset`` and ``seed``, or nothing within an episode.

        Raises:
            UserError: no answer in time, a refusal (with the server's own words), or something that is no action chunk.
        """
        ...

    def tell(self, observation: Mapping[str, Any], begin: Mapping[str, Any]) -> None:
        """Show a frame on which nothing is asked, to a policy that looks back (``metadata["looks_back"]``)."""
        ...

    def close(self) -> None: ...


def dial(address: Address) -> Line:
    """
    Raises:
        UserError: no such kind of address, or nobody answers there.
    """
    scheme = address.url.partition("://")[0]
    if scheme in ("http", "https"):
        return HttpLine(address)
    if scheme in ("ws", "wss"):
        return SocketLine(address)
    raise UserError(f"'{address.url}' is no address of a policy server: http://HOST:PORT or ws://HOST:PORT", START)


def is_ours(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("server") == "worldsim"


class HttpLine:
    """``POST /act``, with a session of its own where the server knows sessions."""

    def __init__(self, address: Address) -> None:
        import httpx

        self.address, self.session = address, uuid.uuid4().hex
        self.client = httpx.Client(base_url=address.url, headers=address.headers, trust_env=False)
        self.metadata = self._metadata()

    def _metadata(self) -> dict[str, Any]:
        response = self._request("GET", "/metadata", seconds=METADATA_SECONDS)
        if response.status_code in (401, 403):
            raise UserError(
                f"{self.address.url} refuses: {_error(response.text)}; the key is read from WORLDSIM_API_KEY",
                "printenv WORLDSIM_API_KEY",
            )
        try:
            found = response.json() if response.status_code == 200 else {}
        except ValueError:  # a server of another kind
            return {}
        return found if isinstance(found, dict) else {}

    def _request(self, method: str, path: str, body: bytes | None = None, *, seconds: float) -> Any:
        import httpx

        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            waits = httpx.Timeout(seconds, connect=METADATA_SECONDS)
            return self.client.request(method, path, content=body, headers=headers, timeout=waits)
        except httpx.TimeoutException as error:
            raise UserError(f"{self.address.url} gave no answer within {seconds:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UserError(f"{self.address.url} cannot be reached: {error}", START) from error

    def ask(self, observation: Mapping[str, Any], begin: Mapping[str, Any]) -> np.ndarray:
        if is_ours(self.metadata):
            payload = {**_ours(observation, self.metadata), **begin, "session": self.session, "chunk": True}
        else:
            payload = _openvla(observation, self.address.url)
        return _chunk(self._post(payload), self.address.url)

    def tell(self, observation: Mapping[str, Any], begin: Mapping[str, Any]) -> None:
        self._post({**_ours(observation, self.metadata), **begin, "session": self.session, "observe": True})

    def _post(self, payload: Mapping[str, Any]) -> Any:
        response = self._request("POST", "/act", json_form.dumps(payload).encode(), seconds=self.address.seconds)
        if response.status_code != 200:
            raise UserError(f"{self.address.url} refuses: {response.status_code} {_error(response.text)}")
        try:
            return json.loads(response.content)
        except ValueError as error:
            raise UserError(f"{self.address.url} answered something that is not JSON: {error}") from error

    def close(self) -> None:
        self.client.close()


class SocketLine:
    """openpi's websocket: metadata first, then an answer for each observation. The connection is the episode's session."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.socket = self._connect()
        self.metadata = self._receive(METADATA_SECONDS)

    def _connect(self) -> Any:
        try:
            from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
            from websockets.sync.client import connect
        except ImportError as error:
            raise UserError(f"remote:ws:// needs a package: {error}", "pip install 'worldsim[serve]'") from error
        url, headers = self.address.url, self.address.headers
        try:
            return connect(
                url,
                compression=None,
                max_size=Limits().body,
                additional_headers=headers,
                open_timeout=METADATA_SECONDS,
                proxy=None,
            )
        except InvalidStatus as error:
            said = _error((error.response.body or b"").decode("utf8", "replace"))
            raise UserError(f"{url} refuses: {error.response.status_code} {said}") from error
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI) as error:
            raise UserError(f"{url} cannot be reached: {error}", START) from error

    def ask(self, observation: Mapping[str, Any], begin: Mapping[str, Any]) -> np.ndarray:
        ours = is_ours(self.metadata)
        payload = {**_ours(observation, self.metadata), **begin} if ours else _openpi(observation)
        return _chunk(self._exchange(payload), self.address.url)

    def tell(self, observation: Mapping[str, Any], begin: Mapping[str, Any]) -> None:
        self._exchange({**_ours(observation, self.metadata), **begin, "observe": True})

    def _exchange(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        try:
            self.socket.send(msgpack_form.packb(payload))
        except ConnectionClosed as error:
            raise UserError(f"{self.address.url} has closed the connection: {error}") from error
        return self._receive(self.address.seconds)

    def _receive(self, seconds: float) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        try:
            message = self.socket.recv(seconds)
        except TimeoutError as error:
            self.close()  # an answer that comes late must not be taken for the next one
            raise UserError(f"{self.address.url} gave no answer within {seconds:g} s") from error
        except ConnectionClosed as error:
            raise UserError(f"{self.address.url} has closed the connection: {error}") from error
        if isinstance(message, str):
            self.close()
            raise UserError(f"{self.address.url} refuses: {message[-500:]}")
        try:
            return msgpack_form.unpackb(message, Limits())
        except Refusal as error:
            raise UserError(f"{self.address.url} answered something else than a policy server: {error.sentence}") from error

    def close(self) -> None:
        self.socket.close()


def _ours(observation: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What this program's server takes: only the cameras that its policy sees."""
    sent = {key: observation[key] for key in SENT if observation.get(key) is not None}
    wanted = metadata.get("cameras")
    if isinstance(wanted, dict) and "pixels" in sent:
        sent["pixels"] = {name: frame for name, frame in sent["pixels"].items() if name in wanted}
    return sent


def _openvla(observation: Mapping[str, Any], url: str) -> dict[str, Any]:
    """source: spec lapa 5.4."""
    frames = observation.get("pixels", {})
    if len(frames) != 1:
        raise UserError(
            f"{url} is no server of this program and takes one image; the observation has {len(frames)} cameras"
        )
    return {"image": next(iter(frames.values())), "instruction": str(observation.get("task") or "")}


def _openpi(observation: Mapping[str, Any]) -> dict[str, Any]:
    """source: spec lapa 5.5, the keys of its LIBERO policy, with each camera under its own name."""
    sent = {f"observation/{name}": frame for name, frame in observation.get("pixels", {}).items()}
    if "agent_pos" in observation:
        sent["observation/state"] = np.asarray(observation["agent_pos"])
    return {**sent, "prompt": str(observation.get("task") or "")}


def _chunk(answer: Any, url: str) -> np.ndarray:
    """Whatever form the rows are in -> float32 ``[K, A]``."""
    if isinstance(answer, str):  # a double-encoded reply, or "error" with status 200 as OpenVLA's server does
        try:
            answer = json.loads(answer)
        except ValueError:
            raise UserError(f"{url} answered {answer[:200]!r} instead of actions") from None
    if isinstance(answer, dict) and json_form.ARRAY not in answer:
        answer = answer.get("actions", answer)
    try:
        rows = np.asarray(json_form.read_array(answer, "actions"), np.float32)
    except (Refusal, TypeError, ValueError) as error:
        raise UserError(f"{url} answered something that is no row of actions: {error}") from error
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or 0 in rows.shape or not np.isfinite(rows).all():
        raise UserError(f"{url} answered {list(rows.shape)} numbers, not all finite or not rows of actions")
    return rows


def _error(text: str) -> str:
    """The sentence in ``{"error": …}``, or the text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text[:300]
    return str(found.get("error", text) if isinstance(found, dict) else text)[:300]
