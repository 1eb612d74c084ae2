"""The configuration of a GPT run."""

from dataclasses import dataclass, field
from typing import Literal

from data.config import TextConfig
from training.config.sections import (
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
    TransformerConfig,
    check,
)


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
    data: TextConfig = field(default_factory=TextConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
