"""Where the time of a step goes, read from a trace of torch's profiler.

The loop marks its parts by `torch.profiler.record_function`. A kernel belongs to the part in which the host launched
it, whichever thread that was: autograd has its own.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

PARTS = ("data", "forward", "backward", "optimizer")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
Event = dict[str, Any]
Span = tuple[float, float]
"""From and to, in microseconds."""


class Marked(NamedTuple):
    """A part of a step on the host."""

    start: float
    end: float
    name: str


def step_parts(events: Sequence[Event]) -> dict[str, Any]:
    """Milliseconds of a step by part, in the mean over the steps of a trace but the first, which waited for nothing.

    On a GPU a part is the time in which its kernels and copies run; `communication` are NCCL's kernels, `other` those
    outside of all parts, and `host gap` is the time in which the GPU stands idle. What runs side by side counts in each
    of its parts. On a CPU a part is what its marks take, `communication` is gloo's work, which overlaps with the
    backward pass, and `other` is what is left.

    Returns:
        `steps`, `step_milliseconds` and `milliseconds` by part; nothing where the trace has less than two steps. Where
        there is communication, `hidden_communication` is how much of its milliseconds something was computed beside.
    """
    marks = sorted(
        Marked(e["ts"], e["ts"] + e["dur"], e["name"])
        for e in events
        if e.get("cat") == "user_annotation" and e["name"] in PARTS
    )
    ends = [mark for mark in marks if mark.name == "optimizer"]
    if len(ends) < 2:
        return {}
    on_device = [e for e in events if e.get("cat") in ON_DEVICE]
    spans = _kernels(events, on_device, marks) if on_device else _ranges(events, marks)
    window = _last_end(spans["optimizer"], ends[0]), _last_end(spans["optimizer"], ends[-1])
    steps, length = len(ends) - 1, window[1] - window[0]
    lengths = {name: covered((span for span, _ in found), window) for name, found in spans.items()}
    rest = length - covered((span for found in spans.values() for span, _ in found), window)
    lengths["host gap" if on_device else "other"] = rest
    milliseconds = {name: value / 1000 / steps for name, value in lengths.items() if value or name in PARTS}
    result = {"steps": steps, "step_milliseconds": length / 1000 / steps, "milliseconds": milliseconds}
    if "communication" not in milliseconds:
        return result
    sent = [span for span, _ in spans["communication"]]
    computed = [span for name, found in spans.items() if name != "communication" for span, _ in found]
    computed = computed if on_device else _of_autograd(events)
    hidden = covered(sent, window) + covered(computed, window) - covered([*sent, *computed], window)
    return result | {"hidden_communication": hidden / 1000 / steps}


Found = dict[str, list[tuple[Span, float]]]
"""Spans by part, each with the time at which the host began it."""


def _last_end(spans: Sequence[tuple[Span, float]], mark: Marked) -> float:
    """When the last of what began inside a mark has ended."""
    return max((span[1] for span, began in spans if mark.start <= began <= mark.end), default=mark.end)


def _ranges(events: Sequence[Event], marks: Sequence[Marked]) -> Found:
    found: Found = {name: [] for name in (*PARTS, "communication")}
    for mark in marks:
        found[mark.name].append(((mark.start, mark.end), mark.start))
    for e in events:
        if e.get("ph") == "X" and e["name"].startswith("gloo:"):
            found["communication"].append(((e["ts"], e["ts"] + e["dur"]), e["ts"]))
    return found


def _of_autograd(events: Sequence[Event]) -> list[Span]:
    """When a CPU computes gradients: the mark of the backward pass has the wait for what is still on its way, too."""
    nodes = (e for e in events if str(e.get("name")).startswith("autograd::engine::evaluate_function"))
    return [(e["ts"], e["ts"] + e["dur"]) for e in nodes]


def _kernels(events: Sequence[Event], on_device: Sequence[Event], marks: Sequence[Marked]) -> Found:
    launched = {
        e["args"]["correlation"]: e["ts"]
        for e in events
        if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e.get("args", {})
    }
    starts = [mark.start for mark in marks]
    found: Found = {name: [] for name in (*PARTS, "communication", "other")}
    for e in on_device:
        began = launched.get(e["args"].get("correlation"), -1.0)
        around = (mark for mark in reversed(marks[: bisect_right(starts, began)]) if mark.end >= began)
        inside = next(around, None)
        name = "communication" if "nccl" in e["name"].lower() else inside.name if inside else "other"
        found[name].append(((e["ts"], e["ts"] + e["dur"]), began))
    return found


def covered(spans: Iterable[Span], window: Span) -> float:
    """How much of a window is covered by spans, which may overlap."""
    total, reached = 0.0, window[0]
    for start, end in sorted(spans):
        start, end = max(start, reached), min(end, window[1])
        if end > start:
            total, reached = total + end - start, end
    return total
