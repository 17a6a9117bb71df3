"""One camera, or several stacked into one picture: ``a+b`` shows camera a above camera b, frame by frame.

A world model sees one picture. Several cameras of a robot become one by stacking them on the height in the order they are
named, each cut and resized to its equal share, so that whatever reads a camera reads a stack the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from worldsim.core.errors import BadEpisode, UserError, again, did_you_mean
from worldsim.core.types import CameraInfo, Episode, FrameStream
from worldsim.data.transforms import Cover

JOIN = "+"


def split_names(camera: str, known: Collection[str]) -> list[str]:
    """``a+b`` -> ``["a", "b"]``, top first; a camera that is really called so stays one."""
    return [camera] if camera in known else [name.strip() for name in camera.split(JOIN)]


def require_cameras(camera: str, known: Collection[str], where: str, command: str | None = None) -> list[str]:
    """The names in ``camera``, all of which must be ``known``.

    Args:
        where: what should have them, for the error. command: what to type instead.

    Raises:
        UserError: a camera that is not there, or one that is named twice.
    """
    names = split_names(camera, known)
    for name in names:
        if name not in known:
            raise UserError(f"{where} has no camera '{name}'{did_you_mean(name, known)}", command)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"camera {camera}: '{twice}' is named twice", command)
    return names


def share_of(camera: str, count: int, height: int) -> int:
    """The height of one of ``count`` stacked cameras in a picture of ``height``.

    Raises:
        UserError: it cannot be shared out evenly.
    """
    if height % count:
        raise UserError(
            f"a height of {height} cannot be shared out evenly among the {count} stacked cameras {camera}",
            again(camera=camera.split(JOIN)[0]),
        )
    return height // count


def stacked_info(camera: str, cameras: Sequence[CameraInfo]) -> CameraInfo:
    """The natural size of a stack: each camera as large as the first one."""
    known = {info.name: info for info in cameras}
    names = split_names(camera, known)
    first = known[names[0]]
    return CameraInfo(camera, first.height * len(names), first.width)


def camera_stream(episode: Episode, camera: str, height: int | None = None, width: int | None = None) -> FrameStream:
    """The frames of ``camera`` in ``episode``: the camera's own stream, or a stack of several.

    Args:
        camera: ``a``, or ``a+b`` from top to bottom.
        height, width: of the whole stacked picture; None makes each camera as large as the first. One camera alone keeps
            its own size: cut and resize its frames with :class:`~worldsim.data.transforms.Cover`.

    Raises:
        BadEpisode: a camera is missing here, or the cameras differ in length.
        UserError: the height cannot be shared out evenly.
    """
    names = split_names(camera, episode.frames)
    for name in names:
        if name not in episode.frames:
            raise BadEpisode(episode.id, f"{episode.source} lacks camera '{name}'")
    streams = [episode.frames[name] for name in names]
    if len(streams) == 1:
        return streams[0]
    if len({stream.num_frames for stream in streams}) > 1:
        listed = ", ".join(f"'{name}' has {stream.num_frames}" for name, stream in zip(names, streams))
        raise BadEpisode(episode.id, f"the cameras of {episode.source} differ in length: {listed} frames")
    each = share_of(camera, len(names), height) if height is not None else streams[0].height
    return _stack(streams, Cover(each, width or streams[0].width))


def _stack(streams: list[FrameStream], cover: Cover) -> FrameStream:
    def blocks() -> Iterator[np.ndarray]:
        for together in _in_step([stream.blocks() for stream in streams]):
            yield np.concatenate([cover.forward(block) for block in together], axis=1)

    def rows(indices: np.ndarray) -> np.ndarray:
        return np.concatenate([cover.forward(stream.rows(indices)) for stream in streams], axis=1)

    return FrameStream(streams[0].num_frames, cover.height * len(streams), cover.width, blocks, rows)


def _in_step(passes: list[Iterator[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """Blocks of the same frames from every pass, however each one cuts its own; ends with the shortest."""
    waiting: list[np.ndarray] = [np.empty((0, 0, 0, 3), np.uint8) for _ in passes]
    while True:
        for k, blocks in enumerate(passes):
            if not len(waiting[k]):
                more = next(blocks, None)
                if more is None:
                    return
                waiting[k] = more
        count = min(map(len, waiting))
        yield [block[:count] for block in waiting]
        waiting = [block[count:] for block in waiting]
