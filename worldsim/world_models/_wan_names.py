"""Names of a Wan transformer's parts: diffusers' <-> the original's, as other trainers and ComfyUI write them.

# source: facts of diffusers' scripts/convert_wan_to_diffusers.py; held against diffusers' own converter by a test
"""

from __future__ import annotations

import re

BLOCK = {
    **{f"attn{i}.to_{part}": f"{name}.{part}" for i, name in ((1, "self_attn"), (2, "cross_attn")) for part in "qkv"},
    **{f"attn{i}.norm_{part}": f"{name}.norm_{part}" for i, name in ((1, "self_attn"), (2, "cross_attn")) for part in "qk"},
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "attn2.norm_added_k": "cross_attn.norm_k_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm1": "norm1",
    "norm2": "norm3",  # swapped: the norm before cross-attention is the second of diffusers and the third of the original
    "norm3": "norm2",
    "scale_shift_table": "modulation",
}
"""Inside ``blocks.N.``."""
OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
TARGETS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "k_img": "add_k_proj", "v_img": "add_v_proj"} | {
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
"""What a LoRA may be put on: the original's ending of a layer's name -> diffusers'."""


def to_original(name: str) -> str:
    """``blocks.3.attn1.to_q.weight`` -> ``blocks.3.self_attn.q.weight``; what follows a part's name is kept.

    Raises:
        KeyError: no part of a Wan.
    """
    return _renamed(name, BLOCK, OUTSIDE)


def to_diffusers(name: str) -> str:
    """The inverse of :func:`to_original`."""
    return _renamed(name, _inverse(BLOCK), _inverse(OUTSIDE))


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {value: key for key, value in names.items()}


def _renamed(name: str, block: dict[str, str], outside: dict[str, str]) -> str:
    inside = re.fullmatch(r"(blocks\.\d+\.)(.+)", name)
    prefix, rest, names = (inside[1], inside[2], block) if inside else ("", name, outside)
    parts = rest.split(".")
    for end in range(len(parts), 0, -1):
        found = names.get(".".join(parts[:end]))
        if found is not None:
            return ".".join([prefix + found, *parts[end:]])
    raise KeyError(name)
