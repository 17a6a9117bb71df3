"""Whatever comes, the server says no in the protocol's own way and answers the next good request correctly."""

from __future__ import annotations

import base64
import http.client
import io
import itertools
import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import json_numpy
import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests import malformed, served
from tests.served import locally, openpi, openvla, plain, request
from worldsim.serving.door import Door, seal, sealed
from worldsim.serving.limits import Limits, Refusal
from worldsim.serving.server import PolicyServer

WANTED = {400, 401, 403, 404, 405, 408, 413, 415, 422}


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with served.serve() as server:
        yield server


def png(frame: np.ndarray) -> str:
    """A data URL."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def good(server: PolicyServer, index: int) -> None:
    """The next good request is answered correctly."""
    status, answer, _ = request(server, body=json_numpy.dumps(openvla(index)).encode())
    assert status == 200, answer
    assert np.array_equal(json_numpy.loads(json.dumps(answer)), locally([index])[0][0])


def send(server: PolicyServer, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        line.request(method, path, body, headers)
        answer = line.getresponse()
        return answer.status, answer.read().decode()
    finally:
        line.close()


def test_six_hundred_malformed_requests(server):
    rng, seen = np.random.default_rng(2024), Counter()
    for index in range(600):
        method, path, body, headers = malformed.http(rng)
        status, text = send(server, method, path, body, headers)
        assert status in WANTED, (status, method, path, headers, body[:300], text)
        assert json.loads(text)["error"], "a sentence"
        seen[status] += 1
        good(server, index)
    assert min(seen[status] for status in (400, 403, 405, 413, 422)) > 0, seen


def refused(server: PolicyServer, message: bytes | str) -> int:
    """The close code after a sentence in a text frame, or after none."""
    with connect(f"ws://{server.address}", compression=None, proxy=None) as line:
        assert isinstance(line.recv(10), bytes), "metadata first"
        line.send(message)
        with suppress(ConnectionClosed):
            for answer in line:  # until the server closes
                assert isinstance(answer, str), (message[:300], answer[:100])
        assert line.close_code is not None, "the server says why"
        return line.close_code


def test_four_hundred_malformed_messages(server):
    rng, seen = np.random.default_rng(7), Counter()
    client = WebsocketClientPolicy("127.0.0.1", server.port)
    for index in range(400):
        seen[refused(server, malformed.socket(rng))] += 1
        answer = client.infer({**openpi(index), "reset": True})
        assert np.array_equal(answer["actions"], locally([index])[0])
    assert set(seen) <= {1003, 1007, 1009}, seen


def handshake(server: PolicyServer, *lines: str) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    raw.sendall("\r\n".join(("GET / HTTP/1.1", f"Host: {server.address}", *lines, "", "")).encode())
    return raw


UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


def test_bytes_that_are_no_frames(server):
    for index, data in enumerate(malformed.frames(np.random.default_rng(3))):
        with handshake(server, *UPGRADE) as raw:
            assert raw.recv(4096).startswith(b"HTTP/1.1 101")
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(65536):  # until the server closes
                pass
        good(server, index)


def test_handshakes_and_requests_that_are_none(server):
    wrong = [
        [line for line in UPGRADE if "Key" not in line],
        [line.replace("13", "7") for line in UPGRADE],
        [*UPGRADE[:3], "Sec-WebSocket-Key: short"],
    ]
    for lines in wrong:
        with handshake(server, *lines) as raw:
            assert raw.recv(4096).split()[1] in (b"400", b"426")
    for data in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"POST /act HTTP/9.9\r\n\r\n",
        b"POST /act HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: b\r\nContent-Length: x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(data)
            assert raw.recv(4096).startswith(b"HTTP/1.1 4")
    good(server, 1)


def test_a_body_that_breaks_off(server):
    for length, body in ((1000, b'{"image":'), (10, b"")):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(f"POST /act HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n".encode() + body)
        good(server, length)


def test_sizes_are_limited():
    small = Limits(body=20_000, pixels=12 * 16, cameras=1, parts=1000, body_seconds=1.0)
    with served.serve(limits=small) as server:
        good(server, 1)
        status, answer, _ = request(server, body=b" " * 20_001)
        assert (status, "at most 20000" in answer["error"]) == (413, True)
        status, answer, _ = request(server, body={**plain(1), "image": [[[1, 2, 3]] * 17] * 12})
        assert (status, "pixels" in answer["error"]) == (413, True)
        status, answer, _ = request(server, body={**plain(1), "image": png(np.zeros((12, 17, 3), np.uint8))})
        assert (status, "12x17 pixels" in answer["error"]) == (413, True)
        status, answer, _ = request(server, body=b"[" * 1001)
        assert (status, "lists" in answer["error"]) == (413, True)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:  # no length told, and no end
            raw.sendall(b"POST /act HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            raw.sendall(b"5000\r\n" + b" " * 0x5000 + b"\r\n")
            assert b" 413 " in raw.recv(4096)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:  # too slow
            raw.sendall(b"POST /act HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in raw.recv(4096)
        with connect(f"ws://{server.address}", compression=None, proxy=None) as line:
            line.recv()
            line.send(bytes(20_001))
            with pytest.raises(ConnectionClosed) as closed:
                line.recv(10)
            assert closed.value.rcvd.code == 1009
        good(server, 2)


def test_sessions_are_limited_and_make_room_when_unused():
    now = [0.0]
    with served.serve(limits=Limits(sessions=2, session_seconds=600)) as server:
        server.service.sessions.clock = lambda: now[0]
        for name, status in (("a", 200), ("b", 200), ("c", 503), ("a", 200)):
            assert request(server, body={"session": name, "reset": True})[0] == status
        now[0] = 601.0
        assert request(server, body={"session": "c", "reset": True})[0] == 200, "unused ones made room"
        lines = [connect(f"ws://{server.address}", proxy=None) for _ in range(2)]
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://{server.address}", proxy=None)
        assert refused.value.response.status_code == 503
        for line in lines:
            line.close()


def test_only_so_many_may_wait():
    held = served.Held()
    with served.serve(held, limits=Limits(waiting=0)) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(request, server, body={**plain(0), "instruction": "slow"})
        assert held.begun.wait(20)
        status, _, headers = request(server, body=plain(1))
        assert (status, headers["retry-after"]) == (503, "1")
        held.release.set()
        assert first.result(20)[0] == 200
        good(server, 1)


def test_the_key_opens_and_nothing_else_does():
    with served.serve(key="open sesame") as server:
        assert request(server, body=plain(1))[0] == 401
        assert request(server, "/metadata")[0] == 401
        for headers in ({"Authorization": "Bearer open"}, {"Authorization": "Basic open sesame"}, {"X_Api_Key": ""}):
            status, answer, got = request(server, body=plain(1), **headers)
            assert (status, got["www-authenticate"]) == (401, "Bearer")
            assert "sesame" not in json.dumps(answer)
        for headers in ({"Authorization": "Bearer open sesame"}, {"X_Api_Key": "open sesame"}):
            assert request(server, body=plain(1), **headers)[0] == 200
        assert request(server, "/healthz")[0] == request(server, "/health")[0] == 200
        with pytest.raises(InvalidStatus) as refused:
            WebsocketClientPolicy("127.0.0.1", server.port)
        assert refused.value.response.status_code == 401
        client = WebsocketClientPolicy("127.0.0.1", server.port, api_key="open sesame")
        assert np.array_equal(client.infer(openpi(1))["actions"], locally([1])[0])


def test_only_the_whole_key_opens():
    """What resembles it does not, in letters or in the digest's first or last characters; nor does what the run folder keeps."""
    kept = seal("open sesame")
    door = Door(kept, local=False)
    alike = (f"key {k}" for k in itertools.count())
    begins, ends = (next(key for key in alike if seal(key)[part] == kept[part]) for part in (slice(0, 9), slice(-2, None)))
    for given in ("open sesam", "open sesame!", "Open sesame", "opensesame", "", kept, begins, ends):
        for headers in ({"authorization": f"Bearer {given}"}, {"authorization": f"Api-Key {given}"}, {"x-api-key": given}):
            with pytest.raises(Refusal) as refused:
                door.check(headers)
            assert refused.value.status == 401
    for scheme in ("Bearer", "bearer", "Api-Key"):
        door.check({"authorization": f"{scheme} open sesame"})


