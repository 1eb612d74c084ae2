"""What it takes to write a checkpoint while the run goes on: a copy of its tensors, and a thread."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from training.storage.tensor_file import file_order

if TYPE_CHECKING:
    from torch import Tensor

NICENESS = 10
"""Of the thread: the training's own come first where there are not enough cores for all."""


class Snapshot:
    """The values that tensors had at one moment, in memory that the next snapshot takes again."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, Tensor]] = {}

    def take(
        self, groups: "Mapping[str, Mapping[str, Tensor]]", values: "Iterator[Tensor]"
    ) -> "Mapping[str, Mapping[str, Tensor]]":
        """Copy tensors.

        Args:
            groups: For each file its tensors, which are the same ones every time.
            values: Their values, as `wholes` gives them.
        """
        for name, tensors in groups.items():
            kept = self._groups.setdefault(name, {})
            for key in file_order(tensors):
                value = next(values)
                kept[key] = kept[key].copy_(value) if key in kept else value.clone()
        return self._groups


class Background:
    """Does one thing at a time in a thread of its own."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[object] | None = None

    def start(self, action: Callable[[], object]) -> None:
        """Begin; what was begun before was waited for."""
        assert self._pending is None
        self._pool = self._pool or ThreadPoolExecutor(1, "checkpoint", _give_way)
        self._pending = self._pool.submit(action)

    def wait(self) -> None:
        """Wait for the end of what was begun; raises as that does, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait as `wait` does, and end the thread."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None


def _give_way() -> None:
    if sys.platform == "linux":  # Elsewhere a priority is that of all threads; those begun by this one inherit it.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
