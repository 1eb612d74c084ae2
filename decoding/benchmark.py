"""How fast a model writes: without its key-value cache and with it, in each mode, and by other libraries.

What is timed is a `Variant`. All write the same number of tokens, greedily, and each token is looked at on the host, as
who reads a stream would. They take turns pass by pass, so that a machine that others use as well is equally fast or
slow for each. `gpt/baselines.py` and `seq2seq/baselines.py` make the variants of a model.
"""

import statistics
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from decoding.machine import Costs, machine_speed
from decoding.sampling import Chosen
from training.runtime.errors import require_finite
from training.runtime.progress import Progress
from training.seeds import generator

WARM_UP_TOKENS = 16
FIRST_TOKENS = 9
NO_CACHE = ", without cache"
COMPUTED = ("bytes_per_step", "bandwidth_share", "arithmetic_share", "cache_bytes")
"""What is computed from the shape of a model, and not measured; a share has a measured rate and speed in it."""

Prompts = Sequence[Sequence[int]]
Seconds = Generator[float, None, None]
Write = Callable[[Prompts, int], Seconds]
"""Continues prompts by a number of tokens; yields the seconds after which the next token of each could be read."""


@dataclass(kw_only=True)
class Variant:
    """One way to write: a model in a precision and a mode, with its cache or without, for a number of streams."""

    precision: str
    mode: str  # How a decode step is computed; of a baseline, by which library.
    use_cache: bool = True
    streams: int
    write: Write
    parameters: int = 0  # Told where they are not those of the model as it stands.
    costs: Costs | None = None  # Of a step, where they can be computed.
    passes: list[list[float]] = field(default_factory=list)  # Seconds until each new token.
    first: list[float] = field(default_factory=list)  # Seconds to the first token after a long prompt, again and again.
    compile_seconds: float = 0.0  # What the first text took longer than the second.

    @property
    def name(self) -> str:
        """In tables, pictures and files."""
        return f"{self.precision} {self.mode}{'' if self.use_cache else NO_CACHE}"

    def curves(self) -> tuple[list[float], list[float]]:
        """Medians of the passes so far: seconds until each new token, and milliseconds of each but the first."""
        passes = [list(seconds) for seconds in self.passes]  # They may grow meanwhile.
        steps = [[1000 * (later - earlier) for earlier, later in pairwise(seconds)] for seconds in passes]
        until, single = ([statistics.median(at) for at in zip(*each, strict=False)] for each in (passes, steps))
        return until, single


def random_tokens(vocab_size: int, length: int, *purpose: str | int, lowest: int = 0) -> list[int]:
    """Tokens that anybody can draw again."""
    drawn: list[int] = torch.randint(lowest, vocab_size, (length,), generator=generator(0, *purpose)).tolist()
    return drawn


def timed(steps: Iterable[Chosen]) -> Seconds:
    """The seconds until each step's tokens were seen on the host; what is done between two of them does not count.

    Raises:
        NonFiniteError: In the end, if the model's logits are not finite.
    """
    passed, start = 0.0, time.perf_counter()
    for chosen in steps:
        chosen.tokens_B.tolist()  # Waits for the device.
        passed += time.perf_counter() - start
        yield passed
        start = time.perf_counter()
    require_finite(chosen.log_probabilities_B.tolist())