def test_web_pages_of_other_origins_are_refused(server):
    assert request(server, body=plain(1), Origin="http://evil.example")[0] == 403
    assert request(server, body=plain(1), Origin=f"http://{server.address}")[0] == 200
    assert request(server, body=plain(1), Host="evil.example")[0] == 403, "a name made to point at this machine"
    assert request(server, body=plain(1), Host=f"localhost:{server.port}")[0] == 200
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://{server.address}", origin="http://evil.example", proxy=None)
    assert refused.value.response.status_code == 403


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder to allow, with a picture in it, and things around it that must stay closed."""
    folder = tmp_path / "allowed"
    (folder / "day").mkdir(parents=True)
    frame = Image.fromarray(served.observation(1)["pixels"]["front"])
    frame.save(folder / "day" / "one.png")
    frame.save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "out").symlink_to(tmp_path)
    (folder / "text.png").write_text("no picture")
    (folder / "large.png").write_bytes(bytes(Limits().body + 1))
    (folder / "wide.png").write_bytes(malformed.bomb(30_000, 30_000))
    os.mkfifo(folder / "pipe.png")
    return folder


def test_paths_are_opened_below_the_allowed_folder_alone(server, pictures):
    """LAPA's form: a path on the server and an instruction."""
    body = plain(1)
    status, answer, _ = request(server, body={**body, "image": str(pictures / "day" / "one.png")})
    assert (status, "allow_paths" in answer["error"]) == (403, True), "refused unless allowed"
    with served.serve(allowed=pictures) as open_server:
        for path in (pictures / "day" / "one.png", "day/one.png", "./day//one.png"):
            status, answer, _ = request(open_server, body={**body, "image": str(path)})
            assert status == 200, answer
            assert np.array_equal(np.array(answer, np.float32), locally([1])[0][0])
        closed = {
            403: (
                "../secret.png",
                str(pictures.parent / "secret.png"),
                "link.png",
                "/etc/passwd",
                "day/../../secret.png",
                "",
                "day",
            ),
            404: ("none.png", "out/secret.png", "day/one.png/more"),
            400: ("text.png",),
            413: ("large.png", "wide.png"),
        }
        for wanted, paths in closed.items():
            for path in (*paths, "pipe.png") if wanted == 403 else paths:
                status, answer, _ = request(open_server, body={**body, "image": path})
                assert status == wanted, (path, answer)


