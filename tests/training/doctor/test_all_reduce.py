"""A timed all-reduce under a deadline: over gloo for real, and what is said of NCCL's ways."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import ROOT

from training.doctor import all_reduce
from training.doctor.all_reduce import (
    GLOO,
    GLOO_INSIDE,
    NO_P2P,
    OVER_SOCKETS,
    P2P,
    Outcome,
    Way,
    judge,
    look_at_all_reduce,
    time_all_reduce,
)

HANG = "it hangs, and was ended after 15 s"


def replace_rank_1(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the second process do something else; it is given the folder."""
    command = all_reduce.rank_command

    def other(folder: Path, backend: Any, rank: int, *numbers: Any) -> list[str]:
        return [sys.executable, "-c", code, str(folder)] if rank == 1 else command(folder, backend, rank, *numbers)

    monkeypatch.setattr(all_reduce, "rank_command", other)


def test_two_processes_add_up_over_gloo() -> None:
    [finding] = look_at_all_reduce(2, "gloo", 60.0)
    assert finding.status == "good"
    assert finding.measured.startswith("2 processes over gloo: ")
    assert finding.measured.endswith(" us for 4 KB")


@pytest.mark.ci
def test_a_rank_that_never_joins_is_a_hang_and_all_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_rank_1(
        monkeypatch,
        "import pathlib, sys, time; pathlib.Path(sys.argv[1], 'ready-1').touch(); time.sleep(90)",
    )
    begin = time.monotonic()
    outcome = time_all_reduce(2, "gloo", GLOO, 1.0)
    assert outcome.fault == "it hangs, and was ended after 1 s"
    assert time.monotonic() - begin < 60
    assert not [child for child in psutil.Process().children() if "training.doctor.rank" in child.cmdline()]


@pytest.mark.ci
def test_a_rank_that_nobody_ends_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_reduce, "START_SECONDS", -10.0)
    alone = subprocess.run(all_reduce.rank_command(tmp_path, "gloo", 0, 2, 1.0), cwd=ROOT, timeout=120, check=False)
    assert (tmp_path / "ready-0").exists()
    assert alone.returncode == -signal.SIGALRM


def test_a_rank_that_fails_is_named_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_rank_1(monkeypatch, "raise SystemExit('the card has fallen off the bus')")
    begin = time.monotonic()
    outcome = time_all_reduce(2, "gloo", GLOO, 600.0)
    assert outcome.fault == "process 1 fails: the card has fallen off the bus"
    assert time.monotonic() - begin < 60


def test_a_rank_that_never_has_a_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_reduce, "START_SECONDS", 0.1)
    assert time_all_reduce(2, "gloo", GLOO, 1.0).fault == "process 0, 1 had no device after 0.1 s"


def test_wrong_sums_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); (p / 'ready-1').touch(); (p / 'result.json').write_text"
    replace_rank_1(monkeypatch, code + '(\'{"right": false, "bytes": 1, "seconds": 1, "latency": 1}\')')
    assert time_all_reduce(2, "gloo", GLOO, 60.0).fault == "the sums are wrong"


@pytest.mark.parametrize(
    ("hanging", "p2p_taken", "expected"),
    [
        (
            [],
            True,
            [
                "good         all-reduce   2 processes with P2P: 20.00 GB/s, 30 us for 4 KB",
                "good         all-reduce   2 processes without P2P: 10.00 GB/s, 30 us for 4 KB",
            ],
        ),
        (
            [P2P],
            True,
            [
                f"fault        all-reduce   2 processes with P2P: {HANG}: "
                "export NCCL_P2P_DISABLE=1, with which it works",
                "good         all-reduce   2 processes without P2P: 10.00 GB/s, 30 us for 4 KB",
            ],
        ),
        (
            [P2P],
            False,
            [
                f"warning      all-reduce   2 processes with P2P: {HANG}: a run does not go this way",
                "good         all-reduce   2 processes without P2P: 10.00 GB/s, 30 us for 4 KB",
            ],
        ),
        (
            [],
            False,
            [
                "good         all-reduce   2 processes with P2P: 20.00 GB/s, 30 us for 4 KB",
                "warning      all-reduce   2 processes without P2P: 10.00 GB/s, 30 us for 4 KB: faster with P2P: "
                "export NCCL_P2P_DISABLE=0",
            ],
        ),
        (
            [P2P, NO_P2P],
            True,
            [
                f"fault        all-reduce   2 processes with P2P: {HANG}: export NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 "
                "NCCL_IB_DISABLE=1 NCCL_SOCKET_IFNAME=lo, with which it works, and try to do without "
                "one after the other",
                f"warning      all-reduce   2 processes without P2P: {HANG}: a run does not go this way",
                "good         all-reduce   2 processes over sockets of this machine alone: 10.00 GB/s, 30 us for 4 KB",
            ],
        ),
        (
            [P2P, NO_P2P, OVER_SOCKETS],
            True,
            [
                f"fault        all-reduce   2 processes with P2P: {HANG}: no way serves: NCCL_DEBUG=INFO (or "
                "TORCH_DISTRIBUTED_DEBUG=DETAIL) and dmesg say more; renew the driver",
                f"warning      all-reduce   2 processes without P2P: {HANG}: a run does not go this way",
                f"warning      all-reduce   2 processes over sockets of this machine alone: {HANG}: a run does not go "
                "this way",
            ],
        ),
    ],
)
def test_each_way_is_told_and_the_setting_that_helps(
    monkeypatch: pytest.MonkeyPatch, hanging: list[Way], p2p_taken: bool, expected: list[str]
) -> None:
    def timed(processes: int, backend: str, way: Way, seconds: float) -> Outcome:
        return Outcome(way, HANG) if way in hanging else Outcome(way, "", 20e9 if way is P2P else 10e9, 3e-5)

    monkeypatch.setattr(all_reduce, "time_all_reduce", timed)
    assert [str(finding) for finding in look_at_all_reduce(2, "nccl", 15.0, p2p_taken)] == expected


def test_gloo_that_hangs_is_tried_inside_of_the_machine() -> None:
    outcomes = [Outcome(GLOO, HANG), Outcome(GLOO_INSIDE, "", 1e9, 1e-4)]
    first, _ = judge(2, outcomes, outcomes[0])
    assert first.status == "fault"
    assert first.advice == "export GLOO_SOCKET_IFNAME=lo, with which it works"


@pytest.mark.parametrize(("backend", "said"), [("nccl", "one card"), ("gloo", "--num_processes 2 tries gloo")])
def test_one_process_has_nothing_to_add_up(backend: Any, said: str) -> None:
    [finding] = look_at_all_reduce(1, backend, 15.0)
    assert finding.status == "not checked"
    assert said in str(finding)
