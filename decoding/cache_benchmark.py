"""What the key-value cache saves: the same tokens read with it and without it, by each way to decode.

One pass writes as many tokens as the longest row of the table asks for; a row is the time until its last token. The
arms take turns, pass by pass, and all read the same tokens, which a first pass with the cache chose. Figures are
medians of the passes. `decoding/benchmark.py` compares the ways to decode with each other and with the memory.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoding.choices import ROWS, Mode
from decoding.decoder import Decoder
from decoding.machine import describe_machine, describe_model
from decoding.models import LanguageModel
from layers import KVCache
from training.runtime.errors import require_finite
from training.seeds import generator

PROMPT_TOKENS = 8
WARM_UP_STRIDE = 64
WARM_UP_TOKENS = 16

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Median seconds until so many new tokens were written: by the model as it stands, and by each arm."""

    new_tokens: int
    no_cache_seconds: float
    cache_seconds: float
    speedup: float
    arms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Arms:
    """`seconds[arm][repeat][n]` had passed when new token n + 1 was chosen."""

    seconds: Mapping[str, Sequence[Sequence[float]]]

    def rows(self, lengths: Sequence[int] = ROWS) -> list[Row]:
        """The table."""
        rows = []
        for length in lengths:
            arms = {name: _median_at(repeats, length) for name, repeats in self.seconds.items()}
            slow, fast = arms[_arm(False, "eager")], arms[_arm(True, "eager")]
            rows.append(
                Row(new_tokens=length, no_cache_seconds=slow, cache_seconds=fast, speedup=slow / fast, arms=arms)
            )
        return rows


def _arm(use_cache: bool, mode: str) -> str:
    return f"{'with' if use_cache else 'without'} cache, {mode}"


def _median_at(repeats: Sequence[Sequence[float]], length: int) -> float:
    return statistics.median(seconds[length - 1] for seconds in repeats)


