"""Work in a thread of its own, whose timing no page disturbs, and whose results a page takes at its own pace."""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from itertools import count
from typing import Any, Generic, TypeVar

from demo.results import Growing
from training.runtime.errors import CommandError, InputError

Result = TypeVar("Result", bound=Growing)

INTERVAL = 0.2
"""Seconds between two looks at a job: a page is updated 5 times a second."""
FORSAKEN = 10.0
"""Seconds without a look after which nobody waits any more."""
STOPPING = 2.0
"""Seconds that Stop waits until its visitor has seen the end."""

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Raised inside a job that is to end."""


class Job(Generic[Result]):
    """One piece of work.

    Args:
        work: Loads what it needs, sets `job.result` and fills it, and calls `job.check()` between two tokens.
        seconds: After so long it ends.

    Attributes:
        result: What is there so far, for whoever looks at it; None while the work gets ready.
    """

    def __init__(self, work: Callable[["Job[Result]"], None], seconds: float) -> None:
        self.result: Result | None = None
        self._work, self._seconds = work, seconds
        self._asked: str | None = None
        self._done, self._left = threading.Event(), threading.Event()
        self._looked = self._started = time.monotonic()
        self._error: InputError | None = None
        self._thread = threading.Thread(target=self._run, name="job", daemon=True)

    def check(self) -> None:
        """Raise `Stopped` if the work is to end: it was asked to, is out of time, or nobody looks at it any more."""
        now = time.monotonic()
        if self._asked is None and now - self._started > self._seconds:
            self._asked = f"ended after {self._seconds:g} seconds, the most that a request may take"
        if self._asked is None and now - self._looked > FORSAKEN:
            self._asked = "nobody waits for it any more"
        if self._asked is not None:
            raise Stopped

    def stop(self, reason: str = "stopped") -> None:
        """Let it end at its next check."""
        self._asked = self._asked or reason

    def wait(self, seconds: float) -> None:
        """Wait until whoever looks at it has seen its end."""
        self._left.wait(seconds)

    def looks(self) -> Generator[Result, None, None]:
        """Start it, and give its result again and again, the last time when it is whole; closing this ends it.

        Work that ends before it has a result gives none.

        Raises:
            InputError: What the work raised, or that it failed.
        """
        self._thread.start()
        due = time.monotonic() + INTERVAL
        try:
            while not self._done.wait(max(due - time.monotonic(), 0.0)):
                self._looked = time.monotonic()
                due = max(due, self._looked - INTERVAL) + INTERVAL  # On time, however long a look took.
                if self.result is not None:
                    yield self.result
            if self._error is not None:
                raise self._error
            if self.result is not None:
                yield self.result
        finally:
            self.stop()
            self._left.set()

    def _run(self) -> None:
        try:
            with suppress(Stopped):
                self._work(self)
        except (CommandError, ValueError) as error:
            self._error = InputError(str(error))
        except Exception:
            log.exception("a job failed")
            self._error = InputError("this failed on the server; its terminal says why")
        if self.result is not None:
            self.result.phase, self.result.why = "done", self._asked or self.result.why
        self._done.set()


class Jobs:
    """The requests of each visitor: a new one ends the running one, and replaces one that waits."""

    def __init__(self) -> None:
        self._running: dict[str, Job[Any]] = {}
        self._awaited: dict[str, int] = {}
        self._numbers = count(1)
        self._lock = threading.Lock()

    def ask(self, owner: str) -> int:
        """Note a request that will wait in the queue, and end its visitor's running one; return its number."""
        with self._lock:
            number = self._awaited[owner] = next(self._numbers)
            running = self._running.get(owner)
        if running is not None:
            running.stop("a new request took its place")
        return number

    def begin(self, owner: str, number: Any) -> bool:
        """Whether a request that leaves the queue is the one that its visitor still waits for."""
        with self._lock:
            awaited = owner in self._awaited and self._awaited[owner] == number
            if awaited:
                del self._awaited[owner]
            return awaited

    def run(self, owner: str, job: Job[Result]) -> Generator[Result, None, None]:
        """The job's looks."""
        with self._lock:
            before = self._running.get(owner)
            self._running[owner] = job
        if before is not None:
            before.stop("a new request took its place")
        try:
            yield from job.looks()
        finally:
            with self._lock:
                if self._running.get(owner) is job:
                    del self._running[owner]

    def stop(self, owner: str) -> bool:
        """End a visitor's job at its next token, and let none begin that waits; whether there was one."""
        with self._lock:
            self._awaited.pop(owner, None)
            job = self._running.get(owner)
        if job is not None:
            job.stop()
            job.wait(STOPPING)
        return job is not None

    def is_busy(self, owner: str) -> bool:
        """Whether a visitor has a request that runs or waits."""
        return owner in self._running or owner in self._awaited
