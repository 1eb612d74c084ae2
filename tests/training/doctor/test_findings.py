"""Checks that fail or hang keep nobody waiting, and what others found is still told."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from training.doctor.findings import Check, Finding, examine
from training.runtime.errors import InputError

GOOD = Finding("disk", "good", "fast")


def test_ctrl_c_waits_for_what_computes() -> None:
    done, begun = threading.Event(), threading.Event()

    def look() -> Iterator[Finding]:
        begun.set()
        time.sleep(0.3)
        done.set()
        yield GOOD

    def interrupt() -> None:
        begun.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        list(examine(Check("threads", look), seconds=20))
    assert done.is_set()


def test_a_check_that_hangs_is_named_and_left_behind() -> None:
    def look() -> Iterator[Finding]:
        yield GOOD
        time.sleep(30)

    begin = time.monotonic()
    found = list(examine(Check("disk", look), seconds=0.2))
    assert time.monotonic() - begin < 5
    assert found == [GOOD, Finding("disk", "fault", "no answer in 0.2 s", "a run would hang here, too")]


@pytest.mark.parametrize("error", [InputError("no disk"), OSError("no disk"), RuntimeError("no\n   disk")])
@pytest.mark.parametrize("has_deadline", [False, True])
def test_an_error_is_found_beside_what_was_found_before(error: Exception, has_deadline: bool) -> None:
    def look() -> Iterator[Finding]:
        yield GOOD
        raise error

    assert list(examine(Check("disk", look, has_deadline))) == [GOOD, Finding("disk", "fault", "no disk")]


@pytest.mark.parametrize("has_deadline", [False, True])
def test_a_mistake_of_a_check_is_told_and_stops_no_other(has_deadline: bool) -> None:
    [finding] = examine(Check("disk", lambda: [GOOD][3], has_deadline))
    assert finding.status == "not checked"
    assert finding.measured == "the check itself fails, IndexError: list index out of range"


def test_lines_are_aligned() -> None:
    assert str(GOOD) == "good         disk         fast"
    assert str(Finding("file system", "not checked", "no NFS", "wait")) == "not checked  file system  no NFS: wait"
