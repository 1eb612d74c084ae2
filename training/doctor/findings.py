"""What checks find, and how they are run: none of them may keep the others waiting."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from training.runtime.errors import CommandError

Status = Literal["good", "warning", "fault", "not checked"]
"""A fault would stop or spoil a run; a warning is what a run does without, or what makes it slower."""

SECONDS = 15.0
"""How long a check may take: a file system or a driver that hangs is one of the things to find."""


class Finding(NamedTuple):
    """One line: on what, how it is, what was measured, and what to do about it."""

    name: str
    status: Status
    measured: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.status:11}  {self.name:11}  {self.measured}{': ' if self.advice else ''}{self.advice}"


class Check(NamedTuple):
    """Something to look at.

    Attributes:
        name: In a word.
        look: Gives what it finds.
        has_deadline: Whether it ends by itself in bounded time, and stops processes of its own when interrupted.
    """

    name: str
    look: Callable[[], Iterable[Finding]]
    has_deadline: bool = False


def examine(check: Check, seconds: float = SECONDS) -> Iterator[Finding]:
    """Run a check; where it raises an error, or does not end, that is what is found."""
    if check.has_deadline:
        yield from _looked(check)
        return
    found: list[Sequence[Finding]] = []
    # A system call that hangs cannot be ended: its thread is left behind.
    thread = threading.Thread(target=lambda: found.append(_looked(check)), daemon=True)
    thread.start()
    thread.join(seconds)
    yield from (
        found[0]
        if found
        else [Finding(check.name, "fault", f"no answer in {seconds:g} s", "a run would hang here; a restart may help")]
    )


def _looked(check: Check) -> list[Finding]:
    try:
        return list(check.look())
    except (CommandError, OSError, RuntimeError) as error:  # CUDA's errors are of the last kind.
        return [Finding(check.name, "fault", " ".join(str(error).split())[:300])]
