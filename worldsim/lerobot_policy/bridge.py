"""LeRobot 0.6.1's language-model policies were written against transformers 5.4-5.5; this package runs a later 5.x.

Two of their calls changed since: ``create_causal_mask`` no longer takes ``cache_position`` (which it ignored), and a
cache's ``crop`` no longer takes the length to keep, only the length to remove. Both are mended while a policy runs. One
level of names inside PaliGemma's vision tower went as well; LeRobot's own loader would leave that tower random.
"""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def exchanged(owner: Any, **other: Any) -> Iterator[None]:
    """Other values under the names of a module or class, for as long as the block runs."""
    before = {name: getattr(owner, name) for name in other}
    try:
        for name, value in other.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def bridged() -> Iterator[None]:
    """LeRobot's calls fit the transformers that is installed; nothing is changed where they fit already."""
    from lerobot.policies import pi_gemma
    from transformers.cache_utils import DynamicLayer
    from transformers.masking_utils import create_causal_mask

    remove = DynamicLayer.crop

    def mask(*args: Any, cache_position: Any = None, **kwargs: Any) -> Any:
        return create_causal_mask(*args, **kwargs)

    def crop(self: Any, length: int) -> None:
        more = self.get_seq_length() - length
        if length <= 0 or more > 0:
            remove(self, -more if length > 0 else length)

    with ExitStack() as stack:
        if "cache_position" not in inspect.signature(create_causal_mask).parameters:
            stack.enter_context(exchanged(pi_gemma, create_causal_mask=mask))
        stack.enter_context(exchanged(DynamicLayer, crop=crop))
        yield


def renamed(own: Container[str], weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under the names of the installed transformers, whose SigLIP tower has one level of names less or more."""
    less, more = ".vision_tower.vision_model.", ".vision_tower."
    out = {}
    for key, value in weights.items():
        others = (key, key.replace(less, more), key.replace(more, less))
        out[next((other for other in others if other in own), key)] = value
    return out
