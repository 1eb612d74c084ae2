"""The sections of a configuration that every model shares. A bad value names its field, itself and what is allowed."""

import unicodedata
from dataclasses import dataclass, fields
from math import inf
from reprlib import Repr
from typing import Any, Literal

from training.runtime.errors import InputError

MAX_COUNT = 10**9
"""Above any whole number that a run could need: a larger one is a slip."""

_repr = Repr()
_repr.maxstring = _repr.maxlong = 80


def shown(value: object) -> str:
    """The value as Python writes it, without its middle where it is long."""
    return _repr.repr(value)


def check(section: object, name: str, valid: bool, allowed: str) -> None:
    """Raise an `InputError` that names the field unless `valid`.

    Args:
        section: The dataclass instance, whose class name minus "Config" names the section.
        name: The field.
        valid: Whether its value is allowed.
        allowed: What is allowed, in words.
    """
    if not valid:
        name_of_class = type(section).__name__.removesuffix("Config").lower()
        prefix = getattr(section, "section", name_of_class)
        raise InputError(f"{prefix}.{name} must be {allowed}, got {shown(getattr(section, name))}")


def check_counts(section: object, max_value: int = MAX_COUNT) -> None:
    """Raise an `InputError` that names the field unless all whole numbers of a section are at most `max_value`."""
    for field in fields(section):  # type: ignore[arg-type]
        value = getattr(section, field.name)
        check(section, field.name, not isinstance(value, int) or value <= max_value, f"at most {max_value}")


