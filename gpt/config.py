"""The configuration of a GPT run."""

from dataclasses import dataclass, field

from data.config import TextConfig
from training.config.sections import RunConfig, TransformerConfig, setting


@dataclass(frozen=True, kw_only=True)
class ModelConfig(TransformerConfig):
    """The shape of the model.

    Attributes:
        num_layers: Number of blocks.
    """

    num_layers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("num_layers", self.num_layers >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class GPTConfig(RunConfig):
    """One experiment."""

    name: str = setting("gpt", on_resume="same")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: TextConfig = field(default_factory=TextConfig)
