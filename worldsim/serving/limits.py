"""What a server accepts at most, and how it says no."""

from __future__ import annotations

from dataclasses import dataclass


class Refusal(Exception):
    """A request that cannot be answered: an HTTP status and one sentence that names the key and what is wanted.

    Args:
        status: 400 malformed · 401, 403 not allowed · 404 · 405 · 408 · 413 too large · 415 · 422 well formed but not what the
            policy takes · 500 the policy failed · 503 busy or stopping.
        sentence: for the person who wrote the client.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, " ".join(sentence.split())


@dataclass(frozen=True)
class Limits:
    """Sizes, counts and times that one client may use.

    Attributes:
        body: bytes of a request body or of a websocket message, 1 and more.
        pixels: height times width of a frame.
        values: entries of an array that is no frame (a state).
        cameras: frames in one observation.
        parts: lists, mappings and (in JSON) values in one message: each costs up to 64 bytes of memory and the time of all
            other clients, whatever its size on the wire. A frame of 640x480 as lists has 1.2 million.
        sessions: REST sessions that are kept at once.
        session_seconds: a session unused for so long makes room for others.
        waiting: requests that may wait for the policy; the next is told to come back (503).
        body_seconds: how long a body may take to arrive.
    """

    body: int = 16 * 2**20
    pixels: int = 2048 * 2048
    values: int = 4096
    cameras: int = 8
    parts: int = 2_000_000
    sessions: int = 64
    session_seconds: float = 600.0
    waiting: int = 64
    body_seconds: float = 20.0
