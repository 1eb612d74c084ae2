"""What a run decides to compute on."""

import os
from types import SimpleNamespace

import pytest
import torch

from training import device as module
from training.device import choose_precision, idle_gpus_warning, set_cpu_threads
from training.errors import InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("fast", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_where_the_cpu_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, fast: bool, expected: str
) -> None:
    monkeypatch.setattr(module, "cpu_has_fast_bf16", lambda: fast)
    # torchrun under accelerate says "no" even where nothing was asked.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    precision, reason = choose_precision("auto", CPU)
    assert precision == expected
    assert "fast" in reason


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_gpu_does_not_count_emulation(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert choose_precision("auto", CUDA)[0] == expected


def test_auto_follows_the_launch_configuration_and_an_explicit_choice_beats_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert choose_precision("auto", CUDA) == ("fp16", "from the launch configuration")
    assert choose_precision("fp32", CUDA) == ("fp32", "as configured")


def test_fp16_without_a_gpu_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"fp16 \(as configured\) needs a GPU, this run is on cpu: use bf16 or fp32"):
        choose_precision("fp16", CPU)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(InputError, match=r"fp16 \(from the launch configuration\) needs a GPU"):
        choose_precision("auto", CPU)


def test_processes_that_do_not_find_each_other_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(num_processes=1, device=CPU)
    monkeypatch.setattr(module, "Accelerator", lambda **options: alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(module, "PartialState", lambda **options: alone)
    with pytest.raises(InputError, match="the launcher started 2 processes, but on cpu each is alone"):
        module.make_accelerator("fp32")


@pytest.mark.parametrize(
    ("asked", "local", "expected"), [(None, "1", 8), ("1", "1", 8), ("1", "3", 2), ("5", "2", 5), ("1", "16", 1)]
)
def test_threads_are_cores_divided_by_local_processes(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, local: str, expected: int
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert set_cpu_threads() == expected
    assert chosen == [expected]


@pytest.mark.parametrize(("gpus", "local", "idle"), [(4, "1", 3), (2, "2", 0), (0, "1", 0)])
def test_idle_gpus_are_named(monkeypatch: pytest.MonkeyPatch, gpus: int, local: str, idle: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    warning = idle_gpus_warning(int(local))
    if idle:
        assert warning is not None
        assert warning.startswith(f"{idle} of {gpus} GPUs stand idle")
        assert f"accelerate launch --multi_gpu --num_processes {gpus}" in warning
    else:
        assert warning is None
