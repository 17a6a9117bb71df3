"""Who may come in: an API key, no foreign web page, no foreign host name."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from worldsim.serving.limits import Refusal

SEALED = "sha256:"
SCHEMES = ("bearer", "api-key")
"""``Authorization: Bearer KEY``, and ``Authorization: Api-Key KEY`` as openpi's client sends it."""


def seal(key: str) -> str:
    """A key's digest: what is kept and compared, so that no record holds the key."""
    return SEALED + hashlib.sha256(key.encode("utf8")).hexdigest()


def sealed(text: str | None) -> str | None:
    """What was typed as a key -> its digest; ``env:NAME`` is read from the environment, a digest stays what it is.

    Raises:
        ValueError: an empty key, one that no header can carry, or no such variable.
    """
    if text is None or text.startswith(SEALED):
        return text
    name = text.removeprefix("env:")
    key = os.environ.get(name, "") if text.startswith("env:") else text
    if not key:
        raise ValueError(f"the environment has no {name}" if text.startswith("env:") else "an empty key locks nobody out")
    if not (key.isascii() and key.isprintable()):
        raise ValueError("a key travels in a header: letters, digits and signs of ASCII alone")
    return seal(key)


class Door:
    """Looks at the headers of every request and of every websocket.

    Args:
        sealed_key: :func:`seal` of the key; None lets everyone in.
        local: whether the server listens on this machine alone; then a request must be addressed to this machine, so that
            a web page whose name is made to point here gets no answer.
    """

    def __init__(self, sealed_key: str | None, local: bool) -> None:
        self.sealed_key, self.local = sealed_key, local

    def check(self, headers: Mapping[str, str], *, key: bool = True) -> None:
        """
        Raises:
            Refusal: 401 without the right key, 403 from a web page of another origin.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refusal(403, "a web page of another origin may not use this server")
        if self.local and not is_local(_name(host)):
            raise Refusal(403, f"this server listens on this machine alone and is not called {host[:80]!r}")
        if key and self.sealed_key is not None:
            self._check_key(headers.get("authorization"), headers.get("x-api-key"))

    def _check_key(self, authorization: str | None, bare: str | None) -> None:
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip() if scheme.lower() in SCHEMES else bare or ""
        if not given:
            raise Refusal(401, "an API key is wanted: the header 'Authorization: Bearer KEY'")
        if not hmac.compare_digest(seal(given), self.sealed_key or ""):
            raise Refusal(401, "the API key is wrong")


def _name(host: str) -> str:
    """``Host`` without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # no host name at all
        return ""


def is_local(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    if host.lower() in ("localhost", ""):
        return host != ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
