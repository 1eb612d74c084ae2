"""How near each way to decode comes to the memory's own speed, and how other libraries do with the same weights.

Text is greedy, by `generate`, and each token is looked at on the host, as who reads a stream would.
All are measured in turn, again and again, so that a machine that others use as well is equally fast or slow for each.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from decoding.cache_benchmark import PROMPT_TOKENS, WARM_UP_TOKENS, Say, random_prompt
from decoding.choices import ROWS, Mode, Precision
from decoding.decoder import Decoder, convert
from decoding.generation import generate
from decoding.int8 import Int8Linear
from decoding.models import LanguageModel
from decoding.native.build import build, find_compiler
from decoding.sampling import GREEDY
from training.runtime.errors import require_finite

FIRST_TOKEN_PROMPT = 400
FIRST_TOKENS = 15
READ_BYTES = 2**29
PRODUCT_SIZE = 1024
READS = 9
"""A median, as the rates are that it is compared with: a shared machine is not always at its best."""


class Machine(NamedTuple):
    """What a step is measured against: how fast memory is read, and fp32 matrices are multiplied by torch."""

    gigabytes_per_second: float
    gigaflops: float


@dataclass(kw_only=True)
class Contender:
    """One way to write text: ours in a mode and precision, or a peer's.

    Attributes:
        mode: Its name, which begins with the precision.
        write: Continues prompts by a number of tokens; returns after how many seconds each could be read.
        batches: Numbers of streams to measure.
        step_bytes: Given streams and their mean length, the bytes that a step reads; computed, not measured.
        token_flops: Floating point operations of a token in the products with all matrices; computed.
        cache_bytes: Given streams and their length, the memory of the cache.
        compile_seconds: What was spent before the first token of the first text, once.
        seconds: For each number of streams, seconds from the first token to the last of each repeat.
        first: Seconds to the first token of one long prompt, of each repeat.
    """

    mode: str
    write: Callable[[Sequence[Sequence[int]], int], list[float]]
    batches: Sequence[int]
    step_bytes: Callable[[int, float], float]
    token_flops: float
    cache_bytes: Callable[[int, int], int]
    compile_seconds: float = 0.0
    seconds: dict[int, list[float]] = field(default_factory=dict)
    first: list[float] = field(default_factory=list)


def contenders(
    model: LanguageModel, precisions: Sequence[Precision], modes: Sequence[Mode], batches: Sequence[int]
) -> list[Contender]:
    """Our own ways: each precision in each mode; int8 only where the mode reads it as it is."""
    found = []
    for precision, mode in product(precisions, modes):
        if precision == "int8" and mode == "eager" and len(modes) > 1:
            continue
        decoder = Decoder(convert(deepcopy(model), precision), mode)
        contender = Contender(
            mode=f"{precision} {mode}",
            write=_writer(decoder),
            batches=batches,
            step_bytes=step_bytes(decoder.model),
            token_flops=token_flops(decoder.model),
            cache_bytes=cache_bytes(decoder.model),
        )
        found.append(contender)
    return found


def _writer(decoder: Decoder) -> Callable[[Sequence[Sequence[int]], int], list[float]]:
    def write(prompts: Sequence[Sequence[int]], new_tokens: int) -> list[float]:
        start, seconds, seeds = time.perf_counter(), [], [0] * len(prompts)
        for chosen in generate(
            decoder, prompts, max_new_tokens=new_tokens, sampling=GREEDY, seeds=seeds, when_full="slide"
        ):
            chosen.tokens_B.tolist()
            seconds.append(time.perf_counter() - start)
        require_finite(chosen.log_probabilities_B.tolist())
        return seconds

    return write


def step_bytes(model: LanguageModel) -> Callable[[int, float], float]:
    """What a step reads, given streams and their mean length: all matrices, and the filled part of the cache."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Int8Linear)]
    weights = sum(t.nbytes for layer in layers for t in (*layer.parameters(), *layer.buffers()))
    weights += model.embedding.weight.nbytes if model.head is None else 0
    slot = model.new_cache(1, 2).bytes - model.new_cache(1, 1).bytes
    return lambda streams, length: weights + streams * length * slot


def token_flops(model: LanguageModel) -> float:
    """A product and a sum for each weight of a matrix."""
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Int8Linear))
    return 2.0 * (weights + (model.embedding.weight.numel() if model.head is None else 0))


def cache_bytes(model: LanguageModel) -> Callable[[int, int], int]:
    """The memory of a cache, given streams and their length."""
    return lambda streams, length: model.new_cache(streams, length).bytes


