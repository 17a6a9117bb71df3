"""One trained run on held-out windows: squared errors, token hits, and the same with wrong world input, summed by episode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldsim.commands import _modality_corruptions as corruptions
from worldsim.commands._modality_baselines import Copy
from worldsim.commands._modality_corruptions import BLOCK, FUTURES, ORACLE, ZERO, Windows
from worldsim.commands._modality_summary import Scores, Truth
from worldsim.data.policy_windows import PolicyWindows
from worldsim.data.token_statistics import Bigram

BATCH = 256
TOP = 5
GRADIENT_WINDOWS = 512
"""Windows that the gradient's norm is averaged over, evenly spread."""
Switches = dict[str, Any]


def measure(
    net: Any, windows: PolicyWindows, scale: np.ndarray, centroids: np.ndarray, names: Sequence[str], seed: int, delay: int
) -> Scores:
    """Everything of :class:`Scores` but the time per step.

    Args:
        net: a ``ModalityNet``. scale: ``[A]``, physical units per unit of error that is reported (all runs of a comparison
            share one, whatever statistics each was trained with).
        names: of corruptions (``_modality_corruptions.names``); those of inputs that the arm does not have are left out.
    """
    wrong = interventions(net, windows, centroids, names, seed, delay)
    shape = (len(windows.episodes), windows.spec.horizon, len(scale))
    scores = Scores(np.zeros(shape), corrupted={name: np.zeros(shape) for name in wrong}, parameters=count(net))
    factor = (windows.scaling.actions.scale / scale) ** 2
    attention = 0.0
    for rows, batch in batches(windows):
        at = windows.index_of[rows]
        said = net.predict(batch, attention=net.reads_world)
        np.add.at(scores.error, at, squared(said.actions, batch["actions"]) * factor)
        attention += float(said.attention.sum()) if said.attention is not None else 0.0
        if said.logits is not None:
            _add_world(scores.world, at, said.logits, batch, len(windows.episodes))
        for name, switches in wrong.items():
            changed = net.predict(batch, **switches(rows))
            np.add.at(scores.corrupted[name], at, squared(changed.actions, batch["actions"]) * factor)
    if net.reads_world and len(windows):
        scores.attention = attention / len(windows)
        scores.gradient = gradient(net, windows)
    scores.distance = distances(windows, centroids, [name for name in wrong if replaces(name)], seed, delay)
    return scores


def count(net: Any) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def batches(windows: PolicyWindows) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """All windows in their order: their numbers, and the batch."""
    for start in range(0, len(windows), BATCH):
        rows = np.arange(start, min(start + BATCH, len(windows)))
        yield rows, windows.batch(rows)


def squared(said: Tensor, true: Tensor) -> np.ndarray:
    """float64 ``[B, H, A]``."""
    return ((said.cpu().double() - true.double()) ** 2).numpy()


def places(windows: PolicyWindows) -> Windows:
    """The windows as corruptions see them."""
    tokens = [np.asarray(windows.rows.tokens[name]) for name in windows.episodes]
    return Windows(tokens, windows.index_of, windows.start_of, windows.spec.context)


def replaces(name: str) -> bool:
    return name.partition(":")[0] in (*corruptions.REPLACING, corruptions.GRADED)


def interventions(
    net: Any, windows: PolicyWindows, centroids: np.ndarray, names: Sequence[str], seed: int, delay: int
) -> dict[str, Callable[[np.ndarray], Switches]]:
    """Name -> from the numbers of windows to the options of ``net.predict``, for every intervention that the arm has an input
    for."""
    where = places(windows)
    out: dict[str, Callable[[np.ndarray], Switches]] = {}
    for name in names:
        if replaces(name) and net.reads_world:
            tokens = torch.from_numpy(corruptions.corrupted(name, where, centroids, seed, delay=delay))
            out[name] = _tokens("cur_tokens", tokens)
        elif name == BLOCK and net.reads_world:
            out[name] = lambda rows: {"block_world": True}
        elif name == ZERO and net.reads_world:
            out[name] = lambda rows: {"zero_world": True}
        elif name in FUTURES and net.reads_future and not (name == ORACLE and net.arm.memory == "true"):
            out[name] = _future(name, where, windows.spec.future, len(centroids), seed)
    return out


def _tokens(key: str, tokens: Tensor) -> Callable[[np.ndarray], Switches]:
    return lambda rows: {key: tokens[torch.from_numpy(rows)]}


