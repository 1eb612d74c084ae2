"""Some steps under torch's profiler: a step's parts, what is expensive in them, and a trace that Perfetto opens."""

import gzip
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from training.benchmark.trace import ON_DEVICE, PARTS, Event, step_parts

TRACE = "trace.json.gz"
EXPENSIVE = 10
WIDEST = 100
"""Characters of a kernel's name."""


class StepProfiler:
    """Profiles the steps between the first two times that it is told to go on.

    Args:
        folder: Where to leave the trace, as `trace.json.gz`; None for nowhere.
    """

    def __init__(self, folder: Path | None) -> None:
        self.trace = None if folder is None else str(folder / TRACE)
        self._profiler: profile | None = None
        self.parts: dict[str, Any] = {}
        self.expensive: list[dict[str, Any]] = []
        self.is_done = False

    def advance(self) -> None:
        """Start, then stop and read the trace."""
        if self._profiler is None:
            on_gpu = torch.cuda.is_available()
            if on_gpu:
                torch.cuda.synchronize()  # What was launched before has no place in the trace.
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
            self._profiler = profile(activities=activities, acc_events=True)
            self._profiler.start()
        elif not self.is_done:
            self._profiler.stop()
            self.is_done = True
            self._read(self._profiler)

    def _read(self, profiler: profile) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            file = self.trace or str(Path(scratch, TRACE))
            profiler.export_chrome_trace(file)
            with gzip.open(file) as stream:
                events: list[Event] = json.load(stream)["traceEvents"]
        self.parts = step_parts(events)
        self.expensive = _kernels(events) or _operators(profiler)


def _kernels(events: list[Event]) -> list[dict[str, Any]]:
    """The kernels of a GPU that take the most time, all calls of one name together."""
    seconds, calls = Counter[str](), Counter[str]()
    for event in events:
        if event.get("cat") in ON_DEVICE:
            name = event["name"][:WIDEST]
            seconds[name] += event["dur"]
            calls[name] += 1
    total = sum(seconds.values())
    return [_part(name, taken, total, calls[name]) for name, taken in seconds.most_common(EXPENSIVE)]


def _operators(profiler: profile) -> list[dict[str, Any]]:
    """The same of a CPU's operators, each without those that it calls."""
    averages = [each for each in profiler.key_averages() if each.key not in PARTS and "Optimizer." not in each.key]
    averages.sort(key=lambda average: average.self_cpu_time_total, reverse=True)
    total = sum(average.self_cpu_time_total for average in averages)
    return [_part(each.key, each.self_cpu_time_total, total, each.count) for each in averages[:EXPENSIVE]]


def _part(name: str, microseconds: float, total: float, calls: int) -> dict[str, Any]:
    return {"name": name, "milliseconds": microseconds / 1000, "share": microseconds / total, "calls": calls}
