"""Other libraries that write with the same weights, to be timed beside ours."""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch

from gpt.decoding import Precision, convert
from gpt.model import GPT
from gpt.speed import Contender, cache_bytes, step_bytes, token_flops
from gpt.to_transformers import to_transformers

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def transformers_contenders(model: GPT, batches: Sequence[int], *, compiled: bool, uncached: bool) -> list[Contender]:
    """transformers' `generate`, as its users call it, in each precision.

    Args:
        model: Whose weights to take.
        batches: Numbers of streams to measure.
        compiled: Also its compiled forward pass over its static cache, in a loop of our own without what `generate`
            does around it.
        uncached: Also `generate` without a cache.

    Raises:
        InputError: transformers is not installed, or has no such model.
    """
    import transformers

    found = []
    for precision in PRECISIONS:
        converted = convert(deepcopy(model), precision)
        theirs = to_transformers(converted)
        ways: dict[str, Callable[[Sequence[Sequence[int]], int], list[float]]] = {"": _generate(theirs, use_cache=True)}
        if compiled:
            ways[", compiled"] = _compiled_loop(theirs, model.config.max_len)
        if uncached:
            ways[", without cache"] = _generate(theirs, use_cache=False)
        for name, write in ways.items():
            found.append(
                Contender(
                    mode=f"{precision} transformers {transformers.__version__}{name}",
                    write=write,
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


def _generate(theirs: Any, *, use_cache: bool) -> Callable[[Sequence[Sequence[int]], int], list[float]]:
    from transformers import GenerationConfig

    @torch.inference_mode()
    def write(prompts: Sequence[Sequence[int]], new_tokens: int) -> list[float]:
        prompt = torch.tensor(prompts, device=theirs.device)
        asked = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new_tokens, do_sample=False, use_cache=use_cache
        )
        clock, start = _Clock(), time.perf_counter()
        theirs.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=asked, streamer=clock)
        return clock.since(start)

    return write


def _compiled_loop(theirs: Any, context: int) -> Callable[[Sequence[Sequence[int]], int], list[float]]:
    from transformers import StaticCache

    step = torch.compile(theirs.forward, fullgraph=True, dynamic=False)
    caches: dict[int, Any] = {}

    @torch.inference_mode()
    def write(prompts: Sequence[Sequence[int]], new_tokens: int) -> list[float]:
        start, seconds = time.perf_counter(), []
        cache = caches.setdefault(len(prompts), StaticCache(config=theirs.config, max_cache_len=context))
        cache.reset()
        read, tokens = theirs, torch.tensor(prompts, device=theirs.device)
        for _ in range(new_tokens):
            logits = read(input_ids=tokens, cache=cache, use_cache=True, logits_to_keep=1).logits
            tokens, read = logits[:, -1].argmax(-1, keepdim=True), step
            tokens.tolist()
            seconds.append(time.perf_counter() - start)
        return seconds

    return write
