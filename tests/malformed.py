"""Requests that no server may answer with an action, drawn by a seeded generator, for both protocols."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np

from tests import served
from worldsim.serving import json_form, msgpack_form

DTYPES: tuple[Any, ...] = (
    *("O", "|O", "|V8", "|S5", "<U3", "<M8[s]", "<c16", "<f16", "f4,f4", "(3,)f4", "", "x" * 5000, "float", "object"),
    *(None, 7, [["a", "<f4"]], {"k": 1}, True, "<f4;import os", "\u0000f4", "uint8 "),
)
SHAPES: tuple[Any, ...] = (
    *(
        [2**31, 2**31, 3],
        [2**63, 3],
        [-1, 16, 3],
        [12, -16, -3],
        [True, 16, 3],
        [12.0, 16, 3],
        ["12", 16, 3],
        [[12], 16, 3],
    ),
    *(None, 576, "12,16,3", [1] * 9, [12, 16], [12, 16, 4], [0, 16, 3], [10**400, 1, 1], {"0": 12}, []),
)
PATHS = (
    *("/etc/passwd", "../../etc/passwd", "", ".", "..", "/", "C:\\x.png", "file:///etc/passwd", "http://127.0.0.1/x.png"),
    *("a\u0000b", "\ud800", "~/x.png", "x" * 9000, "/proc/self/environ", "/dev/zero", "data:", "data:image/png;base64,"),
    *(
        "data:image/png;base64,%%%",
        "data:text/html;base64,PGI+",
        "data:image/png,AAAA",
        "data:image/svg+xml;base64,PHN2Zz4=",
    ),
)
STATES: tuple[Any, ...] = (
    *([1.0], [1.0, 2.0, 3.0], [], [[1.0, 2.0]], 3.0, "1,2", {"x": 1}, ["1", "2"], [1.0, None], [True, False]),
    *([1.0, float("nan")], [float("inf"), 0.0], [[1.0], [2.0, 3.0]], [10**400, 1], [1.0, [2.0]], True),
)
FRAMES: tuple[Any, ...] = (
    *(None, 7, True, [], {}, [[1, 2], [3]], [[[256, 0, 0]]], [[[-1, 0, 0]]], [[[0.5, 0.5, 0.5]]], [["a"]], [[[None] * 3]]),
    *([[[1, 2]]], [[1, 2, 3]], {"__numpy__": "AAAA"}, {"front": 1}, [[[[1, 2, 3]]]]),
)


def http(rng: np.random.Generator) -> tuple[str, str, bytes, dict[str, str]]:
    """(method, path, body, headers) of one request that deserves a 4xx."""
    kind = _HTTP[int(rng.integers(len(_HTTP)))]
    made = kind(rng)
    if isinstance(made, tuple):
        return made
    body = made if isinstance(made, bytes) else json.dumps(made).encode("utf8", "surrogatepass")
    return "POST", "/act", body, {}


def _valid(rng: np.random.Generator) -> dict[str, Any]:
    """A good payload with arrays in json_numpy's form."""
    return json.loads(json_form.dumps(served.openvla(int(rng.integers(10**6)))))


def _pick(rng: np.random.Generator, choices: tuple[Any, ...]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _array_with(rng: np.random.Generator, key: str, value: Any) -> dict[str, Any]:
    payload = _valid(rng)
    payload[_pick(rng, ("image", "state"))][key] = value
    return payload


def _other_array(rng: np.random.Generator) -> dict[str, Any]:
    """A real array, but not one that is wanted."""
    frame = np.zeros((12, 16, 3), np.uint8)
    wrong = (
        *(frame.astype(kind) for kind in ("float32", "int64", "uint16", "bool", "int8", "float16")),
        *(
            frame[..., :2],
            frame[..., 0],
            frame[None],
            np.zeros((3, 12, 16), np.uint8),
            np.uint8(3),
            np.zeros((0, 5, 3), np.uint8),
        ),
    )
    return {**_valid(rng), "image": json_form.array_object(np.asarray(_pick(rng, wrong)))}


def _damaged_base64(rng: np.random.Generator) -> dict[str, Any]:
    text = _valid(rng)["image"]["__numpy__"]
    cut = text[: int(rng.integers(1, len(text) - 4))]
    return _array_with(
        rng, "__numpy__", _pick(rng, (cut, text[:-4] + "%%%%", text + "AAAA", 3, None, ["AAAA"], "ä" * 8, ""))
    )


def _truncated(rng: np.random.Generator) -> bytes:
    body = json.dumps(_valid(rng)).encode()
    return body[: int(rng.integers(0, len(body) - 1))]


def _noise(rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(0, 400)))


