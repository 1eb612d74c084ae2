"""Memory as it is watched."""

import time
from mmap import mmap

import pytest
import torch

from training.benchmark.memory import CardMemory, MemoryPeak


def test_a_cpus_peak_is_what_was_taken_at_once() -> None:
    torch.ones(2**22)  # 16 MiB: once one of that size was freed, glibc takes the next ones from its heap,
    pieces = [torch.ones(2**22) for _ in range(16)]
    del pieces[:-1]  # which keeps what lies below the last one.
    peak = MemoryPeak(torch.device("cpu"), 0)
    large = mmap(-1, 2**28)
    torch.frombuffer(large, dtype=torch.uint8).fill_(1)
    large.close()
    peak.forget()
    middle = torch.ones(2**25)
    found = peak.bytes()
    assert found is None or 0.9 * middle.nbytes < found < 1.5 * middle.nbytes
    assert peak.reserved() is None


def test_the_memory_of_a_card_is_watched_while_another_process_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([900, 900, 400, 700])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (next(free, 850), 1000))
    with CardMemory() as memory:
        while memory.bytes != 500:
            time.sleep(0.01)
    assert memory.bytes == 500


def test_without_a_card_nothing_is_watched() -> None:
    with CardMemory() as memory:
        pass
    assert memory.bytes is None
