"""The configuration of a GPT run."""

import re
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from data.config import TextConfig
from training.config.sections import RunConfig, Section, is_line, setting
from training.config.shape import TransformerConfig
from training.runtime.errors import InputError


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
    """One experiment.

    Attributes:
        init_from: Where the first weights come from, and with them the model's shape and the tokenizer: the folder of a
            run or of a checkpoint, or a model folder of Hugging Face transformers (Llama, Qwen3, GPT-2). null for
            weights that are drawn.
        init_sha256: SHA-256 of the file with those weights; a run notes it as it begins. null for any.
        init_vocabulary: same keeps the tokenizer of `init_from`; shared takes the one that data.tokenizer names, keeps
            the rows of tokens that both have, and draws the others.
    """

    name: str = setting("gpt", on_resume="same")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: TextConfig = field(default_factory=TextConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    init_from: str | None = setting(None, on_resume="same")
    init_sha256: str | None = setting(None, on_resume="refused")
    init_vocabulary: Literal["same", "shared"] = setting("same", on_resume="refused")

    def __post_init__(self) -> None:
        super().__post_init__()
        named = self.init_from is None or (self.init_from != "" and is_line(self.init_from))
        self.check("init_from", named, "the folder of a run, of a checkpoint, or of a model of transformers")
        sha256 = self.init_sha256
        self.check("init_sha256", sha256 is None or bool(re.fullmatch("[0-9a-f]{64}", sha256)), "null or 64 hex digits")
        for name in ("init_sha256", "init_vocabulary"):
            if self.init_from is None and getattr(self, name) != getattr(GPTConfig, name):
                raise InputError(f"{name} is for a run with init_from, got init_from null")
        if self.lora.rank and self.init_from is None:
            raise InputError(
                f"lora.rank is for a run with init_from, which says what is adapted: got {self.lora.rank}, and "
                f"init_from null"
            )
        if self.lora.rank and self.init_vocabulary != "same":
            raise InputError(
                f"lora.rank is for --init_vocabulary same: an adapter trains no embeddings, and init_vocabulary "
                f"{self.init_vocabulary} draws new ones; got {self.lora.rank}"
            )

    @property
    def is_masked(self) -> bool:
        """Documents, or rows with answers, that share a window do not see each other."""
        return self.data.packing == "documents" or self.data.answer_columns != {}
