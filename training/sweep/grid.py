"""The settings of a sweep: all combinations of the values that a grid has for options."""

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod

from training.config.fields import shown
from training.runtime.errors import InputError

MAX_SETTINGS = 10_000
_OWN = {"seed": "--seeds N", "name": "--output_dir", "output_dir": "--output_dir", "config": "--config"}
"""Options that a sweep gives itself, and what is to be said instead."""
_MAX_NAME = 120

Setting = dict[str, str]
"""Options by full names, each with its value as it is typed."""


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read `OPTION=VALUE,VALUE,…` for each of several options; a value with a comma stands in double quotes.

    Raises:
        InputError: One cannot be read, or says an option or a value twice.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        name, separator, listed = text.removeprefix("--").partition("=")
        values = next(csv.reader([listed], skipinitialspace=True), [])
        if not separator or not name or not values or "" in values:
            raise InputError(f"grid: expected OPTION=VALUE,VALUE as in optimizer.learning_rate=1e-3,3e-3, got {text!r}")
        if name in _OWN:
            raise InputError(f"grid: {name} is not for a grid: say {_OWN[name]}")
        if name in grid:
            raise InputError(f"grid: {name} is given twice")
        if len(set(values)) < len(values):
            raise InputError(f"grid: {name} has a value twice: {shown(listed)}")
        grid[name] = values
    if prod(map(len, grid.values())) > MAX_SETTINGS:
        raise InputError(f"grid: more than {MAX_SETTINGS:,} settings")
    return grid


def settings(grid: Mapping[str, Sequence[str]]) -> list[Setting]:
    """All combinations, the last option varying fastest; of no grid the one that changes nothing."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def run_name(setting: Setting, seed: int, *, in_full: bool = False) -> str:
    """What the run of a setting and a seed is called, and its folder: `learning_rate=1e-3,seed=1`.

    Args:
        setting: Of the run.
        seed: Of the run.
        in_full: Write the options with their sections.
    """
    leaves = [name.rpartition(".")[2] for name in setting]
    words = [
        f"{leaf if leaves.count(leaf) == 1 and not in_full else name}={value}"
        for leaf, (name, value) in zip(leaves, setting.items(), strict=True)
    ]
    full = ",".join([*words, f"seed={seed}"])
    name = re.sub(r"[^\w.+=,-]", "_", full, flags=re.ASCII)
    if name == full and len(name) <= _MAX_NAME:
        return name
    # What a folder's name cannot hold still tells two runs apart.
    return f"{name[:_MAX_NAME]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def words_of(setting: Setting, seed: int) -> list[str]:
    """A setting and a seed as options of a command line."""
    return [*(f"--{name}={value}" for name, value in setting.items()), f"--seed={seed}"]
