"""JSON with arrays in it: json_numpy's objects (OpenVLA's form), plain lists, and the double-encoded ``encoded`` payload.

source: spec lapa 5.3, 5.4; json_numpy's object is ``{"__numpy__": base64, "dtype": …, "shape": […]}``.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import numpy as np

from worldsim.serving.arrays import from_bytes
from worldsim.serving.limits import Limits, Refusal

ARRAY = "__numpy__"
ENCODED = "encoded"


def loads(body: bytes, limits: Limits) -> tuple[dict[str, Any], bool]:
    """A request body -> its payload with arrays built, and whether it came double-encoded (then the reply is, too).

    Raises:
        Refusal: 400 or 413, naming the key.
    """
    payload = _object(body, limits, "the body")
    double = ENCODED in payload
    if double:
        if len(payload) != 1 or not isinstance(payload[ENCODED], str):
            raise Refusal(400, f"{ENCODED}: wanted a JSON text as the only key of the body")
        payload = _object(payload[ENCODED].encode("utf8", "surrogatepass"), limits, ENCODED)
    return {key: _with_arrays(value, key) for key, value in payload.items()}, double


def _object(text: bytes, limits: Limits, name: str) -> dict[str, Any]:
    if len(text) > limits.body:
        raise Refusal(413, f"{name} has {len(text)} bytes; at most {limits.body} are accepted")
    if text.count(b"[") + text.count(b"{") + text.count(b",") > limits.parts:
        raise Refusal(413, f"{name} has more than {limits.parts} values and lists; send arrays in json_numpy's form")
    try:
        value = json.loads(text.decode("utf8"))
    except (ValueError, RecursionError) as error:  # bad UTF-8 and numbers of thousands of digits, too
        raise Refusal(400, f"{name} is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"{name} is a JSON {type(value).__name__}; wanted an object")
    return value


def _with_arrays(value: Any, key: str) -> Any:
    """The value, or the array that it describes, or a mapping of such; deeper nothing is looked for."""
    if not isinstance(value, dict):
        return value
    if ARRAY in value:
        return _array(value, key)
    return {
        name: _array(inner, f"{key}.{name}") if isinstance(inner, dict) and ARRAY in inner else inner
        for name, inner in value.items()
    }


def _array(value: dict[str, Any], key: str) -> np.ndarray:
    text = value[ARRAY]
    if not isinstance(text, str):
        raise Refusal(400, f"{key}.{ARRAY}: wanted base64 text, got {type(text).__name__}")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"{key}.{ARRAY} is not base64: {error}") from None
    return from_bytes(data, value.get("dtype"), value.get("shape"), key)


def array_object(array: np.ndarray) -> dict[str, Any]:
    """json_numpy's object of an array."""
    text = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {ARRAY: text, "dtype": array.dtype.str, "shape": list(array.shape)}


def dumps(value: Any) -> str:
    """JSON of a payload; arrays become json_numpy's objects. Numbers that are not finite are refused."""
    return json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False)


def read_array(value: Any, key: str) -> Any:
    """The client's side: json_numpy's object -> array, anything else as it is."""
    return _array(value, key) if isinstance(value, dict) and ARRAY in value else value


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return array_object(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")
