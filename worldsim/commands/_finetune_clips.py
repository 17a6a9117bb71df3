"""From a dataset and a config to what a Wan trainer needs: which clips, of what size, driven by what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worldsim.commands import _latents
from worldsim.commands._latents import Latents
from worldsim.commands._selection import parse_size
from worldsim.core import registry
from worldsim.core.errors import BadEpisode, UserError, again
from worldsim.core.protocols import EpisodeSource
from worldsim.core.types import CameraInfo
from worldsim.data import batches, cameras, columns, delay
from worldsim.data.split import split_episodes
from worldsim.data.transforms import Kind
from worldsim.data.windows import WindowSpec, require_rows, stride_for
from worldsim.encoders.wan_vae import PACK
from worldsim.world_models._wan_encode import ClipPlan, given_frames
from worldsim.world_models._wan_geometries import Base, Geometry
from worldsim.world_models.wan import check_size

HOP_FRACTION = 4
"""Without ``cache.hop`` a new clip begins every quarter of a clip."""
DELAY_EPISODES = 50
"""So many train episodes are looked at to measure the delay of their actions."""


@dataclass(frozen=True)
class Wish:
    """The part of the config that chooses clips; the meaning of each entry stands in ``finetune_wan.Config``."""

    data: Path
    root: Path
    camera: str | None
    fps: float | None
    frames: int
    min_frames: int | None
    size: str | None
    actions: str
    action_delay: int
    history: int
    hop: int | None
    batch: int
    normalise: Kind
    max_rejected: int


@dataclass(frozen=True)
class Facts:
    """What is known of one train episode without decoding a frame."""

    index: int
    num_frames: int
    instruction: str


@dataclass
class Choice:
    """What will be trained on.

    Attributes:
        plan: camera, size, windows and histories of clips of full length.
        fps: of the clips.
        facts: train episode id -> facts, in the source's order.
        buckets: frames per clip -> train episode id -> first frames of its clips; the longest clips first.
        rejected: train episodes that cannot be used; the encode phase adds those it loses.
        notes: remarks for the user.
    """

    plan: ClipPlan
    fps: float
    facts: dict[str, Facts]
    buckets: dict[int, dict[str, list[int]]]
    rejected: list[BadEpisode]
    notes: list[str]

    @property
    def left_out(self) -> list[str]:
        """A remark for each rejected episode."""
        return [f"episode {bad.episode} was left out: {bad.reason}" for bad in self.rejected]

    @property
    def episodes(self) -> list[str]:
        """Those that have a clip, in the source's order."""
        return [name for name in self.facts if any(name in starts for starts in self.buckets.values())]

    @property
    def clips(self) -> dict[int, int]:
        """Frames per clip -> how many clips."""
        return {frames: sum(map(len, starts.values())) for frames, starts in self.buckets.items()}

    def plan_of(self, frames: int) -> ClipPlan:
        """The plan of the bucket of clips of ``frames``."""
        return replace(self.plan, window=replace(self.plan.window, frames=frames))