class Reader:
    """Reads tokens of one text, and predicts the next one, with the cache or without.

    When the text would outgrow the context, its newer half is kept and read anew.

    Args:
        decoder: The model.
        use_cache: Without it every token costs a pass over all before it, for the same logits.
        forward: What reads a whole window without the cache.
    """

    def __init__(self, decoder: Decoder, *, use_cache: bool, forward: Callable[[Tensor], Tensor] | None = None) -> None:
        self._decoder = decoder
        self._forward = decoder.model if forward is None else forward
        self._cache: KVCache | None = decoder.take_cache() if use_cache else None
        self._window: list[int] = []

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> Tensor:
        """Append tokens to those read before; return the logits of the next one, of shape (V,)."""
        context = self._decoder.model.config.max_len
        unread = list(tokens)
        self._window += unread
        if len(self._window) > context:
            unread = self._window = self._window[-max(context // 2, 1) :]
            if self._cache is not None:
                self._cache.reset()
        tokens_BT = torch.tensor(
            [self._window if self._cache is None else unread], device=self._decoder.model.embedding.weight.device
        )
        if self._cache is None:
            return self._forward(tokens_BT)[0, -1]
        if len(unread) > 1:
            return self._decoder.prefill(tokens_BT, self._cache)[0]
        return self._decoder.decode_step(tokens_BT, self._cache)[0, -1]

    def close(self) -> None:
        """Let the cache be used again."""
        if self._cache is not None:
            self._decoder.give_back(self._cache)


def measure_arms(
    model: LanguageModel,
    modes: Sequence[Mode],
    *,
    repeats: int,
    new_tokens: int = ROWS[-1],
    advance: Callable[[], None] = lambda: None,
    say: Say = lambda text: None,
) -> Arms:
    """Time the model as it stands with and without the cache, and the other ways with it.

    Args:
        model: In evaluation mode, where and in the numbers that it is to be timed in.
        modes: Ways to decode besides eager. With `compiled`, reading without the cache is compiled as well.
        repeats: Passes of each arm.
        new_tokens: Tokens of a pass.
        advance: Called after each timed token, outside of its time.
        say: Called with a line after each pass.
    """
    ways: list[Mode] = ["eager", *modes]
    decoders = {mode: Decoder(model, mode) for mode in ways}
    arms = [(use_cache, mode) for use_cache in (False, True) for mode in decoders if use_cache or mode != "native"]
    forward = {mode: torch.compile(model, dynamic=True) if mode == "compiled" else model for mode in decoders}

    def reader(use_cache: bool, mode: Mode) -> Reader:
        return Reader(decoders[mode], use_cache=use_cache, forward=forward[mode])

    tokens = _write(reader(True, "eager"), model.vocab_size, new_tokens)
    for use_cache, mode in arms:
        if use_cache:
            _time_pass(reader(True, mode), tokens[: PROMPT_TOKENS + WARM_UP_TOKENS], lambda: None)
            continue
        for length in range(PROMPT_TOKENS, len(tokens), WARM_UP_STRIDE):
            reader(False, mode).read(tokens[:length])
    seconds: dict[str, list[list[float]]] = {_arm(*arm): [] for arm in arms}
    for repeat in range(repeats):
        for arm in arms if repeat % 2 == 0 else reversed(arms):
            passed = _time_pass(reader(*arm), tokens, advance)
            seconds[_arm(*arm)].append(passed)
            say(f"pass {repeat + 1} of {repeats} {_arm(*arm)}: {new_tokens} tokens in {passed[-1]:.3f} s")
    return Arms(seconds=seconds)


def _write(reader: Reader, vocab_size: int, new_tokens: int) -> list[int]:
    """A prompt and all new tokens but the last, chosen with the cache, which this also warms up."""
    tokens = random_prompt(vocab_size, PROMPT_TOKENS, 0)
    logits_V = reader.read(tokens)
    for _ in range(new_tokens - 1):
        tokens.append(likeliest(logits_V))
        logits_V = reader.read(tokens[-1:])
    return tokens


def likeliest(logits_V: Tensor) -> int:
    """The likeliest token.

    Raises:
        NonFiniteError: The logits are not finite.
    """
    most = logits_V.max(-1)
    require_finite([float(most.values)])
    return int(most.indices)


def random_prompt(vocab_size: int, length: int, number: int) -> list[int]:
    """Tokens that anybody can draw again."""
    drawn: list[int] = torch.randint(vocab_size, (length,), generator=generator(0, "prompt", number)).tolist()
    return drawn


def _time_pass(reader: Reader, tokens: Sequence[int], advance: Callable[[], None]) -> list[float]:
    """Seconds until each new token was chosen, the reading of the prompt included."""
    seconds, total = [], 0.0
    start = time.perf_counter()
    unread = tokens[:PROMPT_TOKENS]
    for place in range(PROMPT_TOKENS, len(tokens) + 1):
        int(reader.read(unread).argmax())  # Looking at the token waits for the device.
        total += time.perf_counter() - start
        seconds.append(total)
        advance()
        start = time.perf_counter()
        unread = tokens[place : place + 1]
    reader.close()
    return seconds


def describe(model: LanguageModel, *, source: str, repeats: int) -> dict[str, Any]:
    """All that the figures depend on."""
    return describe_machine(model.embedding.weight.device) | {
        "model": describe_model(model, source),
        "prompt_tokens": PROMPT_TOKENS,
        "repeats": repeats,
    }


def plot(arms: Arms, output: Path, title: str) -> None:
    """Draw the seconds until each new token, and between two of them, of all arms."""
    from training.plots import new_figure

    figure = new_figure(10, 4.2)
    figure.suptitle(title, fontsize=10)
    cumulative, single = figure.subplots(1, 2)
    for number, (name, repeats) in enumerate(arms.seconds.items()):
        until = [_median_at(repeats, length) for length in range(1, len(repeats[0]) + 1)]
        steps = [[later - earlier for earlier, later in pairwise(run)] for run in repeats]
        between = [1000 * statistics.median(step[n] for step in steps) for n in range(len(until) - 1)]
        colour = f"C{number}"
        cumulative.plot(range(1, len(until) + 1), until, color=colour, label=name)
        rows = [length for length in ROWS if length <= len(until)]
        cumulative.plot(rows, [until[length - 1] for length in rows], "o", color=colour)
        single.plot(
            range(PROMPT_TOKENS + 1, PROMPT_TOKENS + len(until)), between, color=colour, linewidth=1, label=name
        )
    cumulative.set(xlabel="new tokens", ylabel="seconds", title="time until a token", yscale="log")
    single.set(xlabel="position", ylabel="milliseconds", title="time per token", yscale="log")
    for axes in (cumulative, single):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(output)
