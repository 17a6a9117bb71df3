"""Video files as frame streams: sequential PyAV decode, exact frame choice by timestamp, deterministic encoding.

A file is demuxed once (packets only, no decoding) to learn the presentation time of every frame and where key frames
are; after that a range of frames, or single ones, are decoded from the previous key frame forward. PyAV's wheels bundle
FFmpeg, so nothing has to be installed. Colours are converted by swscale's defaults, as LeRobot's own reader does.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from worldsim.core.errors import BadEpisode, UserError
from worldsim.core.files import replacing
from worldsim.core.types import BLOCK_FRAMES, FrameStream
from worldsim.data._demux import Table, VideoInfo, frame_count, frame_positions, frame_table, opened, reason

ENCODE_THREADS = 2
"""Fixed, because libx264's bytes depend on the number of threads and must not depend on the machine."""

GOP = 10
"""Frames from one key frame to the next: one random access decodes at most this many."""

CODECS = {
    # Preset superfast at crf 14: on natural frames of 256x256 and more every frame keeps >= 35 dB (4:2:0 chroma caps the
    # rest) at 330-1200 frames/s; slower presets are smaller but no closer. No B-frames: they shift a file's first
    # timestamps, and players and concatenation disagree about the shift.
    "h264": ("libx264", {"preset": "superfast", "bf": "0", "threads": str(ENCODE_THREADS)}, 14),
    "libsvtav1": ("libsvtav1", {"preset": "10", "svtav1-params": f"lp={ENCODE_THREADS}"}, 20),
}

LARGE_BLOCK = 1 << 20
"""Bytes from which a block of frames has its own memory mapping."""


def probe(path: Path) -> VideoInfo:
    """Demux ``path`` without decoding it.

    Raises:
        UserError: the file is missing, truncated, or no video.
    """
    return frame_table(Path(path)).info


def header(path: Path) -> VideoInfo:
    """What ``path`` says of itself, without reading its packets; ``num_frames`` is 0 where it does not say.

    Raises:
        UserError: the file is missing, has lost its header, or is no video.
    """
    with opened(Path(path)) as (_, stream):
        rate = stream.average_rate or stream.guessed_rate
        context = stream.codec_context
        return VideoInfo(
            stream.frames, float(rate) if rate else 0.0, context.height, context.width, context.codec.canonical_name
        )


def open_stream(
    path: Path,
    start: int = 0,
    stop: int | None = None,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    offset: float = 0.0,
    size: tuple[int, int] | None = None,
) -> FrameStream:
    """Frames ``start`` to ``stop`` of a video file as a stream, uint8 RGB, decoded when asked for.

    Args:
        path: the file.
        start, stop: frame numbers, half open; ``stop=None`` is the end of the file.
        num_frames: how many frames the whole file must hold; None accepts any number.
        fps: None counts frames in their order of presentation; a rate instead picks, for each number i, the frame shown
            nearest to ``offset + i / fps`` seconds.
        offset: seconds into the file of frame number 0 (a file may hold many episodes).
        size: (height, width) if known; together with ``stop`` it makes opening free, the file is first touched on decode.

    Raises:
        UserError: (here or on decode) the file is missing, truncated, undecodable, of another size, or holds no frame
            within half a frame of a wanted time.
    """
    path = Path(path)
    if stop is None or size is None:
        info = probe(path)
        size = size or (info.height, info.width)
        stop = frame_count(path, fps, offset) if stop is None else stop
    first, count, (height, width) = start, stop - start, size

    def positions() -> np.ndarray:
        table = frame_table(path)
        if (table.info.height, table.info.width) != (height, width):
            raise UserError(f"{path} is {table.info.height}x{table.info.width} pixels; expected {height}x{width}")
        if num_frames is not None and table.info.num_frames != num_frames:
            raise UserError(f"{path} holds {table.info.num_frames} frames; expected {num_frames}")
        return frame_positions(path, table, first, first + count, fps, offset)

    def rows(indices: np.ndarray) -> np.ndarray:
        where = positions()[indices]
        unique, inverse = np.unique(where, return_inverse=True)
        out = np.empty((len(unique), height, width, 3), np.uint8)
        for k, block in enumerate(_decoded(path, unique, 1)):
            out[k] = block[0]
        return out[inverse.reshape(-1)]

    return FrameStream(count, height, width, lambda: _decoded(path, positions(), BLOCK_FRAMES), rows)


def of_episode(stream: FrameStream, episode: str) -> FrameStream:
    """The same stream, but what goes wrong while decoding is a :class:`BadEpisode` of ``episode``."""

    @contextmanager
    def named() -> Iterator[None]:
        try:
            yield
        except BadEpisode:
            raise
        except UserError as error:
            raise BadEpisode(episode, error.sentence) from error

    def blocks() -> Iterator[np.ndarray]:
        with named():
            yield from stream.blocks()

    def rows(indices: np.ndarray) -> np.ndarray:
        with named():
            return stream.rows(indices)

    return FrameStream(stream.num_frames, stream.height, stream.width, blocks, rows)


def resized(stream: FrameStream, height: int, width: int) -> FrameStream:
    """The same frames at another size: Pillow's bilinear filter, antialiased when shrinking; aspect is not kept."""
    if (stream.height, stream.width) == (height, width):
        return stream

    def shrink(block: np.ndarray) -> np.ndarray:
        out = np.empty((len(block), height, width, 3), np.uint8)
        for k, frame in enumerate(block):
            out[k] = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
        return out

    def blocks() -> Iterator[np.ndarray]:
        return map(shrink, stream.blocks())

    return FrameStream(stream.num_frames, height, width, blocks, lambda indices: shrink(stream.rows(indices)))


