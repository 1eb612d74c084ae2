import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, free_port

from training.runtime import threads
from training.runtime.threads import available_cores, let_waiting_threads_sleep, set_cpu_threads

VARIABLES = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(threads, "OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "CGROUPS", tmp_path / "fs")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 8),
        ({"OMP_NUM_THREADS": "1"}, 1),  # By a user: no launcher is there.
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "1"}, 8),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 8),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "3"}, 2),
        ({"OMP_NUM_THREADS": "5", "LOCAL_WORLD_SIZE": "2"}, 5),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "16"}, 1),
        ({"OMP_NUM_THREADS": "5000"}, 8),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "0"}, 8),
        ({"OMP_NUM_THREADS": "many"}, 8),
        ({"OMP_NUM_THREADS": "5", "OMP_THREAD_LIMIT": "2"}, 2),
        ({"OMP_THREAD_LIMIT": "100"}, 8),
    ],
)
def test_threads_are_as_asked_or_the_cores_of_a_process(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: int
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert set_cpu_threads() == expected
    assert chosen == [expected]


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 2),  # The group around it.
        ("0::/docker/abc", {"cpu.max": "50000 100000"}, 1),  # Named as outside, seen as the root.
        ("4:memory:/a\n3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "400000", "cpu/a/cpu.cfs_period_us": "100000"}, 4),
        ("1:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("0::/", {"cpu.max": "6400000 100000"}, 8),
        ("0::/with a space", {"with a space/cpu.max": "100000 100000"}, 1),
        ("", {}, 8),
    ],
)
def test_threads_follow_the_quota_of_a_container(
    tmp_path: Path, own: str, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "cgroup").write_text(own + "\n")
    for name, content in files.items():
        file = tmp_path / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    assert available_cores() == expected


@pytest.mark.parametrize(
    ("set_already", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "1"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_a_short_spin_is_the_default_and_never_over_what_is_set(
    monkeypatch: pytest.MonkeyPatch, set_already: dict[str, str], expected: dict[str, str]
) -> None:
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    for name, value in set_already.items():
        monkeypatch.setenv(name, value)
    let_waiting_threads_sleep()
    assert {name: os.environ[name] for name in WAITING if name in os.environ} == expected


@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
def test_openmp_is_told_before_it_is_loaded() -> None:
    """By commands of their own, under a launcher, and by an import: what OpenMP itself says that it has read."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    starts = [
        [*launcher, "--master_port", free_port(), "launch/train_gpt.py", "--data.source", "nowhere"],
        ["-c", "import layers"],
        ["demo/app.py", "--host", "203.0.113.1"],  # Where nobody can listen.
    ]
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, *start], cwd=ROOT, env=environment, **pipes) for start in starts]
    for start, process in zip(starts, processes, strict=True):
        said = process.communicate(timeout=200)[1]
        processes_of_ours = 2 if "torch.distributed.run" in start else 1
        assert said.count("GOMP_SPINCOUNT = '1000'") == processes_of_ours, start
