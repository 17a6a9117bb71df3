"""Rollouts of a Wan: exactly n frames, from their own actions, noise and history."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from tests.wan_nets import TWINS
from worldsim.core.errors import UserError
from worldsim.data.transforms import Normalize
from worldsim.encoders.wan_vae import WanVAE
from worldsim.nn.action_embedder import ActionEmbedder
from worldsim.world_models._wan_card import Sampling
from worldsim.world_models._wan_geometries import resolve
from worldsim.world_models._wan_rollout import Imagination
from worldsim.world_models.wan import Wan


@pytest.mark.parametrize("twin", TWINS)
def test_exactly_n_frames_for_n_actions(twin):
    model = Wan.tiny(twin)
    context = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 64, 3), np.uint8)
    for n in (1, 8, 9, 13):
        actions = np.zeros((2, n, 1, 2), np.float32)
        video = model.rollout(context, actions, num_samples=2)
        assert video.shape == (2, 2, n, 32, 64, 3)
        assert video.dtype == np.uint8


def test_rollouts_are_decided_by_seed_sample_and_chunk():
    model = Wan.tiny()
    rng = np.random.default_rng(0)
    context = rng.integers(0, 256, (2, 5, 32, 64, 3), np.uint8)
    actions = rng.normal(size=(2, 11, 1, 2)).astype(np.float32)
    video = model.rollout(context, actions, num_samples=2, seeds=[7, 8])
    again = Wan.tiny().rollout(context, actions, num_samples=2, seeds=[7, 8])
    assert np.array_equal(video, again)
    swapped = model.rollout(context[::-1], actions[::-1], num_samples=3, seeds=[8, 7])[::-1]
    assert np.abs(swapped[:, :2].astype(int) - video).max() <= 1
    assert not np.array_equal(video[:, 0], video[:, 1])
    assert not np.array_equal(model.rollout(context, actions, seeds=[9, 8])[0], video[0, :1])
    # a longer wish does not change the chunks before its last one
    longer = np.concatenate([actions, actions], axis=1)
    more = model.rollout(context, longer, num_samples=2, seeds=[7, 8])
    assert np.array_equal(more[:, :, :8], video[:, :, :8])


def test_later_chunks_see_what_earlier_ones_imagined(monkeypatch):
    model = Wan.tiny()
    encoded = []
    encode = WanVAE.encode
    monkeypatch.setattr(
        WanVAE, "encode", lambda self, frames, pad_to=0: encoded.append(frames) or encode(self, frames, pad_to)
    )
    context = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 64, 3), np.uint8)
    video = model.rollout(context, np.zeros((1, 17, 1, 2), np.float32))[0]
    assert [e.shape[1] for e in encoded] == [1, 5, 5, 5]  # frames per chunk: 8, 4, 4, 4
    assert np.array_equal(encoded[0][0], context[0])
    assert np.array_equal(encoded[1], video[:, 3:8])
    assert np.array_equal(encoded[3], video[:, 11:16])


@pytest.fixture
def chunks(monkeypatch):
    """What each chunk of a rollout was handed: (actions, noise), in order."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    chunk = Imagination._chunk

    def spy(self, past, actions, history, noise, text):
        seen.append((actions.clone(), noise.clone()))
        return chunk(self, past, actions, history, noise, text)

    monkeypatch.setattr(Imagination, "_chunk", spy)
    return seen


def roll(model: Wan, actions: np.ndarray, seeds: list[tuple[int, int]]) -> np.ndarray:
    """One rollout per (seed, sample), past the normalisation of actions."""
    context = np.zeros((len(seeds), 1, 32, 64, 3), np.uint8)
    rows = np.repeat(actions[None].astype(np.float32), len(seeds), 0)
    text = torch.zeros(len(seeds), model.net.geometry.text_tokens, 32)
    return Imagination(model.net, model.card, model.vae, lambda: None, model.device).roll(context, rows, seeds, text)


def test_each_chunk_takes_the_actions_of_its_own_frames(chunks):
    """Row t of a chunk drives its frame t + 1: rows of given frames are filled, the last row is repeated to the end."""
    values = np.arange(15)
    roll(Wan.tiny(), np.stack([values, 100 + values], -1)[:, None], [(0, 0)])
    assert [actions.shape for actions, _ in chunks] == [(1, 8, 1, 2)] * 3
    assert [actions[0, :, 0, 0].tolist() for actions, _ in chunks] == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [8, 8, 8, 8, 8, 9, 10, 11],
        [12, 12, 12, 12, 12, 13, 14, 14],
    ]
    assert all(torch.equal(actions[..., 1], actions[..., 0] + 100) for actions, _ in chunks)


def test_noise_is_new_in_every_chunk_and_follows_from_seed_sample_and_chunk(chunks):
    model, actions, clips = Wan.tiny(), np.zeros((10, 1, 2)), [(7, 0), (7, 1), (8, 0)]
    roll(model, actions, clips)
    noise = {(*clip, at): drawn[i] for at, (_, drawn) in enumerate(chunks) for i, clip in enumerate(clips)}
    assert len(noise) == 6
    for one, other in combinations(noise, 2):
        correlation = torch.corrcoef(torch.stack([noise[one].flatten(), noise[other].flatten()]))[0, 1]
        assert abs(correlation) < 0.3, (one, other)
    chunks.clear()
    roll(model, actions, [(8, 0), (7, 1)])  # in other company
    for at, (_, drawn) in enumerate(chunks):
        assert torch.equal(drawn[0], noise[8, 0, at])
        assert torch.equal(drawn[1], noise[7, 1, at])


