"""``worldsim robot serve``: says where it is, answers as the policy does here, ends well on either signal, starts again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from tests import modality_twins, painted, simulators
from tests.conftest import ROOT
from tests.served import NEEDS, Remembering, request
from worldsim import policies
from worldsim.commands import robot_serve
from worldsim.commands._action_scale import TOKEN, scaled
from worldsim.commands._policy import open_policy
from worldsim.core.config import to_yaml
from worldsim.core.errors import UserError
from worldsim.core.files import read_json
from worldsim.core.runs import RunContext
from worldsim.core.types import ActionSpec, PolicyNeeds
from worldsim.data.action_bins import ActionBins
from worldsim.latent_actions import _twins
from worldsim.policies.scripted import Scripted
from worldsim.serving.server import PolicyServer


@contextmanager
def started(out: Path, *more: str) -> Iterator[tuple[subprocess.Popen, dict]]:
    """The command in a process of its own, and ``server.json`` once it listens."""
    words = ["robot", "serve", "--policy", "scripted:sine", "--port", "0", "--device", "cpu", "--out", str(out), *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "worldsim.cli.main", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not (out / "server.json").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[1]
        yield process, read_json(out / "server.json")
    finally:
        process.kill()
        process.communicate()


def test_it_serves_until_a_signal_and_then_again(tmp_path):
    out, env = tmp_path / "run", simulators.make("pusht")
    local = Scripted.create("sine", env)
    for number, stop in enumerate((signal.SIGINT, signal.SIGTERM), start=1):
        with started(out, "--set", "env=pusht", "--api-key", "hush hush") as (process, facts):
            assert facts["process"] == process.pid
            server = SimpleNamespace(address=facts["url"].removeprefix("http://"))
            assert request(server, body={"session": "s"})[0] == 401
            local.reset(0)
            for _ in range(3 * number):
                body = {"session": "s", "state": [1.0, 2.0]}
                status, answer, _ = request(server, body=body, Authorization="Bearer hush hush")
                assert status == 200
                assert np.array_equal(np.array(answer, np.float32), local.act({})[0])
            process.send_signal(stop)
            said = process.stderr.read()
            assert process.wait(60) == 0, said
        assert facts["url"] in said
        result = read_json(out / "result.json")
        assert result["status"] == "done"
        assert result["metrics"]["answers"] == {"200": 3 * number, "401": 1}
        assert not (out / "server.json").exists()
    assert "hush" not in (out / "config.yaml").read_text(), "a record holds no key"


def test_a_second_server_of_the_same_folder_keeps_its_address(tmp_path):
    """Who ends takes back only what it wrote."""
    path = tmp_path / "server.json"
    for process, left in ((os.getpid() + 1, True), (os.getpid(), False)):
        path.write_text(json.dumps({"process": process}))
        robot_serve._withdraw(path)
        robot_serve._withdraw(tmp_path / "nothing.json")
        assert path.exists() == left


def test_the_smoke_recipe(worldsim):
    code, stdout, stderr = worldsim("robot", "serve", "--config", "smoke", "--device", "cpu", "--out", "run")
    assert code == 0, stderr
    assert "0 requests answered" in stdout
    assert "serving scripted:sine on http://127.0.0.1:" in stderr


def test_a_trained_policy_acts_from_afar_as_here(tmp_path):
    """The arm that remembers frames: two clients in turn, each with its own memory, bit for bit."""
    env = simulators.tiny("pusht")
    run = modality_twins.write(tmp_path / "run", env, arm="C_hist")
    config = robot_serve.Config(policy=str(run), port=0)
    service = robot_serve._service(config, RunContext("robot-serve", tmp_path / "serve"))
    shown = [env.reset(seed=seed)[0] for seed in range(8)]
    wanted = []
    for frames in (shown[:4], shown[4:]):
        policy = open_policy(str(run))
        policy.reset(0)
        wanted.append([policy.act(seen) for seen in frames])
    with PolicyServer(service) as server:
        told = request(server, "/metadata")[1]
        assert told["looks_back"] is True
        assert told["digest"]
        assert told["state_names"] == list(env.state_names)
        camera = next(iter(told["cameras"]))
        clients = [WebsocketClientPolicy("127.0.0.1", server.port) for _ in range(2)]
        far = policies.load(f"remote:http://{server.address}", env=env)
        far.reset(0)
        for k in range(4):
            for client, frames, rows in zip(clients, (shown[:4], shown[4:]), wanted):
                seen = frames[k]
                sent = {f"observation/{camera}": seen["pixels"][camera], "observation/state": seen["agent_pos"]}
                assert np.array_equal(client.infer(sent)["actions"], rows[k])
            assert np.array_equal(far.act(shown[k]), wanted[0][k])


class Tokens(Remembering):
    """Answers with the tokens that the state holds."""

    def act(self, observation):
        return np.asarray(observation["agent_pos"], np.float32)[None]


def test_action_scale_turns_tokens_into_physical_actions(tmp_path):
    """LAPA's rule: the middle of the bin; a token that no bin has is refused and never 1.0."""
    names = ("x", "y", "gripper")
    edges = (np.array([-0.3, 0.1, 0.2]), np.array([0.0, 1.0, 4.0]), np.array([-0.5, 0.5, 1.5]))
    ActionBins(names, edges, gripper=2).save_csv(tmp_path / "scale.csv")
    lapa = ActionBins.load_csv(tmp_path / "scale.csv", names)
    lapa.save_json(tmp_path / "scale.json")
    spec = ActionSpec(names, (TOKEN,) * 3, rate=10.0)
    policy = scaled(Tokens(PolicyNeeds({}, ("a", "b", "c"), spec, 10.0)), tmp_path / "scale.json", "mine")
    policy.reset(0)
    rows = policy.act({"agent_pos": [1, 0, 1]})
    assert np.allclose(rows, [[0.15, 0.5, 1.0]])
    assert rows.dtype == np.float32
    assert TOKEN not in policy.needs.action_spec.units
    assert np.array_equal(policy.fork().act({"agent_pos": [1, 0, 1]}), rows)
    with pytest.raises(UserError, match="action token 2 of 'x'"):
        policy.act({"agent_pos": [2, 0, 1]})
    with pytest.raises(UserError, match="physical units, not action tokens"):
        scaled(Remembering(NEEDS), tmp_path / "scale.json", "mine")
    with pytest.raises(UserError, match="7 were expected"):
        scaled(Tokens(PolicyNeeds({}, (), spec, 10.0)), tmp_path / "scale.csv", "mine")


