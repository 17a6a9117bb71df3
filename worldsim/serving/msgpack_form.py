"""openpi's messages: msgpack with arrays as maps of the byte keys ``__ndarray__ data dtype shape``; no pickle anywhere.

source: spec lapa 5.5; openpi's client package reads and writes the same maps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from worldsim.serving.arrays import dtype_of, from_bytes
from worldsim.serving.limits import Limits, Refusal

ARRAY, SCALAR, DATA, DTYPE, SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"


def packb(value: Any) -> bytes:
    """A message of mappings, lists, texts, numbers and arrays."""
    import msgpack

    return msgpack.packb(value, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {ARRAY: True, DATA: value.tobytes(), DTYPE: value.dtype.str, SHAPE: list(value.shape)}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {SCALAR: True, DATA: value.item(), DTYPE: value.dtype.str}
    raise TypeError(f"{type(value).__name__} has no msgpack form")


def unpackb(message: bytes, limits: Limits) -> dict[str, Any]:
    """A message -> its payload with arrays built.

    Raises:
        Refusal: 400 or 413, naming the key where there is one.
    """
    import msgpack

    if len(message) > limits.body:
        raise Refusal(413, f"the message has {len(message)} bytes; at most {limits.body} are accepted")
    count = _Count(limits.parts // 4)  # arrays are at home here; lists are the exception
    try:
        value = msgpack.unpackb(
            message, raw=False, object_hook=count, list_hook=count, ext_hook=_no_extension, max_ext_len=0
        )
    except (ValueError, msgpack.exceptions.UnpackException, TypeError, RecursionError) as error:
        raise Refusal(400, f"the message is not msgpack: {type(error).__name__} {str(error)[:200]}".rstrip()) from None
    if not isinstance(value, dict):
        raise Refusal(400, f"the message is a msgpack {type(value).__name__}; wanted a map")
    return _built(value)


class _Count:
    """Refuses a message of very many small parts: each list or map costs far more memory than its byte on the wire."""

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, 0

    def __call__(self, part: Any) -> Any:
        self.seen += 1
        if self.seen > self.most:
            raise Refusal(413, f"the message has more than {self.most} lists and maps; send arrays")
        return part


def _no_extension(code: int, data: bytes) -> Any:
    raise Refusal(400, f"the message holds a msgpack extension ({code}); wanted maps, lists, texts, numbers and arrays")


def _built(value: dict[Any, Any]) -> dict[str, Any]:
    """A map with text keys; arrays built in it and in the maps that it holds."""
    out: dict[str, Any] = {}
    for key, inner in value.items():
        if not isinstance(key, str):
            raise Refusal(400, f"key {str(key)[:40]!r} is {type(key).__name__}; wanted text")
        out[key] = _value(inner, key)
        if isinstance(inner, dict) and isinstance(out[key], dict):
            out[key] = {str(name): _value(item, f"{key}.{name}") for name, item in inner.items()}
    return out


def _value(value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        return value
    if ARRAY in value:
        return from_bytes(value.get(DATA), value.get(DTYPE), value.get(SHAPE), key)
    if SCALAR in value:
        return _scalar(value, key)
    return value


def _scalar(value: dict[Any, Any], key: str) -> np.generic:
    kind, number = dtype_of(value.get(DTYPE), key), value.get(DATA)
    if not isinstance(number, bool | int | float):
        raise Refusal(400, f"{key}: a numpy scalar's data are {type(number).__name__}; wanted a number")
    try:
        return kind.type(number)
    except (OverflowError, ValueError) as error:
        raise Refusal(400, f"{key}: {str(number)[:40]} is no {kind.name} ({error})") from None
