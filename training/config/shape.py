"""The shape of a transformer: the section `model` of a configuration, as far as the models have it in common."""

import re
from dataclasses import dataclass
from math import inf
from typing import Literal

from training.config.sections import Section

ROPE_SCALINGS = "linear:FACTOR or llama3:FACTOR:LOW:HIGH:LENGTH, of numbers of at least 1, with LOW below HIGH"


def is_rope_scaling(text: str) -> bool:
    """Whether this is how a scaling of rotary positions is written."""
    number = r"([0-9]+(?:\.[0-9]+)?)"
    named = re.fullmatch(rf"linear:{number}|llama3:{number}:{number}:{number}:([0-9]+)", text)
    numbers = [float(group) for group in named.groups() if group is not None] if named else []
    return bool(numbers) and min(numbers) >= 1 and (len(numbers) == 1 or numbers[1] < numbers[2])


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Section):
    """What the models' shapes have in common; each model derives its own.

    Attributes:
        d_model: Width of the residual stream; a multiple of `num_heads`.
        num_heads: Attention heads.
        num_kv_heads: Key-value heads, a divisor of `num_heads`; null for as many as heads.
        d_ff: Hidden width of the feed-forward layers.
        max_len: Context: the longest sequence, in tokens.
        dropout: Probability that an activation or attention weight is dropped in training.
        positions: sinusoidal or learned, added to the embeddings, or rotary, inside attention.
        qk_norm: Normalise queries and keys per head.
        tie_embeddings: Let the head use the embedding's weights.
        head_dim: Width of one attention head; null for d_model / num_heads.
        rope_theta: Base of rotary positions: the longest wavelength divided by 2 pi, in tokens.
        rope_scaling: How rotary positions reach further than what a model was first trained on: linear:FACTOR divides
            all of them; llama3:FACTOR:LOW:HIGH:LENGTH the slow ones alone, as Llama 3.1 does. null for not at all.
        norm: rms (root mean square) or layer (LayerNorm, with a bias).
        norm_eps: Added to the mean square, or to the variance, before its root.
        activation: swiglu, of two matrices and one behind them, or gelu or gelu_tanh (its older approximation), of one
            and one behind it.
        attention_bias: Give the four matrices of attention a bias.
        feed_forward_bias: Give the matrices of feed-forward layers a bias.
        embedding_scale: What embeddings are multiplied by; null for the root of d_model.
    """

    section = "model"
    on_resume = "refused"
    d_model: int = 128
    num_heads: int = 4
    num_kv_heads: int | None = None
    d_ff: int = 384
    max_len: int = 64
    dropout: float = 0.0
    positions: Literal["sinusoidal", "learned", "rotary"] = "rotary"
    qk_norm: bool = True
    tie_embeddings: bool = False
    head_dim: int | None = None
    rope_theta: float = 10_000.0
    rope_scaling: str | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    activation: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"
    attention_bias: bool = False
    feed_forward_bias: bool = False
    embedding_scale: float | None = None

    def __post_init__(self) -> None:
        self.check_counts(max_value=10**6)
        for name in ("d_model", "num_heads", "d_ff", "max_len"):
            self.check(name, getattr(self, name) >= 1, "at least 1")
        self.check("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        heads, kv_heads = self.num_heads, self.num_kv_heads
        even = self.positions == "learned" or self.head_size % 2 == 0
        if self.head_dim is None:
            kind = "an even multiple" if self.positions != "learned" else "a multiple"
            self.check("d_model", self.d_model % heads == 0, f"a multiple of model.num_heads ({heads})")
            self.check("d_model", even, f"{kind} of model.num_heads ({heads}) with {self.positions} positions")
        else:
            self.check(
                "head_dim", self.head_dim >= 1 and even, "null or at least 1, and even but for learned positions"
            )
        divides = kv_heads is None or (kv_heads >= 1 and heads % kv_heads == 0)
        self.check("num_kv_heads", divides, f"null or a divisor of model.num_heads ({heads})")
        for name in ("rope_theta", "norm_eps"):
            self.check(name, 0 < getattr(self, name) < inf, "above 0, and finite")
        scale = 1.0 if self.embedding_scale is None else self.embedding_scale
        self.check("embedding_scale", 0 < scale < inf, "null or above 0, and finite")
        scaling = self.rope_scaling
        self.check("rope_scaling", scaling is None or is_rope_scaling(scaling), f"null, {ROPE_SCALINGS}")
        rotary = self.positions == "rotary" or (scaling is None and self.rope_theta == TransformerConfig.rope_theta)
        self.check("positions", rotary, "rotary with model.rope_theta or model.rope_scaling")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.num_kv_heads or self.num_heads
