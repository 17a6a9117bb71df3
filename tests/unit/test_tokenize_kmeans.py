"""`tokenize-world --tokenizer kmeans`: row t is frame t, in every format; nothing held out reaches the codebook."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import moving, painted
from worldsim import tokenizers
from worldsim.commands import _world_frames, _world_tokens, eval_tokens, tokenize_world
from worldsim.core import registry
from worldsim.core.config import build, load_recipe
from worldsim.core.errors import BadEpisode, PartialResult, UserError
from worldsim.core.runs import RunContext
from worldsim.core.types import ActionSpec, Episode, FrameStream
from worldsim.data import columns
from worldsim.data.split import split_episodes
from worldsim.formats import open_dataset
from worldsim.tokenizers.kmeans import KMeans

EPISODES, FRAMES = 4, 20
POSE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
UNITS = ("m", "m", "m", "rad", "rad", "rad", "1")
ARM = replace(
    painted.card(("cam",)),
    actions=ActionSpec(POSE, UNITS, "delta", "end-effector", "base", gripper=6, gripper_open=1.0),
    state_names=POSE,
)
FORMATS = [name for name in registry.names("formats") if registry.get("formats", name).lacks(ARM) is None]


def write(folder: Path, name: str = "act-hdf5", *, changed: tuple[str, ...] = (), episodes: int = EPISODES) -> Path:
    """A painted dataset in a format; the frames of ``changed`` episodes are inverted."""
    writer = registry.get("formats", name).create(folder, ARM)
    for index in range(episodes):
        episode = painted.episode(index, FRAMES + index, ("cam",))
        episode.actions[:, 6] = episode.states[:, 6] = np.arange(FRAMES + index) // 4 % 2
        if episode.id in changed:
            frames = 255 - episode.frames["cam"].read()
            episode = replace(episode, frames={"cam": FrameStream.of(frames)})
        writer.commit(writer.stage(episode))
    writer.finalize(ARM)
    return folder


def run(out: Path, data: Path, context: RunContext | None = None, **values):
    out.mkdir(parents=True, exist_ok=True)
    return tokenize_world.run(_config(data, **values), context or RunContext("tokenize-world", out))


def _config(data: Path, **values) -> tokenize_world.Config:
    _, recipe = load_recipe("tokenize-world", "kmeans_smoke")
    return build(tokenize_world.Config, {**recipe, "data": str(data), "num_tokens": 8, **values})


def opened(data: Path, result) -> tuple[columns.Column, columns.Column]:
    embeddings, tokens = (columns.Column(data / path) for path in result.metrics["columns"])
    return embeddings, tokens


def test_the_formats_that_are_written_are_all_there() -> None:
    assert set(FORMATS) >= {"act-hdf5", "bridge", "lapa", "lerobot", "oxe-npz"}


@pytest.mark.parametrize("name", FORMATS)
def test_row_t_is_frame_t_in_every_format(tmp_path: Path, name: str) -> None:
    """Frame t of an episode, read and embedded by itself, gives row t of the columns; the number painted into it is t."""
    data = write(tmp_path / "data", name, episodes=3)
    result = run(tmp_path / "run", data, batch=7)
    tokenizer, (embeddings, tokens) = tokenizers.load(tmp_path / "run"), opened(data, result)
    source = open_dataset(data)
    assert embeddings.keys() == tokens.keys() == sorted(source.ids())
    for index, episode in enumerate(source.ids()):
        frames = source.episode(index).frames[result.metrics["camera"]].read()
        stored, told = embeddings.load(episode), tokens.load(episode)
        assert [painted.read_index(frame) % 1000 for frame in frames] == list(range(len(frames)))
        assert stored.shape == (len(frames), 1, tokenizer.dim)
        assert (stored.dtype, told.dtype) == (np.float16, np.int32)
        for t in (0, 6, 7, len(frames) - 1):
            alone = tokenizer.embed(frames[t][None])[0].numpy()
            assert np.abs(alone.astype(float) - stored[t].astype(float)).max() < 0.02
            gaps = np.abs(stored.astype(float) - alone.astype(float)).max((1, 2))
            assert gaps.argmin() == t
        assert np.array_equal(tokenizer.assign(np.array(stored)), told)


def test_held_out_frames_never_reach_the_codebook(tmp_path: Path) -> None:
    """Their pictures inverted: centroids stay the same to the bit, a training frame's do not."""
    names = [f"episode_{k:06d}" for k in range(EPISODES)]
    plain = open_dataset(write(tmp_path / "plain"))
    split = split_episodes(plain.ids(), plain.card.splits)
    by_rank = dict(zip(plain.ids(), names))
    held_out = tuple(by_rank[name] for name in split.held_out)
    assert held_out
    others = write(tmp_path / "others", changed=held_out)
    trained = write(tmp_path / "trained", changed=(by_rank[split.train[0]],))
    found = {}
    for data in (tmp_path / "plain", others, trained):
        run(tmp_path / f"run-{data.name}", data)
        found[data.name] = tokenizers.load(tmp_path / f"run-{data.name}")
    assert found["plain"].centroids.numpy().tobytes() == found["others"].centroids.numpy().tobytes()
    assert found["plain"].pictures.numpy().tobytes() == found["others"].pictures.numpy().tobytes()
    assert found["plain"].centroids.numpy().tobytes() != found["trained"].centroids.numpy().tobytes()
    assert found["plain"].about["fitted_on"] == split.train


