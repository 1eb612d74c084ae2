"""Processes that are started again meet those that live, and none that is gone."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from training.runtime import meeting
from training.runtime.errors import InputError


@pytest.fixture(autouse=True)
def short_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "MOMENT", 0.05)


def together(*calls: Callable[[], int]) -> list[int]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_all_meet_under_one_number_and_next_time_under_another() -> None:
    store = HashStore()
    ranks = [lambda: meeting._call(store, 3, 5.0), lambda: meeting._come(store, 1, 5.0)]
    for number in (1, 2):
        assert together(*ranks, lambda: meeting._come(store, 2, 5.0)) == [number] * 3


def test_who_is_started_again_waits_for_the_next_meeting() -> None:
    """Its predecessor has been at the last one, or has died before that was held."""
    for held in (True, False):
        store = HashStore()
        store.add("meetings", 1)
        store.set("meeting", "1")
        store.set("1/1", "predecessor")
        if held:
            store.set("1/names", "predecessor")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(meeting._come, store, 1, 5.0)
            while store.get("1/1") == b"predecessor":
                time.sleep(0.01)
            time.sleep(2 * meeting.MOMENT)
            assert not waiting.done()
            assert meeting._call(store, 2, 5.0) == 2
            assert waiting.result() == 2


def test_who_does_not_come_is_named() -> None:
    store = HashStore()
    store.set("1/2", "there")
    with pytest.raises(InputError, match=r"^rank 1, 3 of 4 did not come within 0\.1 s: start the same command on"):
        meeting._call(store, 4, 0.1)
    with pytest.raises(InputError, match=r"^rank 0 did not come within 0\.1 s: "):
        meeting._come(HashStore(), 1, 0.1)
    assert meeting._call(HashStore(), 1, 0.1) == 1
