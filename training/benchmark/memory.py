"""How much memory a training takes at most."""

import ctypes
import re
import threading
from contextlib import suppress
from pathlib import Path

import torch

WATCH_SECONDS = 0.02


class MemoryPeak:
    """The most memory that a training takes of its device.

    Of a GPU: what torch has allocated at most. Of a CPU: the peak of the process's resident memory over what it was as
    this was made, with the training's state, which was there already; Linux alone tells it, and what torch's allocator
    keeps for later counts too. Code that is first used meanwhile, a part of the resident memory, does not. Memory that
    was freed before goes back to the system first: what is taken of it again would look as if it had cost nothing.

    Args:
        device: What is trained on.
        state_bytes: Size of weights, optimizer and average.
    """

    def __init__(self, device: torch.device, state_bytes: int) -> None:
        self._device = device
        if device.type == "cpu":
            _release_freed()
        self._before = (_resident("RssAnon") or 0) - state_bytes

    def forget(self) -> None:
        """Count from here."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):  # Where it cannot be forgotten, the peak is that of the whole process.
                Path("/proc/self/clear_refs").write_text("5")

    def reserved(self) -> int | None:
        """The same with what torch's allocator has taken of a GPU to hand it out later; its context comes on top."""
        return torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None

    def bytes(self) -> int | None:
        """The peak since `forget`, or None where nobody tells."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak, code = _resident("VmHWM"), _resident("RssFile")
        return None if peak is None or code is None else peak - code - self._before


class CardMemory:
    """The most that is taken of a GPU's memory while this is entered, by another process say, over what was before.

    Attributes:
        bytes: How much; None where there is no GPU.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "CardMemory":
        if torch.cuda.is_available():
            self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._watcher.ident is not None:
            self._watcher.join()

    def _watch(self) -> None:
        before, self.bytes = torch.cuda.mem_get_info()[0], 0
        while not self._over.wait(WATCH_SECONDS):
            self.bytes = max(self.bytes, before - torch.cuda.mem_get_info()[0])


def _release_freed() -> None:
    """Give the system what this process has freed and its C library keeps; only glibc does it when asked."""
    with suppress(OSError, TypeError, AttributeError):  # TypeError: Windows names no library by None.
        ctypes.CDLL(None).malloc_trim(0)


def _resident(name: str) -> int | None:
    """A size in /proc/self/status, in bytes."""
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return None if found is None else 1024 * int(found[1])
    return None
