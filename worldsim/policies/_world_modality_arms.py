"""The arms of the world-modality experiment: one backbone, and what each arm may see and must predict.

# source: world-modality-vla@7b3d6e7:world_modality/model.py for A, B, C; @68715dc for C_no_input (``C_no_world_input``)
"""

from __future__ import annotations

from dataclasses import dataclass

from worldsim.core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Arm:
    """What one arm is.

    Attributes:
        history: frames whose world tokens are read: 0 none, 1 the current one's, -1 all C context frames.
        predicts: whether it predicts the tokens of the next K frames.
        memory: what its actions attend to besides: ``none``; ``predicted``, its own prediction as soft embeddings; ``true``,
            the true future tokens, which only a recording can give.
        widened: whether its feed-forward layers are widened until it has as many parameters as C.
        about: in words, for reports.
    """

    history: int
    predicts: bool
    memory: str
    widened: bool
    about: str


ARMS = {
    "A": Arm(0, False, "none", False, "behaviour cloning: frame and state in, actions out"),
    "B": Arm(0, True, "none", False, "A that also predicts the world tokens of the next frames"),
    "C": Arm(1, True, "none", False, "B that also reads the current frame's world token"),
    "C_no_input": Arm(0, True, "none", False, "C without its input: the sequence of B, a check of the path"),
    "C_hist": Arm(-1, True, "none", False, "C that reads the tokens of all context frames"),
    "C_pred": Arm(1, True, "predicted", False, "C whose actions attend to its own predicted future"),
    "C_oracle": Arm(1, True, "true", False, "C whose actions attend to the true future: an upper bound, no policy"),
    "A_plus": Arm(0, False, "none", True, "A with wider layers, as many parameters as C"),
}


def arm(name: str) -> Arm:
    """
    Raises:
        UserError: there is no arm of that name.
    """
    if name not in ARMS:
        raise UserError(f"there is no arm '{name}'{did_you_mean(name, ARMS)}")
    return ARMS[name]
