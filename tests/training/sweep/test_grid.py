"""From options with several values to settings and names of runs."""

import pytest

from training.runtime.errors import InputError
from training.sweep.grid import parse_grid, run_name, settings, words_of


def test_a_grid_is_all_combinations_with_the_last_option_fastest() -> None:
    grid = parse_grid(["optimizer.learning_rate=1e-3,3e-3", "--model.d_model=64, 128"])
    assert grid == {"optimizer.learning_rate": ["1e-3", "3e-3"], "model.d_model": ["64", "128"]}
    assert [tuple(setting.values()) for setting in settings(grid)] == [
        ("1e-3", "64"),
        ("1e-3", "128"),
        ("3e-3", "64"),
        ("3e-3", "128"),
    ]
    assert settings({}) == [{}]


def test_a_value_may_hold_a_comma_and_an_equals_sign() -> None:
    assert parse_grid(['a.b="query,value",all', "c=x=1"]) == {"a.b": ["query,value", "all"], "c": ["x=1"]}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a"], "expected OPTION=VALUE,VALUE as in .*, got 'a'"),
        (["a="], "expected OPTION=VALUE,VALUE"),
        (["=1"], "expected OPTION=VALUE,VALUE"),
        (["a=1,,2"], "expected OPTION=VALUE,VALUE"),
        (["a=1", "a=2"], "a is given twice"),
        (["a=1,2,1"], "a has a value twice"),
        (["seed=1,2"], "seed is not for a grid: say --seeds N"),
        (["output_dir=x"], "output_dir is not for a grid"),
        ([f"{name}={','.join(map(str, range(101)))}" for name in "ab"], "more than 10,000 settings"),
    ],
)
def test_what_is_no_grid_is_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"^grid: {message}"):
        parse_grid(texts)


def test_names_are_folders_and_no_two_are_alike() -> None:
    assert run_name({"optimizer.learning_rate": "1e-3"}, 2) == "learning_rate=1e-3,seed=2"
    assert run_name({}, 1) == "seed=1"
    assert run_name({"model.name": "a", "data.name": "b"}, 1) == "model.name=a,data.name=b,seed=1"
    odd = [run_name({"data.source": source}, 1) for source in ("a/b", "a b", "a_b", "x" * 300, "x" * 301)]
    assert len(set(odd)) == len(odd)
    assert all(set("/ ").isdisjoint(name) and len(name) < 200 for name in odd)
    assert odd[2] == "source=a_b,seed=1"


def test_options_are_typed_so_that_a_value_is_never_taken_for_an_option() -> None:
    assert words_of({"a.b": "--c"}, 3) == ["--a.b=--c", "--seed=3"]