def test_pictures_as_data_urls(server):
    text = png(served.observation(1)["pixels"]["front"])
    status, answer, _ = request(server, body={**plain(1), "image": text})
    assert status == 200
    assert np.array_equal(np.array(answer, np.float32), locally([1])[0][0])


def test_other_names_are_led_to_the_policys():
    names = {
        "observation/exterior_image_1_left": "front",
        "observation/joint_position": "state",
        "observation/gripper": None,
    }
    sent = openpi(1)
    sent = {
        **dict(zip(names, (sent["observation/front"], sent["observation/state"], np.zeros(1)))),
        "prompt": sent["prompt"],
    }
    with served.serve(rename=names) as server:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        assert np.array_equal(client.infer(sent)["actions"], locally([1])[0])


def test_refusals_name_the_key_and_what_is_wanted(server):
    wide = np.zeros((12, 16, 4), np.uint8)
    for body, words in {
        json_numpy.dumps({**openvla(1), "image": wide}): ("image", "uint8 [12, 16, 4]", "uint8 [H, W, 3]"),
        json_numpy.dumps({**openvla(1), "state": np.zeros(3)}): ("agent_pos", "[3]", "[2]: x, y"),
        json.dumps({**plain(1), "imgae": 1}): ("imgae", "did you mean 'image'"),
        json.dumps({k: v for k, v in plain(1).items() if k != "image"}): ("pixels.front is missing",),
        json.dumps({k: v for k, v in plain(1).items() if k != "state"}): ("agent_pos is missing", "x, y"),
    }.items():
        status, answer, _ = request(server, body=body.encode())
        assert status == 422
        assert all(word in answer["error"] for word in words), answer


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines", "", "env:NOT_THERE"])
def test_a_key_that_no_header_can_carry_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(ValueError, match=r"ASCII|empty key|no NOT_THERE"):
        sealed(key)
