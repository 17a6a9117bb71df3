"""A trained arm as a policy: the chunk of the batch route, bit for bit; its history; what it needs; its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from worldsim.core.errors import UserError
from worldsim.core.protocols import LearnedPolicy, SupportsFork
from worldsim.core.types import ActionSpec
from worldsim.data.policy_windows import PolicyEpisodes, PolicyWindows, Scaling
from worldsim.policies import _world_modality_files as files
from worldsim.policies._world_modality_arms import ARMS
from worldsim.policies._world_modality_card import ModalityCard
from worldsim.policies._world_modality_sizes import NetSpec
from worldsim.policies.world_modality import WorldModality
from worldsim.tokenizers.kmeans import KMeans
from worldsim.train import checkpoint

FRAMES = 14


def recording(states: bool = True) -> tuple[np.ndarray, PolicyEpisodes, KMeans]:
    """Frames uint8 ``[T, 32, 32, 3]``, and the same as rows that a policy is trained on."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (FRAMES, 32, 32, 3), np.uint8)
    tokenizer = KMeans.tiny()
    embeddings = tokenizer.embed(frames)
    rows = PolicyEpisodes(
        actions={"a": rng.normal(3, 2, (FRAMES, 4)).astype(np.float32)},
        tokens={"a": tokenizer.assign(embeddings).numpy().astype(np.int32)},
        embeddings={"a": embeddings.numpy()},
        states={"a": rng.normal(-1, 5, (FRAMES, 3)).astype(np.float32)} if states else {},
    )
    return frames, rows, tokenizer


def policy(arm: str = "C_hist", *, states: bool = True, **more: object) -> tuple[WorldModality, np.ndarray, PolicyEpisodes]:
    frames, rows, tokenizer = recording(states)
    scaling = Scaling.fit(rows)
    sizes = {"d_model": 64, "layers": 2, "heads": 4, "inner": 128, "dropout": 0.1}
    width = 3 if states else 0
    net = NetSpec(arm, 3, 4, 4, width, 4, tokenizer.dim, tokenizer.frame_tokens, tokenizer.codes, **sizes)
    values = {
        "net": net,
        "scaling": scaling,
        "camera": "cam",
        "cameras": {"cam": (32, 32)},
        "fps": 10.0,
        "state_names": tuple(f"joint_{k}" for k in range(width)),
        "action_spec": ActionSpec.unknown(4, 10.0),
        "tokenizer": {"codebook_hash": tokenizer.codebook_hash},
    }
    card = ModalityCard(**{**values, **more})
    return WorldModality(files.net_of(card, 3), card, tokenizer), frames, rows


def shown(frames: np.ndarray, rows: PolicyEpisodes, t: int) -> dict:
    return {"pixels": {"cam": frames[t]}, **({"agent_pos": rows.states["a"][t]} if rows.states else {})}


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "C_oracle"])
def test_acting_gives_the_chunk_of_the_batch_route_bit_for_bit(tmp_path, arm, states):
    """Through the checkpoint on disk: frames one by one on one side, all windows of columns in one batch on the other."""
    made, frames, rows = policy(arm, states=states)
    write(made, tmp_path)
    actor = WorldModality.load(tmp_path, tokenizer=made.tokenizer)
    windows = PolicyWindows(actor.card.spec, rows, actor.card.scaling)
    said = actor.net.predict(windows.batch(np.arange(len(windows))))
    batched = dict(zip(windows.start_of.tolist(), actor.chunks(said)))
    assert len(batched) == FRAMES - 2 - 4
    actor.reset(7)
    for t in range(FRAMES):
        chunk = actor.act(shown(frames, rows, t))
        assert chunk.dtype == np.float32
        assert chunk.shape == (4, 4)
        if t in batched:
            assert np.array_equal(chunk, batched[t])
            assert np.array_equal(actor.last_world["token"], rows.tokens["a"][t])


def write(made: WorldModality, run: Path) -> None:
    tensors = dict(made.net.named_parameters())
    checkpoint.write_checkpoint(run / "checkpoint", tensors, made.card.to_json(), 1)


