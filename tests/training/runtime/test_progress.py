"""What is said while something long is read."""

import pytest

from training.runtime import progress
from training.runtime.progress import Reading


def test_a_line_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Reading("tokenising", 400_000_000) as reading, Reading("reading the text") as unknown:
        for _ in range(7):
            now[0] += 4
            reading.advance(50_000_000)
            unknown.advance(10_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "tokenising: 150 MB of 400 MB, 00:20 left",
        "reading the text: 30 MB",
        "tokenising: 300 MB of 400 MB, 00:08 left",
        "reading the text: 60 MB",
    ]


def test_other_processes_than_the_first_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Reading("tokenising", 10) as reading:
        reading.advance(5)
    assert capsys.readouterr().err == ""
