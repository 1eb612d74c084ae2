"""Traces of torch's profiler as parts of a step: made by hand, since only a GPU makes those of a GPU."""

from typing import Any

import pytest

from training.benchmark.trace import covered, step_parts


def mark(name: str, start: float, length: float) -> dict[str, Any]:
    return {"ph": "X", "cat": "user_annotation", "name": name, "ts": start, "dur": length}


def kernel(launch: float, start: float, length: float, name: str = "gemm", cat: str = "kernel") -> list[dict[str, Any]]:
    number = round(1000 * launch)
    called = {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": launch, "dur": 1}
    ran = {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": length}
    return [event | {"args": {"correlation": number}} for event in (called, ran)]


def gpu_step(host: float, device: float) -> list[dict[str, Any]]:
    """A step of 100 microseconds on the host, and of 900 on the device, from then on."""
    return [
        *(mark(name, host + 20 * n, 15) for n, name in enumerate(("data", "forward", "backward", "optimizer"))),
        *kernel(host + 1, device, 50, "copy", "gpu_memcpy"),
        *kernel(host + 22, device + 50, 200),
        *kernel(host + 24, device + 250, 50),
        *kernel(host + 42, device + 300, 300),  # Launched by autograd's thread while `backward` is marked.
        *kernel(host + 43, device + 500, 200, "ncclDevKernel_AllReduce"),  # Half of it beside the backward pass.
        *kernel(host + 58, device + 700, 40, "norm"),  # Between two marks.
        *kernel(host + 62, device + 790, 110),  # 50 after the one before.
    ]


def test_a_gpus_kernels_belong_to_the_part_in_which_they_were_launched() -> None:
    steps = [gpu_step(host, device) for host, device in ((0, 1000), (100, 1900), (200, 2800 + 30))]
    found = step_parts([event for step in steps for event in step])
    assert found["steps"] == 2
    assert found["step_milliseconds"] == pytest.approx((900 + 930) / 2 / 1000)
    parts = {name: round(1000 * value) for name, value in found["milliseconds"].items()}
    expected = {"data": 50, "forward": 250, "backward": 300, "optimizer": 110, "communication": 200, "other": 40}
    assert parts == expected | {"host gap": 50 + 15}
    assert found["hidden_communication"] == pytest.approx(0.1)


def test_a_cpus_parts_are_what_their_marks_take() -> None:
    marks = []
    for start in (0, 1000, 2000):
        lengths = {"data": 100, "forward": 300, "backward": 400, "optimizer": 150}
        for name, length in lengths.items():
            marks.append(mark(name, start, length))
            start += length
    found = step_parts([*marks, mark("elsewhere", 0, 9999), {"ph": "i", "name": "note", "ts": 3}])
    parts = {name: round(1000 * value) for name, value in found["milliseconds"].items()}
    assert parts == {"data": 100, "forward": 300, "backward": 400, "optimizer": 150, "other": 50}
    assert (found["steps"], found["step_milliseconds"]) == (2, 1.0)
    assert "hidden_communication" not in found


def test_what_a_cpu_sends_is_hidden_while_it_computes_gradients() -> None:
    events = []
    for start in (0, 1000, 2000):
        events += [mark("backward", start, 700), mark("optimizer", start + 700, 300)]
        events += [mark(f"autograd::engine::evaluate_function: {n}", start + 200 * n, 200) for n in range(2)]
        events += [mark("gloo:all_reduce", start + 100, 200), mark("gloo:all_reduce", start + 350, 350)]
    found = step_parts(events)
    assert found["milliseconds"]["communication"] == pytest.approx(0.55)
    assert found["hidden_communication"] == pytest.approx(0.25)


def test_a_trace_of_a_single_step_has_no_parts() -> None:
    assert step_parts(gpu_step(0, 1000)) == {}


def test_what_overlaps_is_covered_once() -> None:
    assert covered([(0, 4), (2, 6), (3, 5), (8, 20), (30, 40)], (1, 10)) == 7
