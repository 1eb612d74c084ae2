"""What the figures of every benchmark depend on: the machine, how fast it is, and what a step asks of it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from decoding.choices import ROWS
from decoding.generation import context_used
from decoding.int8 import Int8Linear
from decoding.models import LanguageModel
from training.runtime.machine import describe_machine
from training.seeds import generator

PROMPT_TOKENS = 8
READ_BYTES = 2**29
PRODUCT_SIZE = 1024
Model = TypeVar("Model", bound=nn.Module)
READS = 9
"""A median, as the rates are that it is compared with: a shared machine is not always at its best."""


def with_random_weights(model: Model, seed: int, device: torch.device) -> Model:
    """A fresh model's weights, none at zero, on a device and in evaluation mode."""
    model.init_weights(generator(seed, "weights"))  # type: ignore[operator]
    fill_zero_weights(model)
    return model.to(device).eval()


@torch.no_grad()
def fill_zero_weights(model: nn.Module) -> None:
    """Draw what a fresh model leaves at zero, so that it computes and chooses as a trained one does."""
    for name, parameter in model.named_parameters():
        if not parameter.any():
            parameter.normal_(0.0, 0.02, generator=generator(0, name))


def describe(model: nn.Module, source: str) -> dict[str, Any]:
    """The machine, and a model's shape, its size, and where it comes from."""
    of_model = {"source": source, "parameters": count_parameters(model), "vocab_size": model.vocab_size}
    of_model |= asdict(model.config)  # type: ignore[call-overload]
    return describe_machine(next(model.parameters()).device) | {"model": of_model}


def count_parameters(model: nn.Module) -> int:
    """Of all weights that are learnt."""
    return sum(parameter.numel() for parameter in model.parameters())


def machine_speed(device: torch.device | str) -> tuple[float, float]:
    """Bytes of memory that are read in a second, and operations in products of fp32 matrices by torch."""
    memory = torch.ones(READ_BYTES // 4, device=device)
    matrix = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, device=device)
    return memory.nbytes / _seconds(memory.sum), 2 * PRODUCT_SIZE**3 / _seconds(lambda: (matrix @ matrix)[0, 0])


def _seconds(compute: Callable[[], Tensor]) -> float:
    """How long it takes to compute one number, the median of some."""
    seconds = []
    for _ in range(READS):
        start = time.perf_counter()
        compute().item()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Costs(NamedTuple):
    """What writing with a cache costs, computed from a model's shape."""

    step_bytes: int  # That a step reads, in the mean over a text: all matrices, and the filled part of the cache.
    token_flops: float  # A product and a sum for each weight of a matrix.
    cache_bytes: int


def costs(model: LanguageModel, streams: int, prompt: int = PROMPT_TOKENS, new_tokens: int = ROWS[-1]) -> Costs:
    """Of so many streams, each of a prompt and so many new tokens."""
    parts = [*model.decoder_layers.modules(), model.head]
    layers = [part for part in parts if isinstance(part, nn.Linear | Int8Linear)]
    tied = model.embedding.weight if model.head is None else torch.empty(0)
    weights = tied.nbytes + sum(t.nbytes for layer in layers for t in (*layer.parameters(), *layer.buffers()))
    # The first token is not timed; the last one is not read.
    length = statistics.fmean(context_used(prompt + n, model.config.max_len) for n in range(1, new_tokens))
    slot = model.new_cache(1, 2).bytes - model.new_cache(1, 1).bytes
    return Costs(
        step_bytes=round(weights + streams * length * slot),
        token_flops=2.0 * (tied.numel() + sum(layer.weight.numel() for layer in layers)),
        cache_bytes=model.new_cache(streams, prompt + new_tokens - 1).bytes,
    )