def test_mistakes_are_said_in_one_sentence(worldsim, tmp_path, monkeypatch):
    sine = ("robot", "serve", "--policy", "scripted:sine", "--set", "env=pusht", "--device", "cpu", "--out", "run")
    with PolicyServer(robot_serve.Service(Remembering(), "x")) as taken:
        port = taken.port
        for words, said in {
            ("robot", "serve", "--out", "run"): "no policy was named",
            (*sine, "--port", "99999"): "between 0 and 65535",
            (*sine, "--port", str(port)): f"--port {port}: cannot listen",
            (*sine, "--set", "allow_paths=nowhere"): "allow_paths: nowhere is no folder",
            (*sine, "--api-key", "env:NO_SUCH_KEY"): "no NO_SUCH_KEY",
            (*sine, "--host", "no.such.host.invalid"): "cannot listen",
            (*sine, "--action-scale", "scale.csv"): "physical units",
            (*sine, "--policy", "scripted:push"): "looks into its environment",
            (*sine, "--remote"): "cannot run with --remote",
        }.items():
            code, _, stderr = worldsim(*words)
            assert code == 1
            assert said in stderr, stderr
            assert len(stderr.splitlines()) <= 2
    monkeypatch.setenv("MY_KEY", "k" * 20)
    kept = to_yaml(robot_serve.Config(policy="x", api_key="env:MY_KEY"))
    assert "sha256:" in kept
    assert "k" * 20 not in kept


@pytest.mark.parametrize("kind", ["act", "diffusion"])
def test_a_lerobot_policy_acts_from_afar_as_here(kind, tmp_path):
    """Diffusion keeps two observations in queues of its own: two clients in turn must not meet in them."""
    loaded, cameras = getattr(_twins, kind)()[1], ("cam_front", "cam_top")
    for part in (loaded.policy, loaded.preprocessor, loaded.postprocessor):
        part.save_pretrained(tmp_path)
    here, episode = open_policy(str(tmp_path)), painted.episode(num_frames=8)
    shown = [
        {"pixels": {c: episode.frames[c].rows([t])[0] for c in cameras}, "agent_pos": np.float32(episode.states[t])}
        for t in range(8)
    ]
    wanted = []
    for frames in (shown[:4], shown[4:]):
        here.reset(0)
        wanted.append([here.act(seen) for seen in frames])
    service = robot_serve._service(robot_serve.Config(policy=str(tmp_path)), RunContext("robot-serve", tmp_path))
    with PolicyServer(service) as server:
        clients = [policies.load(f"remote:{scheme}://{server.address}") for scheme in ("ws", "http")]
        for client in clients:
            client.reset(0)
        for k in range(4):
            for client, frames, rows in zip(clients, (shown[:4], shown[4:]), wanted):
                assert np.array_equal(client.act(frames[k]), rows[k])
