"""How much anonymous memory the text of a run takes: what is mapped from files is the system's, to keep or to drop."""

import os
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread

import numpy as np
import psutil
import pyarrow

WORDS, BLOCK = 30_000, 200_000


def write_text(path: Path, num_bytes: int) -> None:
    """A text of made-up words, as often as words of a language are: the first ones often, most of them hardly ever."""
    random = np.random.default_rng(1)
    letters, lengths = random.choice(list("etaoinshrdlu"), (WORDS, 9)), random.integers(2, 9, WORDS)
    words = np.array(["".join(row[:length]) for row, length in zip(letters, lengths, strict=True)])
    ends = np.array([" ", ", ", ".\n"])
    with path.open("w") as file:
        while file.tell() < num_bytes:
            ranks = np.minimum(random.zipf(1.3, BLOCK), WORDS) - 1
            file.write("".join(np.char.add(words[ranks], ends[random.choice(3, BLOCK, p=[0.8, 0.1, 0.1])]).tolist()))


def anonymous(process: psutil.Process) -> int:
    """Bytes of anonymous memory that a process and all that it has started hold."""
    found = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error, OSError):
            lines = Path(f"/proc/{one.pid}/status").read_text().splitlines()
            found += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    return found


def peak_of(process: "subprocess.Popen[str]") -> int:
    """The most that a command holds until it ends."""
    peak = 0
    while process.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, anonymous(psutil.Process(process.pid)))
        time.sleep(0.05)
    return peak


def growth_of(action: Callable[[], None]) -> int:
    """The most that this process holds more while it does something."""
    own, done, peaks = psutil.Process(), list[bool](), [0]
    before = anonymous(own)

    def watch() -> None:
        while not done:
            peaks.append(anonymous(own) - before)
            time.sleep(0.005)

    watcher = Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        done.append(True)
        watcher.join()
    return max(peaks)


def read_through(rows: Iterable[object]) -> tuple[int, int]:
    """How many rows there are, and the most bytes that Python and Arrow held more while they were read."""
    pyarrow.default_memory_pool().release_unused()
    before, most, count = pyarrow.total_allocated_bytes(), 0, 0
    tracemalloc.start()
    try:
        for _ in rows:
            count += 1
            most = max(most, pyarrow.total_allocated_bytes() - before)
        return count, most + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def in_a_fork(action: Callable[[], int]) -> int:
    """The number that an action gives in a fork of this process, whose memory is as it was; -1 where it fails."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.write(theirs, str(action()).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return int(said or -1)
