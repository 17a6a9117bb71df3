"""Arrays from the wire: built only after dtype, shape and size agree with the bytes that are really there.

No object, structured, string or time dtypes, no pickle, no allocation that the sender's shape alone decides.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from worldsim.serving.limits import Refusal

_DESCRIPTION = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")
_NAMES = {"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"}
MAX_DIMENSIONS = 8
KINDS = "bool, int8 to int64, uint8 to uint64, float16 to float64"


def dtype_of(described: Any, key: str) -> np.dtype:
    """``<f4``, ``|u1``, ``float32`` … -> dtype; nothing but plain numbers."""
    text = described.decode("ascii", "replace") if isinstance(described, bytes) else described
    if not isinstance(text, str) or not (_DESCRIPTION.fullmatch(text) or text in _NAMES):
        raise Refusal(400, f"{key}: dtype {str(described)[:40]!r} is not accepted; wanted one of {KINDS}")
    return np.dtype(text)


def shape_of(described: Any, key: str) -> tuple[int, ...]:
    """A list of at most 8 sizes, 0 and more each."""
    fits = isinstance(described, list | tuple) and len(described) <= MAX_DIMENSIONS
    if not fits or any(type(size) is not int or size < 0 for size in described):
        raise Refusal(
            400, f"{key}: shape {str(described)[:60]} is not a list of at most {MAX_DIMENSIONS} whole numbers from 0"
        )
    return tuple(described)


def from_bytes(data: Any, dtype: Any, shape: Any, key: str) -> np.ndarray:
    """The array that ``data`` holds, in this machine's byte order.

    Raises:
        Refusal: 400, naming ``key``: a dtype, a shape or a number of bytes that is not right.
    """
    kind, sizes = dtype_of(dtype, key), shape_of(shape, key)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise Refusal(400, f"{key}: the array's data are {type(data).__name__}; wanted bytes")
    wanted, there = math.prod(sizes) * kind.itemsize, memoryview(data).nbytes
    if wanted != there:
        raise Refusal(400, f"{key}: {kind.name} {list(sizes)} needs {wanted} bytes; {there} came")
    return np.frombuffer(data, kind).reshape(sizes).astype(kind.newbyteorder("="))  # a copy: policies may write into it


def from_lists(value: Any, key: str) -> np.ndarray:
    """Nested lists of numbers as an array: int64 or uint64 for whole numbers, float64 otherwise.

    Raises:
        Refusal: 400, naming ``key``: rows of different lengths, or something in them that is no number.
    """
    _require_numbers(value, key, MAX_DIMENSIONS)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise Refusal(400, f"{key}: the lists are not rows of equal length ({error})") from None
    if array.dtype.kind not in "iuf":
        raise Refusal(400, f"{key}: the lists hold numbers that no machine type holds")
    return array


def _require_numbers(value: Any, key: str, depth: int) -> None:
    """Looked at before an array is made: one long text among many short ones would take memory for all."""
    kinds = set(map(type, value))
    if kinds == {list} and depth > 1:
        for row in value:
            _require_numbers(row, key, depth - 1)
    elif not kinds <= {int, float}:
        wrong = ", ".join(sorted(kind.__name__ for kind in kinds - {int, float}))
        raise Refusal(400, f"{key}: the lists hold {wrong}; wanted rows of equal length of numbers")


def described(array: np.ndarray) -> str:
    """``uint8 [48, 64, 3]``."""
    return f"{array.dtype.name} {list(array.shape)}"
