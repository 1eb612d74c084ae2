"""What requests result in: filled in by a job, token by token, while a page looks at it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from torch import Tensor

from data.tokenizers.tokenizer import Tokenizer, unit_of
from decoding.benchmark import Variant, cache_rows
from decoding.choices import ROWS, WhenFull
from decoding.generation import context_used
from decoding.token_text import TokenText
from decoding.writing import Piece
from seq2seq.task import LoadedSeq2Seq

WITH, WITHOUT = "with the cache", "without the cache"


@dataclass(kw_only=True)
class Growing:
    """A result that grows.

    Attributes:
        phase: What is going on; in the end `done`.
        why: Why it ended, in words, where there is something to say.
    """

    phase: str = "going"
    why: str = ""


@dataclass(kw_only=True)
class Writing(Growing):
    """A text that is being written, or several from one prompt.

    Attributes:
        prompt: What it continues.
        prompt_tokens: What the model reads of it.
        tokenizer: The model's.
        mode: How a step is computed.
        context: Tokens of the model's context.
        when_full: What happens at its end.
        limit: Tokens that will be written at most, of each text.
        cache_bytes: Memory of the key-value cache.
        precision: What the model computes in.
        seeds: Of each text.
        pieces: The texts so far.
        milliseconds: What each token took, with the cache; the first one with the reading of the prompt. Of several
            texts, a token of each.
        eager: Where a comparison was asked for, what they took eagerly with the cache.
        uncached: The same without the cache.
        phase: compiling (what reads tokens), writing, comparing (reading without the cache) or done.
    """

    prompt: str
    prompt_tokens: Sequence[int]
    tokenizer: Tokenizer
    mode: str
    context: int
    when_full: WhenFull
    limit: int
    cache_bytes: int
    precision: str = "fp32"
    seeds: Sequence[int] = (0,)
    pieces: list[Piece] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    eager: list[float] = field(default_factory=list)
    uncached: list[float] = field(default_factory=list)
    phase: str = "writing"

    @property
    def of_subwords(self) -> bool:
        """Whether a token is another thing than a character, so that its borders tell something."""
        return unit_of(self.tokenizer) != "character"

    @cached_property
    def prompt_texts(self) -> list[str]:
        """What each token of the prompt adds to it; the last one of a character brings all of it."""
        text = TokenText(self.tokenizer)
        return [text.add(token) for token in self.prompt_tokens]

    @property
    def text(self) -> str:
        """What was written so far, of the first text."""
        return self.texts[0]

    @property
    def texts(self) -> list[str]:
        """The same of each text."""
        return ["".join(piece.text for piece in self.pieces_of(sample)) for sample in range(len(self.seeds))]

    def pieces_of(self, sample: int) -> list[Piece]:
        """The pieces of one of the texts."""
        return [piece for piece in self.pieces if piece.sample == sample]

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token, of all texts together."""
        taken = self.milliseconds[1:]
        return 1000 * len(taken) * len(self.seeds) / sum(taken) if taken else None

    @property
    def compared(self) -> tuple[float, float, float] | None:
        """Mean milliseconds of the tokens that were read each way: eagerly without the cache and with it, by the mode.

        Without the first token, which reads the prompt and takes what a first call takes.
        """
        ways = self.uncached, self.eager, self.milliseconds
        count = min(map(len, ways))
        return (fmean(ways[0][1:count]), fmean(ways[1][1:count]), fmean(ways[2][1:count])) if count > 1 else None

    @property
    def speedup(self) -> float | None:
        """How many times as fast the cache makes them, in the same mode."""
        return self.compared and self.compared[0] / self.compared[1]

    @property
    def context_used(self) -> int:
        """Tokens of the context that are taken: once it was full, half of it and what came since."""
        # Of the prompt no more than fits; the newest token is not read yet.
        read = min(len(self.prompt_tokens), self.context) + max(len(self.milliseconds) - 1, 0)
        return context_used(read, self.context)

    def figures(self) -> dict[str, Any]:
        """What an API tells besides the text."""
        return {
            "tokens": len(self.milliseconds),
            "prompt_tokens": len(self.prompt_tokens),
            "tokens_per_second": self.tokens_per_second,
            "first_token_seconds": self.milliseconds[0] / 1000 if self.milliseconds else None,
            "speedup": self.speedup,
            "cache_bytes": self.cache_bytes,
            "context_used": self.context_used,
            "context": self.context,
            "mode": self.mode,
            "precision": self.precision,
            "end": self.why,
        }


@dataclass(kw_only=True)
class Benchmark(Growing):
    """The table of what the cache saves, as it grows.

    Attributes:
        about: Device, model, and all else that the figures depend on.
        variants: What is timed, in one pass.
        phase: warming up, measuring or done.
    """

    about: dict[str, Any]
    variants: Sequence[Variant]
    phase: str = "warming up"

    @property
    def tokens(self) -> int:
        """How many all variants have written."""
        return min(len(variant.passes[0]) for variant in self.variants)

    def rows(self) -> list[dict[str, Any]]:
        """The rows that all variants have reached."""
        return cache_rows(self.variants, [length for length in ROWS if length <= self.tokens])

    def figures(self) -> dict[str, Any]:
        """What the JSON file holds."""
        seconds = {variant.name: variant.passes[0] for variant in self.variants}
        return self.about | {"rows": self.rows(), "seconds": seconds, "end": self.why or self.phase}


@dataclass(kw_only=True)
class Transduction(Growing):
    """A target that is being decoded.

    Attributes:
        source: The text, and its tokens.
        tokens: The target's so far.
        probabilities: What the model gave each of them, and in the end the end.
        beams: What a search found: text and log-probability.
        attention: For each layer, of heads, target and source tokens, when the target is whole.
        phase: decoding or done.
    """

    loaded: LoadedSeq2Seq
    source: str
    source_tokens: list[int]
    tokens: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    beams: list[tuple[str, float]] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    phase: str = "decoding"

    @property
    def symbols(self) -> list[str]:
        """The target so far, token by token."""
        text = TokenText(self.loaded.vocabulary)
        return [text.add(token) for token in self.tokens]

    @property
    def target(self) -> str:
        """The target so far as text."""
        return self.loaded.vocabulary.decode(self.tokens)