def _deep(rng: np.random.Generator) -> bytes:
    depth = int(rng.integers(2_000, 60_000))
    return _pick(rng, (b"[" * depth, b'{"image":' * depth, b'{"image":' + b"[" * depth + b"]" * depth + b"}"))


def _control(rng: np.random.Generator) -> dict[str, Any]:
    wrong = (
        *({"session": 3}, {"session": "a b"}, {"session": "x" * 65}, {"session": "../x"}, {"seed": -1}, {"seed": 1.5}),
        *(
            {"seed": "1"},
            {"seed": 2**70},
            {"reset": 1},
            {"reset": "yes"},
            {"chunk": "all"},
            {"unnorm_key": 3},
            {"chunk": 1},
        ),
        *(
            {"instruction": 7},
            {"instruction": ["go"]},
            {"instruction": "x" * 5000},
            {"prompt": "twice"},
            {"agent_pos": [0, 0]},
        ),
        *(
            {"imgae": 1},
            {"observation/wrist": 1},
            {"pixels": {"front": [[[1, 2, 3]]]}},
            {"": 1},
            {"__class__": "x"},
            {"images": 3},
        ),
    )
    return {**_valid(rng), **_pick(rng, wrong)}


def _encoded(rng: np.random.Generator) -> Any:
    good = json.dumps(_valid(rng))
    return _pick(
        rng, ({"encoded": 3}, {"encoded": good[:-9]}, {"encoded": good, "x": 1}, {"encoded": "[]"}, {"encoded": None})
    )


def _elsewhere(rng: np.random.Generator) -> tuple[str, str, bytes, dict[str, str]]:
    body = json.dumps(_valid(rng)).encode()
    return _pick(
        rng,
        (
            *(
                ("GET", "/act", b"", {}),
                ("PUT", "/act", body, {}),
                ("DELETE", "/", b"", {}),
                ("POST", "/metadata", body, {}),
            ),
            *(("POST", "/nothing", body, {}), ("GET", "/../../etc/passwd", b"", {}), ("GET", "/%2e%2e/act", b"", {})),
            *(("POST", "/act", body, {"Content-Encoding": "gzip"}), ("POST", "/act", zlib.compress(body), {})),
            *(("POST", "/act", body, {"Origin": "http://evil.example"}), ("POST", "/act", body, {"Host": "evil.example"})),
            ("POST", "/act", body, {"X-Session": "not a name"}),
        ),
    )


