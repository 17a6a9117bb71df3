"""The frames of many episodes, decoded ahead: a thread reads and resizes the next ones while the caller computes.

Frames are read once, in order, episode after episode; what waits is at most ``AHEAD`` batches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, Full, Queue
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from worldsim.core.errors import BadEpisode
from worldsim.core.protocols import EpisodeSource
from worldsim.data.cameras import camera_stream

AHEAD = 4
PATIENCE = 0.1
"""Seconds between two looks at whether the other side has gone."""


class Ahead:
    """``with Ahead(…) as frames: for batch in frames.batches(episode)``, for every one of ``episodes`` in their order.

    Args:
        episodes: ids. view: uint8 ``[n, H, W, 3]`` -> uint8 ``[n, 3, h, w]``, called in the thread. batch: at most so many
            frames at once; a batch never holds two episodes.
    """

    def __init__(
        self, source: EpisodeSource, camera: str, episodes: Sequence[str], view: Callable[[np.ndarray], Tensor], batch: int
    ) -> None:
        self.source, self.camera, self.episodes, self.view, self.batch = source, camera, list(episodes), view, batch
        self._at = {name: index for index, name in enumerate(source.ids())}
        self._queue: Queue[tuple[str, Any]] = Queue(AHEAD)
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._gone.set()
        self._thread.join()

    def batches(self, episode: str) -> Iterator[Tensor]:
        """uint8 ``[n, 3, h, w]`` in order.

        Raises:
            BadEpisode: it cannot be read; the next ones can be asked for.
        """
        while True:
            name, item = self._take()
            if name != episode:
                raise RuntimeError(f"episode {episode} was asked for where {name} comes next")
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    def _take(self) -> tuple[str, Any]:
        while True:
            try:
                return self._queue.get(timeout=PATIENCE)
            except Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    raise RuntimeError("more episodes were asked for than were read ahead") from None

    def _run(self) -> None:
        for episode in self.episodes:
            try:
                for batch in self._decoded(episode):
                    if not self._put(episode, batch):
                        return
                end = None
            except BadEpisode as bad:
                end = bad
            except Exception as error:  # raised again where it is taken
                self._put(episode, error)
                return
            if not self._put(episode, end):
                return

    def _decoded(self, episode: str) -> Iterator[Tensor]:
        parts: list[Tensor] = []
        waiting = 0
        for block in camera_stream(self.source.episode(self._at[episode]), self.camera).blocks():
            for at in range(0, len(block), self.batch):
                seen = self.view(block[at : at + self.batch])
                if waiting + len(seen) > self.batch:
                    yield torch.cat(parts)
                    parts, waiting = [], 0
                parts.append(seen)
                waiting += len(seen)
        if parts:
            yield torch.cat(parts)

    def _put(self, episode: str, item: Any) -> bool:
        """False when nobody takes any more."""
        while not self._gone.is_set():
            try:
                self._queue.put((episode, item), timeout=PATIENCE)
                return True
            except Full:
                continue
        return False
