"""``train --config world_modality_a | _b | _c | …``: one arm of the world-modality experiment (``policies.world_modality``).

Phases: ``encode`` fills the columns of embeddings and tokens that are missing (``tokenize-world`` does the same beforehand);
``train`` reads numbers and columns alone. Scaling, codebook and windows come from training episodes; the held-out ones are
looked at once per epoch, to be told, and decide nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from worldsim.commands import _world_tokens
from worldsim.commands._policy_windows import Gathered, camera_of, gather, open_tokenizer, require_windows
from worldsim.commands._world_modality_config import OneArm, Shared
from worldsim.core import runs
from worldsim.core.config import to_values
from worldsim.core.console import say
from worldsim.core.errors import UserError
from worldsim.core.files import replacing, write_text
from worldsim.core.runs import RunContext
from worldsim.core.types import Result
from worldsim.data import columns
from worldsim.data.policy_windows import PolicyWindows, Scaling, fraction_of
from worldsim.data.split import split_episodes
from worldsim.formats import open_dataset
from worldsim.policies import _world_modality_files as files
from worldsim.policies._world_modality_arms import arm
from worldsim.policies._world_modality_card import ModalityCard
from worldsim.policies._world_modality_net import ModalityNet, parameters
from worldsim.policies._world_modality_training import LOSS, VAL_ACTION, VAL_WORLD, ModalityLoss, line, validate
from worldsim.tokenizers.kmeans import KMeans
from worldsim.train import checkpoint
from worldsim.train.loop import Outcome, fit
from worldsim.train.order import Order
from worldsim.train.tracking import METRICS, read_rows

Config = OneArm
LOG = Path("logs", "train.log")


@dataclass
class Prepared:
    """What all arms and seeds read: windows of both parts, and what is known of the dataset and the codebook.

    Attributes:
        train: windows of the training episodes that are used. held_out: of the others; None where none is held out.
        tokenizer: on the CPU. dataset: its fingerprint.
    """

    gathered: Gathered
    train: PolicyWindows
    held_out: PolicyWindows | None
    tokenizer: KMeans
    dataset: str


def run(config: OneArm, context: RunContext) -> Result:
    """Encode, then train. See the module's docstring."""
    prepared = prepare(config, context)
    return run_arm(config, context, prepared)


def prepare(config: Shared, context: RunContext) -> Prepared:
    """The phase ``encode``; every rank ends with the same windows."""
    tokenizer = open_tokenizer(config.tokenizer, config.data, context.device)
    wish = config.wish()
    source = open_dataset(wish.data, config.format)
    try:
        gathered = gather(wish, source, tokenizer, context.device, rank=context.rank, world_size=context.world_size)
    finally:
        source.close()
    for episode, reason in gathered.rejected.items():
        context.note(f"episode {episode} was left out: {reason}")
    rows, spec = gathered.rows, config.window
    train = [name for name in gathered.split.train if name in rows.tokens]
    scaling = Scaling.fit(rows.only(train))
    windows = PolicyWindows(spec, rows.only(fraction_of(train, config.data_fraction)), scaling)
    require_windows(len(windows), gathered, spec, wish.data)
    held_out = PolicyWindows(spec, rows.only(name for name in gathered.split.held_out if name in rows.tokens), scaling)
    if not len(held_out):
        context.note("no window of a held-out episode: nothing is validated while training")
    dataset = columns.dataset_fingerprint(wish.data)
    return Prepared(gathered, windows, held_out if len(held_out) else None, tokenizer.cpu(), dataset)


def run_arm(config: OneArm, context: RunContext, prepared: Prepared) -> Result:
    """Train one arm on what was prepared; writes ``checkpoint/``, ``state/`` and ``logs/``."""
    context.reads("data", Path(str(config.data)))
    context.reads("tokenizer", Path(str(config.tokenizer)))
    card = _card(config, context, prepared)
    net = files.net_of(card, context.seed)
    if context.rank == 0:
        _write_tokenizer(prepared.tokenizer, context.out / "checkpoint" / files.TOKENIZER)
    outcome = _train_phase(config, context, prepared, card, net)
    return _report(config, context, prepared, card, outcome)


def _card(config: OneArm, context: RunContext, prepared: Prepared) -> ModalityCard:
    gathered, tokenizer, scaling = prepared.gathered, prepared.tokenizer, prepared.train.scaling
    return ModalityCard(
        net=config.net(config.arm, scaling, gathered.action_spec, scaling.state_dim, tokenizer),
        scaling=scaling,
        camera=gathered.camera,
        cameras=gathered.cameras,
        fps=gathered.fps,
        state_names=gathered.state_names if scaling.state_dim else (),
        action_spec=gathered.action_spec,
        tokenizer={**tokenizer.card(), "codebook_hash": tokenizer.codebook_hash},
        train_episodes=tuple(prepared.train.episodes),
        held_out_episodes=tuple(gathered.split.held_out),
        dataset=prepared.dataset,
        data_fraction=config.data_fraction,
        seed=context.seed,
        revision=runs.revision(),
    )


def _write_tokenizer(tokenizer: KMeans, target: Path) -> None:
    """A copy of the codebook, once: the checkpoint then needs nothing else (but a backbone from the Hub)."""
    if not (target / checkpoint.CARD).exists():
        with replacing(target) as temporary:
            tokenizer.save(temporary)


