"""Threads on a CPU: how long one spins that waits for the others, and how many there are.

The packages import this before torch, since OpenMP reads its variables once, when torch loads it.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

WAITS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""How long a thread spins before it sleeps: GNU's OpenMP counts turns (1,000 take some 10 microseconds), LLVM's and
Intel's milliseconds. By themselves they spin for 3 and 200 milliseconds, and where another program wants a core too,
everything stops for so long at each barrier: a thread spins on the core for which the one that it waits for is queueing
(docs/results/README.md has figures)."""

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def let_waiting_threads_sleep() -> None:
    """Make the spins short, unless the user has said how threads wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITS.items():
            os.environ.setdefault(name, value)


def local_processes() -> int:
    """Number of processes of this launch on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def set_cpu_threads() -> int:
    """Use the available cores divided by the local processes, or what OMP_NUM_THREADS asks for; return the number.

    Launchers set `OMP_NUM_THREADS=1` where nothing was asked, so under one of them a 1 does not count.
    `OMP_THREAD_LIMIT` is kept to: with fewer threads than torch counts on, its bf16 matrix products are wrong, in
    silence (torch 2.13: half of the result is not written at all).
    """
    import torch

    cores = available_cores()
    threads = asked_threads() or max(1, cores // local_processes())
    limit = _positive(os.environ.get("OMP_THREAD_LIMIT", ""))
    threads = min(threads, cores, limit or threads)
    torch.set_num_threads(threads)
    return threads


def available_cores() -> int:
    """Cores that this process may use: of this machine, of its affinity, and of the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(quota)) for quota in quotas())])


def asked_threads() -> int | None:
    """What OMP_NUM_THREADS asks for, of which only the outermost level counts here; None where a launcher set it."""
    threads = _positive(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0])
    launched = os.environ.keys() & {"LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"}
    return None if threads == 1 and launched else threads


def _positive(text: str) -> int | None:
    """The number that a text is; None for anything else, 0 included."""
    text = text.strip()
    return int(text) or None if text.isascii() and text.isdecimal() else None


def quotas() -> Iterator[float]:
    """The limits of the process's control groups and of those around them, in cores."""
    for folder in control_groups("cpu"):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            numbers = [_positive(word) for name in names for word in _read(folder / name).split()]
            if len(numbers) == 2 and numbers[0] and numbers[1]:  # A group without a limit says "max" or -1.
                yield numbers[0] / numbers[1]


def control_groups(controller: str) -> Iterator[Path]:
    """The folders of the process's control groups that may limit something, and of those around them.

    A container sees its own group as the root, though its name may be that outside (docs.kernel.org, cgroup-v2, "CPU
    Interface Files"; sched-bwc for version 1, which has a tree for each controller).
    """
    for line in _read(OWN_CGROUPS).splitlines():
        controllers, _, name = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        group = root / name.lstrip("/")
        yield from (group, *group.parents[: len(group.relative_to(root).parts)])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
