"""Ctrl-C, SIGTERM and a closed terminal as a request to stop after the step."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

REPEAT_SECONDS = 1.0
"""A second signal within this time is the same stop request: on Ctrl-C a terminal and a launcher may each send one."""

HINT = b"\nstopping, with a checkpoint; the same again ends the run at once\n"


class StopSignals:
    """While entered, the first signal is only noted in `received`; a second SIGINT or SIGTERM ends the process at once.

    SIGHUP, which a terminal sends as it closes, is no order: a shell and the kernel may both send it. Where it was
    ignored from the start, as under `nohup`, it stays so. Outside the main thread signals are left as they are: Python
    has them handled in that one alone.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> "StopSignals":
        in_main_thread = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if in_main_thread else ():
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
            with suppress(OSError):  # The terminal may be the one that goes.
                if sys.stderr.isatty() and number != signal.SIGHUP:
                    os.write(sys.stderr.fileno(), HINT)
        elif number != signal.SIGHUP and time.monotonic() - self._received_at >= REPEAT_SECONDS:
            # Nothing is tidied up: that could take its time, and what was saved is whole on the disk.
            os._exit(128 + number)