def _train_phase(config: OneArm, context: RunContext, prepared: Prepared, card: ModalityCard, net: ModalityNet) -> Outcome:
    windows, held_out = prepared.train, prepared.held_out
    settings, per_epoch = config.settings(len(windows), context.world_size)
    share = (settings.batch, settings.accumulate, context.rank, context.world_size)
    order = Order(len(windows), context.seed, *share)
    log = _Log(context, per_epoch)
    codebook = {**card.tokenizer, "centroids": prepared.tokenizer.centroids.detach().cpu().clone()}

    def fetch(step: int, micro: int) -> dict[str, Tensor]:
        return windows.batch(order.indices(step, micro))

    def measure(step: int) -> dict[str, float]:
        path = files.epoch_file(context.out, card.arm, -(-step // per_epoch))
        files.write_epoch(path, net, to_values(config), card, codebook)
        _drop_epochs(path, card.arm, config.keep_epochs)
        return validate(net, held_out) if held_out else {}

    def save(tensors: dict[str, Tensor], step: int) -> None:
        checkpoint.write_checkpoint(context.out / "checkpoint", tensors, card.to_json(), step)

    module = ModalityLoss(net, config.loss)
    return fit(module, fetch, settings, context, save, to_values(config), measure, log.watch)


class _Log:
    """``logs/train.log``: the lines of this run, said as they come; a resume cuts those after the step it resumes at."""

    def __init__(self, context: RunContext, per_epoch: int) -> None:
        self.path, self.per_epoch, self.main = context.out / LOG, per_epoch, context.rank == 0
        state = checkpoint.latest_state(context.out / "state")
        resumed = int(state.name.removeprefix(checkpoint.STATE_PREFIX)) if state else 0
        self.lines: list[str] = []
        for row in read_rows(context.out / METRICS):
            if row.get("step", 0) <= resumed:
                self._add(row)

    def _add(self, row: dict[str, Any]) -> str | None:
        said = line(row, self.per_epoch)
        if said is not None:
            self.lines.append(said)
        return said

    def watch(self, row: dict[str, Any]) -> None:
        said = self._add(row)
        if said is not None and self.main:
            say(said)
            write_text(self.path, "\n".join(self.lines) + "\n")


def _drop_epochs(newest: Path, arm_name: str, keep: int) -> None:
    """Older epochs' files than the newest ``keep``; 0 keeps all."""
    prefix = f"model_{arm_name}_epoch"
    found = {int(p.stem.removeprefix(prefix)): p for p in newest.parent.glob(f"{prefix}*.pt")}
    for epoch in sorted(found)[:-keep] if keep else []:
        found[epoch].unlink()


def _report(config: OneArm, context: RunContext, prepared: Prepared, card: ModalityCard, outcome: Outcome) -> Result:
    rows = read_rows(context.out / METRICS)
    losses, scores = [row for row in rows if LOSS in row], [row for row in rows if VAL_ACTION in row]
    done = outcome.steps - outcome.resumed_at
    seen = done * config.train.batch * config.train.accumulate * context.world_size
    last = scores[-1] if scores else {}
    metrics: dict[str, Any] = {
        "arm": card.arm,
        "steps": outcome.steps,
        "windows": len(prepared.train),
        "episodes": len(prepared.train.episodes),
        "held_out_windows": len(prepared.held_out) if prepared.held_out else 0,
        "parameters": parameters(card.net),
        "codes": card.net.codes,
        **({LOSS: losses[-1][LOSS]} if losses else {}),
        **{key: last[key] for key in (VAL_ACTION, VAL_WORLD) if key in last},
        "rejected": [{"episode": name, "reason": reason} for name, reason in prepared.gathered.rejected.items()],
        "windows_per_second": round(seen / outcome.seconds, 1) if done else None,
    }
    elsewhere = ["--set", f"columns={config.columns}"] if config.columns else []
    told = f"; held out: action MSE {last[VAL_ACTION]:.4f}, world accuracy {last[VAL_WORLD]:.4f}" if last else ""
    return Result(
        metrics=metrics,
        next=["worldsim", "eval", "offline", config.data, "--model", context.out, *elsewhere],
        summary=f"arm {card.arm} ({arm(card.arm).about}): {outcome.steps} steps on {len(prepared.train)} windows of "
        f"{len(prepared.train.episodes)} episodes{told}",
    )


def plan(config: OneArm, seed: int = 0, processes: int = 1) -> dict[str, Any]:
    """What would be trained on and what is still to be encoded; encodes nothing."""
    return plan_for(config, (config.arm,))


def plan_for(config: Shared, arms: tuple[str, ...]) -> dict[str, Any]:
    """The plan of several arms; numbers of frames are taken from the episodes' declarations."""
    wish = config.wish()
    tokenizer = open_tokenizer(config.tokenizer, config.data, "cpu")
    source = open_dataset(wish.data, config.format)
    try:
        if source.card.actions is None:
            raise UserError(f"the dataset {wish.data} has no actions", ["worldsim", "doctor", wish.data])
        camera, split = camera_of(wish, source, tokenizer), split_episodes(source.ids(), source.card.splits)
        names = [*split.train, *split.held_out]
        todo = _world_tokens.missing(wish.root, tokenizer, camera, names, wish.data)
        states = len(source.card.state_names or ())
        nets = {name: config.net(name, None, source.card.actions, states, tokenizer) for name in arms}
    finally:
        source.close()
    return {
        "episodes": len(fraction_of(split.train, config.data_fraction)),
        "held_out": len(split.held_out),
        "to_encode": len(todo),
        "camera": camera,
        "codes": tokenizer.codes,
        "tokens_per_frame": tokenizer.frame_tokens,
        "parameters": {name: parameters(net) for name, net in nets.items()},
    }
