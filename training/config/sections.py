"""The sections of a configuration that every model shares. A bad value names its field, itself and what is allowed."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from reprlib import Repr
from typing import Any, ClassVar, Literal, TypeVar

from training.runtime.errors import InputError

MAX_COUNT = 10**9
"""Above any whole number that a run could need: a larger one is a slip."""

_repr = Repr()
_repr.maxstring = _repr.maxlong = 80


def shown(value: object) -> str:
    """The value as Python writes it, without its middle where it is long."""
    return _repr.repr(value)


OnResume = Literal["same", "differs", "refused"]
"""What a changed option does to a run that goes on: its steps stay the same, or those to come differ, or they would not
be those of one run any more, so that it is refused."""
T = TypeVar("T")


def setting(default: T, on_resume: OnResume) -> T:
    """A field of a configuration that says what its change does to a run that goes on: "differs" unless it says so."""
    return field(default=default, metadata={"on_resume": on_resume})


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a configuration, under a name; the whole of one has none.

    Attributes:
        section: The name.
        on_resume: What a change of its fields does to a run that goes on, where they do not say it themselves.
        older_names: What older files call fields, and what these are called now.
    """

    section: ClassVar[str] = ""
    on_resume: ClassVar[OnResume] = "differs"
    older_names: ClassVar[Mapping[str, str]] = {}

    def check(self, name: str, valid: bool, allowed: str) -> None:
        """Raise an `InputError` that names the field, and what is allowed in words, unless its value is `valid`."""
        if not valid:
            full_name = f"{self.section}.{name}".removeprefix(".")
            raise InputError(f"{full_name} must be {allowed}, got {shown(getattr(self, name))}")

    def check_counts(self, max_value: int = MAX_COUNT, but: str = "") -> None:
        """Raise an `InputError` that names the field unless all whole numbers `but` one are at most `max_value`."""
        for name, value in vars(self).items():
            self.check(name, name == but or not isinstance(value, int) or value <= max_value, f"at most {max_value}")


