"""Space, speed, abilities and the clock of where checkpoints go."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.doctor import disk
from training.doctor.findings import Check, Finding, examine
from training.storage import files


@pytest.fixture
def output_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder that is not there yet, on a disk with 50 GB left, tried with one block."""
    monkeypatch.setattr(disk, "MAX_BLOCKS", 1)
    monkeypatch.setattr(files, "_said", set())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50e9))
    return tmp_path / "runs/gpt"


def test_space_and_speed_are_measured_and_nothing_is_left(output_dir: Path, tmp_path: Path) -> None:
    space, speed = disk.look_at_space(output_dir)
    assert space == Finding("disk", "good", f"50.0 GB free for {output_dir}")
    assert speed.measured.endswith(" s")
    assert " MB/s written and flushed: 1 GB of checkpoint in " in speed.measured
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free", "statuses"), [(0.5e9, ["fault"]), (5e9, ["warning", "good"])])
def test_little_space_is_told(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch, free: float, statuses: list[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(disk, "write_speed", lambda file: 1e9)
    assert [finding.status for finding in disk.look_at_space(output_dir)] == statuses


def test_a_slow_disk_is_told(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "write_speed", lambda file: 20e6)
    assert str(list(disk.look_at_space(output_dir))[1]) == (
        "warning      disk         20 MB/s written and flushed: 1 GB of checkpoint in 50.0 s: take a local disk, or "
        "save less often (--training.checkpoint_interval)"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_refuses_more_than_it_says_is_a_fault(small_disk: Path, output_dir: Path) -> None:
    """As with a quota, of which the file system's own figure for free space says nothing."""
    found = list(examine(Check("disk", lambda: disk.look_at_space(small_disk / "runs"))))
    assert [finding.status for finding in found] == ["good", "fault"]
    assert "No space left on device" in found[1].measured
    assert list(small_disk.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [found] = examine(Check("disk", lambda: disk.look_at_space(tmp_path / "file/runs")))
    assert found.status == "fault"
    assert found.measured == f"cannot write to {tmp_path}/file: Not a directory: choose another --output_dir"


def test_a_local_file_system_can_do_everything(output_dir: Path) -> None:
    [finding] = disk.look_at_file_system(output_dir)
    assert str(finding) == "good         file system  locks, links and flushed folders work"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_missing_locks_are_a_warning_as_a_run_goes_on(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refusing(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refusing)
    for _ in range(2):  # A run says so once; the doctor each time.
        [finding] = disk.look_at_file_system(output_dir)
        assert str(finding) == (
            f"warning      file system  has no locks (flock) ({os.strerror(number)}): nothing keeps a second process "
            "from writing to the same run, so start only one"
        )
    assert capsys.readouterr().out == ""


def test_a_lock_that_two_get_is_none(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *arguments: None)
    [finding] = disk.look_at_file_system(output_dir)
    assert (finding.status, finding.measured) == ("warning", "has no locks (flock) (two got the same)")


def test_what_would_end_a_run_is_a_fault(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*arguments: Any) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("fcntl.flock", refusing)
    monkeypatch.setattr(Path, "symlink_to", refusing)
    found = list(disk.look_at_file_system(output_dir))
    assert [str(finding) for finding in found] == [
        f"fault        file system  {name}: Permission denied: choose another --output_dir"
        for name in ("locks", "links")
    ]


@pytest.mark.parametrize(
    ("shift", "status", "said"),
    [
        (0.0, "good", "it agrees with the file system's to 0.0 s, and goes steadily"),
        (-60.0, "warning", "60 s behind that of the file system: times of files and logs will not agree: let NTP set"),
        (90.0, "warning", "90 s ahead of that of the file system"),
        (-40 * 365 * 86400.0, "warning", "is before this code was written: the hub will refuse: let NTP set it"),
    ],
)
def test_a_clock_that_is_off_is_told(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch, shift: float, status: str, said: str
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + shift)
    if abs(shift) < 1000:  # The code may be younger than a minute.
        monkeypatch.setattr(disk, "newest_code", lambda: 0.0)
    [finding] = disk.look_at_clock(output_dir)
    assert finding.status == status
    assert said in str(finding)


def test_a_clock_that_is_set_while_it_runs_is_told(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, sleep, shift = time.time, time.sleep, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + shift[0])

    def jump(seconds: float) -> None:
        sleep(seconds)
        shift[0] = 2.0

    monkeypatch.setattr(time, "sleep", jump)
    [finding] = disk.look_at_clock(output_dir)
    assert finding.status == "warning"
    assert finding.measured == "it is set while it runs: +2.00 s in 0.1 s"