class VideoWriter:
    """Write uint8 RGB frames to an mp4 at a constant rate; the file appears only when the block ends without error.

    Equal frames give equal bytes, whatever the machine's number of cores. Use as a context manager.

    Args:
        path: the file to write.
        fps: frames per second.
        height, width: pixels, both even (4:2:0 chroma).
        codec: ``h264`` (libx264) or ``libsvtav1``.
        crf: quality, lower is better and larger; default 14 for h264, 20 for libsvtav1.
        gop: frames from one key frame to the next.
    """

    def __init__(
        self, path: Path, fps: float, height: int, width: int, codec: str = "h264", crf: int | None = None, gop: int = GOP
    ) -> None:
        if codec not in CODECS:
            raise UserError(f"there is no video codec '{codec}' here; known: {', '.join(CODECS)}")
        if height % 2 or width % 2:
            raise UserError(f"{path.name} cannot be written: video needs an even height and width, not {height}x{width}")
        if fps <= 0:
            raise UserError(f"{path.name} cannot be written: fps must be above 0, not {fps:g}")
        self.path, self.fps, self.height, self.width = Path(path), fps, height, width
        self.codec, self.crf, self.gop = codec, crf, gop
        self._files = ExitStack()

    def __enter__(self) -> VideoWriter:
        encoder, options, crf = CODECS[self.codec]
        os.environ.setdefault("SVT_LOG", "1")  # errors only: the encoder prints its version to stderr otherwise
        with ExitStack() as opening:
            temporary = opening.enter_context(replacing(self.path))
            self._container = opening.enter_context(
                av.open(str(temporary), "w", format="mp4", options={"fflags": "bitexact"})
            )
            rate = Fraction(self.fps).limit_denominator(1001)
            crf = crf if self.crf is None else self.crf
            stream: Any = self._container.add_stream(encoder, rate=rate, options={**options, "crf": str(crf)})
            stream.height, stream.width, stream.pix_fmt = self.height, self.width, "yuv420p"
            stream.codec_context.gop_size = self.gop
            self._stream = stream
            self._files = opening.pop_all()
        self.num_frames = 0
        return self

    def write(self, block: np.ndarray) -> None:
        """Append frames, uint8 ``[n, H, W, 3]``.

        Raises:
            UserError: frames of another type or size, or a disk that is full.
        """
        if block.dtype != np.uint8 or block.shape[1:] != (self.height, self.width, 3):
            raise UserError(
                f"{self.path.name} takes uint8 frames of {self.height}x{self.width}x3, not {block.dtype} {block.shape[1:]}"
            )
        with self._naming():
            for image in block:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                self._container.mux(self._stream.encode(frame))
        self.num_frames += len(block)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            with suppress(av.error.FFmpegError):  # the file is thrown away; ``error`` is what counts
                self._files.__exit__(kind, error, trace)
            return
        with self._naming(), self._files:
            if not self.num_frames:
                raise UserError(f"{self.path.name} cannot be written: there are no frames")
            self._container.mux(self._stream.encode(None))

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # a full disk, whatever was being written to it
                raise OSError(error.errno, os.strerror(error.errno), str(self.path)) from error
            raise UserError(f"{self.path} cannot be written: {reason(error)}") from error


def _decoded(path: Path, positions: np.ndarray, block_frames: int) -> Iterator[np.ndarray]:
    """The frames at increasing ``positions`` as uint8 blocks ``[n, H, W, 3]``; GOPs without a wanted frame are skipped."""
    table = frame_table(path)
    reformatter = VideoReformatter()
    height, width = table.info.height, table.info.width
    pictures = _pictures(path, table, positions)
    for at in range(0, len(positions), block_frames):
        block = _own_memory((min(block_frames, len(positions) - at), height, width, 3))
        for k in range(len(block)):
            _copy(reformatter.reformat(next(pictures), format="rgb24"), block[k])
        yield block


def _own_memory(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised uint8 array; a large one in a memory mapping of its own, given back to the system when it is dropped.

    malloc would take blocks of that size from the arena of the decoding thread and keep them there: with a thread per
    camera and episode the process grew by up to 140 MB. Huge pages make the fresh memory cost no time.
    """
    size = int(np.prod(shape))
    if size < LARGE_BLOCK:
        return np.empty(shape, np.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them; only slower
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8).reshape(shape)


def _pictures(path: Path, table: Table, positions: np.ndarray) -> Iterator[Any]:
    """One decoded picture per position; from the previous key frame forward, seeking only when that skips frames."""
    with opened(path) as (container, stream):
        decoder: Iterator[Any] | None = None
        shown = np.iinfo(np.int64).min
        for target in table.pts[positions]:
            key = max(int(np.searchsorted(table.key_pts, target, side="right")) - 1, 0)
            after_next = np.searchsorted(table.pts, shown, side="right") + 1
            if decoder is None or (after_next < len(table.pts) and table.key_pts[key] >= table.pts[after_next]):
                if key > 0:
                    container.seek(int(table.key_dts[key]), backward=True, any_frame=False, stream=stream)
                decoder = container.decode(stream)
            for picture in decoder:
                if picture.pts is not None and picture.pts >= target:
                    break
            else:
                raise UserError(f"{path} cannot be decoded: it ends before {float(target * table.time_base):.3f} s")
            size = (picture.height, picture.width)
            if picture.pts != target or picture.is_corrupt or size != (table.info.height, table.info.width):
                raise UserError(f"{path} cannot be decoded at {float(target * table.time_base):.3f} s: it is damaged")
            shown = target
            yield picture


def _copy(picture: Any, out: np.ndarray) -> None:
    """The pixels of an rgb24 picture into ``out`` ``[H, W, 3]``, without its row padding."""
    plane = picture.planes[0]
    height, width = out.shape[:2]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    out[:] = rows[:height, : 3 * width].reshape(height, width, 3)
