"""Text from a GPT, piece by piece."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, Literal, NamedTuple, Protocol

from decoding.choices import SAMPLE_LENGTH, WHEN_FULL, WhenFull
from decoding.decoder import Decoder
from decoding.generation import generate, generate_with_lookup, new_token_limit
from decoding.sampling import Chosen, Sampling
from decoding.token_text import TokenBytes, TokenText, shown_token
from training.runtime.errors import InputError, require_finite

End = Literal["length", "stop", "context", "end_of_text"]


class Tokenizer(TokenBytes, Protocol):
    """From text to tokens and back; `end_of_text` is the token that ends a text, if there is one."""

    end_of_text: int | None

    def encode_prompt(self, prompt: str) -> list[int]:
        """The tokens of a text to continue."""


class Piece(NamedTuple):
    """What one token adds to one of the texts.

    Attributes:
        sample: Which text.
        text: What it adds; a stop string cuts it, and the last token of a character brings all of it.
        log_probability: What the model gave the token, in nats, before temperature and filters.
        alternatives: The likeliest tokens at this position, and what the model gave them.
        end: Why the text ends here: `length` (as long as asked), `stop` (a stop string), `context` (it is full),
            `end_of_text` (the token for that); None where it goes on.
        token: The token; None for the end at a stop string, which is none.
    """

    sample: int
    text: str
    log_probability: float
    alternatives: tuple[tuple[str, float], ...] = ()
    end: End | None = None
    token: int | None = None


def write(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: str | Sequence[str],
    *,
    max_new_tokens: int = SAMPLE_LENGTH,
    sampling: Sampling | None = None,
    seed: int = 0,
    num_samples: int = 1,
    stop: Sequence[str] = (),
    when_full: WhenFull = WHEN_FULL,
    alternatives: int = 0,
    lookup: int = 0,
    on_token: Callable[[], None] = lambda: None,
) -> Generator[Piece, None, None]:
    """Continue a prompt, or several of different lengths in one batch; closing the iterator ends the work.

    Args:
        decoder: The model.
        tokenizer: Its vocabulary.
        prompt: The text to continue; of several, each has its texts one after the other.
        max_new_tokens: Tokens of each text.
        sampling: How to choose a token; None for draws from all of them.
        seed: Of a prompt's first text; the next one has the next seed.
        num_samples: Texts for each prompt, from one reading of it.
        stop: Strings before which a text ends. What could become one is held back until it is clear.
        when_full: Whether a text stops or slides where the context is full; see `generate`.
        alternatives: How many likeliest tokens to report with each piece.
        lookup: Propose so many tokens from the text itself; see `generate_with_lookup`. For one greedy text.
        on_token: Called when a token of each text has been chosen, for whoever takes the time, before any is held back.

    Raises:
        InputError: An option is out of range, or a prompt is empty, too long, or has an unknown character.
        NonFiniteError: The model's logits are not finite.
    """
    _check(prompt, num_samples, stop, alternatives)
    prompts = [tokenizer.encode_prompt(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
    common: dict[str, Any] = {"max_new_tokens": max_new_tokens, "when_full": when_full, "alternatives": alternatives}
    if lookup:
        _check_lookup(sampling or Sampling(), len(prompts) * num_samples)
        steps = generate_with_lookup(decoder, prompts[0], draft=lookup, **common)
    else:
        seeds = [seed + n for _ in prompts for n in range(num_samples)]
        steps = generate(decoder, prompts, sampling=sampling, seeds=seeds, **common)
    context = decoder.model.config.max_len
    limits = [new_token_limit(context, text, max_new_tokens, when_full) for text in prompts for _ in range(num_samples)]
    yield from _pieces(steps, tokenizer, limits, max_new_tokens, stop, on_token)


def _check(prompt: str | Sequence[str], num_samples: int, stop: Sequence[str], alternatives: int) -> None:
    if num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {num_samples}")
    if not prompt:
        raise InputError("the prompt is empty: give at least one character to continue")
    if any(not string for string in stop):
        raise InputError("a stop string is empty: give at least one character")
    if alternatives < 0:
        raise InputError(f"alternatives must be at least 0, got {alternatives}")


def _check_lookup(sampling: Sampling, num_texts: int) -> None:
    if sampling.temperature != 0 or sampling.repetition_penalty != 1:
        raise InputError("lookup writes the greedy text: it wants temperature 0 and no repetition_penalty")
    if num_texts != 1:
        raise InputError("lookup writes one text at a time: give one prompt, and num_samples 1")


def _pieces(
    steps: Generator[Chosen, None, None],
    tokenizer: Tokenizer,
    limits: Sequence[int],
    asked: int,
    stop: Sequence[str],
    on_token: Callable[[], None],
) -> Generator[Piece, None, None]:
    held: dict[int, list[Piece]] = {sample: [] for sample in range(len(limits))}
    texts = [TokenText(tokenizer) for _ in limits]
    with closing(steps):
        for step, chosen in enumerate(steps, start=1):
            tokens, log_probabilities, alternatives, theirs = (values.tolist() for values in chosen)
            on_token()
            require_finite(log_probabilities[sample] for sample in held)
            for sample in list(held):
                names = (shown_token(tokenizer, token) for token in alternatives[sample])
                others = tuple(zip(names, theirs[sample], strict=True))
                token, likely = tokens[sample], log_probabilities[sample]
                piece = Piece(sample, texts[sample].add(token), likely, others, token=token)
                released, stopped = _release([*held[sample], piece], stop)
                yield from released
                held[sample] = [*held[sample], piece][len(released) :]
                over = token == tokenizer.end_of_text or step == limits[sample]
                if over and not stopped:
                    by_length: End = "length" if step == asked else "context"
                    end: End = "end_of_text" if token == tokenizer.end_of_text else by_length
                    *before, last = held[sample] or [Piece(sample, "", 0.0)]
                    yield from before
                    yield last._replace(end=end)
                if stopped or over:
                    del held[sample]
            if not held:
                return


def _release(pieces: list[Piece], stop: Sequence[str]) -> tuple[list[Piece], bool]:
    """The first pieces that no stop string can reach any more, and whether one is complete: then all before it."""
    text = "".join(piece.text for piece in pieces)
    found = [start for start in (text.find(string) for string in stop) if start >= 0]
    if found:
        released, left = [], min(found)
        for piece in pieces:
            if left <= 0:
                break
            released.append(piece._replace(text=piece.text[:left]))
            left -= len(piece.text)
        return [*released, Piece(pieces[0].sample, "", 0.0, end="stop")], True
    safe = len(text) - max((_overlap(text, string) for string in stop), default=0)
    count, reached = 0, 0
    while count < len(pieces) and reached + len(pieces[count].text) <= safe:
        reached += len(pieces[count].text)
        count += 1
    return pieces[:count], False


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` with which `string` begins."""
    return next(n for n in range(min(len(text), len(string) - 1), -1, -1) if string.startswith(text[len(text) - n :]))
