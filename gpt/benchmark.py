"""What the key-value cache saves: the same tokens written with it and without it.

One pass writes as many tokens as the longest row asks for; a row is the time until its last token. A repeat is one
pass of each arm, in alternating order. Both arms read the same tokens, which a first pass with the cache chose.
"""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from gpt.generation import Reader, Sampling
from gpt.model import GPT
from training.seeds import derive_seed, generator

ROWS = (100, 200, 300, 500)
PROMPT_TOKENS = 8
WARM_UP_STRIDE = 64
GREEDY = Sampling(temperature=0)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Median seconds until so many new tokens were written, and the quotient of the two."""

    new_tokens: int
    no_cache_seconds: float
    cache_seconds: float
    speedup: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All repeats of both arms: `seconds[repeat][n]` had passed when new token n + 1 was chosen."""

    no_cache: list[list[float]]
    cache: list[list[float]]

    def rows(self, lengths: Sequence[int] = ROWS) -> list[Row]:
        """The table."""
        rows = []
        for length in lengths:
            slow, fast = (_median(arm, length) for arm in (self.no_cache, self.cache))
            rows.append(Row(new_tokens=length, no_cache_seconds=slow, cache_seconds=fast, speedup=slow / fast))
        return rows


def _median(repeats: list[list[float]], length: int) -> float:
    return statistics.median(seconds[length - 1] for seconds in repeats)


def measure(
    model: GPT,
    *,
    repeats: int,
    new_tokens: int = ROWS[-1],
    advance: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> Measurement:
    """Time both arms.

    Args:
        model: In evaluation mode, where and in the numbers that it is to be timed in.
        repeats: Passes of each arm.
        new_tokens: Tokens of a pass.
        advance: Called after each timed token, outside of its time.
        say: Called with a line after each pass.
    """
    tokens = _write(model, new_tokens)
    for length in range(PROMPT_TOKENS, len(tokens), WARM_UP_STRIDE):
        Reader(model, use_cache=False).read(tokens[:length])
    arms: dict[bool, list[list[float]]] = {False: [], True: []}
    for repeat in range(repeats):
        for use_cache in (False, True) if repeat % 2 == 0 else (True, False):
            seconds = _time_pass(model, tokens, use_cache, advance)
            arms[use_cache].append(seconds)
            arm = "with cache" if use_cache else "without cache"
            say(f"pass {repeat + 1} of {repeats} {arm}: {new_tokens} tokens in {seconds[-1]:.3f} s")
    return Measurement(no_cache=arms[False], cache=arms[True])


def _write(model: GPT, new_tokens: int) -> list[int]:
    """A prompt and all new tokens but the last, chosen with the cache, which this also warms up."""
    drawn = torch.randint(model.vocab_size, (PROMPT_TOKENS,), generator=generator(0, "prompt"))
    tokens: list[int] = drawn.tolist()
    reader = Reader(model)
    logits_V = reader.read(tokens)
    for _ in range(new_tokens - 1):
        tokens.append(GREEDY.choose(logits_V))
        logits_V = reader.read(tokens[-1:])
    return tokens


def _time_pass(model: GPT, tokens: Sequence[int], use_cache: bool, advance: Callable[[], None]) -> list[float]:
    """Seconds until each new token was chosen, the reading of the prompt and the cache's allocation included."""
    seconds, total = [], 0.0
    start = time.perf_counter()
    reader = Reader(model, use_cache=use_cache)
    unread = tokens[:PROMPT_TOKENS]
    for place in range(PROMPT_TOKENS, len(tokens) + 1):
        GREEDY.choose(reader.read(unread))  # Choosing brings the logits to the CPU, and so waits for the device.
        total += time.perf_counter() - start
        seconds.append(total)
        advance()
        start = time.perf_counter()
        unread = tokens[place : place + 1]
    return seconds


@torch.no_grad()
def fill_zero_weights(model: GPT) -> None:
    """Draw what `GPT.init_weights` left at zero, so that a fresh model computes and chooses as a trained one does."""
    for name, parameter in model.named_parameters():
        if not parameter.any():
            parameter.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(derive_seed(0, name)))


def cpu_name() -> str:
    """The processor's own name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def report(measurement: Measurement, model: GPT, *, source: str, precision: str) -> dict[str, Any]:
    """What the JSON file holds: the table, each repeat's seconds, and all that the figures depend on."""
    device = model.embedding.weight.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}: {cpu_name()}",
        "threads": torch.get_num_threads(),
        "precision": precision,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "model": {
            "source": source,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "vocab_size": model.vocab_size,
        }
        | asdict(model.config),
        "prompt_tokens": PROMPT_TOKENS,
        "repeats": len(measurement.cache),
        "rows": [asdict(row) for row in measurement.rows()],
        "seconds": {
            arm: [[round(seconds[length - 1], 6) for length in ROWS] for seconds in repeats]
            for arm, repeats in (("no_cache", measurement.no_cache), ("cache", measurement.cache))
        },
    }


def plot(measurement: Measurement, output: Path, title: str) -> None:
    """Draw the seconds until each new token, and between two of them, with the cache and without it."""
    from training.plots import new_figure

    figure = new_figure(10, 4.2)
    figure.suptitle(title, fontsize=10)
    cumulative, single = figure.subplots(1, 2)
    for name, repeats, colour in (
        ("without cache", measurement.no_cache, "C1"),
        ("with cache", measurement.cache, "C0"),
    ):
        until = [_median(repeats, length) for length in range(1, len(repeats[0]) + 1)]
        steps = [[later - earlier for earlier, later in pairwise(run)] for run in repeats]
        between = [1000 * statistics.median(step[n] for step in steps) for n in range(len(until) - 1)]
        cumulative.plot(range(1, len(until) + 1), until, color=colour, label=name)
        rows = [length for length in ROWS if length <= len(until)]
        cumulative.plot(rows, [until[length - 1] for length in rows], "o", color=colour)
        single.plot(range(2, len(until) + 1), between, color=colour, linewidth=1, label=name)
    cumulative.set(xlabel="new tokens", ylabel="seconds", title="time until a token")
    single.set(xlabel="new tokens", ylabel="milliseconds", title="time per token", ylim=(0, None))
    for axes in (cumulative, single):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(output)
