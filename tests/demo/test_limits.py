"""Nothing from outside gets past the limits."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from demo import limits
from training.runtime.errors import InputError


def test_what_is_allowed_passes() -> None:
    assert limits.integer("n", 3.0, 1, 5) == 3
    assert isinstance(limits.integer("n", 3.0, 1, 5), int)
    assert limits.number("n", 1, 0, 1) == 1.0
    assert limits.choice("c", "a", ["a", "b"]) == "a"
    assert limits.switch("s", False) is False
    assert limits.text("t", None, 3) == ""
    assert limits.text("t", "abc", 3) == "abc"


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: limits.integer("n", 6, 1, 5), "n must be at least 1 and at most 5, got 6"),
        (lambda: limits.integer("n", 10**400, 1, 5), "n must be at least 1 and at most 5, got 10{38}…$"),
        (lambda: limits.integer("n", 1.5, 1, 5), "n must be a whole number from 1 to 5, got 1.5"),
        (lambda: limits.integer("n", math.nan, 1, 5), "n must be a whole number from 1 to 5, got nan"),
        (lambda: limits.integer("n", math.inf, 1, 5), "n must be a whole number from 1 to 5, got inf"),
        (lambda: limits.integer("n", True, 1, 5), "n must be a whole number from 1 to 5, got True"),
        (lambda: limits.integer("n", "3", 1, 5), "n must be a whole number from 1 to 5, got '3'"),
        (lambda: limits.integer("n", None, 1, 5000), "n must be a whole number from 1 to 5,000, got None"),
        (lambda: limits.number("n", math.nan, 0, 1), "n must be a number from 0 to 1, got nan"),
        (lambda: limits.number("n", -0.1, 0, 1), "n must be a number from 0 to 1, got -0.1"),
        (lambda: limits.number("n", [1], 0, 1), r"n must be a number from 0 to 1, got \[1\]"),
        (lambda: limits.choice("c", "../x", ["a", "b"]), "c must be one of a, b, got '../x'"),
        (lambda: limits.choice("c", ["a"], ["a"]), r"c must be one of a, got \['a'\]"),
        (lambda: limits.switch("s", 1), "s must be true or false, got 1"),
        (lambda: limits.text("t", "abcd", 3), "t has 4 characters, at most 3 are allowed"),
        (lambda: limits.text("t", {"a": "b" * 99}, 3), r"t must be text, got \{'a': 'b+…"),
    ],
)
def test_all_else_is_named(check: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        check()


def test_both_ends_of_a_range_are_in_it_and_true_is_no_number() -> None:
    for end in (1, 5):
        assert limits.integer("n", end, 1, 5) == limits.number("n", end, 1, 5) == end
    with pytest.raises(InputError, match="^n must be a number from 0 to 1, got True$"):
        limits.number("n", True, 0, 1)
