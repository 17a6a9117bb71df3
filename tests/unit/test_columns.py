"""Columns: whole or absent, resumable, sharded, movable, and refused when stale."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from worldsim.core.errors import UserError
from worldsim.data import columns
from worldsim.data.columns import ColumnSpec

KEYS = ["episode_000000", "episode_000001", "a/b c", "episode_000003"]


def spec(dataset: str = "d1", **params) -> ColumnSpec:
    return ColumnSpec("latents", "wan-vae", "window", {"frames": 9, **params}, {"dataset": dataset})


def array(key: str) -> np.ndarray:
    return np.full((2, 3), KEYS.index(key), np.float16)


def test_written_once_and_mapped(tmp_path):
    calls = []

    def encode(key):
        calls.append(key)
        return array(key)

    column = columns.ensure(tmp_path, spec(), KEYS, encode)
    again = columns.ensure(tmp_path, spec(), KEYS, encode)
    assert sorted(calls) == sorted(KEYS)
    assert sorted(again.keys()) == sorted(KEYS)
    assert isinstance(column.load("a/b c"), np.memmap)
    assert not column.load("a/b c").flags.writeable
    for key in KEYS:
        assert np.array_equal(columns.load(column.folder, key), array(key))
    assert columns.missing(tmp_path, spec(), [*KEYS, "new"]) == ["new"]


def test_a_killed_run_continues_and_leaves_no_torn_file(tmp_path):
    def failing(key):
        if key == "episode_000001":
            raise KeyboardInterrupt
        return array(key)

    with pytest.raises(KeyboardInterrupt):
        columns.ensure(tmp_path, spec(), KEYS, failing)
    done = columns.Column(tmp_path / spec().path).keys()
    assert "episode_000001" not in done
    calls = []
    columns.ensure(tmp_path, spec(), KEYS, lambda key: calls.append(key) or array(key))
    assert sorted(calls + done) == sorted(KEYS)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_shards_cover_every_key_once(tmp_path):
    seen = []
    for rank in range(3):
        columns.ensure(tmp_path, spec(), KEYS, lambda k: seen.append(k) or array(k), rank=rank, world_size=3)
    assert sorted(seen) == sorted(KEYS)


def test_empty_arrays_are_kept(tmp_path):
    column = columns.ensure(tmp_path, spec(), ["short"], lambda key: np.empty((0, 4), np.float16))
    assert column.load("short").shape == (0, 4)


def test_fingerprint_sees_every_part():
    base = spec()
    others = [spec("d2"), spec(frames=13), ColumnSpec("latents", "other", "window", base.params, base.inputs)]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert base.fingerprint == spec().fingerprint


def test_found_by_kind_and_plugin_and_refused_when_stale(tmp_path):
    columns.ensure(tmp_path, spec(), KEYS, array)
    assert columns.find(tmp_path, "latents", "wan-vae", {"dataset": "d1"}).spec == spec()
    with pytest.raises(UserError, match="stale") as stale:
        columns.find(tmp_path, "latents", "wan-vae", {"dataset": "changed"}, "worldsim rebuild")
    assert stale.value.command == "worldsim rebuild"
    with pytest.raises(UserError, match="no column latents/wan-vea; did you mean 'wan-vae'"):
        columns.find(tmp_path, "latents", "wan-vea")
    other = spec(frames=13)
    columns.ensure(tmp_path, other, KEYS, array)
    with pytest.raises(UserError, match="several columns"):
        columns.find(tmp_path, "latents", "wan-vae", {"dataset": "d1"})
    named = f"wan-vae@{other.fingerprint}"
    assert columns.find(tmp_path, "latents", named, {"dataset": "d1"}).spec.params["frames"] == 13


def test_a_moved_folder_keeps_its_columns(tmp_path):
    data = tmp_path / "here"
    (data / "episodes").mkdir(parents=True)
    (data / "episodes" / "0.bin").write_bytes(b"frames")
    digest = columns.dataset_fingerprint(data)
    columns.ensure(data, spec(digest), KEYS, array)
    moved = tmp_path / "there" / "deeper"
    shutil.move(data, moved)
    assert columns.dataset_fingerprint(moved) == digest
    column = columns.find(moved, "latents", "wan-vae", {"dataset": digest})
    assert np.array_equal(column.load("a/b c"), array("a/b c"))
    assert str(tmp_path) not in (column.folder / "manifest.json").read_text()


def test_what_is_derived_does_not_change_the_dataset(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.npz").write_bytes(b"x")
    digest = columns.dataset_fingerprint(tmp_path)
    columns.ensure(tmp_path, spec(digest), KEYS, array)
    for name in ("train/all_actions.pt", "train/a.tensors.pth", "result.json", "inference/metadata.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"derived")
    assert columns.dataset_fingerprint(tmp_path) == digest
    (tmp_path / "train" / "0.npz").write_bytes(b"y")
    assert columns.dataset_fingerprint(tmp_path) != digest


@pytest.mark.parametrize(("size", "at", "noticed"), [(2**20, 2**19, True), (2**20, 70_000, True), (2**21, 2**19, False)])
def test_an_edit_in_place_is_noticed_up_to_a_mebibyte(tmp_path, size, at, noticed):
    path = tmp_path / "0.bin"
    path.write_bytes(bytes(size))
    digest = columns.dataset_fingerprint(tmp_path)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    assert (columns.dataset_fingerprint(tmp_path) != digest) == noticed


@pytest.mark.parametrize("block", range(16))
def test_sixteen_blocks_of_a_large_file_count(tmp_path, block):
    """The first and the last byte of each; its edges are what an off-by-one would lose."""
    size = 5 * 2**20 + 12345
    path = tmp_path / "0.bin"
    path.write_bytes(bytes(size))
    digest, start = columns.dataset_fingerprint(tmp_path), block * (size - 65536) // 15
    for at in (start, start + 65535):
        path.write_bytes(bytes(at) + b"x" + bytes(size - at - 1))
        assert columns.dataset_fingerprint(tmp_path) != digest, at


def test_a_damaged_file_is_named(tmp_path):
    column = columns.ensure(tmp_path, spec(), KEYS, array)
    (column.folder / "episode_000000.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match="episode_000000"):
        columns.Column(column.folder).load("episode_000000")
    with pytest.raises(UserError, match="not finished"):
        column.load("nobody")


def test_a_column_is_found_by_what_made_it_on_other_data(tmp_path):
    here, other = spec("d1"), spec("d2", frames=13)
    for one in (here, spec("d2"), other):
        columns.ensure(tmp_path, one, KEYS, array)
    assert here.maker == spec("d2").maker != other.maker
    for dataset in ("d1", "d2"):
        found = columns.find(tmp_path, "latents", here.maker, {"dataset": dataset})
        assert found.spec == spec(dataset)
    with pytest.raises(UserError, match="several columns"):
        columns.find(tmp_path, "latents", here.maker)
    with pytest.raises(UserError, match="stale"):
        columns.find(tmp_path, "latents", here.maker, {"dataset": "d3"})
    with pytest.raises(UserError, match=r"its 3 by wan-vae were made with other settings"):
        columns.find(tmp_path, "latents", spec(frames=17).maker)
