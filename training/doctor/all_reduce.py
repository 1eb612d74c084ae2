"""A timed all-reduce over the cards of this machine, in processes of its own under a deadline: it may hang.

Cards that cannot reach each other's memory, though they say so, do (P2P; github.com/NVIDIA/nccl/issues/1999), and some
only add up wrongly.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from training.doctor.findings import Finding

Backend = Literal["nccl", "gloo"]
START_SECONDS = 30.0
"""Until all processes have torch and their card; a healthy machine takes three."""
ROOT = Path(__file__).parents[2]


class Way(NamedTuple):
    """A way for processes to reach each other: its name in a line, and the variables that make them take it."""

    name: str
    settings: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.settings.items())


P2P = Way("with P2P", {"NCCL_P2P_DISABLE": "0"})
NO_P2P = Way("without P2P", {"NCCL_P2P_DISABLE": "1"})
OVER_SOCKETS = Way(
    "over sockets of this machine alone",
    {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_IB_DISABLE": "1", "NCCL_SOCKET_IFNAME": "lo"},
)
GLOO = Way("over gloo", {})
GLOO_INSIDE = Way("over gloo, of this machine alone", {"GLOO_SOCKET_IFNAME": "lo"})


class Outcome(NamedTuple):
    """How an all-reduce went.

    Attributes:
        way: Which way.
        fault: Why it does not serve; empty where it does.
        bandwidth: Bytes per second that each link carries: 2 (n - 1) / n of the tensor for n processes ("bus
            bandwidth", github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
        latency: Seconds of one of 4 KB.
    """

    way: Way
    fault: str = ""
    bandwidth: float = 0.0
    latency: float = 0.0

    def __str__(self) -> str:
        return self.fault or f"{self.bandwidth / 1e9:.2f} GB/s, {self.latency * 1e6:.0f} us for 4 KB"


def look_at_all_reduce(processes: int, backend: Backend, seconds: float, p2p_taken: bool = True) -> Iterator[Finding]:
    """Findings on the ways that processes can add up gradients.

    Args:
        processes: How many; with NCCL each has a card of its own.
        backend: What adds up.
        seconds: How long a way may take, once all processes have their device.
        p2p_taken: Whether a run on these cards takes P2P.
    """
    if processes < 2:
        alone = "one card: there is nothing to add up" if backend == "nccl" else "no GPU here"
        yield Finding(
            "all-reduce", "not checked", alone, *(["--num_processes 2 tries gloo"] if backend == "gloo" else [])
        )
        return
    ways = {"nccl": (P2P, NO_P2P), "gloo": (GLOO,)}[backend]
    outcomes = [time_all_reduce(processes, backend, way, seconds) for way in ways]
    if all(outcome.fault for outcome in outcomes):
        outcomes.append(
            time_all_reduce(processes, backend, OVER_SOCKETS if backend == "nccl" else GLOO_INSIDE, seconds)
        )
    taken = outcomes[1 if backend == "nccl" and not p2p_taken else 0]
    yield from judge(processes, outcomes, taken)


def judge(processes: int, outcomes: Sequence[Outcome], taken: Outcome) -> Iterator[Finding]:
    """A finding on each way: a fault where a run takes it and it does not serve."""
    best = max(outcomes, key=lambda outcome: (not outcome.fault, outcome.bandwidth))
    for outcome in outcomes:
        measured = f"{processes} processes {outcome.way.name}: {outcome}"
        if outcome is not taken:
            other = "a run does not go this way" if outcome.fault else ""
            yield Finding("all-reduce", "warning" if outcome.fault else "good", measured, other)
        elif outcome.fault:
            yield Finding("all-reduce", "fault", measured, _cure(best))
        elif best.bandwidth > 1.1 * outcome.bandwidth:
            yield Finding("all-reduce", "warning", measured, f"faster {best.way.name}: export {best.way}")
        else:
            yield Finding("all-reduce", "good", measured)


def _cure(best: Outcome) -> str:
    if best.fault:
        return "no way serves: NCCL_DEBUG=INFO (or TORCH_DISTRIBUTED_DEBUG=DETAIL) and dmesg say more; renew the driver"
    several = ", and try to do without one after the other" if len(best.way.settings) > 1 else ""
    return f"export {best.way}, with which it works{several}"


def time_all_reduce(processes: int, backend: Backend, way: Way, seconds: float) -> Outcome:
    """Start processes that add up numbers, and end them when they are done, when one fails, or at the deadline."""
    with tempfile.TemporaryDirectory() as name, _started(Path(name), processes, backend, way, seconds) as started:
        folder = Path(name)
        ready = [folder / f"ready-{rank}" for rank in range(processes)]
        if not (_wait_for(ready, started, START_SECONDS) and _wait_for([folder / "result.json"], started, seconds)):
            return Outcome(way, _fault(folder, started, ready, seconds))
        result = json.loads((folder / "result.json").read_text())
        if not result["right"]:
            return Outcome(way, "the sums are wrong")
        carried = 2 * (processes - 1) / processes * result["bytes"]
        return Outcome(way, bandwidth=carried / result["seconds"], latency=result["latency"])


@contextmanager
def _started(
    folder: Path, processes: int, backend: Backend, way: Way, seconds: float
) -> Iterator[Sequence["subprocess.Popen[bytes]"]]:
    """Processes that say what they have to say into files, and are ended on leaving, whatever they do."""
    launch = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launch}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**kept, **way.settings, "PYTHONPATH": os.pathsep.join(paths)}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(processes):
            with (folder / f"said-{rank}").open("wb") as said:
                command = rank_command(folder, backend, rank, processes, seconds)
                started.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            with suppress(subprocess.TimeoutExpired):  # A driver may hold one for ever.
                process.wait(5)


def rank_command(folder: Path, backend: Backend, rank: int, processes: int, seconds: float) -> list[str]:
    """The command line of one of the processes, which ends by itself a while after the deadline."""
    numbers = rank, processes, math.ceil(START_SECONDS + seconds) + 10
    return [sys.executable, "-P", "-m", "training.doctor.rank", str(folder), backend, *map(str, numbers)]


def _wait_for(files: Sequence[Path], started: Sequence["subprocess.Popen[bytes]"], seconds: float) -> bool:
    """Whether all files come in time, before a process fails."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(file.exists() for file in files):
            return True
        if any(process.poll() for process in started):
            return False
        time.sleep(0.02)
    return False


def _fault(folder: Path, started: Sequence["subprocess.Popen[bytes]"], ready: Sequence[Path], seconds: float) -> str:
    """Why there is no result: a process that failed, one that never came, or a hang."""
    for rank, process in enumerate(started):
        if code := process.poll():
            said = (folder / f"said-{rank}").read_text(errors="replace").strip().splitlines() or [f"code {code}"]
            return f"process {rank} fails: {said[-1].strip()[:200]}"
    if late := [str(rank) for rank, file in enumerate(ready) if not file.exists()]:
        return f"process {', '.join(late)} had no device after {START_SECONDS:g} s"
    return f"it hangs, and was ended after {seconds:g} s"
