"""The transformer of token world models: Llama's shape and weights, with a head for the positions and ids that count.

Its state dict is that of transformers' ``LlamaForCausalLM``, key for key, so that weights go both ways unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.core.errors import UserError
from worldsim.nn.transformer import Block, causal, rotary_table, shared_prefix_attention, token_log_probs
from worldsim.world_models._token_layout import Segment

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

EPS = 1e-6
ROTARY_BASE = 1e4
INITIAL_STD = 0.02


@dataclass(frozen=True)
class NetSpec:
    """Sizes of the network; every key-value head has one query head.

    Attributes:
        vocab: ids, the layout's ``vocab``.
        layers, width, ffn, heads: the released small models have 12, 768, 3072, 12.
    """

    vocab: int
    layers: int = 12
    width: int = 768
    ffn: int = 3072
    heads: int = 12

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(
                f"width {self.width} does not divide into {self.heads} heads of an even size", "change width or heads"
            )

    def card(self) -> dict[str, Any]:
        """Plain data; ``NetSpec(**card)`` reads it back."""
        return asdict(self)

    def llama(self) -> dict[str, Any]:
        """The arguments of transformers' ``LlamaConfig``."""
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": 8192,
            "rms_norm_eps": EPS,
            "rope_theta": ROTARY_BASE,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }

    @staticmethod
    def from_llama(config: Mapping[str, Any]) -> NetSpec:
        """The sizes of a Llama ``config.json``, as a mapping.

        Raises:
            UserError: it is a Llama that this network is not (shared key-value heads, biases, another RoPE or norm).
        """
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        wanted = {
            "num_key_value_heads": (
                config.get("num_key_value_heads") or config["num_attention_heads"],
                config["num_attention_heads"],
            ),
            "rms_norm_eps": (config.get("rms_norm_eps", EPS), EPS),
            "rope_theta": (rope.get("rope_theta", config.get("rope_theta", ROTARY_BASE)), ROTARY_BASE),
            "rope_type": (rope.get("rope_type", "default"), "default"),
            "hidden_act": (config.get("hidden_act", "silu"), "silu"),
            "tie_word_embeddings": (bool(config.get("tie_word_embeddings", False)), False),
            "attention_bias": (bool(config.get("attention_bias", False)), False),
            "mlp_bias": (bool(config.get("mlp_bias", False)), False),
        }
        for key, (found, expected) in wanted.items():
            if found != expected:
                raise UserError(f"{key} of this Llama is {found}; token world models have {expected}")
        return NetSpec(
            config["vocab_size"],
            config["num_hidden_layers"],
            config["hidden_size"],
            config["intermediate_size"],
            config["num_attention_heads"],
        )


