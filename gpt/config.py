"""The configuration of a GPT run."""

from dataclasses import dataclass, field
from typing import Literal

from training.config import OptimizerConfig, RunConfig, ScheduleConfig, TrainingConfig, check


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the model.

    Attributes:
        num_layers: Number of blocks.
        d_model: Width of the residual stream; a multiple of `num_heads`.
        num_heads: Attention heads.
        num_kv_heads: Key-value heads, a divisor of `num_heads`; null for as many as heads.
        d_ff: Hidden width of the feed-forward layers.
        max_len: Context: the longest sequence, in tokens.
        dropout: Probability that an activation or attention weight is dropped in training.
        positions: sinusoidal or learned, added to the embeddings, or rotary, inside attention.
        qk_norm: Normalise queries and keys per head.
        tie_embeddings: Let the head use the embedding's weights.
    """

    num_layers: int = 4
    d_model: int = 128
    num_heads: int = 4
    num_kv_heads: int | None = None
    d_ff: int = 384
    max_len: int = 64
    dropout: float = 0.0
    positions: Literal["sinusoidal", "learned", "rotary"] = "rotary"
    qk_norm: bool = True
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("num_layers", "d_model", "num_heads", "d_ff", "max_len"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        check(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        heads, kv_heads = self.num_heads, self.num_kv_heads
        check(self, "d_model", self.d_model % heads == 0, f"a multiple of model.num_heads ({heads})")
        even = self.positions == "learned" or self.d_model // heads % 2 == 0
        check(self, "d_model", even, f"an even multiple of model.num_heads ({heads}) with {self.positions} positions")
        divides = kv_heads is None or (kv_heads >= 1 and heads % kv_heads == 0)
        check(self, "num_kv_heads", divides, f"null or a divisor of model.num_heads ({heads})")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from.

    Attributes:
        source: auto (Tiny Shakespeare from the packaged plays, else from the hub), hub (Tiny Shakespeare from the
            Hugging Face hub), a text file, or a folder of text files, which are joined in sorted order.
    """

    source: str = "auto"


@dataclass(frozen=True, kw_only=True)
class GPTConfig(RunConfig):
    """One experiment.

    Attributes:
        name: The run's folder is the next free runs/NAME-N.
        seed: Every random draw follows from it.
        tracking: Where curves go besides metrics.jsonl.
        model: The model.
        data: The data.
        training: The loop.
        optimizer: The optimizer.
        schedule: The learning rate.
    """

    name: str = "gpt"
    seed: int = 1
    tracking: Literal["tensorboard", "none"] = "tensorboard"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
