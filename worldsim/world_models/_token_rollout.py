"""Imagining with a token world model: any number of frames, in chunks of what the model predicts at once.

A chunk's given frames are the last ``history`` frames so far, as tokens, with their actions. A context frame is kept for as
long as the model has been trained to look back (``context_back``); after that the first frame of the then given history,
imagined by now, becomes the context and the history is told anew from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.train.order import noise_seed
from worldsim.world_models._token_card import TokenCard
from worldsim.world_models._token_net import TokenNet
from worldsim.world_models._token_sampler import sample

SEQUENCE_BUDGET = 2 * 2**30
"""Bytes of keys and values at once; more samples are drawn one group after another."""
DECODED = 64
"""Frames decoded in one call of the tokenizer."""


@dataclass
class _Line:
    """Where rollouts are, row by row (a row is a context, or after the first chunk a sample of one).

    Attributes:
        context: int64 ``[R, Lc]``. frames: tokens of the given frames, int64 ``[R, history, L]``.
        actions: bins between them, int64 ``[R, history - 1, A]``. pixels: their pictures, uint8 ``[R, history, H, W, 3]``.
        back: how many frames before the first given one the context frame lies.
    """

    context: Tensor
    frames: Tensor
    actions: Tensor
    pixels: Tensor
    back: int = 0


class Imagination:
    """Rollouts of one model.

    Args:
        tokenizer: an object of the shelf ``tokenizers``, on ``device``.
    """

    def __init__(self, net: TokenNet, card: TokenCard, tokenizer: Any, device: torch.device) -> None:
        self.net, self.card, self.layout, self.tokenizer, self.device = net, card, card.layout, tokenizer, device
        self.repeats = np.zeros((0, 0, 0), bool)

    @staticmethod
    def sequence_bytes(card: TokenCard) -> int:
        """Keys and values of one whole sequence, in fp32."""
        length = card.layout.prompt_length + card.layout.response_length
        return 8 * card.net.layers * card.net.width * length

    @torch.no_grad()
    def roll(self, context: np.ndarray, past: Tensor | None, actions: Tensor, samples: int, seeds: list[int]) -> np.ndarray:
        """uint8 ``[B, N, n, H, W, 3]``; ``repeats`` then says, ``[B, N, n]``, where tokens are those of the frame before.

        Args:
            context: uint8 ``[B, T0, H, W, 3]``. past: bins ``[B, T0 - 1, A]`` between its frames, or None.
            actions: bins ``[B, n, A]``. seeds: one per context; noise depends on (seed, sample, chunk, position) alone.
        """
        shape = (len(context), samples, actions.shape[1], *context.shape[2:])
        out, self.repeats = np.empty(shape, np.uint8), np.empty(shape[:3], bool)
        for rows, first, count in self._groups(len(context), samples):
            line = self._begin(context[rows], None if past is None else past[rows], actions[rows])
            own = [seeds[b] for b in range(rows.start, rows.stop)]
            made, same = self._continue(line, actions[rows], first, count, own)
            out[rows, first : first + count], self.repeats[rows, first : first + count] = made, same
        return out

    def _groups(self, contexts: int, samples: int) -> Iterator[tuple[slice, int, int]]:
        """(contexts, first sample, samples) of what is drawn together, within the budget."""
        most = max(1, SEQUENCE_BUDGET // self.sequence_bytes(self.card))
        together = max(1, most // samples)
        for at in range(0, contexts, together):
            for first in range(0, samples, most):
                yield slice(at, min(at + together, contexts)), first, min(most, samples - first)

    def _begin(self, context: np.ndarray, past: Tensor | None, actions: Tensor) -> _Line:
        """The given frames as tokens; a history that is not known whole is filled up with its first frame and action."""
        history = self.layout.history
        known = min(history, context.shape[1]) if past is not None else 1
        frames = torch.from_numpy(context[:, -known:].copy()).to(self.device)
        between = actions[:, :0] if past is None or known == 1 else past[:, 1 - known :]
        lacking = history - known
        first = torch.cat([between, actions], 1)[:, :1]
        frames = torch.cat([frames[:, :1].expand(-1, lacking, -1, -1, -1), frames], 1)
        between = torch.cat([first.expand(-1, lacking, -1), between], 1)
        own, tokens = self._tell(frames)
        return _Line(own, tokens, between, frames)

    def _tell(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Context tokens of the first of uint8 ``[R, T, H, W, 3]``, and tokens of all told from there."""
        first = frames[:, 0]
        context = self.tokenizer.encode_context(first)
        return context, self.tokenizer.encode(frames, first if self.layout.context_tokens else None)

    def _continue(
        self, line: _Line, actions: Tensor, first: int, count: int, seeds: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 ``[B, count, n, H, W, 3]``: samples ``first … first + count - 1``, chunk after chunk; and ``repeats``."""
        rows, total = actions.shape[:2]
        parts: list[Tensor] = []
        same: list[Tensor] = []
        done = chunk = 0
        while done < total:
            frames = min(self.layout.predicted, total - done)
            own = actions if chunk == 0 else actions.repeat_interleave(count, 0)
            coming = own[:, done : done + frames]
            if chunk == 0:
                made = self._chunk(line, coming, count, seeds, first)
                line = self._spread(line, count)
                coming = coming.repeat_interleave(count, 0)
            else:
                later = [noise_seed(seed, first + k, chunk) for seed in seeds for k in range(count)]
                made = self._chunk(line, coming, 1, later, 0)
            tokens = made.flatten(0, 1)
            pixels = self._pixels(line.context, tokens)
            same.append(_repeats(torch.cat([line.frames[:, -1:], tokens], 1)))
            line = self._advance(line, tokens, coming, pixels)
            parts.append(pixels)
            done, chunk = done + frames, chunk + 1
            if done < total and self.layout.context_tokens and line.back > self.card.context_back:
                line.context, line.frames = self._tell(line.pixels)
                line.back = 0
        made, repeats = (torch.cat(some, 1).unflatten(0, (rows, count)).cpu().numpy() for some in (parts, same))
        return made, repeats

    def _chunk(self, line: _Line, coming: Tensor, count: int, seeds: list[int], first: int) -> Tensor:
        """Tokens ``[R, count, frames, L]`` of the next frames, driven by the bins ``coming`` ``[R, frames, A]``."""
        frames = coming.shape[1]
        prompt = self.layout.prompt(line.context, line.frames, torch.cat([line.actions, coming[:, :1]], 1))
        forced = self.layout.forced(coming[:, 1:], frames)
        own = self.card.sampling
        drawn = sample(
            self.net,
            prompt,
            forced,
            self.layout.response_for(frames),
            count,
            seeds,
            first_sample=first,
            temperature=own.temperature,
            top_k=own.top_k,
            legal=True,
        )
        return self.layout.frames_of(drawn.tokens)

    @staticmethod
    def _spread(line: _Line, count: int) -> _Line:
        """Each row ``count`` times: from contexts to samples."""
        parts = (line.context, line.frames, line.actions, line.pixels)
        context, frames, actions, pixels = (part.repeat_interleave(count, 0) for part in parts)
        return _Line(context, frames, actions, pixels, line.back)

    def _advance(self, line: _Line, tokens: Tensor, coming: Tensor, pixels: Tensor) -> _Line:
        """The history after a chunk: the last given frames, imagined ones among them."""
        history, made = self.layout.history, tokens.shape[1]
        return _Line(
            line.context,
            torch.cat([line.frames, tokens], 1)[:, -history:],
            torch.cat([line.actions, coming], 1)[:, coming.shape[1] :],
            torch.cat([line.pixels, pixels], 1)[:, -history:],
            line.back + made,
        )

    def _pixels(self, context: Tensor, tokens: Tensor) -> Tensor:
        """uint8 ``[R, T, H, W, 3]`` of tokens ``[R, T, L]``."""
        rows = max(1, DECODED // tokens.shape[1])
        parts = []
        for at in range(0, len(tokens), rows):
            features = self.tokenizer.open(context[at : at + rows])
            parts.append(_uint8(self.tokenizer.pixels(features, tokens[at : at + rows])))
        return torch.cat(parts)

    @torch.no_grad()
    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """uint8 ``[B, T, H, W, 3]`` through the tokenizer. The context moves on where a rollout's does, to the true frame.

        ``repeats`` then says, ``[B, 1, T - 1]``, where tokens are those of the frame before.
        """
        pieces, same, at, total = [], [], 0, frames.shape[1]
        while at < total:
            start = max(0, at - 1)
            stop = start + (1 + self._reach() if self.layout.context_tokens else DECODED)
            context, tokens = self._tell(torch.from_numpy(frames[:, start:stop].copy()).to(self.device))
            pieces.append(self._pixels(context, tokens)[:, at - start :].cpu().numpy())
            same.append(_repeats(tokens).cpu().numpy())
            at = stop
        self.repeats = np.concatenate(same, 1)[:, None]
        return np.concatenate(pieces, 1)

    def _reach(self) -> int:
        """Frames that a rollout tells from one context frame."""
        chunks = self.card.context_back // self.layout.predicted + 1
        return chunks * self.layout.predicted


def _repeats(tokens: Tensor) -> Tensor:
    """Where tokens ``[R, 1 + T, L]`` are those of the frame before: bool ``[R, T]``."""
    return (tokens[:, 1:] == tokens[:, :-1]).all(-1)


def _uint8(pixels: Tensor) -> Tensor:
    """float ``[R, T, 3, H, W]`` in 0 … 1 -> uint8 ``[R, T, H, W, 3]``, rounded."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2)
