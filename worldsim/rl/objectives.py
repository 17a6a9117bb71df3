"""GRPO's arithmetic as pure functions: group advantages, the clipped policy loss and the KL penalty.

Shapes: ``P`` prompts, ``n`` samples of each (a group), ``F`` predicted frames, ``L`` tokens of a response. Forced tokens
have mask 0 and enter nothing. # source: DeepSeekMath (arXiv:2402.03300) eq. 3-4; dual clip: arXiv:1912.09729 eq. 5; the
constants are RLVR-World's (thuml/RLVR-World, spec rlvr-world 3.1)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to a group's standard deviation."""
CLIP, DUAL_CLIP = 0.2, 3.0
KL_BOUND = 10.0


def returns(rewards: Tensor, per_frame: bool = False, discount: float = 1.0) -> Tensor:
    """What a token is credited with, ``[P, n, F]``, from per-frame rewards ``[P, n, F]``.

    Without ``per_frame`` every frame gets the mean of all frames, as the reference does; with it, the mean of its own and
    the later ones (reward to go), each ``discount`` times as heavy as the one before it: a token cannot be blamed for frames
    that were finished before it, and the further away a frame, the more of it is other tokens' doing.
    """
    if not per_frame:
        return rewards.mean(-1, keepdim=True).expand_as(rewards)
    steps = torch.arange(rewards.shape[-1], device=rewards.device)
    weights = torch.tril(discount ** (steps[:, None] - steps).clamp(min=0).to(rewards))  # [later frame, own frame]
    return rewards @ (weights / weights.sum(0))


def group_std(values: Tensor) -> Tensor:
    """Unbiased standard deviation over each group, ``[P, n, F] -> [P, 1, F]``; exactly 0 for equal values."""
    same = values.amax(1, keepdim=True) == values.amin(1, keepdim=True)
    return values.std(1, unbiased=True, keepdim=True).masked_fill(same, 0.0)


def advantages(values: Tensor, scale: Tensor | None = None) -> Tensor:
    """Group z-scores ``(value - mean) / (std + 1e-6)``, ``[P, n, F]``; exactly 0 in a group of equal values.

    Args:
        values: from :func:`returns`, n >= 2.
        scale: the deviation to divide by instead of each group's own, broadcastable (``uniform_std``: the mean of the
            deviations of all groups, so that groups that hardly differ are not blown up).
    """
    spread = group_std(values)
    centred = (values - values.mean(1, keepdim=True)).masked_fill(spread == 0, 0.0)  # means of equal numbers may round
    return centred / ((spread if scale is None else scale) + EPSILON)


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Per token ``exp(d) - d - 1`` with ``d = reference - log_probs``, at most 10: >= 0, and 0 with no gradient at the
    reference. Unbiased for KL(policy || reference) over tokens drawn from the policy.

    # source: J. Schulman, "Approximating KL divergence", estimator k3
    """
    gap = reference - log_probs
    return (gap.exp() - gap - 1).clamp(max=KL_BOUND)


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions where ``mask`` (broadcastable) is 1."""
    kept = (mask != 0).expand_as(values)
    return values.masked_fill(~kept, 0.0).sum() / kept.sum()


@dataclass(frozen=True)
class Objective:
    """What one update minimises, and the numbers to watch, all scalars.

    Attributes:
        loss: ``policy + kl_weight * kl``, differentiable.
        policy, kl: its parts. clipped: share of tokens whose gradient the clip took away.
    """

    loss: Tensor
    policy: Tensor
    kl: Tensor
    clipped: Tensor


def objective(
    log_probs: Tensor,
    old: Tensor,
    reference: Tensor,
    advantage: Tensor,
    mask: Tensor,
    kl_weight: float = 1e-3,
    clip: float = CLIP,
    dual_clip: float = DUAL_CLIP,
) -> Objective:
    """PPO's clipped loss with dual clip and a k3 penalty, averaged over tokens.

    Args:
        log_probs: of the policy that is trained, ``[P, n, L]``. old: of the policy that drew the tokens; constants.
        reference: of the frozen reference. advantage: ``[P, n, L]``. mask: 1 where a token was drawn, broadcastable.
        clip: the ratio counts within ``1 ± clip``. dual_clip: bound on ``ratio`` where the advantage is negative.
    """
    ratio = (log_probs - old).exp()
    plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(plain, clipped)
    bound = -advantage * dual_clip
    losing = (advantage < 0) & (bound < loss)
    loss = torch.where(losing, bound, loss)
    policy, kl = token_mean(loss, mask), token_mean(k3(log_probs, reference), mask)
    idle = token_mean(((clipped > plain) | losing).to(loss.dtype), mask)
    return Objective(policy + kl_weight * kl, policy, kl, idle.detach())


def cell_scale(values: Tensor, frames: int) -> Tensor:
    """One deviation for all cells of a frame, the root mean square of theirs: cells where nothing happens stay quiet.

    Args:
        values: ``[P, n, F L]``, frame by frame. frames: F.

    Returns:
        ``[P, 1, F L]``, for :func:`advantages`.
    """
    own = group_std(values).unflatten(-1, (frames, -1))
    return own.square().mean(-1, keepdim=True).sqrt().expand_as(own).flatten(-2)


def per_token(advantage: Tensor, frame_of: Tensor) -> Tensor:
    """``[P, n, F]`` -> ``[P, n, L]``: each token gets its frame's advantage, forced ones (``frame_of`` -1) get 0.

    With an advantage for every drawn token, in order, each gets its own.
    """
    drawn = frame_of >= 0
    own = advantage.shape[-1] == int(drawn.sum())
    index = (drawn.long().cumsum(0) - 1) if own else frame_of
    return advantage[..., index.clamp(min=0)] * drawn
