"""A plan beside what then happens."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.benchmark.measure import as_in_a_run, fit, temporary_trainer
from training.config.sections import RunConfig
from training.planning.plan import Asked, plan
from training.task import Task


@dataclass(kw_only=True)
class Seconds:
    """A tracker that keeps the seconds of training, without evaluations and saves."""

    description: str = "check"
    training: float = 0.0
    compiling: float = 0.0

    def log(self, metrics: Mapping[str, float], sample: str | None) -> None:
        """A step was reported."""
        self.training = metrics["seconds"]
        self.compiling = metrics.get("compile_seconds", self.compiling)

    def finish(self) -> None:
        """Nothing is left to do."""


def check(make_task: Callable[[], Task], config: RunConfig, steps: int) -> dict[str, Any]:
    """Plan a run of so many steps for the device that is here, then train it, evaluations and saves included.

    Args:
        make_task: Builds model and data.
        config: The configuration.
        steps: In the place of its length.

    Returns:
        The plan's figures, and under `check` each that was held against what happened: planned, measured and their
        ratio; `memory`, a step's, is that of the plan's own first steps.

    Raises:
        As `plan`.
        KeyboardInterrupt: A signal came before the end.
    """
    config = replace(
        config, training=replace(config.training, max_steps=steps, epochs=None, max_tokens=None, patience=0)
    )
    planned, seconds = plan(make_task, config, Asked()), Seconds()
    if "seconds" not in planned:
        return planned
    print(f"check       {steps} steps, as planned", flush=True)
    with temporary_trainer(make_task, config, 0, Path()) as trainer:
        as_in_a_run(trainer)
        start = time.perf_counter()
        if fit(trainer, seconds):
            raise KeyboardInterrupt
        total = time.perf_counter() - start
    expected, memory = planned["seconds"], planned["memory"]
    pairs = {
        "training": (expected["training"], seconds.training),
        "total": (expected["total"], total),
        "memory": (sum(memory["parts"].values()), memory["measured"]),
    }
    planned["check"] = {
        name: {"planned": ours, "measured": theirs, "ratio": ours / theirs}
        for name, (ours, theirs) in pairs.items()
        if theirs
    }
    return planned
