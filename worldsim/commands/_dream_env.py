"""The environment ``dream``: a world model and the dataset whose frames its dreams begin with, put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldsim.commands import _policy_actions
from worldsim.commands._agenda import Order
from worldsim.commands._imagine import Studio
from worldsim.commands._world import load_world
from worldsim.core import registry
from worldsim.core.errors import UserError, again
from worldsim.data import scenes
from worldsim.data.scenes import Scene
from worldsim.data.windows import stride_for
from worldsim.envs.dream import Dream, Setting
from worldsim.formats import open_dataset


@dataclass(frozen=True)
class Wanted:
    """Which dream.

    Attributes:
        world: run folder (or name) of a world model. data: dataset folder.
        episodes: which of them dreams begin in, as in ``infer``; the held-out ones when None.
        camera: the model's own when None. state: ``auto``, ``targets`` or ``start``, see ``commands._policy_actions.Wanted``.
        anywhere: whether dreams begin at a frame that the seed draws. limit: steps until truncation; 0 never.
        judge: registered name of a judge; None leaves ``is_success`` False.
        whole: ``Setting.whole``; None tells a dream again where the model sees one frame of history only.
        steps, guidance, temperature, top_k: how the model samples, as in ``infer``.
    """

    world: str
    data: Path
    episodes: str | None = None
    camera: str | None = None
    state: _policy_actions.State = "auto"
    anywhere: bool = False
    limit: int = 0
    judge: str | None = None
    whole: bool | None = None
    steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None


def open_dream(wanted: Wanted, *, device: str = "cpu", seed: int = 0, note: Callable[[str], None] = print) -> Dream:
    """
    Raises:
        UserError: model and dataset do not match, the model is driven by something else than the dataset's own actions, or
            a frame of it takes several of the dataset's actions.
    """
    source = open_dataset(wanted.data)
    sampling = {key: getattr(wanted, key) for key in ("steps", "guidance", "temperature", "top_k")}
    order = Order(data=wanted.data, frames=1, episodes=wanted.episodes, camera=wanted.camera, **sampling)
    studio = Studio(order, load_world(wanted.world, device), source, seed, note, device)
    if studio.needs.action_spec is None or studio.needs.action_column != "raw":
        raise UserError(
            f"the world model {wanted.world} follows {_follows(studio)}, so a policy's actions cannot move its dreams",
            "worldsim models list world-models",
        )
    stride = stride_for(source.card.fps, studio.fps)
    if stride != 1:
        raise UserError(
            f"one frame of {wanted.world} takes {stride} actions of {wanted.data}: a dream imagines one frame per action; "
            f"convert the dataset to the model's {studio.fps:g} frames per second",
            ["worldsim", "convert", wanted.data, "--fps", f"{studio.fps:g}"],
        )
    stage = _policy_actions.stage_of(source, source.card.name)
    chosen, _ = scenes.choose(source.card, source.ids(), wanted.episodes)
    setting = Setting(
        source,
        chosen,
        studio.spec,
        stage.action_space.low,
        stage.action_space.high,
        follows=_policy_actions.state_follows(source.card, wanted.state, "a dream"),
        anywhere=wanted.anywhere,
        limit=wanted.limit,
        whole=wanted.whole if wanted.whole is not None else studio.needs.context_frames == 1,
    )
    if not setting.follows and source.card.state_names:
        note("the robot's state in the dream stays what was recorded at its start: a policy that reads it is misled")
    judge = registry.get("judges", wanted.judge)() if wanted.judge else None
    if judge is None:
        note("no judge looks at the dream, so is_success is always False (--set judge=NAME)")
    return Dream(imagine_with(studio), setting, judge)


def imagine_with(studio: Studio) -> Callable[[Scene, np.ndarray, np.ndarray, int, np.ndarray | None], np.ndarray]:
    """One frame per row, by the very function that ``infer`` imagines with."""

    def imagine(scene: Scene, context: np.ndarray, rows: np.ndarray, seed: int, past: np.ndarray | None) -> np.ndarray:
        before = None if past is None else past[None]
        return studio.answers([scene], context[None], rows[None, :, None], 1, [seed], before)[0, 0]

    return imagine


def _follows(studio: Studio) -> str:
    column = studio.needs.action_column
    return "no actions" if studio.needs.action_spec is None else f"the latent actions '{column}'"


def require_world(world: str | None, data: str | None) -> tuple[str, Path]:
    """Both must be named for a dream.

    Raises:
        UserError: one is missing.
    """
    if world is None:
        raise UserError("a dream needs a world model: --world RUN", again(world="RUN"))
    if data is None:
        raise UserError("a dream begins with a dataset's frames, and none was named", again(data="DATA"))
    return world, Path(data)
