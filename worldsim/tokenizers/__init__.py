"""Tokenizers: frames <-> discrete codes. Each file holds one; :func:`load` finds it.

The common face, torch in and out on the module's device (see ``_face.Tokenizer`` for the attributes):

- ``encode_context(frames uint8 [B, H, W, 3]) -> int64 [B, Lc]`` (Lc = 0 where frames are coded alone)
- ``encode(frames uint8 [B, T, H, W, 3], context uint8 [B, H, W, 3] | None) -> int64 [B, T, L]``
- ``open(context_tokens) -> features``: decodes contexts, once per group. ``features.expand(n)`` repeats each row n times,
  ``features[rows]`` takes some; neither copies.
- ``pixels(features, tokens [B, T, L]) -> float32 [B, T, 3, H, W]`` in 0 … 1
- ``reconstruct(uint8 [B, T, H, W, 3])``: the floor, encode and decode against the first frame
- ``card()``, ``save(folder)``, ``load(folder, device)``, ``tiny()``

World tokens (``kmeans``) are told but not decoded: ``encode``, ``card``, ``save``, ``load`` and ``tiny`` alone, besides ``embed``,
``assign`` and a picture of each code. Policies read them; a world model cannot speak them.

Ids are 0 … codes - 1 everywhere, context ids too: offsets are the business of a sequence layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldsim.core import registry
from worldsim.core.errors import UserError
from worldsim.core.files import read_json

CARD_FILE, FOLDER = "card.json", "tokenizer"
"""A tokenizer's card; the folder of the tokenizer inside a token model's checkpoint."""
SAME_AS = "same_as"
"""Key of a card that stands for a tokenizer which lies elsewhere, by its relative path: two bundled bases share one."""


def load(run: str | Path, device: str = "cpu") -> Any:
    """A tokenizer, frozen and in eval mode.

    Args:
        run: a run folder of ``worldsim train`` or its ``checkpoint/``; a token model's (its ``tokenizer/`` is taken); or a
            folder with weights as RLVR-World released them (``config.json`` beside the weights).

    Raises:
        UserError: there is no tokenizer in that folder, or its weights do not fit.
    """
    folder = find(Path(run))
    if (folder / CARD_FILE).exists():
        name = read_json(folder / CARD_FILE)["tokenizer"]
        return registry.get("tokenizers", str(name)).load(folder, device)
    from worldsim.tokenizers import _released

    return _released.load(folder, device)


def find(run: Path) -> Path:
    """The folder that holds the tokenizer's own files.

    Raises:
        UserError: there is none.
    """
    from worldsim.tokenizers import _released

    places = (run / "checkpoint" / FOLDER, run / FOLDER, run / "checkpoint", run)
    for folder in places:
        card = read_json(folder / CARD_FILE) if (folder / CARD_FILE).exists() else None
        if isinstance(card, dict) and isinstance(card.get("tokenizer"), str):  # a token model's card holds a mapping there
            return folder / card[SAME_AS] if SAME_AS in card else folder
    for folder in places:
        if _released.is_released(folder):
            return folder
    known = ", ".join(registry.names("tokenizers"))
    raise UserError(f"{run} holds no trained tokenizer ({known})", "worldsim train --config fsq_compressive DATA")


def require_decoder(folder: Path) -> None:
    """
    Raises:
        UserError: the tokenizer in ``folder`` (of :func:`find`) tells frames but cannot draw them: world tokens.
    """
    name = str(read_json(folder / CARD_FILE)["tokenizer"]) if (folder / CARD_FILE).exists() else None
    if name is not None and not hasattr(registry.get("tokenizers", name), "pixels"):
        raise UserError(
            f"{folder} holds {name} world tokens, which no decoder can draw: a world model needs another tokenizer",
            "worldsim train --config fsq_frame DATA",
        )
