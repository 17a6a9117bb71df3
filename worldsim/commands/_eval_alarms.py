"""Sentences of ``eval video`` that must not be overlooked: a model that ignores its actions, a gain that is flicker."""

from __future__ import annotations

import textwrap

from worldsim.core.console import say
from worldsim.metrics.scoring import Summary
from worldsim.report.statistics import LEAST_EPISODES


def alarm(summary: Summary) -> str | None:
    """The sentence for a model that does not follow its actions; None for one that does, or where nothing was measured."""
    gap = summary.gap
    if summary.identical:
        return "THIS MODEL IGNORES ITS ACTIONS: with another episode's actions it imagines the very same pixels."
    if gap is None or gap.follows:
        return None
    span = f"{gap.interval.mean:+.2f} [{gap.interval.low:+.2f} … {gap.interval.high:+.2f}]"
    tests = f"sign test p = {gap.p:.2g}, permutation test p = {gap.p_mean:.2g}"
    if not gap.enough:
        return (
            f"NOT SHOWN TO FOLLOW ITS ACTIONS: {gap.interval.count} episodes are too few to tell, {LEAST_EPISODES} are the "
            f"least; own against other actions, {summary.gap_metric} changes by {span} ({tests})."
        )
    return (
        f"THIS MODEL IGNORES ITS ACTIONS, as far as {gap.interval.count} episodes can tell: with its own instead of another "
        f"episode's actions {summary.gap_metric} gets better by {span}, which chance explains ({tests})."
    )


def shout(sentence: str) -> None:
    """A sentence that must not be overlooked, framed, on stderr."""
    lines = textwrap.wrap(sentence, 96)
    frame = "!" * (max(map(len, lines)) + 6)
    say("\n".join([frame, *(f"!! {line.ljust(len(frame) - 6)} !!" for line in lines), frame]))


def flicker(summary: Summary) -> str | None:
    """The sentence for a gain in motion_psnr that does not come from where the truth moved; None for an honest one."""
    wide, narrow = (summary.over_copy.get(name) for name in ("motion_psnr", "truth_motion_psnr"))
    if wide is None or narrow is None or not wide.low > 0 or narrow.low > 0:
        return None
    return (
        f"motion_psnr is {wide.mean:+.2f} dB over copy, but where the truth moved it is {narrow.mean:+.2f} dB "
        f"[{narrow.low:+.2f} … {narrow.high:+.2f}]: the gain comes from pixels that only the prediction changed, not from "
        "motion that it got right"
    )
