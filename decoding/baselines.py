"""Another library that writes, to be timed beside ours: transformers' `generate`, as its users call it."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from decoding.benchmark import Prompts, Variant
from decoding.machine import Costs, count_parameters


class _Clock:
    """A streamer that notes when tokens come; the first thing that it is given is what they follow."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds: list[float] = []

    def put(self, value: Tensor) -> None:
        self.seconds.append(time.perf_counter() - self._start)

    def end(self) -> None:
        pass


def transformers_variants(
    theirs: Any,
    precision: str,
    inputs: Callable[[Prompts], dict[str, Tensor]],
    options: Namespace,
    ways: Mapping[str, dict[str, Any]],
    costs: Callable[[int], Costs] | None = None,
) -> list[Variant]:
    """A model of transformers, which writes exactly as many tokens as it is asked for.

    Args:
        theirs, precision: The model.
        inputs: What its `generate` takes for prompts.
        options: Those of the command: --batch and --peer_uncached.
        ways: Names, and what they add to its `GenerationConfig`.
        costs: For a number of streams.
    """
    import transformers

    @torch.inference_mode()
    def write(asked: dict[str, Any], prompts: Prompts, new_tokens: int) -> Iterator[float]:
        lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        config = transformers.GenerationConfig(do_sample=False, **lengths, **asked)  # type: ignore[no-untyped-call]
        clock = _Clock()
        theirs.generate(**inputs(prompts), generation_config=config, streamer=clock)
        yield from clock.seconds[1:]

    variant = partial(Variant, precision=precision, parameters=count_parameters(theirs))
    return [
        variant(
            mode=f"transformers {transformers.__version__}{way}",
            use_cache=use_cache,
            streams=streams,
            costs=costs and costs(streams),
            write=partial(write, {**asked, "use_cache": use_cache}),
        )
        for way, asked in ways.items()
        for use_cache in ((True, False) if options.peer_uncached else (True,))
        for streams in options.batch
    ]