def test_the_pictures_are_the_nearest_training_frames(tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    result = run(tmp_path / "run", data)
    tokenizer, (embeddings, _) = tokenizers.load(tmp_path / "run"), opened(data, result)
    source, book = open_dataset(data), tokenizer.centroids.numpy().astype(np.float64)
    at = {name: k for k, name in enumerate(source.ids())}
    rows = [(name, t) for name in tokenizer.about["fitted_on"] for t in range(len(embeddings.load(name)))]
    flat = np.stack([embeddings.load(name)[t, 0] for name, t in rows]).astype(np.float64)
    for code in range(tokenizer.codes):
        name, t = rows[((flat - book[code]) ** 2).sum(1).argmin()]
        frame = source.episode(at[name]).frames["cam"].rows([t])[0]
        assert tokenizer.pictures.shape[1:] == (32, 64, 3)
        shown = tokenizer.pictures[code].numpy().astype(float)
        assert np.abs(shown - frame.reshape(32, 2, 64, 2, 3).mean((1, 3))).mean() < 12  # the same picture at half its size


def test_the_experiments_own_files(tmp_path: Path) -> None:
    """Names, shapes and dtypes; row = LeRobot's own ``index`` of the frame; one codebook for every split."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = write(tmp_path / "data", "lerobot")
    result = run(tmp_path / "run", data)
    folder = tmp_path / "run" / "cache" / open_dataset(data).card.name
    manifest = json.loads((folder / "manifest.json").read_text())
    tokenizer, (embeddings, tokens) = tokenizers.load(tmp_path / "run"), opened(data, result)
    frames = LeRobotDataset("painted", data).hf_dataset.with_format("numpy")
    order = {name: k for k, name in enumerate(open_dataset(data).ids())}
    assert sorted(Path(name).name for name in result.metrics["cache"]) == sorted(p.name for p in folder.iterdir())
    for part in ("train", "test"):
        rows = np.load(folder / f"{part}_embeddings.fp16.npy")
        told = np.load(folder / f"{part}_world_tokens.int.npy")
        book = np.load(folder / f"{part}_codebook_centroids.f32.npy")
        assert (rows.dtype, told.dtype, book.dtype) == (np.float16, np.int32, np.float32)
        assert rows.shape == (len(frames), tokenizer.dim)
        assert told.shape == (len(frames),)
        assert np.array_equal(book, tokenizer.centroids.numpy())
        mine = np.zeros(len(frames), bool)
        for name in manifest["splits"][part]:
            at = np.asarray(frames["index"])[np.asarray(frames["episode_index"]) == order[name]]
            mine[at] = True
            assert np.array_equal(rows[at], embeddings.load(name)[:, 0])
            assert np.array_equal(told[at], tokens.load(name)[:, 0])
        assert (told[~mine] == manifest["absent_token"]).all()
        assert not rows[~mine].any()
    assert manifest["total_frames"] == len(frames)
    assert manifest["codebook"]["codebook"] == tokenizer.codebook_hash
    assert {"revision", "pooling", "normalise", "preparation"} <= manifest["encoder"].keys()


def test_a_codebook_is_reused_for_another_split_and_another_dataset(tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    first = run(tmp_path / "first", data, split="train")
    again = run(
        tmp_path / "again", data, split="held-out", checkpoint=str(tmp_path / "first"), vision_model="facebook/dinov2-base"
    )
    assert again.metrics["codebook"] == first.metrics["codebook"]
    assert again.metrics["columns"] == first.metrics["columns"]
    assert not (tmp_path / "again" / "checkpoint").exists()
    assert again.next.endswith(f"--tokenizer {tmp_path / 'first'}")
    assert first.next == f"worldsim train --config world_modality_c {data} --tokenizer {tmp_path / 'first'}"
    both = run(tmp_path / "both", data)
    assert both.metrics["codebook"] == first.metrics["codebook"]
    assert set(both.metrics["statistics"]) == {"train", "test"}
    moved = moving.write(tmp_path / "moving", 3, 9)
    context = RunContext("tokenize-world", tmp_path / "elsewhere")
    apart = {"checkpoint": str(tmp_path / "first"), "columns": str(tmp_path / "apart")}
    elsewhere = run(tmp_path / "elsewhere", moved, context, **apart)
    assert elsewhere.next.endswith(f"--tokenizer {tmp_path / 'first'} --columns {tmp_path / 'apart'}")
    assert not (moved / "columns").exists()
    assert elsewhere.metrics["codebook"] == first.metrics["codebook"]
    assert any("fitted on camera 'cam', this is 'camera'" in note for note in context.notes)


def test_a_codebook_of_stacked_cameras_looks_at_them_again(tmp_path: Path) -> None:
    """Not at the first camera by name, whose frames it has never seen; the columns that are there are taken."""
    card = replace(ARM, cameras=painted.card(("cam", "wrist")).cameras)
    writer = registry.get("formats", "act-hdf5").create(tmp_path / "data", card)
    for index in range(EPISODES):
        writer.commit(writer.stage(painted.episode(index, FRAMES, ("cam", "wrist"))))
    writer.finalize(card)
    data = tmp_path / "data"
    first = run(tmp_path / "first", data, camera="wrist+cam")
    again = run(tmp_path / "again", data, split="held-out", checkpoint=str(tmp_path / "first"))
    assert again.metrics["camera"] == "wrist+cam"
    assert again.metrics["columns"] == first.metrics["columns"]
    looked = eval_tokens.Config(data=str(data), tokenizer=str(tmp_path / "first"))
    assert eval_tokens.plan(looked)["camera"] == "wrist+cam"
    assert eval_tokens.plan(looked)["missing"] == 0
    (tmp_path / "seen").mkdir()
    seen = eval_tokens.run(looked, RunContext("eval-tokens", tmp_path / "seen"))
    assert seen.metrics["statistics"] == first.metrics["statistics"]
    named = run(tmp_path / "named", data, checkpoint=str(tmp_path / "first"), camera="cam")
    assert named.metrics["camera"] == "cam"
    with pytest.raises(UserError, match="there is no run"):
        tokenize_world.plan(replace(_config(data), checkpoint=str(tmp_path / "nowhere")))


def test_a_grid_of_positions(tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    result = run(tmp_path / "run", data, pooling="grid2", num_tokens=12)
    tokenizer, (embeddings, tokens) = tokenizers.load(tmp_path / "run"), opened(data, result)
    assert tokenizer.grid == (2, 2)
    name = open_dataset(data).ids()[0]
    assert tokens.load(name).shape == (FRAMES, 4)
    assert embeddings.load(name).shape == (FRAMES, 4, 48)
    assert tokenizer.pictures.shape == (12, 32, 32, 3)
    folder = tmp_path / "run" / "cache" / open_dataset(data).card.name
    assert np.load(folder / "train_world_tokens.int.npy").shape[1:] == (4,)
    assert np.load(folder / "train_embeddings.fp16.npy").shape[1:] == (4, 48)


def test_another_seed_is_another_codebook(tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    first, same, other = (
        run(tmp_path / name, data, RunContext("tokenize-world", tmp_path / name, seed=seed)).metrics["codebook"]
        for name, seed in (("first", 0), ("same", 0), ("other", 1))
    )
    assert first == same != other


def test_a_second_codebook_embeds_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "data")
    first = run(tmp_path / "first", data)
    monkeypatch.setattr(_world_frames.Ahead, "batches", None)
    second = run(tmp_path / "second", data, num_tokens=5)
    assert second.metrics["columns"][0] == first.metrics["columns"][0]
    assert second.metrics["columns"][1] != first.metrics["columns"][1]
    assert second.metrics["codes"] == 5


def test_a_run_that_was_stopped_keeps_its_finished_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "data")
    whole, taken = _world_frames.Ahead.batches, []

    def stops(self, episode):
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(episode)
        return whole(self, episode)

    monkeypatch.setattr(_world_frames.Ahead, "batches", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", data)
    assert not list(data.rglob(".tmp-*.npy"))
    monkeypatch.setattr(
        _world_frames.Ahead, "batches", lambda self, episode: (taken.append(episode), whole(self, episode))[1]
    )
    stopped = run(tmp_path / "run", data)
    assert len(taken) == len(set(taken)) == EPISODES, "an episode was embedded twice"
    monkeypatch.setattr(_world_frames.Ahead, "batches", whole)
    straight = run(tmp_path / "straight", write(tmp_path / "copy"))
    assert stopped.metrics["codebook"] == straight.metrics["codebook"]
    assert stopped.metrics["statistics"] == straight.metrics["statistics"]


def test_processes_share_the_episodes(tmp_path: Path) -> None:
    source = painted.PaintedSource(5, FRAMES, cameras=("cam",), states=False)
    tokenizer, names = KMeans.tiny(), source.ids()
    for rank in (1, 0):
        told = _world_tokens.fill(tmp_path, source, tokenizer, "cam", names, "cpu", rank=rank, world_size=2)
        assert len(told.tokens.keys()) == (2 if rank else 5)
    assert not _world_tokens.missing(tmp_path, tokenizer, "cam", names)


def test_a_broken_episode_is_named_and_the_others_are_told(tmp_path: Path) -> None:
    data = write(tmp_path / "data", "oxe-npz")
    path = sorted(data.glob("painted/*.npz"))[0]
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(PartialResult, match="1 episodes cannot be tokenised, the first is train_eps_00000000") as error:
        run(tmp_path / "run", data)
    assert error.value.result.metrics["episodes"] == EPISODES - 1
    done = run(tmp_path / "again", data, max_rejected=1)
    assert [entry["episode"] for entry in done.metrics["rejected"]] == ["train_eps_00000000"]


def test_frames_are_read_ahead_in_order_and_a_bad_episode_does_not_end_it() -> None:
    class Source(painted.PaintedSource):
        def episode(self, index: int) -> Episode:
            if index == 1:
                raise BadEpisode("episode_000001", "it is bad")
            return super().episode(index)

    source = Source(3, FRAMES, cameras=("cam",))
    encoder = KMeans.tiny().encoder
    with _world_frames.Ahead(source, "cam", source.ids(), encoder.view, 6) as ahead:
        for index in (0, 1, 2):
            name, parts = f"episode_{index:06d}", []
            if index == 1:
                with pytest.raises(BadEpisode, match="it is bad"):
                    next(ahead.batches(name))
                continue
            parts = list(ahead.batches(name))
            assert max(map(len, parts)) <= 6
            expected = encoder.view(source.episode(index).frames["cam"].read())
            assert np.array_equal(np.concatenate(parts), expected)


def test_too_few_frames_give_fewer_codes_and_say_so(tmp_path: Path) -> None:
    context = RunContext("tokenize-world", tmp_path / "run")
    result = run(tmp_path / "run", write(tmp_path / "data"), context, num_tokens=1000)
    frames = sum(
        FRAMES + k for k, name in enumerate(open_dataset(tmp_path / "data").ids()) if name in _train(tmp_path / "data")
    )
    assert result.metrics["codes"] == frames // 4
    assert any(f"{frames // 4} codes instead of 1000" in note for note in context.notes)


def _train(data: Path) -> list[str]:
    source = open_dataset(data)
    return split_episodes(source.ids(), source.card.splits).train


def test_the_command_refuses_in_one_sentence(tmp_path: Path) -> None:
    data = write(tmp_path / "data", episodes=2)
    with pytest.raises(UserError, match="there is no run nowhere"):
        run(tmp_path / "run", data, checkpoint="nowhere")
    with pytest.raises(UserError, match="there is no vision model 'dino'"):
        run(tmp_path / "run", data, vision_model="dino")
    with pytest.raises(UserError, match="no split part 'trian'"):
        run(tmp_path / "run", data, split="trian")
    with pytest.raises(UserError, match=r"no episode of .* is in the split part 'held-out'"):
        run(tmp_path / "run", write(tmp_path / "one", episodes=1), split="held-out")
    with pytest.raises(UserError, match="has no camera 'other'"):
        run(tmp_path / "run", data, camera="other")
    registry.get("tokenizers", "fsq-frame").tiny().save(tmp_path / "fsq" / "checkpoint")
    with pytest.raises(UserError, match="holds the tokenizer fsq-frame, not kmeans"):
        run(tmp_path / "run", data, checkpoint=str(tmp_path / "fsq"))
    told = run(tmp_path / "ours", data, vision_model=f"tokenizer:{tmp_path / 'fsq'}", num_tokens=4)
    assert told.metrics["codes"] == 4


def test_a_codebook_of_one_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_tokens must be at least 2"):
        _config(tmp_path, num_tokens=1)
