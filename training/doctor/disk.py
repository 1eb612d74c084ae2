"""Where checkpoints go: space, speed, what its file system can do, and its clock."""

import errno
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

import training
from training.doctor.findings import Finding
from training.runtime.errors import InputError
from training.storage.files import PROMISES, Ability, doing_without, sync

GIB = 2**30
MIN_FREE = 1 * GIB
ENOUGH_FREE = 10 * GIB
"""A checkpoint of 160 million parameters with AdamW and an average takes 2.5 GB; a run keeps three of them, and writes
the next beside them."""
BLOCK = 16 * 2**20
MAX_BLOCKS = 16
"""Written for a speed, as far as they come in `MAX_SECONDS`."""
MAX_SECONDS = 3.0
MIN_SPEED = 50e6
"""Bytes per second: a checkpoint of 2.5 GB takes 50 s at this, in which nothing is trained."""
MAX_SKEW = 5.0
"""Seconds that the clock of a file system may be off."""


@contextmanager
def scratch(output_dir: Path) -> Iterator[Path]:
    """A folder of our own on the file system where a run's folder is or would be.

    Raises:
        InputError: None can be made there.
    """
    nearest = output_dir.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        folder = tempfile.mkdtemp(prefix=".doctor-", dir=nearest)
    except OSError as error:
        raise InputError(f"cannot write to {nearest}: {error.strerror}: choose another --output_dir") from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def look_at_space(output_dir: Path) -> Iterator[Finding]:
    """Findings on free space, and on the speed at which a file reaches the disk."""
    with scratch(output_dir) as folder:
        free = shutil.disk_usage(folder).free
        measured = f"{free / 1e9:,.1f} GB free for {output_dir}"
        if free < MIN_FREE:
            yield Finding("disk", "fault", measured, "a checkpoint may not fit: choose another --output_dir")
            return
        todo = "three checkpoints and the next must fit: delete old runs, or choose another --output_dir"
        yield Finding("disk", "good", measured) if free > ENOUGH_FREE else Finding("disk", "warning", measured, todo)
        speed = write_speed(folder / "block")
        measured = f"{speed / 1e6:,.0f} MB/s written and flushed: 1 GB of checkpoint in {1e9 / speed:.1f} s"
        todo = "take a local disk, or save less often (--training.checkpoint_interval)"
        yield Finding("disk", "good", measured) if speed > MIN_SPEED else Finding("disk", "warning", measured, todo)


def write_speed(file: Path) -> float:
    """Bytes per second that reach the disk.

    Raises:
        OSError: The disk refuses, for a quota or for its end.
    """
    block = os.urandom(BLOCK)  # Some file systems compress.
    begin, written = time.monotonic(), 0
    with file.open("wb", buffering=0) as out:
        while written < MAX_BLOCKS * BLOCK and time.monotonic() - begin < MAX_SECONDS:
            written += out.write(block)
            os.fsync(out.fileno())
    return written / (time.monotonic() - begin)


def look_at_file_system(output_dir: Path) -> Iterator[Finding]:
    """A finding on each thing that the file system cannot do, as a run would take it."""
    abilities: dict[Ability, Callable[[Path], None]] = {
        "locks": _lock,
        "links": lambda folder: (folder / "link").symlink_to("target"),
        "flushed folders": sync,
    }
    with scratch(output_dir) as folder:
        lacking = [finding for name, do in abilities.items() if (finding := _tried(name, do, folder))]
    yield from lacking
    if not lacking:
        yield Finding("file system", "good", "locks, links and flushed folders work")


def _tried(ability: Ability, do: Callable[[Path], None], folder: Path) -> Finding | None:
    """What is to say where something does not work: a run does without, or would end."""
    refused: OSError | None = None
    try:
        with redirect_stdout(io.StringIO()), doing_without(ability, folder):
            try:
                do(folder)
            except OSError as error:
                refused = error
                raise
    except OSError as error:
        return Finding("file system", "fault", f"{ability}: {error.strerror}", "choose another --output_dir")
    if refused is None:
        return None
    fact, _, cost = PROMISES[ability].partition(": ")
    return Finding("file system", "warning", f"{fact} ({refused.strerror})", cost)


def _lock(folder: Path) -> None:
    """Lock a file as a run does.

    Raises:
        OSError: It cannot be locked, or a second time, too: some file systems only say that they lock.
    """
    import fcntl

    file = folder / "lock"
    with file.open("w") as first, file.open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise OSError(errno.ENOLCK, "two got the same")


def look_at_clock(output_dir: Path) -> Iterator[Finding]:
    """Findings on this machine's clock against that of the file system, the age of this code, and itself."""
    with scratch(output_dir) as folder:
        (folder / "now").touch()
        ahead = (folder / "now").stat().st_mtime - time.time()
    begin, steady = time.time(), time.monotonic()
    time.sleep(0.1)
    drift = (time.time() - begin) - (time.monotonic() - steady)
    todo = "let NTP set it (timedatectl set-ntp true; in WSL2 after a sleep: wsl --shutdown)"
    if newest_code() - time.time() > MAX_SKEW:
        shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time()))
        yield Finding("clock", "warning", f"{shown} is before this code was written: the hub will refuse", todo)
    elif abs(ahead) > MAX_SKEW:
        measured = f"{abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} that of the file system"
        yield Finding("clock", "warning", measured, f"times of files and logs will not agree: {todo}")
    elif abs(drift) > 0.05:
        yield Finding("clock", "warning", f"it is set while it runs: {drift:+.2f} s in 0.1 s", todo)
    else:
        measured = f"it agrees with the file system's to {abs(ahead):.1f} s, and goes steadily"
        yield Finding("clock", "good", measured)


def newest_code() -> float:
    """When the youngest file of this package was written."""
    return max(file.stat().st_mtime for file in Path(training.__file__).parent.rglob("*.py"))
