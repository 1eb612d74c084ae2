"""Another library that writes, to be timed beside ours: transformers' `generate`, as its users call it."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from decoding.benchmark import Prompts, Seconds, Variant
from decoding.machine import Costs, count_parameters
from training.config.command_line import Namespace


class _Clock(list[float]):
    """A streamer that notes when tokens come; the first thing that it is given is what they follow."""

    def put(self, value: Tensor) -> None:
        self.append(time.perf_counter())

    def end(self) -> None:
        pass


def transformers_variants(
    theirs: Any,
    precision: str,
    inputs: Callable[[Prompts], dict[str, Tensor]],
    ways: Mapping[str, dict[str, Any]],
    options: Namespace,
    costs: Callable[[int], Costs] | None = None,
) -> list[Variant]:
    """One of its models, which writes exactly as many tokens as are asked for; `options` are those of the command.

    `inputs` is what its `generate` takes for prompts; `ways` are names, and what they add to its `GenerationConfig`.
    """
    import transformers

    @torch.inference_mode()
    def write(asked: dict[str, Any], prompts: Prompts, new_tokens: int) -> Seconds:
        lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        config = transformers.GenerationConfig(do_sample=False, **lengths, **asked)  # type: ignore[no-untyped-call]
        start, clock = time.perf_counter(), _Clock()
        theirs.generate(**inputs(prompts), generation_config=config, streamer=clock)
        yield from (stamp - start for stamp in clock[1:])

    return [
        Variant(
            precision=precision,
            mode=f"transformers {transformers.__version__}{way}",
            use_cache=use_cache,
            streams=streams,
            write=partial(write, {**asked, "use_cache": use_cache}),
            parameters=count_parameters(theirs),
            costs=costs and costs(streams),
        )
        for way, asked in ways.items()
        for use_cache in ((True, False) if options.peer_uncached else (True,))
        for streams in options.batch
    ]