def is_line(text: str) -> bool:
    """Whether a text has no line breaks or other control characters, and no bytes that are not UTF-8."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
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
    """

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
        check_counts(self, max_value=10**6)
        for name in ("d_model", "num_heads", "d_ff", "max_len"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        check(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        heads, kv_heads = self.num_heads, self.num_kv_heads
        check(self, "d_model", self.d_model % heads == 0, f"a multiple of model.num_heads ({heads})")
        even = self.positions == "learned" or self.d_model // heads % 2 == 0
        check(self, "d_model", even, f"an even multiple of model.num_heads ({heads}) with {self.positions} positions")
        divides = kv_heads is None or (kv_heads >= 1 and heads % kv_heads == 0)
        check(self, "num_kv_heads", divides, f"null or a divisor of model.num_heads ({heads})")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.num_kv_heads or self.num_heads


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long to train, on how much at a time, and what to write when.

    Attributes:
        max_steps: Optimizer steps; null for as many as `epochs` needs. With both, whichever ends first.
        epochs: Passes over the training data; null for as many as `max_steps` needs.
        batch_size: Sequences in one optimizer step, over all processes and all accumulation steps.
        accumulation_steps: Parts in which a process works through its share of a batch, to save memory.
        precision: Numbers to compute in. auto takes what the launch configuration says, else bf16 where the devices
            of all processes are fast at it, else fp32. Weights are kept in fp32 (fp64 under fp64, which is for checking
            numbers).
        ema_decay: Decay of a moving average of the weights, which is then evaluated, sampled and chosen by in place of
            the weights; 0 for none. 0.999 follows about a thousand steps.
        label_smoothing: Share of each target that training spreads over all tokens alike (Szegedy et al. 2015, section
            7); validation does without.
        max_grad_norm: Gradients are scaled down to this norm; 0 for no limit.
        eval_interval: Steps between two evaluations of the whole validation split; 0 for one at the end only.
        patience: Stop after so many evaluations in a row without a lower validation loss; 0 for never.
        eval_batch_size: Sequences evaluated at a time, per process.
        log_interval: Steps between two lines of metrics.
        checkpoint_interval: Steps between two checkpoints; 0 for one at the end only.
        keep_checkpoints: How many of the newest checkpoints to keep, besides the best one.
        on_save_error: What a run does that cannot write a checkpoint, on a full disk say: stop, or continue to the
            next one. The last one of a run must be written.
        max_nonfinite_steps: How many steps in a row may be left out because their loss or gradient is infinite or not
            a number; the next one stops the run. 0 stops it at the first.
        deterministic: Let a GPU use only operations that give the same bits in every run, which may be slower. A CPU's
            always do.
        collective_timeout: Seconds after which a process gives up to wait for the others.
    """

    max_steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    accumulation_steps: int = 1
    precision: Literal["auto", "bf16", "fp16", "fp32", "fp64"] = "auto"
    ema_decay: float = 0.0
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0
    eval_interval: int = 250
    patience: int = 0
    eval_batch_size: int = 64
    log_interval: int = 10
    checkpoint_interval: int = 250
    keep_checkpoints: int = 2
    on_save_error: Literal["stop", "continue"] = "stop"
    max_nonfinite_steps: int = 0
    deterministic: bool = False
    collective_timeout: float = 600.0

    def __post_init__(self) -> None:
        check_counts(self)
        for name in ("batch_size", "accumulation_steps", "eval_batch_size"):
            check(self, name, getattr(self, name) <= 10**6, "at most 1000000")
        check(self, "max_steps", self.max_steps is None or self.max_steps >= 1, "null or at least 1")
        check(self, "epochs", self.epochs is None or 0 < self.epochs <= 10**6, "null or above 0, and at most 1000000")
        for name in ("batch_size", "accumulation_steps", "eval_batch_size", "log_interval"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_grad_norm", "eval_interval", "patience", "checkpoint_interval", "max_nonfinite_steps"):
            check(self, name, 0 <= getattr(self, name) < inf, "at least 0, and finite")
        check(self, "patience", not self.patience or self.eval_interval > 0, "0 without training.eval_interval")
        for name in ("ema_decay", "label_smoothing"):
            check(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        check(self, "collective_timeout", 1 <= self.collective_timeout <= 86_400, "between 1 and 86400")
        check(self, "keep_checkpoints", self.keep_checkpoints >= 2, "at least 2")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights follow their gradients.

    Attributes:
        name: adamw for all weights, or muon for the matrices of the blocks with adamw for the rest.
        learning_rate: Peak learning rate of adamw. With muon that is the rate of the embedding, the head and the norms;
            the matrices of the blocks have `muon_learning_rate`.
        muon_learning_rate: Peak learning rate of muon.
        weight_decay: Share of a block's matrix that is removed per step, times the learning rate.
        beta1: Decay of adamw's mean of gradients.
        beta2: Decay of adamw's mean of squared gradients.
        eps: Added to adamw's root mean square.
        momentum: Decay of muon's sum of gradients.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95

    def __post_init__(self) -> None:
        for name in ("learning_rate", "muon_learning_rate", "eps"):
            check(self, name, 0 < getattr(self, name) < inf, "above 0, and finite")
        check(self, "weight_decay", 0 <= self.weight_decay < inf, "at least 0, and finite")
        for name in ("beta1", "beta2", "momentum"):
            check(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")

    @property
    def rates(self) -> dict[str, str]:
        """The options that say how fast weights are learnt, each with which weights and how fast, in words."""
        if self.name == "adamw":
            return {"optimizer.learning_rate": f"adamw at {self.learning_rate:g}"}
        return {
            "optimizer.muon_learning_rate": f"muon at {self.muon_learning_rate:g} for the matrices of the blocks",
            "optimizer.learning_rate": f"adamw at {self.learning_rate:g} for the rest",
        }


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves: up for `warmup_steps`, then down to `final_ratio` of its peak.

    Attributes:
        name: cosine, linear, wsd (flat, then linear over the last `decay_fraction`), or constant (flat to the end).
        warmup_steps: Steps over which it rises linearly from 0.
        final_ratio: Learning rate of the last step as a share of the peak; constant ignores it.
        decay_fraction: Share of all steps over which wsd comes down; the others ignore it.
        restart_step: Step after which all of this begins once more, for a run that trains on after its end; until then
            it is as in a run of so many steps. 0 for never.
    """

    name: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup_steps: int = 0
    final_ratio: float = 0.0
    decay_fraction: float = 0.2
    restart_step: int = 0

    def __post_init__(self) -> None:
        check_counts(self)
        for name in ("warmup_steps", "restart_step"):
            check(self, name, getattr(self, name) >= 0, "at least 0")
        check(self, "final_ratio", 0 <= self.final_ratio <= 1, "between 0 and 1")
        check(self, "decay_fraction", 0 < self.decay_fraction <= 1, "above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the loop reads of a whole configuration. Each model derives its own, with defaults and help."""

    name: str
    seed: int
    tracking: Literal["tensorboard", "wandb", "both", "none"]
    model: Any
    data: Any
    training: TrainingConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name or not is_line(self.name):
            raise InputError(f"name must be a plain folder name, got {shown(self.name)}")
        if len(self.name.encode()) > 200:
            raise InputError(f"name must be at most 200 bytes long, got {shown(self.name)}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be at least 0 and below 2^63, got {shown(self.seed)}")
        if self.training.max_steps is None and self.training.epochs is None:
            raise InputError("training.max_steps or training.epochs must say when to end, got null for both")
