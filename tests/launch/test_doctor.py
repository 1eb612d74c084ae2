"""The doctor as a person calls it: its lines, its report and its exit code."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

DOCTOR = ROOT / "launch/doctor.py"
FLOCK = {"x86_64": (0xC000003E, 73), "aarch64": (0xC00000B7, 32)}
"""What the kernel calls an architecture, and flock on it (linux/audit.h, asm/unistd.h)."""

WITHOUT_LOCKS = """
import ctypes, errno, os, struct, sys
architecture, flock = int(sys.argv[1]), int(sys.argv[2])
LOAD, EQUAL, RETURN, ALLOW, REFUSE = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000 | errno.ENOLCK
program = [
    (LOAD, 0, 0, 4), (EQUAL, 0, 3, architecture), (LOAD, 0, 0, 0), (EQUAL, 0, 1, flock), (RETURN, 0, 0, REFUSE),
    (RETURN, 0, 0, ALLOW),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, filter, 0, 0):  # No new privileges; a filter of system calls.
    sys.exit(77)
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""
"""A program whose every flock the kernel refuses, as that of NFS without lockd does."""


def doctor(*arguments: str, cwd: Path, locks: bool = True, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run it on a small machine of its own: no Accelerate configuration but what is given, at a port that is free."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "OMP_"))}
    before = [] if locks else ["-c", WITHOUT_LOCKS, *map(str, FLOCK[platform.machine()])]
    return subprocess.run(
        [sys.executable, *before, str(DOCTOR), *arguments],
        cwd=cwd,
        env=known | {"PYTHONPATH": str(ROOT), "HF_HOME": str(cwd / "home")} | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def write(file: Path, **settings: object) -> None:
    file.parent.mkdir(exist_ok=True)
    content = {"compute_environment": "LOCAL_MACHINE", "main_process_port": 0, **settings}
    file.write_text(json.dumps(content))


@pytest.mark.ci
def test_a_good_machine_is_code_0_and_says_what_it_could_not_check(tmp_path: Path) -> None:
    write(tmp_path / "launch.yaml", distributed_type="MULTI_GPU", num_processes=2)
    done = doctor(
        *("--launch_file", "launch.yaml", "--num_processes", "2", "--output_dir", "runs/mine", "--json", "-"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"machine", "environment", "findings"}
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["launch file"]["measured"] == "launch.yaml starts 2 processes"
    assert re.fullmatch(r"2 processes over gloo: \d+\.\d\d GB/s, \d+ us for 4 KB", found["all-reduce"]["measured"])
    lines = done.stderr.splitlines()
    assert len(lines) == len(report["findings"])
    assert all(re.match(r"(good       |warning    |fault      |not checked)  \S", line) for line in lines), lines
    if report["machine"]["nccl"] is None:
        assert "not checked  cards        no NVIDIA GPU here: a run computes on cpu" in lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["launch.yaml"], "nothing is left"


@pytest.mark.ci
@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in FLOCK, reason="a filter of Linux's system calls"
)
def test_the_users_own_launch_file_is_judged_too_and_missing_locks_are_a_warning(tmp_path: Path) -> None:
    own = tmp_path / "home/accelerate/default_config.yaml"
    own.parent.parent.mkdir()
    write(own, distributed_type="MULTI_CPU", num_processes=2, use_cpu=True)
    done = doctor("--json", "report.json", cwd=tmp_path, locks=False)
    if done.returncode == 77:
        pytest.skip("no filter of system calls can be set here")
    assert done.returncode == 1
    assert done.stderr.endswith("error: this would stop or spoil a run: bare launch\n")
    assert f"fault        bare launch  {own.relative_to(tmp_path)} starts 1 process, 2 were asked for: " in done.stdout
    assert (
        "warning      file system  has no locks (flock) (No locks available): nothing keeps a second pro" in done.stdout
    )
    assert "not checked  all-reduce   no GPU here: --num_processes 2 tries gloo" in done.stdout or "card" in done.stdout
    assert done.stdout.endswith("report.json\n")
    statuses = [finding["status"] for finding in json.loads((tmp_path / "report.json").read_text())["findings"]]
    assert statuses.count("fault") == 1


def test_several_processes_of_it_are_refused(tmp_path: Path) -> None:
    done = doctor(cwd=tmp_path, LOCAL_RANK="0", RANK="0", WORLD_SIZE="2")
    assert done.returncode == 2
    assert done.stderr == (
        "error: this command runs in one process: start it with python, not with a launcher of several\n"
    )
