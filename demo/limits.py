"""What a visitor may ask for: everything that comes from outside is checked here, whatever the page has checked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.runtime.errors import InputError

TEMPERATURE = 0.0, 10.0
MAX_TOP_K = 10**6
SHARE = 0.0, 1.0
"""Of top-p and min-p."""
PENALTY = 0.1, 10.0
MAX_SEED = 2**53
"""Integers of JavaScript are exact up to here."""
MAX_NAME = 64
"""Characters of the name that a page gives its visitor."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one request.

    Attributes:
        prompt_characters: Longest prompt or source.
        stop_characters: Longest stop string.
        new_tokens: Tokens of a text at most, and of a pass of the benchmark.
        texts: Texts of a request at most.
        beams: Widest beam search.
        runs: Runs whose curves are shown at once, at most.
        seconds: Time that a request may take before it ends with what it has.
    """

    prompt_characters: int = 8_000
    stop_characters: int = 100
    new_tokens: int = 2_000
    texts: int = 8
    beams: int = 16
    runs: int = 8
    seconds: float = 120.0


def integer(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from `low` to `high`, or an `InputError`; a page sends 3.0 for 3."""
    whole = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and value == int(value))
    if isinstance(value, bool) or not whole:
        raise InputError(f"{name} must be a whole number from {low:,} to {high:,}, got {shown(value)}")
    if not low <= value <= high:
        raise InputError(f"{name} must be at least {low:,} and at most {high:,}, got {shown(int(value))}")
    return int(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    """A finite number from `low` to `high`, or an `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name} must be a number from {low:g} to {high:g}, got {shown(value)}")
    return float(value)


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of some words, or an `InputError`."""
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed) or 'none'}, got {shown(value)}")
    return value


def switch(name: str, value: Any) -> bool:
    """True or false, or an `InputError`."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {shown(value)}")
    return value


def text(name: str, value: Any, max_length: int) -> str:
    """A text of up to `max_length` characters, or an `InputError`; nothing is taken for an empty one."""
    value = "" if value is None else value
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, got {shown(value)}")
    if len(value) > max_length:
        raise InputError(f"{name} has {len(value):,} characters, at most {max_length:,} are allowed")
    return value


def shown(value: Any, max_length: int = 40) -> str:
    """A value in a message: short, on one line."""
    shown = repr(value)
    return shown if len(shown) <= max_length else f"{shown[: max_length - 1]}…"
