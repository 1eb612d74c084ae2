"""Processes that are started again meet those that live, and none that is gone."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from training.runtime import rendezvous
from training.runtime.errors import InputError


@pytest.fixture(autouse=True)
def short_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "MOMENT", 0.05)


def together(*calls: Callable[[], int]) -> list[int]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_all_meet_under_one_number_and_next_time_under_another() -> None:
    store = HashStore()
    ranks = [lambda: rendezvous._open(store, 3, 5.0), lambda: rendezvous._join(store, 1, 5.0)]
    for number in (1, 2):
        assert together(*ranks, lambda: rendezvous._join(store, 2, 5.0)) == [number] * 3


def test_who_is_started_again_waits_for_the_next_rendezvous() -> None:
    """Its predecessor has been at the last one, or has died before that was held."""
    for held in (True, False):
        store = HashStore()
        store.add("rendezvous count", 1)
        store.set("rendezvous", "1")
        store.set("1/1", "predecessor")
        if held:
            store.set("1/names", "predecessor")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(rendezvous._join, store, 1, 5.0)
            while store.get("1/1") == b"predecessor":
                time.sleep(0.01)
            time.sleep(2 * rendezvous.MOMENT)
            assert not waiting.done()
            assert rendezvous._open(store, 2, 5.0) == 2
            assert waiting.result() == 2


def test_who_does_not_come_is_named() -> None:
    store = HashStore()
    store.set("1/2", "there")
    with pytest.raises(InputError, match=r"^rank 1, 3 of 4 did not come within 0\.1 s: start the same command on"):
        rendezvous._open(store, 4, 0.1)
    with pytest.raises(InputError, match=r"^rank 0 did not come within 0\.1 s: "):
        rendezvous._join(HashStore(), 1, 0.1)
    assert rendezvous._open(HashStore(), 1, 0.1) == 1