@dataclass(kw_only=True)
class Benchmark:
    """Variants of a model and baselines, and what all of them write."""

    about: dict[str, Any]  # What the figures depend on.
    variants: Sequence[Variant]  # Those of the table come first.
    baselines: Sequence[Variant]
    prompts: Callable[[int], Prompts]  # For a number of streams: what they continue, or the sources that they read.
    rows: Sequence[int]  # New tokens of each row of the table; the last one is the length of a pass.
    long_prompt: Sequence[int] = ()  # Its first token is timed by itself, and rates leave the first one out then.
    device: torch.device | str = "cpu"
    speeds: list[tuple[float, float]] = field(default_factory=list)  # Before each pass, where a step's costs are known.

    def run(self, repeats: int) -> None:
        """Time all variants in turn, so many passes of each, after a short text of each that does not count."""
        everyone, length = [*self.variants, *self.baselines], self.rows[-1]
        for variant in everyone:
            prompts, few = self.prompts(variant.streams), min(WARM_UP_TOKENS, length)
            cold, warm = (list(variant.write(prompts, few))[-1] for _ in range(2))
            variant.compile_seconds = max(cold - warm, 0.0)
        for turn in range(1 + FIRST_TOKENS if self.long_prompt else 0):  # One more to warm up.
            for variant in everyone[:: 1 if turn % 2 == 0 else -1]:
                variant.first += variant.write([self.long_prompt], 1)
        with closing(Progress(0, repeats * len(everyone) * length, visible=True, unit="token")) as progress:
            for repeat in range(repeats):
                for variant in everyone[:: 1 if repeat % 2 == 0 else -1]:
                    if variant.costs:
                        self.speeds.append(machine_speed(self.device))
                    variant.passes.append([])
                    for seconds in variant.write(self.prompts(variant.streams), length):
                        variant.passes[-1].append(seconds)
                        progress.advance()
                    name, rate = f"{variant.name}, {variant.streams} streams", self._rates(variant)[-1]
                    progress.say(f"pass {repeat + 1} of {repeats} {name}: {rate:,.1f} tokens/s")

    def _rates(self, variant: Variant) -> list[float]:
        """Tokens per second of all streams, in each pass."""
        untimed = 1 if self.long_prompt else 0
        count = variant.streams * (self.rows[-1] - untimed)
        return [count / (passed[-1] - untimed * passed[0]) for passed in variant.passes]

    def tabled(self) -> list[Variant]:
        """The variants of the table: of the first precision and number of streams, if one of them has no cache."""
        first = self.variants[0]
        found = [v for v in self.variants if (v.precision, v.streams) == (first.precision, first.streams)]
        return [] if all(variant.use_cache for variant in found) else found

    def figures(self) -> dict[str, Any]:
        """What the JSON file holds."""
        found = self.about | {"repeats": len(self.variants[0].passes), "new_tokens": self.rows[-1]}
        if self.speeds:
            read, multiplied = (statistics.median(speeds) / 1e9 for speeds in zip(*self.speeds, strict=True))
            found |= {"read_gigabytes_per_second": read, "multiply_gigaflops": multiplied, "computed": COMPUTED}
        if tabled := self.tabled():
            found["rows"] = cache_rows(tabled, self.rows)
            found["seconds"] = {v.name: [[passed[n - 1] for n in self.rows] for passed in v.passes] for v in tabled}
        for key, variants in (("decode", self.variants), ("baselines", self.baselines)):
            found[key] = [self._row(variant, found) for variant in variants]
        if self.long_prompt:
            found["first_token_seconds"] = min(row["first_token_seconds"] for row in found["decode"])
        return found

    def _row(self, variant: Variant, figures: dict[str, Any]) -> dict[str, Any]:
        """How fast a variant writes, and how near it comes to the machine's speed."""
        rates, streams, costs = sorted(self._rates(variant)), variant.streams, variant.costs
        rate = statistics.median(rates)
        row: dict[str, Any] = {
            "mode": variant.name,
            "batch": streams,
            "seconds": statistics.median(passed[-1] for passed in variant.passes),
            "tokens_per_second": rate,
            "slowest": rates[0],
            "fastest": rates[-1],
            "milliseconds_per_step": 1000 * streams / rate,
            "compile_seconds": round(variant.compile_seconds, 3),
        }
        if variant.parameters:
            row["parameters"] = variant.parameters
        if variant.first:
            row["first_token_seconds"] = statistics.median(variant.first[1:])
        if costs:
            memory, arithmetic = figures["read_gigabytes_per_second"] * 1e9, figures["multiply_gigaflops"] * 1e9
            shares = (rate / streams * costs.step_bytes / memory, rate * costs.token_flops / arithmetic)
            row |= dict(zip(COMPUTED, (costs.step_bytes, *shares, costs.cache_bytes), strict=True))
        return row


def cache_rows(variants: Sequence[Variant], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """What the cache saves: seconds until so many new tokens. A speed-up is of one mode, without the cache and with it.

    The first of them stands by itself as well.
    """
    until = {variant.name: variant.curves()[0] for variant in variants}
    rows = []
    for length in lengths:
        arms = {name: curve[length - 1] for name, curve in until.items()}
        both = {name: (arms[name + NO_CACHE], arms[name]) for name in arms if name + NO_CACHE in arms}
        speedups = {name: slow / fast for name, (slow, fast) in both.items()}
        (slow, fast), *_ = both.values()
        row: dict[str, Any] = {"new_tokens": length, "no_cache_seconds": slow, "cache_seconds": fast}
        rows.append(row | {"speedup": slow / fast, "speedups": speedups, "arms": arms})
    return rows
