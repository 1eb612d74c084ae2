"""The configuration of a GPT run."""

import re
from dataclasses import dataclass, field
from typing import Literal

from gpt.hub import TINY_SHAKESPEARE
from training.config import (
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
    check,
    check_counts,
    is_line,
    shown,
)
from training.errors import InputError


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
        check_counts(self, most=10**6)
        for name in ("num_layers", "d_model", "num_heads", "d_ff", "max_len"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        check(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        heads, kv_heads = self.num_heads, self.num_kv_heads
        check(self, "d_model", self.d_model % heads == 0, f"a multiple of model.num_heads ({heads})")
        even = self.positions == "learned" or self.d_model // heads % 2 == 0
        check(self, "d_model", even, f"an even multiple of model.num_heads ({heads}) with {self.positions} positions")
        divides = kv_heads is None or (kv_heads >= 1 and heads % kv_heads == 0)
        check(self, "num_kv_heads", divides, f"null or a divisor of model.num_heads ({heads})")


SOURCES = "auto, hub, hub:OWNER/NAME, a text file or a folder of them"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from. The last 10 % of a text are for validation, unless a data set has a split for it.

    Attributes:
        source: auto (Tiny Shakespeare from the packaged plays, else from the hub), hub (Tiny Shakespeare from the
            Hugging Face hub), hub:OWNER/NAME (a data set of the hub: trains on its split train, validates on
            validation, else test, else the last 10 % of train), a text file, or a folder of text files, which are
            joined in sorted order.
        column: Column of a hub data set that holds the text; rows without text are skipped, and each row ends a line.
        revision: Branch, tag or commit of a hub data set; null for its main branch.
        subset: Subset (configuration) of a hub data set that has several; null for its default.
    """

    source: str = "auto"
    column: str = "text"
    revision: str | None = None
    subset: str | None = None

    def __post_init__(self) -> None:
        for name in ("source", "column", "revision", "subset"):
            check(self, name, is_line(getattr(self, name) or ""), "text of one line, in UTF-8")
        check(self, "source", self.source != "", SOURCES)
        named = re.fullmatch(r"hub:[\w.-]+/[\w.-]+", self.source, re.ASCII)
        check(self, "source", named is not None or not self.source.startswith("hub:"), SOURCES)
        for name, default in (("column", "text"), ("revision", None), ("subset", None)):
            value = getattr(self, name)
            check(self, name, value != "", "a name")
            if value != default and self.hub_name is None:
                raise InputError(
                    f"data.{name} is for sources hub:OWNER/NAME only, got data.source {shown(self.source)}"
                )

    @property
    def hub_name(self) -> str | None:
        """OWNER/NAME, where the source is the hub."""
        if self.source == "hub":
            return TINY_SHAKESPEARE
        return self.source.removeprefix("hub:") if self.source.startswith("hub:") else None


@dataclass(frozen=True, kw_only=True)
class GPTConfig(RunConfig):
    """One experiment.

    Attributes:
        name: The run's folder is the next free runs/NAME-N.
        seed: Every random draw follows from it.
        tracking: Where curves go besides metrics.jsonl: tensorboard, wandb (Weights & Biases; offline without an
            account), both, or none.
        model: The model.
        data: The data.
        training: The loop.
        optimizer: The optimizer.
        schedule: The learning rate.
    """

    name: str = "gpt"
    seed: int = 1
    tracking: Literal["tensorboard", "wandb", "both", "none"] = "tensorboard"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
