"""How fast a GPT writes: what the cache saves, and what each way to decode makes of the memory's speed.

Two measurements:

- Arms, for the table of 100 to 500 new tokens: the same tokens read with the cache and without it, by each way that is
  asked for. A first pass chose them.
- Decoding: greedy text from `gpt.generation.generate`, each token looked at on the host as a reader of a stream would.
  Time to the first token is that after a prompt of `FIRST_TOKEN_PROMPT` tokens.

All that is compared is measured in turn, again and again, so that a machine that others use as well is equally fast or
slow for each; the figures are medians.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt.decoding import Decoder, Mode, Precision, convert
from gpt.generation import generate
from gpt.model import GPT
from layers import KVCache
from layers.quantized import Int8Linear
from layers.sampling import GREEDY
from training.seeds import derive_seed, generator

ROWS = (100, 200, 300, 500)
PROMPT_TOKENS = 8
FIRST_TOKEN_PROMPT = 400
WARM_UP_STRIDE = 64
WARM_UP_TOKENS = 16
READ_BYTES = 2**29

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
        self._forward = forward or decoder.model
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
        return self._decoder.read(tokens_BT, self._cache)[0, -1]

    def close(self) -> None:
        """Let the cache be used again."""
        if self._cache is not None:
            self._decoder.give_back(self._cache)


def measure_arms(
    model: GPT,
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
    decoders = {mode: Decoder(model, mode) for mode in ("eager", *modes)}
    arms = [(use_cache, mode) for use_cache in (False, True) for mode in decoders if use_cache or mode != "native"]
    forward = {mode: torch.compile(model, dynamic=True) if mode == "compiled" else model for mode in decoders}

    def reader(use_cache: bool, mode: str) -> Reader:
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
    tokens = _prompt(vocab_size, PROMPT_TOKENS, 0)
    logits_V = reader.read(tokens)
    for _ in range(new_tokens - 1):
        tokens.append(int(logits_V.argmax()))
        logits_V = reader.read(tokens[-1:])
    return tokens


def _prompt(vocab_size: int, length: int, number: int) -> list[int]:
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


@dataclass(kw_only=True)
class Contender:
    """One way to write text: ours in a mode and precision, or a peer's.

    Attributes:
        mode: Its name, which begins with the precision.
        write: Continues prompts of one length by a number of tokens; returns when each of them could be read, in seconds.
        batches: Numbers of streams to measure.
        step_bytes: Given streams and their mean length, the bytes that a step reads; computed, not measured.
        cache_bytes: Given streams and their length, the memory of the cache.
        compile_seconds: What was spent before the first token of the first text, once.
        seconds: For each number of streams, seconds from the first token to the last of each repeat.
        first: Seconds to the first token of one long prompt, of each repeat.
    """

    mode: str
    write: Callable[[Sequence[Sequence[int]], int], list[float]]
    batches: Sequence[int]
    step_bytes: Callable[[int, float], float]
    cache_bytes: Callable[[int, int], int]
    compile_seconds: float = 0.0
    seconds: dict[int, list[float]] = field(default_factory=dict)
    first: list[float] = field(default_factory=list)


def contenders(
    model: GPT, precisions: Sequence[Precision], modes: Sequence[Mode], batches: Sequence[int]
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
            cache_bytes=lambda streams, length, decoder=decoder: decoder.take_cache(streams, length).bytes,
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
        return seconds

    return write


def step_bytes(model: GPT) -> Callable[[int, float], float]:
    """What a step reads, given streams and their mean length: all matrices, and the filled part of the cache."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Int8Linear)]
    weights = sum(t.nbytes for layer in layers for t in (*layer.parameters(), *layer.buffers()))
    weights += model.embedding.weight.nbytes if model.head is None else 0
    slot = model.new_cache(1, 2).bytes - model.new_cache(1, 1).bytes
    return lambda streams, length: weights + streams * length * slot


def measure_decoding(
    contenders: Sequence[Contender],
    vocab_size: int,
    context: int,
    *,
    repeats: int,
    new_tokens: int = ROWS[-1],
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] = lambda tokens: None,
    say: Say = lambda text: None,
) -> float:
    """Time all contenders in turn, into their `seconds` and `first`; returns the memory's speed in GB/s.

    Args:
        contenders: Whom.
        vocab_size, context: Of the model.
        repeats: Passes of each.
        new_tokens: Tokens of each stream in a pass.
        device: Whose memory is measured.
        advance: Called after each pass with its tokens.
        say: Called with a line after each pass.
    """
    long = _prompt(vocab_size, min(FIRST_TOKEN_PROMPT, context), 1)
    for contender in contenders:
        for streams in contender.batches:
            prompts = [_prompt(vocab_size, PROMPT_TOKENS, n) for n in range(streams)]
            cold, warm = (contender.write(prompts, WARM_UP_TOKENS)[-1] for _ in range(2))
            contender.compile_seconds += cold - warm
            contender.seconds[streams] = []
        contender.write([long], 1)
    memory = torch.ones(READ_BYTES // 4, device=device)
    speeds = []
    for repeat in range(repeats):
        for contender in contenders if repeat % 2 == 0 else reversed(contenders):
            speeds.append(_read_speed(memory))
            contender.first += contender.write([long], 1)
            for streams in contender.batches:
                prompts = [_prompt(vocab_size, PROMPT_TOKENS, n) for n in range(streams)]
                first, *_, last = contender.write(prompts, new_tokens)
                contender.seconds[streams].append(last - first)
                advance(new_tokens)
                rate = streams * (new_tokens - 1) / contender.seconds[streams][-1]
                say(f"pass {repeat + 1} of {repeats} {contender.mode}, {streams} streams: {rate:,.1f} tokens/s")
    return statistics.median(speeds)


def _read_speed(memory: Tensor) -> float:
    """Gigabytes per second of reading memory that no processor's cache holds, the best of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        memory.sum().item()
        seconds.append(time.perf_counter() - start)
    return memory.nbytes / min(seconds) / 1e9


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
