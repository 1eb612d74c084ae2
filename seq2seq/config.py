"""The configuration of an encoder-decoder run."""

from dataclasses import dataclass, field
from typing import Literal

from data.config import FRAME, PairConfig
from training.config.sections import RunConfig, setting
from training.config.shape import TransformerConfig
from training.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ModelConfig(TransformerConfig):
    """The shape of the model.

    Attributes:
        num_layers: Blocks of the encoder, and as many of the decoder.
        cross_positions: What cross-attention finds the source's tokens by: content (what the encoder made of them),
            start (with rotary positions: also their distance, counted from the start of both), or both_ends (half of
            the heads count the source from its end). Null for the last of them that fits the other options.
        random_positions: Share of the training pairs whose tokens stand not at the first positions but at some of all
            `max_len`, in order, the same in source and target (Ruoss et al. 2023, "Randomized Positional
            Encodings"): what is longer than anything in training then looks less new.
    """

    num_layers: int = 2
    cross_positions: Literal["content", "start", "both_ends"] | None = None
    random_positions: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("num_layers", self.num_layers >= 1, "at least 1")
        self.check("max_len", self.max_len > FRAME, f"above {FRAME}, for a symbol between start and end")
        self.check("random_positions", 0 <= self.random_positions <= 1, "between 0 and 1")
        asked, rotary = self.cross_positions, self.positions == "rotary"
        self.check("cross_positions", rotary or asked in (None, "content"), "null or content, without rotary positions")
        halves = asked != "both_ends" or self.kv_heads % 2 == 0
        self.check("cross_positions", halves, "null, content or start, with an odd number of key-value heads")

    @property
    def crossing(self) -> Literal["content", "start", "both_ends"]:
        """`cross_positions`, or what null stands for."""
        if self.cross_positions is not None:
            return self.cross_positions
        if self.positions != "rotary":
            return "content"
        return "start" if self.kv_heads % 2 else "both_ends"


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(RunConfig):
    """One experiment."""

    name: str = setting("seq2seq", on_resume="same")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: PairConfig = field(default_factory=PairConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        data, room = self.data, self.model.max_len
        size = 1 if data.tokenizer == "characters" else max(len(symbol.encode()) for symbol in data.symbols)
        if data.task != "pairs" and data.max_length * size > room - FRAME:
            raise InputError(
                f"data.max_length must be at most model.max_len ({room}) minus {FRAME} for start and end"
                f"{'' if size == 1 else f', over the {size} bytes of a symbol'}, got {data.max_length}"
            )
