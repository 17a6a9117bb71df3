"""``worldsim eval policy``: policies act in a simulator or in a dream, on the same seeds, and are counted.

Writes ``episodes/<policy>/<seed>.json`` (one per trial; a killed run continues after the last), ``films/`` (frames of the
first seeds) and ``report/``. ``result.json`` holds one row per policy: successes, trials, rate, Wilson's interval.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from worldsim import envs, policies
from worldsim.commands import _dream_env, _policy, _policy_actions
from worldsim.commands._policy_page import publish
from worldsim.commands._policy_trials import Book, Trial, attempt
from worldsim.commands.infer import check_counts
from worldsim.core import registry
from worldsim.core.config import config
from worldsim.core.console import progress
from worldsim.core.errors import UserError, again, did_you_mean
from worldsim.core.files import read_json
from worldsim.core.protocols import Environment, LearnedPolicy, Policy
from worldsim.core.runs import RunContext
from worldsim.core.types import Result
from worldsim.envs.dream import Dream
from worldsim.report.proportions import Agreement, agreement, paired, wilson

DREAM = "dream"
STEPS = {"pusht": 300, "metaworld": 63, DREAM: 32}
"""Steps per episode where none were named: 30 s of Push-T, Metaworld's own 500 steps at 80 Hz, what a dream stays sharp for."""


@config
class Dreaming:
    """What a dream is made of; read with ``--env dream`` only.

    Attributes:
        world: run folder (or name) of a world model. data: dataset whose frames dreams begin with.
        scenes: which episodes, as in ``infer``; the held-out ones when null. camera: the model's own when null.
        state: where the robot's state comes from: ``targets`` (the actions), ``start`` (as recorded), ``auto``.
        anywhere: begin at a frame that the seed draws, not at the first.
        judge: registered name of who decides success; null: nobody does, and no rate is given.
        whole: imagine each dream again from its recorded beginning at every step (``docs/closed-loop.md``); null: where the
            model sees one frame of history only.
        steps, guidance, temperature, top_k: how the model samples; its own values when null.
    """

    world: str | None = None
    data: str | None = None
    scenes: str | None = None
    camera: str | None = None
    state: _policy_actions.State = "auto"
    anywhere: bool = False
    judge: str | None = None
    whole: bool | None = None
    steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None


@config
class Config:
    """Who acts where, how often.

    Attributes:
        env: ``name`` (``pusht``, ``metaworld:TASK``, ``dream``) and the environment's own options (``size``, …).
        policy: policies as ``worldsim.policies.load`` reads them; all get the same seeds.
        episodes: trials per policy. steps: the longest trial; the environment's usual length when null.
        stop_on_success: end a trial when it is solved, as lerobot-eval does.
        rename: a policy's camera -> the environment's, where names differ.
        dream: see :class:`Dreaming`.
        clips: trials per policy that are filmed, the first seeds.
        truth: another run's folder or ``result.json``: do its rates and these agree?
    """

    env: dict[str, Any]
    policy: tuple[str, ...] = ()
    episodes: int = 50
    steps: int | None = None
    stop_on_success: bool = True
    rename: dict[str, str]
    dream: Dreaming
    clips: int = 4
    truth: str | None = None

    def __post_init__(self) -> None:
        check_counts(self, least_one=("episodes", "steps"), least_zero=("clips",))
        if not self.env.get("name"):
            raise UserError("no environment was named", "worldsim eval policy --env pusht --policy scripted:push")
        twice = [text for text in self.policy if self.policy.count(text) > 1]
        if twice:
            raise UserError(f"the policy {twice[0]} is named twice")

    @property
    def place(self) -> str:
        """The environment's name without its task."""
        return str(self.env["name"]).partition(":")[0]

    @property
    def horizon(self) -> int:
        return self.steps or STEPS.get(self.place, 300)


def run(config: Config, context: RunContext) -> Result:
    """Try every policy on every seed, count, and write the page; a trial that was recorded is not repeated.

    Raises:
        UserError: no policy was named, one does not fit the environment, or the other run cannot be compared.
    """
    if not config.policy:
        raise UserError("no policy was named", again(policy="scripted:random"))
    for name, text in _inputs(config).items():
        context.reads(name, Path(text))
    env = open_env(config, context)
    try:
        book = Book(context.out, config.policy, [context.seed * 100_000 + k for k in range(config.episodes)])
        _try_all(config, context, env, book)
    finally:
        env.close()
    judged = config.place != DREAM or config.dream.judge is not None
    trials = {text: book.trials(text) for text in config.policy}
    rows = [_row(text, trials[text], judged) for text in config.policy]
    pairs = _pairs(config.policy, trials) if judged else []
    found = compare(rows, config.truth) if config.truth else None
    text = publish(config, context, rows, pairs, found, book, fps=env.fps)
    metrics = {
        "env": config.env["name"],
        "steps": config.horizon,
        "episodes": config.episodes,
        "judged": judged,
        "rows": rows,
        "paired": pairs,
        **({"truth": {"results": config.truth, **found.to_json()}} if found else {}),
    }
    return Result(metrics=metrics, summary=text, next=["open", context.out / "report" / "index.html"])


def _inputs(config: Config) -> dict[str, str]:
    """Name -> path of everything on disk that the result depends on."""
    named = {f"policy {k}": text.removeprefix("replay:").partition("#")[0] for k, text in enumerate(config.policy)}
    named |= {key: str(value) for key in ("world", "data") if (value := getattr(config.dream, key))}
    named |= {"truth": config.truth} if config.truth else {}
    return {key: text for key, text in named.items() if Path(text).exists()}


