"""Other libraries that write with the same weights, to be timed beside ours."""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch

from decoding.benchmark import Contender, cache_bytes, step_bytes, token_flops
from decoding.choices import Precision
from decoding.decoder import convert
from gpt.model import GPT
from gpt.to_transformers import to_transformers

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def transformers_contenders(model: GPT, batches: Sequence[int], *, compiled: bool, uncached: bool) -> list[Contender]:
    """transformers' `generate`, as its users call it, in each precision.

    Args:
        model: Whose weights to take.
        batches: Numbers of streams to measure.
        compiled: Also `generate` with its static cache, for which it compiles its forward pass by itself on a GPU.
        uncached: Also `generate` without a cache.

    Raises:
        InputError: transformers is not installed, or has no such model.
    """
    import transformers

    found = []
    for precision in PRECISIONS:
        converted = convert(deepcopy(model), precision)
        theirs = to_transformers(converted)
        ways: dict[str, dict[str, Any]] = {"": {}}
        if compiled:
            ways[", compiled"] = {"cache_implementation": "static", "max_cache_len": model.config.max_len}
        if uncached:
            ways[", without cache"] = {"use_cache": False}
        for name, options in ways.items():
            found.append(
                Contender(
                    mode=f"{precision} transformers {transformers.__version__}{name}",
                    write=_generate(theirs, **options),
                    batches=batches,
                    step_bytes=step_bytes(converted),
                    token_flops=token_flops(converted),
                    cache_bytes=cache_bytes(converted),
                )
            )
    return found


class _Clock:
    """A streamer that notes when tokens come; the first thing that it is given is the prompt."""

    def __init__(self) -> None:
        self._stamps: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self._stamps.append(time.perf_counter())

    def end(self) -> None:
        pass

    def since(self, start: float) -> list[float]:
        return [stamp - start for stamp in self._stamps[1:]]


def _generate(theirs: Any, **options: Any) -> Callable[[Sequence[Sequence[int]], int], list[float]]:
    from transformers import GenerationConfig

    @torch.inference_mode()
    def write(prompts: Sequence[Sequence[int]], new_tokens: int) -> list[float]:
        prompt = torch.tensor(prompts, device=theirs.device)
        asked = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new_tokens, do_sample=False, **options
        )
        clock, start = _Clock(), time.perf_counter()
        theirs.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=asked, streamer=clock)
        return clock.since(start)

    return write
