"""The configuration of a GPT run."""

from dataclasses import dataclass, field
from typing import Literal

from training.config import (
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
    TransformerConfig,
    check,
    is_line,
    shown,
)
from training.errors import InputError
from training.hub import hub_name

TINY_SHAKESPEARE = "karpathy/tiny_shakespeare"
Unknown = Literal["error", "skip"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(TransformerConfig):
    """The shape of the model.

    Attributes:
        num_layers: Number of blocks.
    """

    num_layers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "num_layers", self.num_layers >= 1, "at least 1")


SOURCES = "auto, hub, hub:OWNER/NAME, a text file or a folder of them, a pattern, or several of these with commas"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from. The last 10 % of a text are for validation, unless a data set has a split for it.

    Attributes:
        source: auto (Tiny Shakespeare from the packaged plays, else from the hub), hub (Tiny Shakespeare from the
            Hugging Face hub), hub:OWNER/NAME (a data set of the hub: trains on its split train, validates on
            validation, else test, else the last 10 % of train), a text file, a folder of text files, a pattern such as
            'texts/*.txt', or several of these with commas; files are joined, those of a folder in sorted order.
        column: Column of a hub data set that holds the text; rows without text are skipped, and each row ends a line.
        revision: Branch, tag or commit of a hub data set; null for its main branch.
        subset: Subset (configuration) of a hub data set that has several; null for its default.
        unknown: What to do with characters that a validation split of its own has and the training text lacks: error,
            or skip them.
    """

    source: str = "auto"
    column: str = "text"
    revision: str | None = None
    subset: str | None = None
    unknown: Unknown = "error"

    def __post_init__(self) -> None:
        for name in ("source", "column", "revision", "subset"):
            check(self, name, is_line(getattr(self, name) or ""), "text of one line, in UTF-8")
        check(self, "source", self.source != "", SOURCES)
        check(self, "source", hub_name(self.source) is not None or not self.source.startswith("hub:"), SOURCES)
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
        return hub_name(self.source)


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
