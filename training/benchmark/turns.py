"""A whole benchmark: ours and its baselines in turn, each alone on the machine, and all that is told of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.benchmark.baselines import PATTERN, Baseline
from training.benchmark.measure import Plan, measure, measure_until
from training.benchmark.profile import StepProfiler
from training.config.command_line import Namespace
from training.config.sections import RunConfig
from training.runtime.errors import InputError
from training.runtime.threads import local_processes
from training.task import Task


def benchmark(make_task: Callable[[], Task], config: RunConfig, options: Namespace) -> dict[str, Any]:
    """What `launch/bench_training.py` measures.

    Args:
        make_task: Builds model and data.
        config: The configuration.
        options: Those of the command.

    Returns:
        What its JSON file holds; nothing but in the main process.

    Raises:
        InputError: Configuration, data or a baseline do not serve.
    """
    pattern = options.peer_pattern or PATTERN
    baselines = [Baseline.parse(text, pattern, options.peer_tokens) for text in options.peer]
    if baselines and local_processes() > 1:
        raise InputError("peer: other trainers run in turn with one process of ours: start this without a launcher")
    plan = Plan(warm_up=options.warm_up, steps=options.steps, rounds=options.rounds)
    profiler = StepProfiler(Path(options.profile) if options.profile else None)
    turns: list[dict[str, Any]] = []
    for turn in range(options.turns if baselines else 1):
        turns.append(measure(make_task, config, plan, profiler=None if turn else profiler))
        for baseline in baselines:
            print(f"baseline    {baseline.name}", flush=True)
            baseline.run(turns[-1]["tokens_per_step"], lambda line: print(line, flush=True))
    until = None if options.until is None else measure_until(make_task, config, options.until)
    if not turns[0]:
        return {}
    figures = {"source": options.config[0], "profile": profiler.trace} | turns[0]
    figures |= speeds([rate for turn in turns for rate in turn["rounds"]], turns[0])
    figures["baselines"] = [
        baseline.figures([statistics.median(turn["rounds"]) for turn in turns]) for baseline in baselines
    ]
    return figures | ({} if until is None else {"until": until})


def speeds(rounds: Sequence[float], measured: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the tokens per second of all rounds, and what a step and the device are."""
    rate = statistics.median(rounds)
    flops = rate * measured["flops_per_token"]
    found = {
        "rounds": list(rounds),
        "tokens_per_second": rate,
        "slowest": min(rounds),
        "fastest": max(rounds),
        "milliseconds_per_step": 1000 * measured["tokens_per_step"] / rate,
        "flops_per_second": flops,
        "share_of_products": flops / measured["products_per_second"],
    }
    peak = measured["printed_peak_flops"]
    return found | ({} if peak is None else {"share_of_printed_peak": flops / peak})
