"""A first signal is a stop request, a second one an order."""

import os
import signal
from collections.abc import Iterator

import pytest

from training.runtime import signals
from training.runtime.signals import StopSignals


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_and_one_at_once_after_it_is_the_same(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_later_one_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)
    with StopSignals():
        signal.raise_signal(signal.SIGTERM)
        assert codes == []
        signal.raise_signal(number)
    assert codes == [128 + number]


def test_a_terminal_that_closes_twice_gives_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert stop.received == signal.SIGHUP
    assert codes == []


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.received is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
