"""The configuration of a GPT run."""

import re
from dataclasses import dataclass, field
from typing import Literal

from data.config import TextConfig
from training.config.sections import RunConfig, TransformerConfig, is_line, setting
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