def _future(name: str, where: Windows, future: int, codes: int, seed: int) -> Callable[[np.ndarray], Switches]:
    if name == "zero_future":
        return lambda rows: {"zero_future": True}
    return _tokens("future_tokens", torch.from_numpy(corruptions.futures(name, where, future, codes, seed)))


def distances(
    windows: PolicyWindows, centroids: np.ndarray, names: Sequence[str], seed: int, delay: int
) -> dict[str, float]:
    """How far each corruption moves the current token, in the embeddings' unit."""
    where = places(windows)
    true = where.current()
    return {
        name: corruptions.moved(centroids, true, corruptions.corrupted(name, where, centroids, seed, delay=delay))
        for name in names
    }


def _add_world(
    world: dict[str, np.ndarray], at: np.ndarray, logits: Tensor, batch: Mapping[str, Tensor], episodes: int
) -> None:
    """Add a batch's token hits and bits, per horizon; ``change_top1`` counts where the token is not today's."""
    target = batch["future_tokens"]
    logits = logits.cpu().double()
    bits = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view(target.shape) / np.log(2)
    best = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices
    hit = best[..., 0] == target
    changed = target != batch["tokens"][:, -1:]
    found = {"top1": hit, "top5": (best == target[..., None]).any(-1), "bits": bits, "change_top1": hit & changed}
    for name, values in found.items():
        sums = world.setdefault(name, np.zeros((episodes, target.shape[1])))
        np.add.at(sums, at, values.double().sum(-1).numpy())


def gradient(net: Any, windows: PolicyWindows) -> float:
    """How steeply the action loss depends on the world tokens against the observation: the root mean square over windows of
    the loss's gradient at the world input's embeddings, over that at the observation's."""
    picked = np.unique(np.linspace(0, len(windows) - 1, min(GRADIENT_WINDOWS, len(windows))).round().astype(int))
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            if name not in seen:  # the memory of predicted futures embeds tokens as well, later
                output.requires_grad_(True)
                seen[name] = output

        return hook

    handles = [net.world.register_forward_hook(keep("world")), net.image.register_forward_hook(keep("image"))]
    was, device = net.training, next(net.parameters()).device
    net.eval()
    try:
        batch = {name: part.to(device) for name, part in windows.batch(picked).items()}
        future = batch["future_tokens"] if net.arm.memory == "true" else None
        said = net(batch["states"], batch["embeddings"], batch["tokens"], future)
        loss = (said.actions - batch["actions"]).square().mean(dim=(1, 2)).sum()
        wanted = [seen["world"], seen["image"]]
        world, image = torch.autograd.grad(loss, wanted, allow_unused=True)
    finally:
        net.train(was)
        for handle in handles:
            handle.remove()
    norms = [0.0 if part is None else float(part.double().square().sum()) for part in (world, image)]
    return float(np.sqrt(norms[0] / norms[1])) if norms[1] else float("nan")


def truth_of(windows: PolicyWindows, train: Mapping[str, np.ndarray], codes: int, scale: np.ndarray) -> Truth:
    """Windows per episode, and what the copy and bigram baselines get on them.

    Args:
        train: episode -> int ``[T, P]`` of training episodes alone.
    """
    episodes, future = len(windows.episodes), windows.spec.future
    copy, bigram = Copy.fit(train.values(), codes, future), Bigram.fit(train, codes, future)
    sums = {name: np.zeros((episodes, future)) for name in ("copy_top1", "copy_bits", "bigram_top1", "change")}
    where = places(windows)
    for e, tokens in enumerate(where.tokens):
        starts = where.start[where.episode == e]
        now = tokens[starts].astype(np.int64)
        then = np.stack([tokens[starts + k] for k in range(1, future + 1)], axis=1).astype(np.int64)
        guessed = np.stack([bigram.predict(now, k) for k in range(1, future + 1)], axis=1)
        sums["change"][e] = (then != now[:, None]).sum(axis=(0, 2))
        sums["copy_top1"][e] = (then == now[:, None]).sum(axis=(0, 2))
        sums["copy_bits"][e] = copy.bits(now, then).sum(axis=(0, 2))
        sums["bigram_top1"][e] = (guessed == then).sum(axis=(0, 2))
    counts = np.bincount(windows.index_of, minlength=episodes).astype(np.float64)
    return Truth(counts, where.tokens[0].shape[1] if where.tokens else 1, scale, sums)
