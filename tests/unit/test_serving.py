"""The served policy's answers are the local policy's, bit for bit, in every form and for many clients at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import json_numpy
import msgpack
import numpy as np
import pytest
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.sync.client import connect

from tests import served
from tests.served import locally, observation, openpi, openvla, plain, request
from worldsim.core.errors import UserError
from worldsim.core.types import ActionSpec
from worldsim.serving.server import PolicyServer


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with served.serve() as server:
        yield server


def test_openvla_form(server):
    """json_numpy in, json_numpy out: the first row."""
    status, answer, _ = request(server, body=json_numpy.dumps({**openvla(3), "unnorm_key": "bridge_orig"}).encode())
    action = json_numpy.loads(json.dumps(answer))
    assert status == 200
    assert action.dtype == np.float32
    assert np.array_equal(action, locally([3])[0][0])


def test_openvla_form_double_encoded(server):
    status, answer, _ = request(server, body={"encoded": json_numpy.dumps(openvla(3))})
    assert status == 200
    assert isinstance(answer, str)
    assert np.array_equal(json_numpy.loads(answer), locally([3])[0][0])


def test_plain_lists_read_back_to_the_same_float32(server):
    status, answer, headers = request(server, body=plain(4))
    assert status == 200
    assert np.array_equal(np.array(answer, np.float32), locally([4])[0][0])
    assert headers["server-timing"].startswith("infer;dur=")
    _, answer, _ = request(server, body={**plain(4), "chunk": True})
    assert np.array_equal(np.array(answer["actions"], np.float32), locally([4])[0])


def test_our_own_keys_and_lerobots(server):
    ours = observation(5)
    lerobot = {
        "observation.images.front": ours["pixels"]["front"],
        "observation.state": ours["agent_pos"],
        "task": ours["task"],
    }
    for payload in (ours, lerobot):
        status, answer, _ = request(server, body=json_numpy.dumps(payload).encode())
        assert status == 200, answer
        assert np.array_equal(json_numpy.loads(json.dumps(answer)), locally([5])[0][0])


def test_openpi_client_gets_the_local_policys_episode(server):
    client = WebsocketClientPolicy("127.0.0.1", server.port)
    told = client.get_server_metadata()
    assert told["server"] == "worldsim"
    assert ActionSpec.from_json(told["action_spec"]) == served.SPEC
    answers = [client.infer(openpi(k)) for k in range(6)]
    for answer, wanted in zip(answers, locally(range(6))):
        assert answer["actions"].dtype == np.float32
        assert np.array_equal(answer["actions"], wanted)
        assert answer["server_timing"]["infer_ms"] > 0
    assert "prev_total_ms" in answers[1]["server_timing"]


def test_openpi_chunk_broker_plays_the_rows(server):
    broker = ActionChunkBroker(WebsocketClientPolicy("127.0.0.1", server.port), action_horizon=3)
    rows = [broker.infer(openpi(0))["actions"] for _ in range(3)]
    assert np.array_equal(np.stack(rows), locally([0])[0])


def test_a_message_can_begin_an_episode_with_a_seed(server):
    client = WebsocketClientPolicy("127.0.0.1", server.port)
    client.infer(openpi(9))
    assert client.infer({"reset": True, "seed": 5}) == {"reset": True}
    assert np.array_equal(client.infer(openpi(1))["actions"], locally([1], seed=5)[0])
    assert np.array_equal(client.infer({**openpi(2), "reset": True, "seed": 6})["actions"], locally([2], seed=6)[0])


def test_every_request_stands_alone_unless_a_session_is_named(server):
    one = [request(server, body=plain(k))[1] for k in (1, 2)]
    assert np.array_equal(np.array(one, np.float32), [locally([k])[0][0] for k in (1, 2)])
    by_field = [request(server, body={**plain(k), "session": "a"})[1] for k in (1, 2)]
    by_header = [request(server, body=plain(k), X_Session="b")[1] for k in (1, 2)]
    wanted = [rows[0] for rows in locally([1, 2])]
    assert not np.array_equal(wanted[1], locally([2])[0][0]), "the policy remembers"
    assert np.array_equal(np.array(by_field, np.float32), wanted)
    assert np.array_equal(np.array(by_header, np.float32), wanted)
    again = request(server, body={**plain(3), "session": "a", "reset": True, "seed": 8})[1]
    assert np.array_equal(np.array(again, np.float32), locally([3], seed=8)[0][0])
    assert request(server, body={"session": "a", "reset": True})[1] == {"reset": True}


@pytest.fixture
def slow_server() -> Iterator[PolicyServer]:
    """Its policy lets others run while it acts, and notices when they come in."""
    with served.serve(served.Remembering(pause=0.002)) as server:
        yield server


def test_concurrent_clients_get_their_own_answers(slow_server):
    """Eight clients of three kinds, each with its own episode, all at once; the policy runs one at a time."""
    server = slow_server
    steps, wrong, began = 12, [], threading.Barrier(8)

    def check(number: int, ask: Any) -> None:
        indices = [100 * number + k for k in range(steps)]
        began.wait()
        for index, wanted in zip(indices, locally(indices)):
            if not np.array_equal(ask(index, number), wanted):
                wrong.append((number, index))

    def by_socket(number: int) -> Any:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        return lambda index, _: client.infer(openpi(index))["actions"]

    def by_session(index: int, number: int) -> np.ndarray:
        answer = request(server, body={**plain(index), "session": f"client-{number}", "chunk": True})[1]
        return np.array(answer["actions"], np.float32)

    def alone(index: int, number: int) -> np.ndarray:
        mine, wanted = request(server, body={**plain(index), "chunk": True})[1], locally([index])[0]
        assert np.array_equal(np.array(mine["actions"], np.float32), wanted)
        return locally(range(100 * number, index + 1))[-1]

    asks = [by_socket(k) if k < 3 else by_session if k < 6 else alone for k in range(8)]
    threads = [threading.Thread(target=check, args=(k, ask)) for k, ask in enumerate(asks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_health_and_metadata(server):
    assert request(server, "/healthz")[:2] == (200, "OK\n")
    status, health, _ = request(server, "/health")
    assert status == 200
    assert health["status"] == "ok"
    before = health["answered"]
    request(server, body=plain(0))
    assert request(server, "/health")[1]["answered"] == before + 1
    _, told, _ = request(server, "/metadata")
    assert told["cameras"] == {"front": [12, 16]}
    assert told["state_names"] == ["x", "y"]
    assert told["fps"] == 10
    assert ActionSpec.from_json(told["action_spec"]) == served.SPEC
    assert request(server, "/")[1] == told


class Misbehaving(served.Remembering):
    """Raises, gives NaN or another width, as the task says."""

    def act(self, observation):
        task = observation.get("task", "")
        rows = np.zeros((1, 4 if task == "wide" else 3), np.float32)
        if task == "raise":
            raise RuntimeError("out of memory")
        if task == "refuse":
            raise UserError("the drawer is closed")
        return rows * np.nan if task == "nan" else rows


def test_a_policy_that_fails_fails_for_one_client_alone():
    with served.serve(Misbehaving()) as server:
        wanted = {"raise": 500, "nan": 500, "wide": 500, "refuse": 422, "": 200}
        for task, status in wanted.items():
            got, answer, _ = request(server, body={**plain(0), "instruction": task})
            assert got == status, (task, answer)
        assert "not finite" in request(server, body={**plain(0), "instruction": "nan"})[1]["error"]
        assert "drawer" in request(server, body={**plain(0), "instruction": "refuse"})[1]["error"]
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        with pytest.raises(RuntimeError, match="out of memory"):
            client.infer({**openpi(0), "prompt": "raise"})
        with pytest.raises(RuntimeError, match="not finite numbers; they are not sent"):
            WebsocketClientPolicy("127.0.0.1", server.port).infer({**openpi(0), "prompt": "nan"})
        assert request(server, body={**plain(0), "instruction": ""})[0] == 200


def test_a_policy_that_keeps_one_episode_serves_one_client_at_a_time():
    with served.serve(_Unforkable()) as server:
        first = connect(f"ws://{server.address}", proxy=None)
        assert isinstance(first.recv(), bytes)
        assert "one episode at a time" in connect(f"ws://{server.address}", proxy=None).recv()
        assert request(server, body=plain(0))[0] == 503
        first.close()
        deadline = time.monotonic() + 5
        while (status := request(server, body=plain(0))[0]) == 503 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert status == 200


class _Unforkable:
    """The same policy without ``fork``."""

    needs = served.NEEDS

    def __init__(self) -> None:
        self.inner = served.Remembering()

    def reset(self, seed: int | None = None) -> None:
        self.inner.reset(seed)

    def act(self, observation):
        return self.inner.act(observation)


def test_answers_under_way_are_given_when_the_server_is_told_to_stop():
    held = served.Held()
    with served.serve(held) as server, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(request, server, body={**plain(0), "instruction": "slow"})
        assert held.begun.wait(20)
        threading.Timer(0.2, held.release.set).start()
        server.stop()
        assert slow.result(20)[0] == 200
        with pytest.raises(ConnectionError):
            connect(f"ws://{server.address}", proxy=None)


def test_a_taken_port_is_said():
    with served.serve() as server, pytest.raises(UserError, match=f"--port {server.port}: cannot listen"):
        PolicyServer(server.service, port=server.port)


def test_our_packing_is_openpis():
    """Byte for byte what openpi's own package packs, and back."""
    from openpi_client import msgpack_numpy

    from worldsim.serving import msgpack_form
    from worldsim.serving.limits import Limits

    value = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.float32(1.5),
        "c": {"d": np.ones(2, bool)},
        "e": "x",
    }
    assert msgpack_form.packb(value) == msgpack_numpy.packb(value)
    back = msgpack_form.unpackb(msgpack_numpy.packb(value), Limits())
    assert back["b"] == np.float32(1.5)
    assert np.array_equal(back["a"], value["a"])
    assert np.array_equal(back["c"]["d"], value["c"]["d"])
    theirs = msgpack_numpy.unpackb(msgpack_form.packb(value))
    assert np.array_equal(theirs["a"], value["a"])
    assert msgpack.unpackb(msgpack_form.packb({"s": "ä"})) == {"s": "ä"}
