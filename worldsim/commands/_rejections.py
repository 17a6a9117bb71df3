"""Episodes that could not be tokenised: how a result tells of them, and when they make the command fail."""

from __future__ import annotations

from worldsim.core.errors import PartialResult, again
from worldsim.core.types import Result


def records(rejected: dict[str, str]) -> list[dict[str, str]]:
    """Episode -> reason, as ``result.json`` lists them."""
    return [{"episode": episode, "reason": reason} for episode, reason in rejected.items()]


def accepted(result: Result, rejected: dict[str, str], most: int) -> Result:
    """The result, unless more than ``most`` episodes were rejected.

    Raises:
        PartialResult: with the result of the others, naming the first and their number.
    """
    if len(rejected) <= most:
        return result
    first, reason = next(iter(rejected.items()))
    sentence = f"{len(rejected)} episodes cannot be tokenised, the first is {first}: {reason}"
    raise PartialResult(sentence, again(max_rejected=len(rejected)), result)