@pytest.mark.parametrize(("guidance", "forwards"), [(1.0, 1), (2.0, 2)])
def test_one_forward_per_step_when_guidance_is_off(guidance, forwards):
    model = Wan.tiny()
    model.set_sampling(steps=3, guidance=guidance)
    calls = []
    model.net.register_forward_hook(lambda *a: calls.append(1))
    model.rollout(np.zeros((1, 1, 32, 64, 3), np.uint8), np.zeros((1, 4, 1, 2), np.float32))
    assert len(calls) == 3 * forwards


def test_guidance_moves_the_video():
    model, context = Wan.tiny(), np.zeros((1, 1, 32, 64, 3), np.uint8)
    actions = np.ones((1, 4, 1, 2), np.float32)
    plain = model.rollout(context, actions)
    model.set_sampling(guidance=6.0)
    assert not np.array_equal(model.rollout(context, actions), plain)
    model.set_sampling(guidance=1.0)
    assert np.array_equal(model.rollout(context, actions), plain)


@pytest.mark.parametrize("frames", [1, 4, 5, 10])
def test_reconstruct_is_the_codec_alone(frames):
    truth = np.random.default_rng(0).integers(0, 256, (2, frames, 32, 64, 3), np.uint8)
    out = Wan.tiny().reconstruct(truth)
    assert out.shape == truth.shape
    whole = -(-(frames - 1) // 4) * 4 + 1
    vae = resolve("tiny-ti2v").vae("cpu")
    padded = np.concatenate([truth, np.repeat(truth[:, -1:], whole - frames, 1)], 1)[:1]
    assert np.array_equal(out[:1], vae.decode(vae.encode(padded))[:, :frames])


def test_instructions_change_the_video():
    model, context = Wan.tiny(), np.zeros((1, 1, 32, 64, 3), np.uint8)
    actions = np.ones((1, 4, 1, 2), np.float32)
    silent = model.rollout(context, actions)
    model.set_instructions([None])
    assert np.array_equal(model.rollout(context, actions), silent)
    model.set_instructions(["push the block"])
    assert not np.array_equal(model.rollout(context, actions), silent)
    model.set_instructions(["a", "b"])
    with pytest.raises(UserError, match="2 instructions were set for 1"):
        model.rollout(context, actions)


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("history", [1, 2])
def test_a_chunks_conditioning_is_that_of_training_on_the_same_rows(chunks, history, sums):
    """Training knows the rows that led to given frames, a rollout's later chunks do not: it must not matter."""
    torch.manual_seed(0)
    model = Wan.tiny()
    model.card = replace(model.card, histories=(history,))
    rows, width = model.net.spec.rows_per_frame, model.net.geometry.width
    model.net.conditioner = ActionEmbedder(4 * rows, 2, width, 16, sums=sums).requires_grad_(False)
    torch.nn.init.normal_(model.net.conditioner.net[-1].weight)
    actions = np.random.default_rng(0).normal(size=(20, 1, 2)).astype(np.float32)
    context = np.zeros((1, 1 + 4 * (history - 1), 32, 64, 3), np.uint8)
    text = torch.zeros(1, model.net.geometry.text_tokens, 32)
    imagination = Imagination(model.net, model.card, model.vae, lambda: None, model.device)
    imagination.roll(context, actions[None], [(0, 0)], text)
    step, before = 8 - 4 * (history - 1), 4 * (history - 1)
    assert len(chunks) == -(-20 // step)
    for at, (handed, _) in enumerate(chunks[:-1]):
        if at * step < before:
            continue  # what led to the context is not among the rows
        true = torch.from_numpy(actions[at * step - before : at * step + step])[None]
        assert torch.equal(model.net.conditioner(handed, history), model.net.conditioner(true, history))


def test_the_net_is_told_normalised_actions(chunks):
    """Physical rows in, (x - shift) / scale in the chunk, with another shift and scale for each number."""
    model, actions = Wan.tiny(), np.random.default_rng(0).normal(size=(1, 8, 1, 2)).astype(np.float32)
    shift, scale = np.array([3.0, -1.0]), np.array([0.5, 4.0])
    model.card = replace(model.card, normalize=Normalize(shift, scale, None, "mean-std"))
    model.rollout(np.zeros((1, 1, 32, 64, 3), np.uint8), actions)
    assert chunks[0][0].numpy() == pytest.approx((actions - shift) / scale, abs=1e-6)


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_a_rollout_is_sampled_at_the_cards_shifted_times(shift):
    model, times = Wan.tiny(), []
    model.card = replace(model.card, sampling=Sampling(steps=4, guidance=1.0, shift=shift))
    model.net.register_forward_pre_hook(lambda net, inputs: times.append(float(inputs[1][0])))
    model.rollout(np.zeros((1, 1, 32, 64, 3), np.uint8), np.zeros((1, 8, 1, 2), np.float32))
    assert times == pytest.approx([1000 * shift * u / (1 + (shift - 1) * u) for u in (1.0, 0.75, 0.5, 0.25)])