def is_line(text: str) -> bool:
    """Whether a text has no line breaks or other control characters, and no bytes that are not UTF-8."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Section):
    """How long to train, on how much at a time, and what to write when.

    Attributes:
        max_steps: Optimizer steps; null for as many as `epochs` or `max_tokens` needs. With several, whichever ends
            first.
        epochs: Passes over the training data; null for as many as the others need.
        max_tokens: Training targets: the run ends with the last whole step that stays within them, and the schedule
            with it. Of pairs a step is taken to have their mean. null for as many as the others need.
        batch_size: Sequences in one optimizer step, over all processes and all accumulation steps.
        micro_batch_size: Sequences that go through the model at once, in each process; a step takes as many turns as
            that makes, and stays the same but for rounding. auto takes the most that fit into the memory of the
            smallest GPU, which is tried as a run starts, and on a CPU as many as it is fast with; a resume takes the
            same again.
        accumulation_steps: Parts in which a process works through its share of a batch, to save memory, each as
            `micro_batch_size` says; null for as many as that makes. With numbers for both, they must agree.
        precision: The dtype to compute in. auto takes what the launch configuration says, else bf16 where the devices
            of all processes are fast at it, else fp16 where all are GPUs with tensor cores, else fp32. Weights are kept
            in fp32 (fp64 under fp64, which is for checking results).
        tf32: Let the matrix products of fp32 run on tensor cores, which read them with 10 bits of fraction for 23; for
            GPUs of the Ampere generation and later.
        gradient_compression: The dtype in which several processes send each other gradients, half as many bytes in bf16
            or fp16 as in their own; none for their own. The sums are rounded too. fp16 has no numbers below 6e-8.
        compile: Let torch.compile write faster code for a step: blocks compiles each kind of block once, model the
            whole model with its loss. auto takes off or model by device and length of the run, of several processes
            blocks for model; a resume takes the same again.
        recompute: What is computed a second time in the backward pass, to save memory: each of the blocks, their
            attention, or none.
        ema_decay: Decay of a moving average of the weights, which is then evaluated, sampled and chosen by in place of
            the weights; 0 for none. 0.999 follows about a thousand steps.
        label_smoothing: Share of each target that training spreads over all tokens alike (Szegedy et al. 2015, section
            7); validation does without.
        max_grad_norm: Gradients are scaled down to this norm; 0 for no limit.
        eval_interval: Steps between two evaluations; 0 for one at the end only.
        eval_tokens: About how many targets of the validation split an evaluation takes: every so many-th window (or
            pair), the same ones each time. Its loss is then `val_loss_subset`, by which the best checkpoint and
            patience go; the end of the run measures the whole split too. 0, or as many as there are, for the whole.
        eval_raw_weights: With `ema_decay`, measure the weights themselves too (`raw_val_loss`), not only their average.
        patience: Stop after so many evaluations in a row without a lower loss; 0 for never.
        eval_batch_size: Sequences evaluated at a time, per process.
        log_interval: Steps between two lines of metrics.
        checkpoint_interval: Steps between two checkpoints; 0 for one at the end only.
        keep_checkpoints: How many of the newest checkpoints to keep, besides the best one.
        background_saves: Write checkpoints while the run goes on, from a copy in the CPU's memory that takes as much as
            one of them. The next save or evaluation waits until it is written; the run's last one is written at once.
        on_save_error: What a run does that cannot write a checkpoint, on a full disk say: stop, or continue to the
            next one. The last one of a run must be written.
        max_nonfinite_steps: How many steps in a row may be skipped because their loss or gradient is infinite or not
            a number; the next one stops the run. 0 stops it at the first.
        deterministic: Let a GPU use only operations that give the same bits in every run, which may be slower. A CPU's
            always do.
        collective_timeout: Seconds after which a process gives up to wait for the others.
    """

    section = "training"
    max_steps: int | None = None
    epochs: float | None = None
    max_tokens: int | None = None
    batch_size: int = setting(32, on_resume="refused")
    micro_batch_size: int | Literal["auto"] = "auto"
    accumulation_steps: int | None = None
    precision: Literal["auto", "bf16", "fp16", "fp32", "fp64"] = "auto"
    tf32: bool = False
    gradient_compression: Literal["none", "bf16", "fp16"] = "none"
    compile: Literal["auto", "off", "blocks", "model"] = "auto"
    recompute: Literal["none", "blocks", "attention"] = "none"
    ema_decay: float = setting(0.0, on_resume="refused")
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0
    eval_interval: int = setting(250, on_resume="same")
    eval_tokens: int = setting(0, on_resume="same")
    eval_raw_weights: bool = setting(False, on_resume="same")
    patience: int = setting(0, on_resume="same")
    eval_batch_size: int = setting(64, on_resume="same")
    log_interval: int = setting(10, on_resume="same")
    checkpoint_interval: int = setting(250, on_resume="same")
    keep_checkpoints: int = setting(2, on_resume="same")
    background_saves: bool = setting(False, on_resume="same")
    on_save_error: Literal["stop", "continue"] = setting("stop", on_resume="same")
    max_nonfinite_steps: int = setting(0, on_resume="same")
    deterministic: bool = False
    collective_timeout: float = setting(600.0, on_resume="same")

    def __post_init__(self) -> None:
        self.check_counts(but="max_tokens")
        for name in ("batch_size", "eval_batch_size"):
            self.check(name, getattr(self, name) <= 10**6, "at most 1000000")
        self.check("max_steps", self.max_steps is None or self.max_steps >= 1, "null or at least 1")
        tokens = self.max_tokens
        self.check("max_tokens", tokens is None or 1 <= tokens <= 10**15, "null or at least 1, and at most 10^15")
        self.check("epochs", self.epochs is None or 0 < self.epochs <= 10**6, "null or above 0, and at most 1000000")
        for name in ("batch_size", "eval_batch_size", "log_interval"):
            self.check(name, getattr(self, name) >= 1, "at least 1")
        for name, word in (("micro_batch_size", "auto"), ("accumulation_steps", None)):
            value = getattr(self, name)
            allowed = f"{word or 'null'} or at least 1, and at most 1000000"
            self.check(name, value == word or 1 <= value <= 10**6, allowed)
        counts = ("eval_interval", "eval_tokens", "patience", "checkpoint_interval", "max_nonfinite_steps")
        for name in ("max_grad_norm", *counts):
            self.check(name, 0 <= getattr(self, name) < inf, "at least 0, and finite")
        self.check("patience", not self.patience or self.eval_interval > 0, "0 without training.eval_interval")
        for name in ("ema_decay", "label_smoothing"):
            self.check(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self.check("collective_timeout", 1 <= self.collective_timeout <= 86_400, "between 1 and 86400")
        self.check("keep_checkpoints", self.keep_checkpoints >= 2, "at least 2")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
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

    section = "optimizer"
    name: Literal["adamw", "muon"] = setting("adamw", on_resume="refused")
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95

    def __post_init__(self) -> None:
        for name in ("learning_rate", "muon_learning_rate", "eps"):
            self.check(name, 0 < getattr(self, name) < inf, "above 0, and finite")
        self.check("weight_decay", 0 <= self.weight_decay < inf, "at least 0, and finite")
        for name in ("beta1", "beta2", "momentum"):
            self.check(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")

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
class ScheduleConfig(Section):
    """How the learning rate moves: up for `warmup_steps`, then down to `final_ratio` of its peak.

    Attributes:
        name: cosine, linear, wsd (flat, then linear over the last `decay_fraction`), or constant (flat to the end).
        warmup_steps: Steps over which it rises linearly from 0.
        final_ratio: Learning rate of the last step as a share of the peak; constant ignores it.
        decay_fraction: Share of all steps over which wsd comes down; the others ignore it.
        restart_step: Step after which all of this begins once more, for a run that trains on after its end; until then
            it is as in a run of so many steps. 0 for never.
    """

    section = "schedule"
    name: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup_steps: int = 0
    final_ratio: float = 0.0
    decay_fraction: float = 0.2
    restart_step: int = 0

    def __post_init__(self) -> None:
        self.check_counts()
        for name in ("warmup_steps", "restart_step"):
            self.check(name, getattr(self, name) >= 0, "at least 0")
        self.check("final_ratio", 0 <= self.final_ratio <= 1, "between 0 and 1")
        self.check("decay_fraction", 0 < self.decay_fraction <= 1, "above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """One experiment. Each model derives its own, with a name, and its sections `model` and `data`.

    Attributes:
        name: The run's folder is the next free runs/NAME-N.
        seed: Every random draw follows from it.
        tracking: Where curves go besides metrics.jsonl: tensorboard, wandb (Weights & Biases; offline without an
            account), both, or none.
    """

    name: str = setting("run", on_resume="same")
    seed: int = setting(1, on_resume="refused")
    tracking: Literal["tensorboard", "wandb", "both", "none"] = setting("tensorboard", on_resume="same")
    model: Any
    data: Any
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        is_plain = self.name not in ("", ".", "..") and "/" not in self.name and is_line(self.name)
        self.check("name", is_plain, "a plain folder name")
        self.check("name", len(self.name.encode()) <= 200, "at most 200 bytes long")
        self.check("seed", 0 <= self.seed < 2**63, "at least 0 and below 2^63")
        ends = (self.training.max_steps, self.training.epochs, self.training.max_tokens)
        if all(end is None for end in ends):
            raise InputError(
                "training.max_steps, training.epochs or training.max_tokens must say when to end, got null for all"
            )

    @property
    def is_masked(self) -> bool:
        """Whether attention takes a mask of T x T for each sequence, parts of which do not see each other."""
        return False
