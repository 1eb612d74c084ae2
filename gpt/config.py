"""The configuration of a GPT run."""

from dataclasses import dataclass, field
from math import inf

from data.config import TextConfig
from training.config.sections import RunConfig, Section, TransformerConfig, setting


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
class LoraConfig(Section):
    """A low-rank adapter (Hu et al. 2021), which is trained in place of the weights that it is put on.

    Attributes:
        rank: Of the adapter of each matrix; 0 for none, so that all weights are trained. It needs `init_from`.
        alpha: What adapters are multiplied by, over `rank`.
        dropout: Probability that an input of an adapter is dropped in training.
        targets: Which linear layers of the blocks get one: names with commas between them (query, key, value, out;
            gate, up, down), or all.
    """

    section = "lora"
    on_resume = "refused"
    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = "all"

    def __post_init__(self) -> None:
        self.check("rank", 0 <= self.rank <= 10**6, "at least 0, and at most 1000000")
        self.check("alpha", 0 < self.alpha < inf, "above 0, and finite")
        self.check("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        self.check("targets", all(map(str.strip, self.targets.split(","))), "all, or names with commas between them")


@dataclass(frozen=True, kw_only=True)
class GPTConfig(RunConfig):
    """One experiment."""

    name: str = setting("gpt", on_resume="same")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: TextConfig = field(default_factory=TextConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