def choose(wish: Wish, source: EpisodeSource, base: Base) -> Choice:
    """Decide camera, size, rate and windows, and look at every train episode's numbers.

    Raises:
        UserError: nothing fits; names the key and what would.
    """
    camera = choose_camera(source, wish.camera)
    height, width = choose_size(camera, wish.size, base.geometry, _count(source, camera))
    check_size(base, height, width, wish.frames)
    histories = choose_histories(wish.history, wish.min_frames or wish.frames)
    stride = stride_for(source.card.fps, wish.fps)
    hop = wish.hop or max(1, ((wish.frames - 1) * stride + 1) // HOP_FRACTION)
    window = WindowSpec(wish.frames, stride, hop, wish.action_delay)
    plan = ClipPlan(columns.dataset_fingerprint(wish.data), camera.name, height, width, window, histories)
    ids = source.ids()
    train = split_episodes(ids, source.card.splits).train
    facts, rejected = survey(source, train, plan)
    refuse_rejected(rejected, len(facts), len(train), wish)  # too many already: no use in encoding the others first
    shorter = range(wish.min_frames or wish.frames, wish.frames, PACK)
    buckets = batches.cut({name: f.num_frames for name, f in facts.items()}, window, shorter)
    choice = Choice(plan, source.card.fps / stride, facts, buckets, rejected, [])
    choice.notes = _notes(source, camera, wish, choice) + delay_notes(source, facts, wish)
    return choice


def choose_camera(source: EpisodeSource, wanted: str | None) -> CameraInfo:
    """The named camera, or a stack of several (``a+b``), else the first by name.

    Raises:
        UserError: a camera that is not there, or named twice.
    """
    known = source.card.camera_names
    where = f"the dataset {source.card.name}"
    if not known:
        raise UserError(f"{where} has no camera", "worldsim doctor DATA")
    name = wanted or min(known)
    names = cameras.require_cameras(name, known, where, again(camera=min(known)))
    return cameras.stacked_info(cameras.JOIN.join(names), source.card.cameras)


def _count(source: EpisodeSource, camera: CameraInfo) -> int:
    return len(cameras.split_names(camera.name, source.card.camera_names))


def choose_size(camera: CameraInfo, wanted: str | None, geometry: Geometry, stacked: int = 1) -> tuple[int, int]:
    """``HxW`` as given, else the camera's own size, shrunk to the model's area and rounded to its multiple.

    Args:
        stacked: how many cameras share the height; each has whole latent cells of its own.

    Raises:
        UserError: a given size that the stacked cameras cannot share out like that.
    """
    multiple = geometry.multiple
    given = check_size_text(wanted)
    if given is not None:
        if cameras.share_of(camera.name, stacked, given[0]) % (geometry.stride if stacked > 1 else 1):
            step = stacked * multiple
            raise UserError(
                f"size {wanted}: each of the {stacked} stacked cameras gets {given[0] // stacked} pixels of the height, "
                f"which is no multiple of {geometry.stride}",
                again(size=f"{max(step, round(given[0] / step) * step)}x{given[1]}"),
            )
        return given
    scale = min(1.0, (geometry.area / (camera.height * camera.width)) ** 0.5)
    sides = ((camera.height, stacked * multiple), (camera.width, multiple))
    height, width = (max(step, round(side * scale / step) * step) for side, step in sides)
    return height, width


def check_size_text(text: str | None) -> tuple[int, int] | None:
    """``480x640`` -> (480, 640); None stays None."""
    try:
        return parse_size(text)
    except UserError as error:
        raise UserError(error.sentence, again(size="480x640")) from None


def choose_histories(history: int, frames: int) -> tuple[int, ...]:
    """One given latent (a rollout's start) and ``history`` of them (its later chunks)."""
    if history < 1 or given_frames(history) >= frames:
        most = (frames - 1) // 4
        raise UserError(
            f"history = {history} given latents leave nothing of a clip of {frames} frames to imagine; 1 to {most} fit",
            again(history=max(1, min(most, 2))),
        )
    return (1,) if history == 1 else (1, history)


def survey(source: EpisodeSource, train: list[str], plan: ClipPlan) -> tuple[dict[str, Facts], list[BadEpisode]]:
    """Length and instruction of every train episode; the bad ones apart."""
    at = {name: index for index, name in enumerate(source.ids())}
    facts: dict[str, Facts] = {}
    rejected: list[BadEpisode] = []
    for name in train:
        try:
            episode = source.episode(at[name])
            stream = cameras.camera_stream(episode, plan.camera, plan.height, plan.width)
            if abs(episode.fps - source.card.fps) > 1e-3:
                raise BadEpisode(name, f"{episode.source} has {episode.fps:g} fps, the dataset {source.card.fps:g}")
            if episode.actions is not None:
                require_rows(name, stream.num_frames, len(episode.actions))
            facts[name] = Facts(at[name], stream.num_frames, episode.instruction or "")
        except BadEpisode as bad:
            rejected.append(bad)
    return facts, rejected


def refuse_rejected(rejected: list[BadEpisode], usable: int, count: int, wish: Wish) -> None:
    """
    Args:
        rejected: all that were lost so far, wherever. usable: how many are left. count: size of the train split.

    Raises:
        UserError: more than ``max_rejected`` were lost, or none is left.
    """
    if len(rejected) > wish.max_rejected or (rejected and not usable):
        accept = again(max_rejected=len(rejected))
        raise UserError(
            f"{len(rejected)} of {count} train episodes cannot be used, the first is {rejected[0].episode}: "
            f"{rejected[0].reason}",
            accept if usable else ["worldsim", "doctor", wish.data],
        )


def _notes(source: EpisodeSource, camera: CameraInfo, wish: Wish, choice: Choice) -> list[str]:
    """What was decided for the user."""
    out: list[str] = []
    plan, count = choice.plan, _count(source, camera)
    others = [c.name for c in source.card.cameras if c.name != camera.name]
    if others and wish.camera is None:
        out.append(f"trained on camera '{camera.name}', the first by name; the others are {', '.join(others)}")
    if count > 1:
        out.append(
            f"{count} cameras are stacked from top to bottom, {plan.height // count}x{plan.width} each: {camera.name}"
        )
    if (plan.height, plan.width) != (camera.height, camera.width):
        out.append(f"frames of {camera.height}x{camera.width} are cut and resized to {plan.height}x{plan.width}")
    shorter = [name for frames, starts in choice.buckets.items() if frames < wish.frames for name in starts]
    if shorter:
        out.append(
            f"{len(shorter)} train episodes are too short for {wish.frames} frames and give shorter clips: "
            f"the first is {min(shorter)}"
        )
    short = sorted(choice.facts.keys() - set(choice.episodes))
    if short:
        hint = "" if wish.min_frames else f"; --set min_frames={given_frames(wish.history) + PACK} would use shorter clips"
        out.append(f"{len(short)} train episodes are too short for a clip and were left out, the first is {short[0]}{hint}")
    return out


def delay_notes(source: EpisodeSource, facts: dict[str, Facts], wish: Wish) -> list[str]:
    """A remark when recorded actions and states say clearly that another ``action_delay`` is right."""
    if wish.actions != "raw":
        return []
    some = (source.episode(fact.index) for fact in list(facts.values())[:DELAY_EPISODES])
    measured = delay.measure((e.actions, e.states) for e in some if e.actions is not None and e.states is not None)
    if measured is None or not measured.beats(wish.action_delay):
        return []
    best, used = measured.explained[measured.best], measured.explained[wish.action_delay]
    return [
        f"the next change of the recorded state is explained best by the action {measured.best} rows before it "
        f"({best:.0%} of its variance, and {used:.0%} at action_delay = {wish.action_delay}); "
        f"--set action_delay={measured.best} would train on that"
    ]


def choose_latents(
    wish: Wish, source: EpisodeSource, digest: str, *, rank: int = 0, world_size: int = 1
) -> tuple[Latents, str]:
    """What drives the video: recorded actions (extracted on the way), or a column that extract-latents made.

    Returns:
        the column, and for the checkpoint's card what made it: rows that the same made of other data drive the model too.
    """
    if wish.actions == "raw":
        raw: Any = registry.get("latent_actions", "raw").create(None, None, "cpu")
        latents = _latents.fill(wish.root, source, "raw", raw, digest, rank=rank, world_size=world_size)
        return latents, "raw"
    latents = _latents.find(wish.root, wish.data, wish.actions, digest)
    return latents, latents.column.spec.maker
