"""Threads, memory and shared memory, with the limits of a container."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT

from training.doctor import limits
from training.doctor.findings import Finding
from training.runtime import threads

VARIABLES = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "OMP_WAIT_POLICY")
REAL = Path("/sys/fs/cgroup")
LOOK = "import training; from training.doctor.limits import look_at_threads; print(*look_at_threads(1), sep='\\n')"


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group without limits, on a machine of 64 cores."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(limits, "_products_per_second", lambda threads: 100.0 * threads)
    monkeypatch.setattr(threads, "OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    (tmp_path / "cgroup").write_text("0::/\n")
    return tmp_path


def test_more_threads_than_the_quota_are_named_with_what_a_run_takes(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (group / "cpu.max").write_text("200000 100000\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    asked, speed = limits.look_at_threads(1)
    assert asked == Finding(
        "threads",
        "warning",
        "OMP_NUM_THREADS=64, but a run takes 2, of 2 cores (the container's quota is 2)",
        "other programs stop dead with so many: export OMP_NUM_THREADS=2",
    )
    assert speed == Finding("threads", "good", "2 threads multiply 2.0 times as fast as one")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert next(iter(limits.look_at_threads(1))).status == "good"


@pytest.mark.parametrize(
    ("asked", "processes", "status", "said"),
    [
        (None, 4, "good", "a run takes 16 for each of 4 processes, of 64 cores"),
        ("32", 4, "warning", "more than there are: export OMP_NUM_THREADS=16"),
        ("32", 2, "good", "a run takes 32 for each of 2 processes, of 64 cores"),
        (None, 1, "good", "a run takes 64, of 64 cores"),
    ],
)
def test_threads_of_several_processes_are_counted_together(
    group: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, processes: int, status: str, said: str
) -> None:
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    first = next(iter(limits.look_at_threads(processes)))
    assert first.status == status
    assert said in str(first)
    assert "LOCAL_WORLD_SIZE" not in os.environ


@pytest.mark.parametrize(
    ("name", "value", "spins"),
    [
        ("OMP_WAIT_POLICY", "ACTIVE", True),
        ("OMP_WAIT_POLICY", "passive", False),
        ("GOMP_SPINCOUNT", "infinite", True),
        ("GOMP_SPINCOUNT", "1000", False),
        ("KMP_BLOCKTIME", "200", True),
    ],
)
def test_threads_that_spin_are_warned_of(
    group: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, spins: bool
) -> None:
    monkeypatch.setenv(name, value)
    told = [finding for finding in limits.look_at_threads(1) if "spin" in finding.measured]
    assert [finding.measured.partition(" ")[0] for finding in told] == [f"{name}={value}"] * spins


def test_threads_that_are_slower_than_one_are_warned_of(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_products_per_second", lambda threads: 100.0 / threads)
    *_, speed = limits.look_at_threads(16)
    assert speed.status == "warning"
    assert speed.measured == "4 threads multiply 0.2 times as fast as one"
    assert speed.advice.endswith("export OMP_NUM_THREADS=2")


@pytest.fixture
def one_core() -> Iterator[Path]:
    """A real control group with a quota of one core."""
    folder = next((root for root in (REAL / "cpu", REAL) if (root / "cgroup.procs").exists()), REAL)
    folder /= f"doctor-{secrets.token_hex(4)}"
    first_version = folder.parent.name == "cpu"
    try:
        folder.mkdir()
        file, limit = ("cpu.cfs_quota_us", "100000") if first_version else ("cpu.max", "100000 100000")
        (folder / file).write_text(limit)
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no control group with a quota can be made here: {error.strerror}")
    yield folder
    folder.rmdir()


def test_a_real_quota_is_found(one_core: Path) -> None:
    enter = f'echo $$ > {one_core}/cgroup.procs && exec {sys.executable} -c "{LOOK}"'
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "64"}
    done = subprocess.run(["sh", "-c", enter], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith(
        "warning      threads      OMP_NUM_THREADS=64, but a run takes 1, of 1 core (the container's quota"
    )
    assert line.endswith("export OMP_NUM_THREADS=1")


@pytest.mark.parametrize(
    ("files", "status", "said"),
    [
        ({}, "good", "8.0 GiB free"),
        ({"memory.max": "max", "memory.current": "5"}, "good", "8.0 GiB free"),
        (
            {"memory.max": f"{6 * 2**30}", "memory.current": f"{3 * 2**30}"},
            "good",
            "4.0 GiB free, by the limit of the c",
        ),
        (
            {"memory.max": f"{2 * 2**30}", "memory.current": f"{2 * 2**30}"},
            "warning",
            "1.0 GiB free, by the limit of the co",
        ),
    ],
)
def test_memory_is_what_the_machine_and_the_container_leave(
    group: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], status: str, said: str
) -> None:
    (group / "meminfo").write_text(f"MemTotal: 16777216 kB\nMemAvailable: {8 * 2**20} kB\n")
    monkeypatch.setattr(limits, "MEMINFO", group / "meminfo")
    for name, content in files.items():
        (group / name).write_text(content)
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {2**30}\n")
    [finding] = limits.look_at_memory()
    assert finding.status == status
    assert finding.measured.startswith(said)
    monkeypatch.setattr(limits, "MEMINFO", group / "none")
    assert [finding.status for finding in limits.look_at_memory()] == ["not checked"]


@pytest.mark.parametrize(
    ("cards", "megabytes", "status"), [(2, 64, "warning"), (1, 64, "good"), (0, 64, "good"), (2, 2048, "good")]
)
def test_small_shared_memory_matters_to_several_cards(
    monkeypatch: pytest.MonkeyPatch, cards: int, megabytes: int, status: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=megabytes, f_frsize=2**20))
    [finding] = limits.look_at_shared_memory(cards)
    assert finding.status == status
    assert ("docker run --shm-size=1g" in finding.advice) == (status == "warning")
