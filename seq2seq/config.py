"""The configuration of an encoder-decoder run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from training.config import (
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
    TransformerConfig,
    check,
    check_counts,
    is_line,
)
from training.errors import InputError
from training.hub import hub_name

FORMATS = (".jsonl", ".json", ".csv", ".tsv")
SOURCES = f"a file that ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, or hub:OWNER/NAME"
OnBadRow = Literal["stop", "skip"]
FRAME = 2
"""A source takes so many tokens more than its symbols: start and end. A target takes one more, the start or the end."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(TransformerConfig):
    """The shape of the model.

    Attributes:
        num_layers: Blocks of the encoder, and as many of the decoder.
        cross_positions: What cross-attention finds the source's tokens by: content (what the encoder made of them),
            start (with rotary positions: also their distance, counted from the start of both), or both_ends (half of
            the heads count the source from its end). Null for the last of them that fits the other options.
        random_positions: Share of the training pairs whose tokens stand not at the first places but at some of all
            `max_len`, in order, the same in source and target (Ruoss et al. 2023, "Randomized Positional
            Encodings"): what is longer than anything in training then looks less new.
    """

    num_layers: int = 2
    cross_positions: Literal["content", "start", "both_ends"] | None = None
    random_positions: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "num_layers", self.num_layers >= 1, "at least 1")
        check(self, "max_len", self.max_len > FRAME, f"above {FRAME}, for a symbol between start and end")
        check(self, "random_positions", 0 <= self.random_positions <= 1, "between 0 and 1")
        asked, rotary = self.cross_positions, self.positions == "rotary"
        check(
            self, "cross_positions", rotary or asked in (None, "content"), "null or content, without rotary positions"
        )
        halves = asked != "both_ends" or self.kv_heads % 2 == 0
        check(self, "cross_positions", halves, "null, content or start, with an odd number of key-value heads")

    @property
    def crossing(self) -> Literal["content", "start", "both_ends"]:
        """`cross_positions`, or what null stands for."""
        if self.cross_positions is not None:
            return self.cross_positions
        if self.positions != "rotary":
            return "content"
        return "start" if self.kv_heads % 2 else "both_ends"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to learn.

    Attributes:
        task: copy or reverse (strings of random symbols), or pairs (a source text and its target, from a file or the
            hub).
        symbols: The alphabet of copy and reverse, each symbol one character.
        min_length: Symbols in the shortest string of copy and reverse.
        max_length: Symbols in the longest one.
        source: For pairs: a file of JSON lines or an array of JSON (.jsonl, .json) or of separated values (.csv, .tsv,
            whatever separates them), or hub:OWNER/NAME (a data set of the Hugging Face hub; validates on its split
            validation, and tests on test, where it has them). Other pairs are split by a hash of their source text:
            80 % for training, 10 % each for validation and test.
        source_column: Column of pairs with the source text; of a nested one the path, as in translation.en, and of a
            .csv or .tsv without a line of names the number, from 1 on.
        target_column: Column of pairs with the target text.
        on_bad_row: What a row that is no pair, or that is longer than the model's context, does: stop (the run ends and
            names it), or skip (such rows are left out, counted and listed).
        revision: Branch, tag or commit of a hub data set; null for its main branch.
        subset: Subset (configuration) of a hub data set that has several; null for its default.
        tokens: What a token is: characters, or words (what stands between spaces).
        val_samples: Strings of copy and reverse to validate on. Of pairs the whole split counts for the loss, and so
            many at most are decoded.
    """

    task: Literal["copy", "reverse", "pairs"] = "copy"
    symbols: str = "abcdefghijklmnopqrstuvwxyz"
    min_length: int = 1
    max_length: int = 20
    source: str | None = None
    source_column: str = "source"
    target_column: str = "target"
    on_bad_row: OnBadRow = "stop"
    revision: str | None = None
    subset: str | None = None
    tokens: Literal["characters", "words"] = "characters"
    val_samples: int = 1000

    def __post_init__(self) -> None:
        check_counts(self, most=10**6)
        check(self, "symbols", is_line(self.symbols), "characters of one line")
        check(self, "symbols", len(set(self.symbols)) == len(self.symbols) >= 1, "different characters, at least one")
        check(self, "min_length", self.min_length >= 1, "at least 1")
        check(self, "max_length", self.max_length >= self.min_length, f"at least data.min_length ({self.min_length})")
        check(self, "val_samples", 1 <= self.val_samples <= 10_000, "between 1 and 10000")
        generated = self.task != "pairs"
        if generated and self.tokens != "characters":
            raise InputError(f"data.tokens words is for data.task pairs: the symbols of {self.task} are characters")
        for name in ("source", "source_column", "target_column", "on_bad_row"):
            value = getattr(self, name)
            check(self, name, value is None or (value != "" and is_line(value)), "text of one line, in UTF-8")
            if generated and value != getattr(DataConfig, name):
                raise InputError(f"data.{name} is for data.task pairs only, got data.task {self.task}")
        if not generated:
            for name in ("symbols", "min_length", "max_length"):
                if getattr(self, name) != getattr(DataConfig, name):
                    raise InputError(f"data.{name} is for data.task copy and reverse only, got data.task pairs")
            source = self.source or ""
            named = self.hub_name or (Path(source).suffix.lower() in FORMATS and not source.startswith("hub:"))
            check(self, "source", bool(named), f"{SOURCES}, with data.task pairs")
        for name in ("revision", "subset"):
            value = getattr(self, name)
            check(self, name, value is None or (value != "" and is_line(value)), "a name")
            if value is not None and self.hub_name is None:
                raise InputError(f"data.{name} is for sources hub:OWNER/NAME only, got data.source {self.source}")

    @property
    def hub_name(self) -> str | None:
        """OWNER/NAME, where the pairs come from the hub."""
        return hub_name(self.source or "")


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(RunConfig):
    """One experiment.

    Attributes:
        name: The run's folder is the next free runs/NAME-N.
        seed: Every random draw follows from it.
        tracking: Where curves go besides metrics.jsonl: tensorboard, wandb (Weights & Biases; offline without an
            account), both, or none.
        model: The model.
        data: The task.
        training: The loop.
        optimizer: The optimizer.
        schedule: The learning rate.
    """

    name: str = "seq2seq"
    seed: int = 1
    tracking: Literal["tensorboard", "wandb", "both", "none"] = "tensorboard"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        longest, room = self.data.max_length, self.model.max_len
        if self.data.task != "pairs" and longest > room - FRAME:
            raise InputError(
                f"data.max_length must be at most model.max_len ({room}) minus {FRAME} for start and end, got {longest}"
            )
