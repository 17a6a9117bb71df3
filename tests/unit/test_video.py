"""Video files: exact frames, exact errors, equal bytes."""

from __future__ import annotations

import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from tests.painted import paint, read_index
from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.types import BLOCK_FRAMES, FrameStream
from worldsim.data import video
from worldsim.data.video import VideoWriter, header, of_episode, open_stream, probe, resized

SIZE = (64, 128)


def write(path: Path, num_frames: int, fps: float = 10, first: int = 0, **options) -> Path:
    with VideoWriter(path, fps, *SIZE, **options) as writer:
        for at in range(0, num_frames, 7):
            writer.write(np.stack([paint(first + i) for i in range(at, min(num_frames, at + 7))]))
    return path


def encode(path: Path, num_frames: int, times: list[int] | None = None, muxer: dict | None = None, **options) -> Path:
    """A file as others write them: libx264 with any options, frame i shown at ``times[i]`` tenths of a second."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(paint(i), format="rgb24")
            frame.pts = i if times is None else times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown(stream: FrameStream) -> list[int]:
    return [read_index(frame) for block in stream.blocks() for frame in block]


@pytest.mark.parametrize("codec", ["h264", "libsvtav1"])
@pytest.mark.parametrize("fps", [3, 12.5, 29.97, 60])
def test_every_frame_in_order_at_any_rate(tmp_path: Path, codec: str, fps: float) -> None:
    path = write(tmp_path / "a.mp4", 37, fps, codec=codec)
    info = probe(path)
    assert (info.num_frames, info.height, info.width) == (37, *SIZE)
    assert info.fps == pytest.approx(fps, rel=1e-6)
    assert info.codec == {"h264": "h264", "libsvtav1": "av1"}[codec]
    assert header(path) == info
    stream = open_stream(path)
    assert [len(block) for block in stream.blocks()] == [BLOCK_FRAMES, BLOCK_FRAMES, 37 - 2 * BLOCK_FRAMES]
    assert shown(stream) == list(range(37))
    assert shown(open_stream(path, fps=fps)) == list(range(37))


@pytest.mark.parametrize(
    "options", [{"bf": "3", "g": "12"}, {"bf": "3", "x264-params": "open-gop=1:keyint=12"}, {"bf": "0"}]
)
def test_ranges_and_rows_of_files_with_any_picture_order(tmp_path: Path, options: dict) -> None:
    path = encode(tmp_path / "b.mp4", 60, **options)
    for start in range(0, 55, 3):
        assert shown(open_stream(path, start, start + 5)) == list(range(start, start + 5))
        assert shown(open_stream(path, 0, 5, fps=10, offset=start / 10)) == list(range(start, start + 5))
    indices = [59, 0, 31, 31, 12, 11]
    assert [read_index(frame) for frame in open_stream(path).rows(indices)] == indices
    assert [read_index(frame) for frame in open_stream(path, 7, 40).rows([3, 32, 0])] == [10, 39, 7]


def test_frames_are_those_of_a_plain_decode(tmp_path: Path) -> None:
    path = write(tmp_path / "c.mp4", 20)
    with av.open(str(path)) as container:
        plain = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.array_equal(open_stream(path).read(), plain)
    assert np.array_equal(open_stream(path).rows([19, 4]), plain[[19, 4]])


def test_only_wanted_gops_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "d.mp4", 100)
    seeks = []
    opened = video.opened

    class Container:
        def __init__(self, container):
            self.container = container

        def seek(self, *args, **options):
            seeks.append(args)
            return self.container.seek(*args, **options)

        def __getattr__(self, name):
            return getattr(self.container, name)

    @contextmanager
    def watched(path):
        with opened(path) as (container, stream):
            yield Container(container), stream

    monkeypatch.setattr(video, "opened", watched)
    assert shown(open_stream(path)) == list(range(100))
    assert not seeks
    assert [read_index(f) for f in open_stream(path).rows([95, 2])] == [95, 2]
    assert len(seeks) == 1


def test_a_time_without_a_frame_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "e.mp4", 20, times=[*range(10), *range(13, 23)])  # three frames are missing at 1.0 s
    assert shown(open_stream(path)) == list(range(20))
    with pytest.raises(UserError, match=r"e\.mp4 shows no frame of its own at 1\.100 s"):
        open_stream(path, 0, 20, fps=10).read()
    with pytest.raises(UserError, match=r"e\.mp4 shows no frame of its own"):
        open_stream(path, 0, 5, fps=30).read()
    with pytest.raises(UserError, match="holds 20 frames; 21 were expected"):
        open_stream(path, 1, 21).read()
    with pytest.raises(UserError, match="holds 20 frames; expected 19"):
        open_stream(path, 0, 19, num_frames=19).read()
    with pytest.raises(UserError, match="is 64x128 pixels; expected 32x32"):
        open_stream(path, 0, 20, size=(32, 32)).read()


@pytest.mark.parametrize("muxer", [{}, {"movflags": "faststart"}], ids=["index-last", "index-first"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_named_in_one_sentence(tmp_path: Path, muxer: dict, kept: float) -> None:
    path = encode(tmp_path / "cut.mp4", 40, muxer=muxer)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"cut\.mp4 (cannot be decoded: it )?is truncated") as caught:
        open_stream(path).read()
    assert "\n" not in caught.value.sentence


def test_damage_inside_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "hurt.mp4", 40)
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    path.write_bytes(data)
    with pytest.raises(BadEpisode, match=r"episode_7: .*hurt\.mp4 cannot be decoded"):
        of_episode(open_stream(path), "episode_7").read()


def test_a_missing_file_and_a_sound_file_are_named(tmp_path: Path) -> None:
    stream = open_stream(tmp_path / "none.mp4", 0, 5, size=SIZE)  # nothing is touched before frames are asked for
    with pytest.raises(UserError, match=r"none\.mp4 is missing"):
        stream.rows([0])
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        track = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 80), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(track.encode(frame))
    with pytest.raises(UserError, match=r"sound\.wav holds no video"):
        probe(tmp_path / "sound.wav")


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "f.mp4", 10)
    assert shown(open_stream(path)) == list(range(10))
    write(path, 12, first=100)
    assert shown(open_stream(path)) == list(range(100, 112))


@pytest.mark.parametrize("codec", ["h264", "libsvtav1"])
def test_equal_frames_give_equal_bytes(tmp_path: Path, codec: str) -> None:
    first = write(tmp_path / "one.mp4", 30, codec=codec).read_bytes()
    assert first == write(tmp_path / "two.mp4", 30, codec=codec).read_bytes()
    assert first != write(tmp_path / "three.mp4", 30, first=1, codec=codec).read_bytes()


def test_natural_frames_keep_35_db(tmp_path: Path) -> None:
    """A photograph panned diagonally: texture, edges and saturated colours, 256x256."""
    from skimage import data

    photo = data.astronaut()
    frames = np.stack([photo[3 * t : 3 * t + 256, 5 * t : 5 * t + 256] for t in range(24)])
    for codec in video.CODECS:
        path = tmp_path / f"{codec}.mp4"
        with VideoWriter(path, 10, 256, 256, codec=codec) as writer:
            writer.write(frames)
        error = (open_stream(path).read().astype(float) - frames) ** 2
        assert (10 * np.log10(255**2 / error.mean(axis=(1, 2, 3)))).min() >= 35, codec


def write_wrong_frames_last(path: Path) -> None:
    with VideoWriter(path, 10, 64, 128) as writer:
        writer.write(np.zeros((20, 64, 128, 3), np.uint8))
        writer.write(np.zeros((20, 64, 128, 3), np.float32))


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="even height and width, not 63x128"):
        VideoWriter(tmp_path / "x.mp4", 10, 63, 128)
    with pytest.raises(UserError, match="no video codec 'h246' here"):
        VideoWriter(tmp_path / "x.mp4", 10, 64, 128, codec="h246")
    with (
        pytest.raises(UserError, match="takes uint8 frames of 64x128x3"),
        VideoWriter(tmp_path / "x.mp4", 10, 64, 128) as writer,
    ):
        writer.write(np.zeros((2, 32, 128, 3), np.uint8))
    with pytest.raises(UserError, match="there are no frames"), VideoWriter(tmp_path / "x.mp4", 10, 64, 128):
        pass
    with pytest.raises(UserError, match="takes uint8"):
        write_wrong_frames_last(tmp_path / "x.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (80, 64, 128, 3)).astype(np.uint8)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with (
            pytest.raises(OSError, match=r"too large: .*big\.mp4"),  # the worker makes it a sentence
            VideoWriter(tmp_path / "big.mp4", 10, *SIZE) as writer,
        ):
            writer.write(noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def test_resized_streams_agree_row_by_row() -> None:
    ramp = np.tile(np.linspace(0, 255, 128).astype(np.uint8)[None, None, :, None], (20, 64, 1, 3))
    small = resized(FrameStream.of(ramp), 32, 64)
    assert small.shape == (20, 32, 64, 3)
    frames = small.read()
    assert np.array_equal(small.rows([19, 0]), frames[[19, 0]])
    assert np.abs(frames[0, 0, :, 0].astype(int) - ramp[0, 0, ::2, 0]).max() <= 2  # a ramp stays a ramp
    checks = np.tile((np.indices((64, 128)).sum(0) % 2 * 255).astype(np.uint8)[None, ..., None], (1, 1, 1, 3))
    assert np.ptp(resized(FrameStream.of(checks), 16, 32).read().astype(int)[:, 2:-2, 2:-2]) <= 8  # antialiased: grey


def test_a_large_block_has_memory_of_its_own():
    """What is given back to the system when it is dropped is no part of malloc's arenas: its owner is a mapping."""
    import mmap

    from worldsim.data.video import LARGE_BLOCK, _own_memory

    block = _own_memory((2, 512, 512, 3))
    assert (block.shape, block.dtype, block.nbytes > LARGE_BLOCK) == ((2, 512, 512, 3), np.uint8, True)
    owner = block
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner if isinstance(owner, mmap.mmap) else owner.obj, mmap.mmap)
    block[:] = 7
    assert (block == 7).all()