class _Decoder(nn.Module):
    """What Llama calls ``model``: embeddings, layers, last norm."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab, spec.width)
        self.layers = nn.ModuleList(Block(spec.width, spec.ffn, spec.heads, EPS) for _ in range(spec.layers))
        self.norm = nn.RMSNorm(spec.width, EPS)


class TokenNet(nn.Module):
    """Ids in, logits out; see :meth:`log_probs` for what training needs.

    source: LlamaForCausalLM of transformers; sizes of thuml/RLVR-World@e1b8b6f vid_wm/ivideogpt/configs/vgpt (spec 2.5).
    """

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = _Decoder(spec)
        self.lm_head = nn.Linear(spec.width, spec.vocab, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @staticmethod
    def from_llama(state: Mapping[str, Tensor], spec: NetSpec) -> TokenNet:
        """A network with the weights of a ``LlamaForCausalLM`` state dict, fp32. Missing or unknown keys are errors."""
        with torch.device("meta"):
            net = TokenNet(spec)
        missing = sorted(net.state_dict().keys() - state.keys())
        unknown = sorted(key for key in state.keys() - net.state_dict().keys() if not key.endswith("rotary_emb.inv_freq"))
        for keys, what in ((missing, "lacks"), (unknown, "has the unknown")):
            if keys:
                raise UserError(
                    f"the Llama checkpoint {what} {keys[0]}" + (f" and {len(keys) - 1} more" if keys[1:] else "")
                )
        for key, value in net.state_dict().items():
            if state[key].shape != value.shape:
                raise UserError(f"{key} has shape {tuple(state[key].shape)}; this geometry needs {tuple(value.shape)}")
        net.load_state_dict({key: state[key].float() for key in net.state_dict()}, assign=True)
        return net.requires_grad_(True)

    def to_llama(self) -> LlamaForCausalLM:
        """The same network as transformers' class, weights shared."""
        from transformers import LlamaConfig, LlamaForCausalLM

        with torch.device("meta"):
            llama = LlamaForCausalLM(LlamaConfig(**self.spec.llama()))
        llama.load_state_dict(self.state_dict(), assign=True)
        with self.device:
            llama.model.rotary_emb = type(llama.model.rotary_emb)(llama.config)
        return llama.eval()

    def table(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Rotary tables of positions ``start … stop - 1``."""
        return rotary_table(torch.arange(start, stop, device=self.device), self.spec.width // self.spec.heads, ROTARY_BASE)

    def hidden(self, ids: Tensor) -> Tensor:
        """The normed hidden states ``[B, L, width]`` of ids ``[B, L]``."""
        x, table = self.model.embed_tokens(ids), self.table(0, ids.shape[1])
        for block in self.model.layers:
            x = block(x, table)
        return self.model.norm(x)

    def head(self, hidden: Tensor, low: int = 0, high: int | None = None) -> Tensor:
        """Logits ``[..., high - low]`` of the ids ``low … high - 1``."""
        return F.linear(hidden, self.lm_head.weight[low:high])

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[B, L, vocab]`` of ids ``[B, L]``; position i predicts id i + 1."""
        return self.head(self.hidden(ids))

    def log_probs(
        self,
        prompt: Tensor,
        responses: Tensor,
        segments: Sequence[Segment],
        legal: bool = True,
        temperature: float = 1.0,
    ) -> Tensor:
        """Log-probabilities of every sample's tokens, the prompt computed once per group; differentiable.

        Args:
            prompt: int ``[P, Lp]``.
            responses: int ``[P, N, Lr]``.
            segments: of the response; positions that are not generated get 0.
            legal: normalise over a position's legal ids; otherwise over the whole vocabulary, as the released pipeline does.
            temperature: of the distribution.

        Returns:
            fp32 ``[P, N, Lr]``, equal in value and gradient to a plain forward of each sample with its prompt.
        """
        spans = generated(segments, self.spec.vocab, legal)
        hidden = self._shared_hidden(prompt, responses[..., : spans[-1][1] - 1])
        out = torch.zeros(responses.shape, dtype=torch.float32, device=responses.device)
        for low, high in dict.fromkeys((low, high) for _, _, low, high in spans):
            at = torch.cat([torch.arange(a, b) for a, b, *ids in spans if ids == [low, high]]).to(responses.device)
            targets = responses.index_select(2, at) - low
            found = token_log_probs(
                self.model.norm(hidden.index_select(2, at)), self.lm_head.weight[low:high], targets, temperature
            )
            out = out.index_copy(2, at, found)
        return out

    def _shared_hidden(self, prompt: Tensor, inputs: Tensor) -> Tensor:
        """Hidden states before the last norm, ``[P, N, 1 + S, width]``: at the prompt's last token, then at ``inputs``' S."""
        groups, samples, size = inputs.shape
        length = prompt.shape[1]
        x, y = self.model.embed_tokens(prompt), self.model.embed_tokens(inputs.flatten(0, 1))
        far, near = self.table(0, length), self.table(length, length + size)
        for block in self.model.layers:
            q, k, v = block.heads_of(x, far)
            if size:
                own_q, own_k, own_v = block.heads_of(y, near)
                y = block.finish(y, shared_prefix_attention(own_q, own_k, own_v, k, v))
            x = block.finish(x, causal(q, k, v))
        last = x[:, None, -1:].expand(-1, samples, -1, -1)
        return torch.cat([last, y.unflatten(0, (groups, samples))], 2)


def generated(segments: Sequence[Segment], vocab: int, legal: bool = True) -> list[tuple[int, int, int, int]]:
    """``(start, stop, low, high)`` of each generated run; without ``legal`` the ids are the whole vocabulary."""
    out, start = [], 0
    for segment in segments:
        if segment.generated:
            out.append((start, start + segment.length, *((segment.low, segment.high) if legal else (0, vocab))))
        start += segment.length
    if not out:
        raise ValueError("a response without generated tokens has no log-probabilities")
    return out
