"""Ctrl-C and SIGTERM as a wish to stop after the step."""

import os
import signal
import sys
import time
from types import FrameType, TracebackType

REPEAT_SECONDS = 1.0
"""A second signal within this time is the same wish: on Ctrl-C a terminal and a launcher may each send one."""


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is only noted in `received`; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), b"\nstopping, with a checkpoint; the same again ends the run at once\n")
        elif time.monotonic() - self._received_at >= REPEAT_SECONDS:
            # Nothing is tidied up: that could take its time, and what was saved is whole on the disk.
            os._exit(128 + number)