def open_env(config: Config, context: RunContext) -> Environment:
    """The environment that ``config.env`` describes.

    Raises:
        UserError: there is none of that name, or it has no such option.
    """
    name, options = str(config.env["name"]), {key: value for key, value in config.env.items() if key != "name"}
    if config.place == DREAM:
        if options:
            raise UserError(f"env.{next(iter(options))}: a dream has no such option; its own are under dream.*")
        return _dream(config, context)
    known = [*inspect.signature(registry.get("envs", config.place).__init__).parameters][1:]
    for key in options:
        if key not in known or key == "task":
            raise UserError(f"env.{key}: {config.place} has no such option{did_you_mean(key, known)}")
    return envs.make(name, **options)


def _dream(config: Config, context: RunContext) -> Environment:
    dream = config.dream
    world, data = _dream_env.require_world(dream.world, dream.data)
    sampling = {key: getattr(dream, key) for key in ("steps", "guidance", "temperature", "top_k")}
    wanted = _dream_env.Wanted(
        world, data, dream.scenes, dream.camera, dream.state, dream.anywhere, 0, dream.judge, dream.whole, **sampling
    )
    return _dream_env.open_dream(wanted, device=context.device, seed=context.seed, note=context.note)


def _try_all(config: Config, context: RunContext, env: Environment, book: Book) -> None:
    unused = set(config.rename)
    with progress("act", len(config.policy) * config.episodes, unit="trials") as bar:
        for text in config.policy:
            missing = [seed for seed in book.seeds if not book.has(text, seed, film=seed in book.seeds[: config.clips])]
            bar.advance(config.episodes - len(missing))
            if not missing:
                unused.clear()  # it was opened and renamed when its trials were made
                continue
            policy, used = fitted(text, env, context.device, config)
            unused -= used
            for seed in missing:
                film = seed in book.seeds[: config.clips]
                trial = attempt(env, policy, seed, config.horizon, config.stop_on_success)
                book.write(text, trial, film=film)
                bar.advance(1)
    if unused:
        raise UserError(f"rename.{min(unused)}: no policy has a camera of that name")


def fitted(text: str, env: Environment, device: str, config: Config) -> tuple[Policy, set[str]]:
    """A policy that fits the environment, and which of the renamed cameras are its own.

    Raises:
        UserError: it does not fit, or reads a state that a dream cannot know.
    """
    policy = _policy.open_policy(text, env, device, fit=False)
    if not isinstance(policy, LearnedPolicy):
        return policy, set()
    if isinstance(env, Dream) and policy.needs.state_names and not env.setting.follows and config.dream.state == "auto":
        same = len(env.state_names) == env.action_spec.dim
        raise UserError(
            f"{text} reads the robot's state, which a dream does not show: it can be followed only where the dataset's actions "
            f"are absolute joint targets, and these are {env.action_spec.mode} {env.action_spec.space} actions",
            again({"dream.state": "targets" if same else "start"}),
        )
    names = {own: other for own, other in config.rename.items() if own in policy.needs.cameras}
    if names:
        policy = policies.Renamed(policy, names)
    _policy.require_fit(policy.needs, env, text, _policy.title(env))
    return policy, set(names)


def _row(text: str, trials: list[Trial], judged: bool) -> dict[str, Any]:
    """One policy's line of the result; no rate where nobody judged."""
    solved = [trial.solved_at for trial in trials if trial.solved_at is not None]
    rate = wilson(len(solved), len(trials)) if judged else wilson(0, 0)
    steps = sum(trial.steps for trial in trials)
    return {
        "policy": text,
        **rate.to_json(),
        "mean_steps_to_success": sum(solved) / len(solved) if solved else None,
        "ms_per_step": 1000 * sum(trial.policy_seconds for trial in trials) / steps,
        "env_ms_per_step": 1000 * sum(trial.env_seconds for trial in trials) / steps,
    }


def _pairs(names: tuple[str, ...], trials: dict[str, list[Trial]]) -> list[dict[str, Any]]:
    """Every two policies on the same seeds."""
    out = []
    for k, first in enumerate(names):
        for second in names[k + 1 :]:
            mine, theirs = ([trial.success for trial in trials[name]] for name in (first, second))
            out.append({"first": first, "second": second, **paired(mine, theirs).to_json()})
    return out


def compare(rows: list[dict[str, Any]], truth: str) -> Agreement:
    """Whether another run's rates of the same policies agree with ``rows``.

    Raises:
        UserError: it is no result of ``eval policy``, or fewer than two policies have a rate in both.
    """
    path = Path(truth) / "result.json" if Path(truth).is_dir() else Path(truth)
    record = read_json(path)
    if not isinstance(record, dict) or record.get("command") != "eval-policy":
        raise UserError(f"{path} is no result of eval policy", ["worldsim", "eval", "policy", "--help"])
    true = {row["policy"]: row["rate"] for row in record["metrics"].get("rows", []) if row["rate"] is not None}
    mine = {row["policy"]: row["rate"] for row in rows if row["rate"] is not None}
    both = [name for name in mine if name in true]
    if len(both) < 2:
        raise UserError(f"{path} has a rate for {len(both)} of the policies {', '.join(mine) or 'here'}; two are needed")
    return agreement([mine[name] for name in both], [true[name] for name in both])


def plan(config: Config, seed: int = 0) -> dict[str, Any]:
    """Who would act where, without opening anything."""
    return {
        "env": config.env["name"],
        "policies": list(config.policy),
        "trials": len(config.policy) * config.episodes,
        "steps_at_most": len(config.policy) * config.episodes * config.horizon,
    }