def test_an_epoch_s_file_is_the_same_policy(tmp_path):
    made, frames, rows = policy()
    path = files.epoch_file(tmp_path, "C_hist", 3)
    files.write_epoch(path, made.net, {"arm": "C_hist"}, made.card, {"centroids": made.tokenizer.centroids})
    assert path.relative_to(tmp_path).as_posix() == "logs/model_C_hist_epoch3.pt"
    whole = torch.load(path, weights_only=True)
    assert whole.keys() == {"model_state_dict", "config", "meta"}
    first = {"model_type", "state_dim", "action_dim", "img_emb_dim", "world_vocab_size", "action_horizon", "future_offset"}
    later = {
        "transformer",
        "normalisation",
        "tokenizer",
        "fps",
        "camera",
        "action_names",
        "action_units",
        "split",
        "git_sha",
    }
    assert first | later <= whole["meta"].keys()
    assert whole["meta"]["world_vocab_size"] == made.tokenizer.codes
    again = WorldModality.load(path, tokenizer=made.tokenizer)
    assert np.array_equal(again.act(shown(frames, rows, 0)), made.act(shown(frames, rows, 0)))


def test_history_is_of_consecutive_frames_whether_it_acts_on_them_or_not():
    actor, frames, rows = policy()
    assert isinstance(actor, LearnedPolicy)
    assert isinstance(actor, SupportsFork)
    assert actor.looks_back
    every = [actor.act(shown(frames, rows, t)) for t in range(6)]
    actor.reset()
    for t in range(5):
        actor.observe(shown(frames, rows, t))
    assert np.array_equal(actor.act(shown(frames, rows, 5)), every[5])
    actor.reset()
    assert not np.array_equal(actor.act(shown(frames, rows, 5)), every[5]), "frames 3 and 4 count"
    dream = {"frames": {"cam": frames[:6]}, "states": rows.states["a"][:6], **shown(frames, rows, 5)}
    assert np.array_equal(actor.act(dream), every[5]), "a dream shows all frames so far"


def test_before_the_first_frames_the_first_one_stands():
    actor, frames, rows = policy()
    first = actor.act(shown(frames, rows, 4))
    for _ in range(2):
        again = actor.act(shown(frames, rows, 4))
    assert np.array_equal(first, again)


def test_forks_act_in_turn_without_meeting():
    one, frames, rows = policy()
    alone = [one.act(shown(frames, rows, t)) for t in range(4)]
    one.reset()
    two = one.fork()
    for t in range(4):
        assert np.array_equal(one.act(shown(frames, rows, t)), alone[t])
        two.act(shown(frames, rows, FRAMES - 1 - t))
    assert two.net is one.net


def test_a_stack_of_cameras_is_put_together_as_in_training():
    actor, frames, _ = policy(camera="up+down", cameras={"up": (16, 32), "down": (20, 40)})
    views = {"down": np.zeros((20, 40, 3), np.uint8), "up": frames[0, :16]}
    picture = actor._picture({"pixels": views})
    assert picture.shape == (32, 32, 3)
    assert np.array_equal(picture[:16], frames[0, :16])
    assert not picture[16:].any()


def test_what_does_not_fit_is_refused_by_name():
    actor, frames, rows = policy()
    with pytest.raises(UserError, match="camera 'cam'"):
        actor.act({"pixels": {"other": frames[0]}, "agent_pos": np.zeros(3)})
    with pytest.raises(UserError, match="state of 3 numbers"):
        actor.act({"pixels": {"cam": frames[0]}})
    with pytest.raises(UserError, match="state of 3 numbers"):
        actor.act({"pixels": {"cam": frames[0]}, "agent_pos": np.zeros(2)})
    other = KMeans.tiny(1)
    with pytest.raises(UserError, match="codebook"):
        WorldModality(actor.net, actor.card, other)
    oracle, _, _ = policy("C_oracle")
    with pytest.raises(UserError, match="true future"):
        oracle.act(shown(frames, rows, 0))


def test_damaged_files_are_named(tmp_path):
    made, _, _ = policy("C")
    write(made, tmp_path)
    card = made.card.to_json()
    wrong = dataclasses.replace(made.card, net=dataclasses.replace(made.card.net, inner=64)).to_json()
    for change, match in (
        ({**card, "version": 9}, "version 9"),
        ({**card, "policy": "lapa"}, "no card"),
        ({**card, "sampling": 1}, "no card"),
        (wrong, "tensor encoder"),
    ):
        files_json = tmp_path / "checkpoint" / "card.json"
        checkpoint.write_json(files_json, change)
        with pytest.raises(UserError, match=match):
            WorldModality.load(tmp_path)
    (tmp_path / "model_C_epoch1.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no epoch"):
        WorldModality.load(tmp_path / "model_C_epoch1.pt")