def bomb(height: int, width: int) -> bytes:
    """A PNG of a few bytes that says it is ``height`` x ``width``."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _picture(rng: np.random.Generator) -> dict[str, Any]:
    from PIL import Image

    gif = io.BytesIO()
    Image.new("RGB", (16, 12)).save(gif, "GIF")
    data = _pick(rng, (bomb(30_000, 30_000), bomb(12, 16), gif.getvalue(), rng.bytes(64), b""))
    return {**_valid(rng), "image": "data:image/png;base64," + base64.b64encode(data).decode()}


def _without(rng: np.random.Generator) -> dict[str, Any]:
    payload = _valid(rng)
    del payload[_pick(rng, ("image", "state"))]
    return payload


_HTTP: tuple[Callable[[np.random.Generator], Any], ...] = (
    *(_noise, _truncated, _deep, _control, _encoded, _elsewhere, _damaged_base64, _other_array, _picture),
    lambda rng: _array_with(rng, "dtype", _pick(rng, DTYPES)),
    lambda rng: _array_with(rng, "shape", _pick(rng, SHAPES)),
    lambda rng: {**_valid(rng), "image": _pick(rng, FRAMES)},
    lambda rng: {**_valid(rng), "image": _pick(rng, PATHS)},
    lambda rng: {**_valid(rng), "state": _pick(rng, STATES)},
    _without,
    lambda rng: _pick(rng, ([], [1], "text", 3, None, {}, {"image": {}}, [{"image": 1}])),
)


def socket(rng: np.random.Generator) -> bytes | str:
    """One websocket message that deserves a protocol error."""
    return _SOCKET[int(rng.integers(len(_SOCKET)))](rng)


def _map(rng: np.random.Generator) -> dict[Any, Any]:
    """A good message with its arrays still as maps."""
    return msgpack.unpackb(msgpack_form.packb(served.openpi(int(rng.integers(10**6)))), strict_map_key=False)


def _map_with(rng: np.random.Generator, key: bytes, value: Any) -> bytes:
    message = _map(rng)
    message[_pick(rng, ("observation/front", "observation/state"))][key] = value
    return msgpack.packb(message)


def _changed(rng: np.random.Generator, key: Any, value: Any) -> bytes:
    return msgpack.packb({**_map(rng), key: value})


def _cut(rng: np.random.Generator) -> bytes:
    message = msgpack.packb(_map(rng))
    return message[: int(rng.integers(0, len(message) - 1))]


def _packable(choices: tuple[Any, ...]) -> tuple[Any, ...]:
    """Those that msgpack can hold: no numbers of more than 64 bits, no lone surrogates."""
    return tuple(choice for choice in choices if _packs(choice))


def _packs(value: Any) -> bool:
    try:
        msgpack.packb(value)
    except (OverflowError, ValueError, UnicodeEncodeError):
        return False
    return True


_BYTES = (
    *(
        b"",
        b"\xc1",
        b"\x80",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
    ),
    *(
        b"\x91" * 5000,
        b"\x81\xa1a" * 3000,
        b"\xd4\x00\x00",
        b"\xc7\xff\x05" + b"x" * 255,
        b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
    ),
    *(b"\x81\x01\x02", b"\x81\xc0\x01", b"\x81\xa2\xff\xfe\x01", b"\x80\x80", b"\x90" * 3, b"\xa5hello", b"\x81\x90\x01"),
)
_SOCKET: tuple[Callable[[np.random.Generator], bytes | str], ...] = (
    lambda rng: rng.bytes(int(rng.integers(1, 200))),
    _cut,
    lambda rng: _pick(rng, _BYTES),
    lambda rng: _pick(rng, ("", "hello", json.dumps(served.plain(1)), "\x00" * 50)),
    lambda rng: _map_with(rng, b"dtype", _pick(rng, _packable(DTYPES))),
    lambda rng: _map_with(rng, b"shape", _pick(rng, _packable(SHAPES))),
    lambda rng: _map_with(rng, b"data", _pick(rng, (b"", b"x", "text", None, 3, [1, 2], rng.bytes(577)))),
    lambda rng: _changed(rng, "observation/front", _pick(rng, _packable((*FRAMES, *PATHS)))),
    lambda rng: _changed(rng, "observation/state", _pick(rng, _packable(STATES))),
    lambda rng: _changed(rng, _pick(rng, ("observation/wrist", "imgae", "", "front2")), _pick(rng, (1, None, b"x", []))),
    lambda rng: _changed(rng, _pick(rng, (3, b"bytes", None, 1.5)), 1),
    lambda rng: _changed(rng, _pick(rng, ("seed", "reset", "chunk")), _pick(rng, (-1, "x", 1.5, []))),
    lambda rng: _changed(rng, "prompt", _pick(rng, (1, b"go", ["go"], "x" * 5000))),
    lambda rng: msgpack.packb({b"__npgeneric__": True, b"data": 1, b"dtype": "<f4"}),
    lambda rng: _changed(
        rng, "observation/state", {b"__npgeneric__": True, b"data": "x", b"dtype": _pick(rng, ("<f4", "O"))}
    ),
)


def frames(rng: np.random.Generator) -> Iterator[bytes]:
    """Raw bytes after a websocket's handshake that are no frames, or only the beginning of one."""
    mask = b"\x01\x02\x03\x04"
    yield from (
        b"\x82\xff" + struct.pack(">Q", 2**40) + mask,  # a frame of a TiB
        b"\x82\xfe\xff\xff" + mask + b"x" * 100,  # cut off
        b"\x82\x05hello",  # not masked
        b"\x83\x80" + mask,  # an opcode that does not exist
        b"\xf2\x80" + mask,  # reserved bits
        b"\x09\x80" + mask,  # a control frame in pieces
        b"\x89\xfe\x01\x00" + mask + b"x" * 256,  # a ping that is too long
        b"\x00\x80" + mask,  # the end of nothing
        b"\x81\x82" + mask + bytes(a ^ b for a, b in zip(b"\xff\xfe", mask)),  # text that is no text
        b"\x88\x81" + mask + b"x",  # a close frame of one byte
        rng.bytes(64),
    )
