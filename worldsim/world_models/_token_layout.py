"""How frames and actions become one sequence of token ids, and back: the two released layouts and a clean one.

Ids, low to high: the tokens of a frame ``0 … codes - 1``; where a context frame is used, its tokens ``codes … 2 codes - 1``;
action bins, shared by all action numbers; and in the released layouts BOS and EOS. Offsets are added in :meth:`Layout.sequence`
and taken off in :meth:`Layout.frames_of`, nowhere else: tokenizers and columns always speak ``0 … codes - 1``.

Sequence: ``context (Lc)  [frame (L) action (A)] x history   frame action frame … frame``. The action after a frame is the one
that leads to the next frame; the context frame's own action is no part of it.

source: thuml/RLVR-World@e1b8b6f vid_wm/ivideogpt/ivideogpt/processor.py (layouts ``simple`` and ``ctx_msp``); spec 1.4. There,
context ids kept their offset when they were decoded, which only modular arithmetic forgave.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

RELEASED_CODES = 4375
RELEASED_ACTIONS = 13


@dataclass(frozen=True)
class Segment:
    """A run of positions of one kind in a response.

    Attributes:
        length: positions.
        low, high: legal ids are ``low <= id < high``.
        generated: whether the model chooses them; otherwise they are given (actions, EOS).
    """

    length: int
    low: int
    high: int
    generated: bool


@dataclass(frozen=True)
class Layout:
    """The sequence of a token world model.

    Attributes:
        codes: ids of a frame token.
        frame_tokens: L, tokens per frame.
        context_tokens: Lc, tokens of the context frame; 0 where the tokenizer has none.
        history: frames that are given (the last of them is the current one).
        predicted: frames that the model is trained to predict.
        action_tokens: A, action numbers per frame (source rows per frame x action width, row by row); 0: no actions.
        action_bins: ids per action number.
        kind: ``clean``; ``released-single``: BOS before and EOS after the one predicted frame; ``released-multi``: an action
            after the last frame too.
    """

    codes: int
    frame_tokens: int
    context_tokens: int
    history: int
    predicted: int
    action_tokens: int
    action_bins: int = 256
    kind: Literal["clean", "released-single", "released-multi"] = "clean"

    def __post_init__(self) -> None:
        least = {"codes": 1, "frame_tokens": 1, "context_tokens": 0, "history": 1, "predicted": 1, "action_tokens": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"layout: {name} is {getattr(self, name)}, less than {bound}")
        if self.kind == "released-single" and self.predicted != 1:
            raise ValueError(f"the released single-step layout predicts 1 frame, not {self.predicted}")

    @staticmethod
    def released_single() -> Layout:
        """Four frames of 16x20 tokens with actions, BOS, one frame, EOS: 1,333 + 321 = 1,654 ids of 4,633."""
        return Layout(RELEASED_CODES, 320, 0, 4, 1, RELEASED_ACTIONS, kind="released-single")

    @staticmethod
    def released_multi() -> Layout:
        """A context frame of 32x40, then eight frames of 8x10 with actions: 1,373 + 651 = 2,024 ids of 9,008."""
        return Layout(RELEASED_CODES, 80, 1280, 1, 7, RELEASED_ACTIONS, kind="released-multi")

    @staticmethod
    def clean(
        codes: int,
        frame_tokens: int,
        context_tokens: int,
        history: int,
        predicted: int,
        action_tokens: int,
        action_bins: int = 256,
    ) -> Layout:
        """For new models: no BOS, no EOS, no action after the last frame."""
        return Layout(codes, frame_tokens, context_tokens, history, predicted, action_tokens, action_bins)

    def card(self) -> dict[str, Any]:
        """Plain data; ``Layout(**card)`` reads it back."""
        return asdict(self)

    @property
    def context_start(self) -> int:
        """First id of a context token."""
        return self.codes

    @property
    def action_start(self) -> int:
        """First id of an action bin."""
        return self.codes * (2 if self.context_tokens else 1)

    @property
    def bos(self) -> int:
        """Id of BOS, in the released layouts; EOS is the next one. The multi-step layout reserves both and uses neither."""
        return self.action_start + self.action_bins

    @property
    def vocab(self) -> int:
        """All ids."""
        actions = self.action_bins if self.action_tokens else 0
        return self.action_start + actions + (0 if self.kind == "clean" else 2)

    @property
    def block(self) -> int:
        """Tokens of a frame and its action."""
        return self.frame_tokens + self.action_tokens

    @property
    def prompt_length(self) -> int:
        return self.context_tokens + self.history * self.block + (self.kind == "released-single")

    @property
    def response(self) -> tuple[Segment, ...]:
        """The response's segments for the layout's own number of predicted frames."""
        return self.response_for(self.predicted)

    @property
    def response_length(self) -> int:
        return sum(segment.length for segment in self.response)

    def response_for(self, frames: int) -> tuple[Segment, ...]:
        """Segments of a response of ``frames`` predicted frames (1 in the released single-step layout)."""
        if frames < 1 or (self.kind == "released-single" and frames != 1):
            raise ValueError(f"a {self.kind} response cannot have {frames} frames")
        frame = Segment(self.frame_tokens, 0, self.codes, True)
        if self.kind == "released-single":
            return (frame, Segment(1, self.bos + 1, self.bos + 2, False))
        action = Segment(self.action_tokens, self.action_start, self.action_start + self.action_bins, False)
        segments = [frame, action] * frames
        if self.kind == "clean":
            segments.pop()
        return tuple(segment for segment in segments if segment.length)

    def frames_in(self, length: int) -> int:
        """Predicted frames of a response of ``length`` tokens."""
        if self.kind == "released-single":
            frames, rest = divmod(length - 1, self.frame_tokens)
        else:
            frames, rest = divmod(length + (self.action_tokens if self.kind == "clean" else 0), self.block)
        if rest or frames < 1:
            raise ValueError(f"{length} tokens are no whole number of frames of {self.frame_tokens} + {self.action_tokens}")
        return frames

    def sequence(self, context: Tensor, frames: Tensor, actions: Tensor) -> Tensor:
        """One id sequence per row: prompt and response.

        Args:
            context: int ``[B, Lc]`` in 0 … codes - 1.
            frames: int ``[B, F, L]`` in 0 … codes - 1, F > history; ``frames[:, history - 1]`` is the current frame.
            actions: int ``[B, F - 1, A]`` bins; ``actions[:, t]`` leads from frame t to frame t + 1. A row more is allowed: the
                released multi-step layout ends with it (without it, the last row is repeated; it has no effect).

        Returns:
            int64 ``[B, prompt_length + response]``.
        """
        count = frames.shape[1] - self.history
        prompt = self.prompt(context, frames[:, : self.history], actions[:, : self.history])
        response = self.forced(actions[:, self.history :], count).clone()
        blocks = frames[:, self.history :].long()
        self._within(blocks, self.codes, "frame")
        response[:, self._frame_positions(count)] = blocks.flatten(1).to(response.device)
        return torch.cat([prompt, response], 1)

    def prompt(self, context: Tensor, frames: Tensor, actions: Tensor) -> Tensor:
        """Ids of what is given: ``context`` ``[B, Lc]``, ``frames`` ``[B, history, L]``, ``actions`` ``[B, history, A]`` bins."""
        rows = frames.shape[0]
        self._shape(context, (rows, self.context_tokens), "context")
        self._shape(frames, (rows, self.history, self.frame_tokens), "frames")
        self._shape(actions, (rows, self.history, self.action_tokens), "actions")
        for ids, bound, what in (
            (context, self.codes, "context"),
            (frames, self.codes, "frame"),
            (actions, self.action_bins, "action"),
        ):
            self._within(ids, bound, what)
        blocks = torch.cat([frames.long(), actions.long() + self.action_start], 2).flatten(1)
        parts = [context.long() + self.context_start, blocks]
        if self.kind == "released-single":
            parts.append(torch.full((rows, 1), self.bos, dtype=torch.int64, device=frames.device))
        return torch.cat(parts, 1)

    def forced(self, actions: Tensor, frames: int) -> Tensor:
        """A response of ``frames`` frames with its given tokens in place and 0 where the model chooses.

        Args:
            actions: int bins ``[B, frames - 1, A]`` between the predicted frames, in order; a row more is allowed.

        Returns:
            int64 ``[B, response]``.
        """
        rows, segments = actions.shape[0], self.response_for(frames)
        out = torch.zeros(rows, sum(s.length for s in segments), dtype=torch.int64, device=actions.device)
        if self.kind == "released-single":
            out[:, -1] = self.bos + 1
            return out
        if not self.action_tokens:
            return out
        wanted = frames - (self.kind == "clean")
        if actions.shape[1] < frames - 1 or actions.shape[1] > frames or actions.shape[2] != self.action_tokens:
            raise ValueError(
                f"actions {tuple(actions.shape)} do not lie between {frames} frames of {self.action_tokens} numbers"
            )
        self._within(actions, self.action_bins, "action")
        given = actions[:, :wanted].long() + self.action_start
        if given.shape[1] < wanted:
            last = given[:, -1:] if given.shape[1] else given.new_full((rows, 1, self.action_tokens), self.action_start)
            given = torch.cat([given, last], 1)
        positions = ~self._frame_positions(frames)
        out[:, positions] = given.flatten(1)
        return out

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """A sequence ``[..., total]`` as its prompt and its response."""
        return ids[..., : self.prompt_length], ids[..., self.prompt_length :]

    def frames_of(self, response: Tensor, *, clamp: bool = False) -> Tensor:
        """The frame tokens ``[..., n, L]`` of responses ``[..., Lr]``, in 0 … codes - 1.

        Args:
            clamp: turn ids of other ranges into the last code, as the released pipeline does; otherwise they are an error.
        """
        count = self.frames_in(response.shape[-1])
        tokens = response[..., self._frame_positions(count)].unflatten(-1, (count, self.frame_tokens))
        if clamp:
            return tokens.clamp(0, self.codes - 1)
        self._within(tokens, self.codes, "frame")
        return tokens

    def context_of(self, prompt: Tensor) -> Tensor:
        """The context tokens ``[..., Lc]`` of prompts (or whole sequences), in 0 … codes - 1."""
        return prompt[..., : self.context_tokens] - self.context_start

    def history_of(self, prompt: Tensor) -> Tensor:
        """The given frames' tokens ``[..., history, L]`` of prompts (or whole sequences)."""
        blocks = prompt[..., self.context_tokens : self.context_tokens + self.history * self.block]
        return blocks.unflatten(-1, (self.history, self.block))[..., : self.frame_tokens]

    def loss_mask(self, frames: int | None = None) -> Tensor:
        """Bool ``[total]``: which positions are learnt, as targets (position i is predicted at i - 1).

        Predicted frames alone, and in the released single-step layout BOS and EOS too, as there.
        """
        count = self.predicted if frames is None else frames
        response = self._frame_positions(count)
        prompt = torch.zeros(self.prompt_length, dtype=torch.bool)
        if self.kind == "released-single":
            prompt[-1], response[-1] = True, True
        return torch.cat([prompt, response])

    def _frame_positions(self, frames: int) -> Tensor:
        """Bool ``[response]``: positions of frame tokens."""
        return torch.cat([torch.full((s.length,), s.generated) for s in self.response_for(frames)])

    @staticmethod
    def _within(ids: Tensor, bound: int, what: str) -> None:
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= bound):
            raise ValueError(f"a {what} token is outside 0 … {bound - 1}: {int(ids.min())} … {int(ids.max())}")

    @staticmethod
    def _shape(ids: Tensor, wanted: tuple[int, ...], what: str) -> None:
        if tuple(ids.shape) != wanted:
            raise ValueError(f"{what} tokens have shape {tuple(ids.shape)}, not {wanted}")
