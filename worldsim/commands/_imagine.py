"""A world model in front of a dataset: which scenes, with which actions, and their imagined futures.

Used by ``infer`` and ``eval video``. Clips are worked on in fixed batches: a batch is whole or is imagined again, so a
killed run continues with the very numbers of an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.commands import _latents, _policy_actions
from worldsim.commands._action_file import ActionFile
from worldsim.commands._agenda import Agenda, Order, Planned, hertz, rate, require_actions, some
from worldsim.commands._closed_loop import ClosedLoop, OpenLoop
from worldsim.core.console import progress
from worldsim.core.errors import BadEpisode, UserError, again
from worldsim.core.protocols import EpisodeSource, WorldModel
from worldsim.core.types import Episode
from worldsim.data import columns, scenes
from worldsim.data.cameras import JOIN, require_cameras
from worldsim.data.predictions import Prediction, file_names
from worldsim.data.scenes import Scene, SceneSpec
from worldsim.data.unfolding import Start
from worldsim.data.windows import stride_for
from worldsim.world_models import (
    SupportsInstructions,
    SupportsPastActions,
    SupportsReconstruct,
    SupportsRepeats,
    SupportsSampling,
    SupportsTemperature,
    needs,
)


class Studio:
    """A model, a dataset and an order. ``agenda`` first, then ``batches``.

    Args:
        source: the opened dataset. seed: the run's. note: where remarks for the user go. device: of a policy's network.
    """

    def __init__(
        self,
        order: Order,
        model: WorldModel,
        source: EpisodeSource,
        seed: int,
        note: Callable[[str], None],
        device: str = "cpu",
    ) -> None:
        self.order, self.model, self.source, self.seed, self.note = order, model, source, seed, note
        self.needs = needs(model)
        self.spec = SceneSpec(
            camera=self._camera(),
            frames=order.frames,
            start=self._start(),
            delay=self.needs.action_delay,
            history=self.needs.context_frames,
            size=(self.needs.height, self.needs.width) if self.needs.height else None,
        )
        self.fps = rate(self.needs, order.fps)
        require_actions(self.needs, source.card, order)
        self.trained_on: frozenset[str] = frozenset()
        self.actor = self._actor(device)
        self.column = self._column()
        if isinstance(model, SupportsSampling):
            model.set_sampling(order.steps, order.guidance)
        guidance = getattr(model, "guidance", 1.0)
        if guidance != 1.0 and self.needs.action_dropout == 0:
            note(
                f"guidance = {guidance:g} pushes away from hidden actions, and this model was trained with action_dropout = 0: "
                "it has learned nothing about them, so what it is pushed from is arbitrary"
            )
        if isinstance(model, SupportsTemperature):
            model.set_temperature(order.temperature, order.top_k)

    def _start(self) -> int | None:
        """The given frame; as late as a model needs that cannot do without its history, unless it was chosen."""
        lacking = self.needs.least_context - 1
        if self.order.start is not None or not lacking:
            return self.order.start
        return self.needs.action_delay + lacking * stride_for(self.source.card.fps, rate(self.needs, self.order.fps))

    def agenda(self) -> Agenda:
        """Look at the numbers of every chosen episode (no frame is decoded): what can be imagined, what cannot.

        Raises:
            UserError: nothing is left.
        """
        chosen, split = scenes.choose(self.source.card, self.source.ids(), self.order.episodes)
        out = Agenda()
        for index in chosen[: self.order.max_episodes]:
            try:
                episode = self.source.episode(index)
                self._plan_one(episode, index, out)
            except BadEpisode as bad:
                out.rejected.append({"episode": bad.episode, "reason": bad.reason})
        self.trained_on = frozenset(self.needs.train_episodes or (split.train if split.held_out else ()))
        self._report(out, self.trained_on)
        out.names = file_names([scene.episode for scene in out.scenes])
        return out

    def _plan_one(self, episode: Episode, index: int, out: Agenda) -> None:
        stride = stride_for(episode.fps, self.fps)
        begins = self.spec.delay <= self.spec.first() < episode.num_frames
        if not (begins if self.actor is not None else self.spec.fits(episode.num_frames, stride)):
            out.too_short.append(episode.id)
            return
        start = Start.of(episode, self.spec, stride) if isinstance(self.actor, ClosedLoop) else None
        out.scenes.append(Planned(index, episode.id, stride, self._actions(episode, stride), start))

    def _actions(self, episode: Episode, stride: int) -> np.ndarray:
        """The rows that will drive the model, ``[n, r, A]``, as far as they are known beforehand."""
        if self.actor is None:
            return scenes.actions(self._rows(episode), self.spec, stride, episode.num_frames, episode.id)
        if isinstance(self.actor, ActionFile):
            return self.actor.of(episode.id, self.order.frames, stride)
        if isinstance(self.actor, OpenLoop):
            return self.actor.of(episode, self.spec, stride)
        return np.zeros((self.order.frames, stride, 0), np.float32)

    def _report(self, out: Agenda, trained_on: frozenset[str]) -> None:
        """Say who was left out, and whether scores would be those of training episodes."""
        needed = f"frame {self.spec.first()} and {self.order.frames} more at {hertz(self.fps)}"
        if not out.scenes:
            reason = out.rejected[0]["reason"] if out.rejected else f"none holds {needed}"
            raise UserError(
                f"{self.order.data}: no episode can be imagined: {reason}",
                again(frames=max(1, self.order.frames // 2)),
            )
        if out.too_short:
            self.note(f"{len(out.too_short)} episodes are too short for {needed} and were left out: {some(out.too_short)}")
        seen = sorted({scene.episode for scene in out.scenes} & trained_on)
        if seen:
            whose = (
                "were trained on by this model, going by their ids"
                if self.needs.train_episodes
                else "belong to the training part of the split"
            )
            self.note(f"{len(seen)} of {len(out.scenes)} episodes {whose}: it may know them by heart: {some(seen)}")
        ahead = [scene.episode for scene in out.scenes if self._looks_ahead(scene)]
        if ahead:
            self.note(
                f"in {len(ahead)} of {len(out.scenes)} scenes the policy of {self.needs.action_column} looks at a true frame "
                "again while the model imagines, at a chunk's start: the model is told more than its given frame"
            )

    def forced(self, agenda: Agenda) -> str | None:
        """How the rows that drive the model have seen true frames which it is to imagine; None where they have not.

        Read from the column itself: the card of another program's checkpoint does not know.
        """
        if self.actor is not None:  # rows of somebody who has not seen this episode
            return None
        if self.needs.teacher_forced or (self.column is not None and _latents.teacher_forced(self.column)):
            return "teacher-forced"
        ahead = [scene for scene in agenda.scenes if self._looks_ahead(scene)]
        if not ahead:
            return None
        other = "; ".join(f"{key} = {value}" for key, value in self.unforced(agenda).items())
        return (
            f"in {len(ahead)} of {len(agenda.scenes)} scenes the policy looks again, at a chunk's start after the given frame; "
            f"{f'with {other} it does not' if other else 'and none of its chunks holds two frames'}"
        )

    def unforced(self, agenda: Agenda) -> dict[str, Any]:
        """``frames``, and ``start`` where that must change too, with which no policy looks ahead; empty where none do."""
        if self.column is None or self.needs.teacher_forced or _latents.teacher_forced(self.column):
            return {}
        stride, first = max(scene.stride for scene in agenda.scenes), self.spec.first()
        for start in range(first, first + max(1, _latents.rows_of_chunk(self.column, first)) + 1):
            frames = (_latents.rows_of_chunk(self.column, start) + self.spec.delay) // stride
            if frames >= 1:
                return {"frames": frames} if start == first else {"start": start, "frames": frames}
        return {}

    def _looks_ahead(self, scene: Planned) -> bool:
        last = self.spec.first() - self.spec.delay + self.order.frames * scene.stride - 1
        return self.column is not None and _latents.looks_ahead(self.column, self.spec.first(), last)

    def batches(self, agenda: Agenda, done: Callable[[Planned], bool], title: str = "imagine") -> Iterator[Prediction]:
        """Imagine every batch that is not wholly ``done``. A scene that cannot be decoded is added to ``agenda.rejected``."""
        groups = self._groups(agenda)
        others = self._others(agenda)
        with progress(title, sum(map(len, groups)), unit="scenes") as bar:
            for group in groups:
                if not all(done(planned) for planned in group):
                    yield from self._imagine(group, others, agenda)
                bar.advance(len(group))

    def _groups(self, agenda: Agenda) -> list[list[Planned]]:
        """Fixed batches of scenes whose actions and history have the same shape."""
        kinds: dict[tuple, list[Planned]] = {}
        for planned in agenda.scenes:
            past = len(self.spec.past(planned.stride))
            kinds.setdefault((planned.actions.shape, past), []).append(planned)
        size = self.order.batch
        return [alike[at : at + size] for alike in kinds.values() for at in range(0, len(alike), size)]

    def _others(self, agenda: Agenda) -> dict[str, list[Planned]]:
        """Episode id -> the scenes whose actions it is given, one per permutation; among scenes of the same shape."""
        out: dict[str, list[Planned]] = {planned.episode: [] for planned in agenda.scenes}
        kinds: dict[tuple, list[Planned]] = {}
        for planned in agenda.scenes if self.order.permutations else []:
            kinds.setdefault(planned.actions.shape, []).append(planned)
        for alike in kinds.values():
            count = min(self.order.permutations, len(alike) - 1)
            if count < self.order.permutations:
                self.note(f"{len(alike)} scenes allow {count} permutations of their actions, not {self.order.permutations}")
            for number in range(count):
                for mine, other in zip(alike, scenes.partners(len(alike), number, self.seed)):
                    out[mine.episode].append(alike[other])
        return out

    def _imagine(self, group: list[Planned], others: dict[str, list[Planned]], agenda: Agenda) -> Iterator[Prediction]:
        cut: list[tuple[Planned, Scene]] = []
        for planned in group:
            try:
                cut.append((planned, self._cut(planned)))
            except BadEpisode as bad:
                agenda.rejected.append({"episode": bad.episode, "reason": bad.reason})
        for shape in sorted({scene.context.shape for _, scene in cut}):
            alike = [(planned, scene) for planned, scene in cut if scene.context.shape == shape]
            yield from self._rollouts(alike, others)

    def _rollouts(self, pairs: list[tuple[Planned, Scene]], others: dict[str, list[Planned]]) -> list[Prediction]:
        """The model's answers to its own and to other episodes' actions, from the same noise."""
        batch = [scene for _, scene in pairs]
        if isinstance(self.actor, ClosedLoop):
            own, batch = self._live(self.actor, pairs)
        else:
            own = self._rollout(batch, [scene.actions for scene in batch], self.order.num_samples)
        told = isinstance(self.model, SupportsRepeats) and not isinstance(self.actor, ClosedLoop)
        repeats = self.model.repeats if told else None  # type: ignore[attr-defined]
        count = min(len(others[scene.episode]) for scene in batch)
        swapped = []
        for number in range(count):
            actions = [others[scene.episode][number].actions for scene in batch]
            swapped.append(self._rollout(batch, actions, 1)[:, 0])
        out = []
        for b, (planned, scene) in enumerate(zip((planned for planned, _ in pairs), batch)):
            theirs = others[scene.episode][:count]
            prediction = Prediction(
                episode=scene.episode,
                samples=_after(scene.context[-1], own[b]),
                actions=scene.actions,
                truth=scene.truth,
                frame_index=scene.frame_index,
                fps=scene.fps,
                instruction=scene.instruction,
                action_names=self._names(scene.actions.shape[-1]),
                teacher_forced=self.forced(Agenda([planned])) is not None,
                trained_on=scene.episode in self.trained_on,
                repeats=None if repeats is None else repeats[b],
            )
            if theirs:
                prediction = replace(
                    prediction,
                    permuted=_after(scene.context[-1], np.stack([p[b] for p in swapped])),
                    permuted_actions=np.stack([p.actions for p in theirs]),
                    permuted_episodes=[p.episode for p in theirs],
                )
            if self.order.reconstruct and scene.truth is not None and isinstance(self.model, SupportsReconstruct):
                prediction.reconstruction = np.asarray(self.model.reconstruct(scene.truth[None]))[0]
                if isinstance(self.model, SupportsRepeats) and self.model.told_repeats is not None:
                    prediction.truth_repeats = self.model.told_repeats[0]
            out.append(prediction)
        return out

    def _names(self, width: int) -> list[str]:
        """Names of the action numbers, where the model or the dataset gives them."""
        spec = self.needs.action_spec or self.source.card.actions
        return list(spec.names) if spec is not None and spec.dim == width else []

    def _live(self, actor: ClosedLoop, pairs: list[tuple[Planned, Scene]]) -> tuple[np.ndarray, list[Scene]]:
        """Frames ``[B, 1, n, H, W, 3]`` of a policy acting in the dream, and the scenes with the actions that it chose."""
        batch, stride = [scene for _, scene in pairs], pairs[0][0].stride
        starts = [planned.start for planned, _ in pairs if planned.start is not None]
        past = self._past(batch)

        def imagine(context: np.ndarray, rows: np.ndarray, seeds: list[int]) -> np.ndarray:
            nonlocal past
            out = self.answers(batch, context, rows, 1, seeds, past)[:, 0]
            past = None if past is None else np.concatenate([past, rows], axis=1)
            return out

        frames, rows = actor.drive(batch, starts, self.order.frames, stride, imagine)
        return frames[:, None], [replace(scene, actions=own) for scene, own in zip(batch, rows)]

    def _rollout(self, batch: list[Scene], actions: list[np.ndarray], samples: int) -> np.ndarray:
        """uint8 ``[B, N, n, H, W, 3]``."""
        context = np.stack([scene.context for scene in batch])
        seeds = [scenes.scene_seed(self.seed, scene.episode, scene.frame_index) for scene in batch]
        return self.answers(batch, context, np.stack(actions), samples, seeds, self._past(batch))

    @staticmethod
    def _past(batch: list[Scene]) -> np.ndarray | None:
        """Rows between the given frames, ``[B, T0 - 1, r, A]``; None unless every scene knows its own."""
        known = [scene.past for scene in batch if scene.past is not None]
        return np.stack(known) if len(known) == len(batch) else None

    def answers(
        self,
        batch: list[Scene],
        context: np.ndarray,
        actions: np.ndarray,
        samples: int,
        seeds: list[int],
        past: np.ndarray | None,
    ) -> np.ndarray:
        """uint8 ``[B, N, n, H, W, 3]``; anything else is a defect of the model.

        Args:
            past: rows before the actions, at least those between the frames of the context; None where unknown.
        """
        if isinstance(self.model, SupportsPastActions):
            between = context.shape[1] - 1
            self.model.set_past_actions(None if past is None else past[:, past.shape[1] - between :])
        if isinstance(self.model, SupportsInstructions):
            self.model.set_instructions([scene.instruction for scene in batch])
        out = np.asarray(self.model.rollout(context, actions, num_samples=samples, seeds=seeds))
        expected = (len(batch), samples, actions.shape[1], *context.shape[2:])
        if out.shape != expected or out.dtype != np.uint8:
            raise TypeError(f"{type(self.model).__name__}.rollout gave {out.dtype} {out.shape} instead of uint8 {expected}")
        return out

    def _cut(self, planned: Planned) -> Scene:
        episode = self.source.episode(planned.index)
        scene = scenes.cut(episode, self.spec, planned.stride, planned.actions, truth=self.actor is None)
        if not isinstance(self.model, SupportsPastActions) or self.needs.action_column != "raw":
            return scene
        return replace(scene, past=scenes.past_actions(episode.actions, self.spec, planned.stride))

    def _rows(self, episode: Episode) -> np.ndarray | None:
        """The rows that drive the model: the dataset's own, or a column's."""
        if self.column is not None:
            if episode.id not in self.column:
                raise BadEpisode(episode.id, f"{self.column.folder} has no rows of it")
            return self.column.load(episode.id)
        if episode.actions is None and self.needs.action_spec is not None:
            raise BadEpisode(episode.id, f"{episode.source} has no actions")
        return episode.actions

    def _column(self) -> columns.Column | None:
        if self.needs.action_column == "raw" or self.actor is not None:
            return None
        root = Path(self.order.columns) if self.order.columns else self.order.data
        name = self.needs.action_column.partition("@")[0]
        command = f"worldsim extract-latents {self.order.data} --extractor {name}"
        now = {"dataset": columns.dataset_fingerprint(self.order.data)}
        return columns.find(root, "actions", self.needs.action_column, now, command)

    def _camera(self) -> str:
        card, wanted = self.source.card, self.order.camera or self.needs.camera
        if wanted is None:
            if not card.camera_names:
                raise UserError(f"{self.order.data} has no camera", "worldsim doctor DATA")
            return card.camera_names[0]
        wanted = JOIN.join(name.strip() for name in wanted.split(",")) if wanted not in card.camera_names else wanted
        whose = "" if self.order.camera else ", on which the model was trained: it"
        first = again(camera=next(iter(card.camera_names), None))
        require_cameras(wanted, card.camera_names, f"{self.order.data}{whose}", first)
        return wanted

    def _actor(self, device: str) -> ActionFile | OpenLoop | ClosedLoop | None:
        """Who chooses the actions; None leaves them to the dataset."""
        order = self.order
        if order.actions == "dataset":
            return None
        if not order.actions.startswith(_policy_actions.PREFIX):
            file = ActionFile.read(Path(order.actions))
            if self.needs.action_spec is not None:
                file.require(self.needs.action_spec)
            return file
        actor = _policy_actions.make(order.actions, self.source, self.spec, self.seed, device, self.note)
        live = isinstance(actor, ClosedLoop)
        for key, value, least in (("permutations", order.permutations, 0), ("num_samples", order.num_samples, 1)):
            if live and value > least:
                raise UserError(
                    f"{key} = {value}: a policy that acts in the dream answers each future with other actions",
                    again({key: least}),
                )
        how = "acts on the imagined frames" if live else "looks at nothing and is asked beforehand"
        self.note(f"the actions are those of {order.actions}, which {how}; there is no true video of them")
        return actor


def _after(given: np.ndarray, future: np.ndarray) -> np.ndarray:
    """``[N, n, H, W, 3]`` with the given frame in front: ``[N, 1 + n, H, W, 3]``."""
    first = np.broadcast_to(given, (len(future), 1, *given.shape))
    return np.concatenate([first, future], axis=1)
