"""What requests result in: filled in by a job, token by token, while a page looks at it."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gpt.benchmark import ROWS
from gpt.generation import WhenFull
from gpt.writing import Piece
from seq2seq.trainer import LoadedSeq2Seq

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
    """A text that is being written.

    Attributes:
        run: Whose model.
        prompt: What it continues.
        mode: How tokens are read.
        context: Tokens that the model sees at most.
        when_full: What happens at its end.
        limit: Tokens that will be written at most.
        cache_bytes: Memory of the key-value cache.
        pieces: The text so far.
        milliseconds: What each token took, with the cache; the first one with the reading of the prompt.
        uncached: The same tokens without the cache, where that was asked for.
        phase: compiling (what reads tokens), writing, comparing (reading without the cache) or done.
    """

    run: str
    prompt: str
    mode: str
    context: int
    when_full: WhenFull
    limit: int
    cache_bytes: int
    pieces: list[Piece] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    uncached: list[float] = field(default_factory=list)
    phase: str = "writing"

    @property
    def text(self) -> str:
        """What was written so far."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token."""
        return _per_second(self.milliseconds[1:])

    @property
    def speedup(self) -> float | None:
        """How many times as fast the cache has made the tokens that were read both ways."""
        both = min(len(self.uncached), len(self.milliseconds))
        return sum(self.uncached[:both]) / sum(self.milliseconds[:both]) if both else None

    @property
    def context_used(self) -> int:
        """Tokens of the context that are taken: once it was full, half of it and what came since."""
        # Of the prompt no more than fits; the newest token is not read yet.
        used = min(len(self.prompt), self.context) + max(len(self.milliseconds) - 1, 0)
        if used <= self.context:
            return used
        half = max(self.context // 2, 1)
        return half + (used - self.context - 1) % (self.context - half + 1)

    def figures(self) -> dict[str, Any]:
        """What an API tells besides the text."""
        return {
            "tokens": len(self.milliseconds),
            "tokens_per_second": self.tokens_per_second,
            "first_token_seconds": self.milliseconds[0] / 1000 if self.milliseconds else None,
            "speedup": self.speedup,
            "cache_bytes": self.cache_bytes,
            "context_used": self.context_used,
            "context": self.context,
            "mode": self.mode,
            "end": self.why,
        }


@dataclass(kw_only=True)
class Benchmark(Growing):
    """The table of what the cache saves, as it grows.

    Attributes:
        about: Device, model, and all else that the figures depend on.
        seconds: For each arm, seconds until each new token.
        phase: choosing (the tokens that all arms read), measuring or done.
    """

    about: dict[str, Any]
    seconds: dict[str, list[float]]
    phase: str = "choosing"

    def rows(self) -> list[dict[str, Any]]:
        """The rows that all arms have reached."""
        slow, fast = self.seconds[WITHOUT], self.seconds[WITH]
        return [
            {
                "new_tokens": length,
                "no_cache_seconds": slow[length - 1],
                "cache_seconds": fast[length - 1],
                "speedup": slow[length - 1] / fast[length - 1],
                "arms": {name: seconds[length - 1] for name, seconds in self.seconds.items()},
            }
            for length in ROWS
            if all(len(seconds) >= length for seconds in self.seconds.values())
        ]

    def figures(self) -> dict[str, Any]:
        """What the JSON file holds."""
        return self.about | {"rows": self.rows(), "seconds": self.seconds, "end": self.why or self.phase}


@dataclass(kw_only=True)
class Transduction(Growing):
    """A target that is being decoded.

    Attributes:
        run: Whose model.
        source: The text, and its tokens.
        symbols: The target's so far.
        tokens: The same as tokens.
        probabilities: What the model gave each of them, and in the end the end.
        beams: What a search found: text and log-probability.
        attention: For each layer, of heads, target and source tokens, when the target is whole.
        phase: decoding or done.
    """

    run: str
    loaded: LoadedSeq2Seq
    source: str
    source_tokens: list[int]
    symbols: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    beams: list[tuple[str, float]] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    phase: str = "decoding"

    @property
    def target(self) -> str:
        """The target so far as text."""
        return self.loaded.vocabulary.decode(self.tokens)


def _per_second(milliseconds: list[float]) -> float | None:
    return 1000 * len(milliseconds) / sum(milliseconds) if milliseconds else None
