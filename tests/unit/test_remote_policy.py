"""``remote:URL`` acts as the served policy does here, bit for bit, and says clearly what is wrong with a server."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import json_numpy
import msgpack
import numpy as np
import pytest
from websockets.sync.server import serve as serve_socket

from tests import served, simulators
from tests.served import locally, observation
from worldsim import policies
from worldsim.core.errors import UserError
from worldsim.core.protocols import LearnedPolicy, SupportsFork, SupportsObserve
from worldsim.policies.remote import Remote
from worldsim.policies.scripted import Scripted
from worldsim.rollout import rollout
from worldsim.serving.server import PolicyServer
from worldsim.serving.service import Service

KINDS = ("http", "ws")


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with served.serve() as server:
        yield server


@pytest.fixture(params=KINDS)
def url(request, server) -> str:
    return f"{request.param}://{server.address}"


def test_episodes_are_the_local_policys(url):
    policy = policies.load(f"remote:{url}")
    assert isinstance(policy, LearnedPolicy)
    assert policy.needs.cameras == served.NEEDS.cameras
    assert policy.needs.action_spec == served.SPEC
    assert np.array_equal(policy.needs.low, served.NEEDS.low)
    for seed in (0, 3):
        policy.reset(seed)
        for index, wanted in zip(range(5), locally(range(5), seed)):
            rows = policy.act(observation(index))
            assert rows.dtype == np.float32
            assert np.array_equal(rows, wanted)


def test_two_remote_policies_remember_for_themselves(url):
    one = policies.load(f"remote:{url}")
    assert isinstance(one, SupportsFork)
    two = one.fork()
    one.reset(1)
    two.reset(2)
    mine, theirs = locally([0, 1, 2], 1), locally([9, 8, 7], 2)
    for k in range(3):
        assert np.array_equal(one.act(observation(k)), mine[k])
        assert np.array_equal(two.act(observation(9 - k)), theirs[k])


@pytest.mark.parametrize("kind", KINDS)
def test_a_simulated_episode_is_the_same_from_afar(kind):
    """A scripted policy that steers by what it sees and draws noise, in the loop of ``eval policy``."""
    env = simulators.tiny("pusht")
    near = Scripted.create("push", env, noise=0.2)
    with PolicyServer(Service(Scripted.create("push", env, noise=0.2), "push", action_spec=env.action_spec)) as server:
        far = policies.load(f"remote:{kind}://{server.address}", env=env)
        local, remote = (rollout(env, policy, seed=5, steps=15) for policy in (near, far))
    assert np.array_equal(np.stack(local.actions), np.stack(remote.actions))
    assert np.array_equal(np.stack(local.states), np.stack(remote.states))


class LooksBack(served.Remembering):
    """Wants every frame, whether it acts on it or not."""

    looks_back = True

    def observe(self, observation):
        super().act(observation)


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_that_looks_back_is_shown_the_frames_between(kind, server):
    with served.serve(LooksBack()) as back:
        policy = policies.load(f"remote:{kind}://{back.address}")
        assert isinstance(policy, SupportsObserve)
        assert policy.looks_back
        policy.reset(3)
        for index in (0, 1):
            policy.observe(observation(index))
        assert np.array_equal(policy.act(observation(2)), locally([0, 1, 2], 3)[2])
    assert not policies.load(f"remote:{kind}://{server.address}").looks_back


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_there_and_no_address(kind):
    with served.serve() as gone:
        address = gone.address
    with pytest.raises(UserError, match="cannot be reached") as error:
        policies.load(f"remote:{kind}://{address}")
    assert "robot serve" in error.value.command
    with pytest.raises(UserError, match="no address of a policy server"):
        policies.load(f"remote:{address}")
    with pytest.raises(UserError, match="did you mean 'seconds'"):
        policies.load(f"remote:{kind}://{address}?second=3")
    with pytest.raises(UserError, match="not a number of seconds"):
        policies.load(f"remote:{kind}://{address}?seconds=-3")


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_comes_from_the_environment(kind, monkeypatch):
    with served.serve(key="k") as server:
        with pytest.raises(UserError, match="API key"):
            policies.load(f"remote:{kind}://{server.address}")
        monkeypatch.setenv("WORLDSIM_API_KEY", "k")
        policy = policies.load(f"remote:{kind}://{server.address}")
        policy.reset(0)
        assert np.array_equal(policy.act(observation(1)), locally([1])[0])


def test_a_refusal_is_said_in_the_servers_words_and_a_reset_goes_on(url):
    policy = policies.load(f"remote:{url}")
    policy.reset(0)
    with pytest.raises(UserError, match=r"agent_pos: got float32 \[3\]; wanted float32 \[2\]: x, y"):
        policy.act({**observation(1), "agent_pos": np.zeros(3, np.float32)})
    policy.reset(4)
    assert np.array_equal(policy.act(observation(1)), locally([1], 4)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_comes_late_is_never_taken_for_another(kind):
    slow = served.Held()
    with served.serve(slow) as server:
        policy = policies.load(f"remote:{kind}://{server.address}?seconds=0.2")
        policy.reset(0)
        with pytest.raises(UserError, match=r"no answer within 0.2 s"):
            policy.act({**observation(1), "task": "slow"})
        slow.release.set()
        policy.address = replace(policy.address, seconds=60.0)
        policy.reset(0)
        assert np.array_equal(policy.act(observation(2)), locally([2])[0])


def test_a_server_that_ends_is_said(url, server):
    with served.serve() as short:
        policy = policies.load(f"remote:{url.partition(':')[0]}://{short.address}")
        policy.reset(0)
        policy.act(observation(1))
    with pytest.raises(UserError, match=r"closed the connection|cannot be reached"):
        policy.act(observation(1))


def test_rows_of_another_width_are_refused(server):
    env = simulators.tiny("pusht")
    policy = Remote.create(f"http://{server.address}", env)
    with pytest.raises(UserError, match="rows of 3 numbers; 2 are wanted"):
        policy.act(observation(1))


class Openvla(http.server.BaseHTTPRequestHandler):
    """A server as OpenVLA's: ``POST /act`` alone, ``"error"`` with status 200 where it fails."""

    answer: Callable[[dict], str]

    def do_POST(self) -> None:
        body = json_numpy.loads(self.rfile.read(int(self.headers["content-length"])))
        text = type(self).answer(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (lambda body: json_numpy.dumps(np.array([body["image"].mean(), len(body["instruction"]), 0.5])), None),
        (lambda body: json.dumps(json_numpy.dumps(np.array([body["image"].mean(), len(body["instruction"]), 0.5]))), None),
        (lambda body: json.dumps([float(body["image"].mean()), len(body["instruction"]), 0.5]), None),
        (lambda body: json.dumps("error"), "'error' instead of actions"),
        (lambda body: "<html>", "not JSON"),
        (lambda body: json.dumps([1.0, None]), "no row of actions|not all finite"),
        (lambda body: "[NaN, 1]", "not all finite"),
        (lambda body: json.dumps({"detail": "?"}), "no row of actions"),
    ],
)
def test_openvlas_own_server(answer, wanted):
    handler = type("Handler", (Openvla,), {"answer": staticmethod(answer)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as theirs:
        threading.Thread(target=theirs.serve_forever, daemon=True).start()
        policy = policies.load(f"remote:http://127.0.0.1:{theirs.server_port}")
        assert not isinstance(policy, LearnedPolicy)
        seen = observation(1)
        if wanted is None:
            expected = np.array([[seen["pixels"]["front"].mean(), len(seen["task"]), 0.5]], np.float32)
            assert np.array_equal(policy.act(seen), expected)
        else:
            with pytest.raises(UserError, match=wanted):
                policy.act(seen)
        theirs.shutdown()


def test_an_openpi_server_of_another_program():
    from openpi_client import msgpack_numpy

    def answer(line) -> None:
        line.send(msgpack.packb({}))
        for message in line:
            seen = msgpack_numpy.unpackb(message)
            if not seen["prompt"]:
                line.send("Traceback: no prompt")
                return
            line.send(msgpack_numpy.packb({"actions": seen["observation/front"][:2, 0].astype(np.float64), "extra": 1}))

    with serve_socket(answer, "127.0.0.1", 0) as theirs:
        threading.Thread(target=theirs.serve_forever, daemon=True).start()
        policy = policies.load(f"remote:ws://127.0.0.1:{theirs.socket.getsockname()[1]}")
        assert np.array_equal(policy.act(observation(3)), observation(3)["pixels"]["front"][:2, 0].astype(np.float32))
        with pytest.raises(UserError, match="no prompt"):
            policy.act({**observation(3), "task": ""})
        theirs.shutdown()
