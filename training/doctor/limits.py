"""What the machine, and the container around a run, give it: threads, memory, shared memory."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from training.doctor.environment import environment
from training.doctor.findings import Finding
from training.runtime.threads import (
    WAITS,
    asked_threads,
    available_cores,
    control_groups,
    quotas,
    set_cpu_threads,
)

GIB = 2**30
SHM = Path("/dev/shm")
MEMINFO = Path("/proc/meminfo")
MIN_SHM = 1 * GIB
"""What NVIDIA asks a container to be given (`docker run --shm-size=1g`); Docker's own default is 64 MB."""
MIN_MEMORY = 2 * GIB
"""Python with torch takes half a GiB for each process before there is a model."""


def look_at_threads(processes: int) -> Iterator[Finding]:
    """Findings on how many threads a run takes, and on what was asked for that would not be good for it.

    Args:
        processes: How many are to run on this machine.
    """
    cores, quota = available_cores(), min(quotas(), default=None)
    with environment({"LOCAL_WORLD_SIZE": str(processes)} if processes > 1 else {}):
        threads, asked = set_cpu_threads(), asked_threads()
    limit = f" (the container's quota is {quota:g})" if quota and quota <= cores else ""
    each = f"{threads} for each of {processes} processes" if processes > 1 else f"{threads}"
    measured = f"a run takes {each}, of {cores} {'core' if cores == 1 else 'cores'}{limit}"
    if asked and asked > cores:
        todo = f"other programs stop dead with so many: export OMP_NUM_THREADS={cores}"
        yield Finding("threads", "warning", f"OMP_NUM_THREADS={asked}, but {measured}", todo)
    elif threads * processes > cores:
        todo = f"export OMP_NUM_THREADS={max(1, cores // processes)}"
        yield Finding("threads", "warning", f"{measured}: more than there are", todo)
    else:
        yield Finding("threads", "good", measured)
    for name in ("OMP_WAIT_POLICY", *WAITS):
        if _spins(name):
            todo = f"unset {name}, or keep other programs off these cores"
            yield Finding("threads", "warning", f"{name}={os.environ[name]} lets waiting threads spin", todo)
    if threads > 1:
        yield _speed_up(threads)


def _spins(name: str) -> bool:
    """Whether the user has set a variable to something under which threads hold a core for long while they wait."""
    value = os.environ.get(name, WAITS.get(name, "passive")).strip().lower()
    return value == "active" if name not in WAITS else not value.isdecimal() or int(value) > 10 * int(WAITS[name])


def _speed_up(threads: int) -> Finding:
    """What the threads of a run do together against one of them: other programs, or a quota, may leave less."""
    alone = _products_per_second(1)
    ratio = _products_per_second(threads) / alone
    measured = f"{threads} threads multiply {ratio:.1f} times as fast as one"
    if ratio < 1:
        todo = f"something else computes here (top): fewer may be faster, export OMP_NUM_THREADS={threads // 2}"
        return Finding("threads", "warning", measured, todo)
    return Finding("threads", "good", measured)


def _products_per_second(threads: int, seconds: float = 0.3) -> float:
    matrix = torch.ones(512, 512)
    torch.set_num_threads(threads)
    matrix @ matrix
    begin, products = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        matrix @ matrix
        products += 1
    return products / (time.perf_counter() - begin)


def look_at_memory() -> Iterator[Finding]:
    """A finding on the memory that is left, on the machine and in its container."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        yield Finding("memory", "not checked", f"{MEMINFO} does not tell")
        return
    left = min(_left_in_groups(), default=free)
    measured = f"{min(free, left) / GIB:.1f} GiB free{', by the limit of the container' if left < free else ''}"
    if min(free, left) < MIN_MEMORY:
        yield Finding("memory", "warning", measured, "end other programs, or give the container more (--memory)")
    else:
        yield Finding("memory", "good", measured)


def _left_in_groups() -> Iterator[int]:
    """Bytes that each control group around this process still has, where it has a limit.

    What files occupy and nobody reads (`inactive_file`) is given back when it is needed.
    """
    for folder in control_groups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with suppress(OSError, ValueError, KeyError):  # Not there, or "max".
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                held = int((folder / used).read_text()) - int(statistics["inactive_file"])
                yield int((folder / limit).read_text()) - held


def look_at_shared_memory(cards: int) -> Iterator[Finding]:
    """A finding on `/dev/shm`, through which the processes of several cards send what P2P does not."""
    try:
        status = os.statvfs(SHM)
    except OSError as error:
        yield Finding(str(SHM), "warning" if cards > 1 else "not checked", f"{error.strerror}")
        return
    free = status.f_bavail * status.f_frsize
    measured = f"{free / GIB:.1f} GiB free"
    if cards > 1 and free < MIN_SHM:
        todo = "docker run --shm-size=1g (or --ipc=host); without, NCCL_SHM_DISABLE=1 is slower"
        yield Finding(str(SHM), "warning", measured, todo)
    else:
        yield Finding(str(SHM), "good", measured)
