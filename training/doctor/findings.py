"""What checks find, and how they are run: none of them may keep the others waiting."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from training.runtime.errors import CommandError

Status = Literal["good", "warning", "fault", "not checked"]
"""A fault would stop or spoil a run; a warning is what a run does without, or what makes it slower."""

SECONDS = 15.0
"""How long a check may take: a file system or a driver that hangs is one of the things to find."""

GRACE = 3.0
"""How long a check goes on after Ctrl-C, at most."""


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
    """Run a check; where it raises an error, or does not end, that is found as well."""
    found: list[Finding] = []
    if check.has_deadline:
        _look(check, found)
    else:
        # A system call that hangs cannot be ended: its thread is left behind.
        ended = threading.Event()

        def look() -> None:
            _look(check, found)
            ended.set()

        try:
            threading.Thread(target=look, daemon=True).start()
            ended.wait(seconds)
        except KeyboardInterrupt:
            ended.wait(GRACE)  # Python cannot end well while torch computes in a thread.
            raise
        if not ended.is_set():
            found.append(Finding(check.name, "fault", f"no answer in {seconds:g} s", "a run would hang here, too"))
    yield from list(found)


def _look(check: Check, found: list[Finding]) -> None:
    try:
        for finding in check.look():
            found.append(finding)
    except (CommandError, OSError, RuntimeError) as error:  # CUDA's errors are of the last kind.
        found.append(Finding(check.name, "fault", " ".join(str(error).split())[:300]))
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        found.append(Finding(check.name, "not checked", f"the check itself fails, {said}", "please report it"))