def measure_decoding(
    contenders: Sequence[Contender],
    vocab_size: int,
    context: int,
    *,
    repeats: int,
    new_tokens: int = ROWS[-1],
    device: torch.device | str = "cpu",
    advance: Callable[[], None] = lambda: None,
    say: Say = lambda text: None,
) -> Machine:
    """Time all contenders in turn, into their `seconds` and `first`; returns how fast the machine was meanwhile.

    Args:
        contenders: Whom.
        vocab_size, context: Of the model.
        repeats: Passes of each.
        new_tokens: Tokens of each stream in a pass.
        device: The machine that is measured.
        advance: Called after each pass.
        say: Called with a line after each pass.
    """
    long = random_prompt(vocab_size, min(FIRST_TOKEN_PROMPT, context), 1)
    for contender in contenders:
        for streams in contender.batches:
            prompts = [random_prompt(vocab_size, PROMPT_TOKENS, n) for n in range(streams)]
            cold, warm = (contender.write(prompts, WARM_UP_TOKENS)[-1] for _ in range(2))
            contender.compile_seconds += max(cold - warm, 0.0)
            contender.seconds[streams] = []
        contender.write([long], 1)
    for turn in range(FIRST_TOKENS):
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            contender.first += contender.write([long], 1)
    memory = torch.ones(READ_BYTES // 4, device=device)
    matrix = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, device=device)
    reads, products = [], []
    for repeat in range(repeats):
        for contender in contenders if repeat % 2 == 0 else reversed(contenders):
            reads.append(memory.nbytes / _seconds(memory.sum) / 1e9)
            products.append(2 * PRODUCT_SIZE**3 / _seconds(lambda: (matrix @ matrix)[0, 0]) / 1e9)
            for streams in contender.batches:
                prompts = [random_prompt(vocab_size, PROMPT_TOKENS, n) for n in range(streams)]
                first, *_, last = contender.write(prompts, new_tokens)
                contender.seconds[streams].append(last - first)
                advance()
                rate = streams * (new_tokens - 1) / contender.seconds[streams][-1]
                say(f"pass {repeat + 1} of {repeats} {contender.mode}, {streams} streams: {rate:,.1f} tokens/s")
    return Machine(statistics.median(reads), statistics.median(products))


def _seconds(compute: Callable[[], Tensor]) -> float:
    """How long it takes to compute one number, the median of some."""
    seconds = []
    for _ in range(READS):
        start = time.perf_counter()
        compute().item()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def native_build_seconds() -> float:
    """How long the native step takes to build, once for a machine."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build(find_compiler(), Path(folder, "native.so"))
        return time.perf_counter() - start


def agreement(model: LanguageModel, precision: Precision, tokens: int) -> float:
    """How often the likeliest token in `precision` is that of `model`, after each beginning of the greedy text."""
    decoder = Decoder(model, "eager")
    prompt = random_prompt(model.vocab_size, PROMPT_TOKENS, 0)
    steps = generate(decoder, [prompt], max_new_tokens=min(tokens, model.config.max_len - len(prompt)), sampling=GREEDY)
    chosen = list(steps)
    require_finite([float(chosen[-1].log_probabilities_B)])
    text = torch.tensor([prompt + [int(step.tokens_B) for step in chosen]], device=model.embedding.weight.device)
    rounded = convert(deepcopy(model), precision)
    with torch.inference_mode():
        same = (model(text).argmax(-1) == rounded(text).argmax(-1)).float()
    return float(same[0, PROMPT_TOKENS - 1 :].mean())


def mean_length(new_tokens: int, context: int) -> float:
    """Tokens in the cache, in the mean over the steps of a pass: a full one keeps its newer half."""
    length, lengths = PROMPT_TOKENS, []
    for _ in range(new_tokens - 1):  # The first token is not timed; the last one is not read.
        length = length + 1 if length < context else max(context // 2, 1)
        lengths.append(length)
    return statistics.fmean(lengths)


def decode_rows(
    contenders: Sequence[Contender], new_tokens: int, context: int, machine: Machine
) -> list[dict[str, Any]]:
    """What the JSON file and the table hold of each contender and number of streams."""
    rows = []
    for contender in contenders:
        for streams, seconds in contender.seconds.items():
            rates = sorted(streams * (new_tokens - 1) / passed for passed in seconds)
            rate = statistics.median(rates)
            step_bytes = round(contender.step_bytes(streams, mean_length(new_tokens, context)))
            rows.append(
                {
                    "mode": contender.mode,
                    "batch": streams,
                    "tokens_per_second": rate,
                    "slowest": rates[0],
                    "fastest": rates[-1],
                    "milliseconds_per_step": 1000 * streams / rate,
                    "first_token_seconds": statistics.median(contender.first),
                    "compile_seconds": round(contender.compile_seconds, 3),
                    "bytes_per_step": step_bytes,
                    "bandwidth_share": rate / streams * step_bytes / machine.gigabytes_per_second / 1e9,
                    "arithmetic_share": rate * contender.token_flops / machine.gigaflops / 1e9,
                    "cache_bytes": contender.cache_bytes(streams, PROMPT_TOKENS + new_tokens - 1),
                }
            )
    return rows


COMPUTED = ("bytes_per_step", "bandwidth_share", "arithmetic_share", "cache_bytes")
"""What is computed from the shape of the model, and not measured; a share has a measured rate and speed in it."""
