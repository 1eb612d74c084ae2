"""A first signal is a wish, a second one an order."""

import os
import signal

import pytest

from training import signals
from training.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
