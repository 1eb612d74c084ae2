"""Sweep files of Weights & Biases, read without its service: as the command line of a sweep of ours."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.runtime.errors import InputError
from training.storage.reading import read_yaml

_PASSED_OVER = ("name", "description", "project", "entity")
"""What a file may say for the service alone."""
_KNOWN = ("program", "command", "method", "metric", "parameters")


def read_words(file: Path) -> list[str]:
    """The options of `launch/sweep.py` that do what a file of W&B asks for.

    Raises:
        InputError: The file cannot be read, or asks for what only the service does.
    """
    content = read_yaml(file)
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
        raise InputError(f"{file}: expected a sweep of Weights & Biases, with a section parameters")
    for name in content:
        if name not in (*_KNOWN, *_PASSED_OVER):
            raise InputError(f"{file}: {name} is done by the service of Weights & Biases alone: leave it out")
    if content.get("method") != "grid":
        raise InputError(f"{file}: method must be grid, which needs no service, got {content.get('method')!r}")
    words = [*_command(file, content.get("command")), *_metric(file, content.get("metric"))]
    for name, parameter in content["parameters"].items():
        values = _values(file, name, parameter)
        words += _seeds(file, values) if name == "seed" else ["--grid", f"{name}={_listed(values)}"]
    return words


def _command(file: Path, command: Any) -> list[str]:
    """The options that stand in the command itself, behind the program."""
    words = [str(word) for word in command] if isinstance(command, list) else []
    if "--config" not in words or "${program}" not in words or words[-1] != "${args}":
        raise InputError(f"{file}: command must be a list with ${{program}}, --config, FILE, and ${{args}} at its end")
    return words[words.index("${program}") + 1 : -1]


def _metric(file: Path, metric: Any) -> list[str]:
    if metric is None:
        return []
    if not isinstance(metric, dict) or metric.get("goal", "minimize") != "minimize":
        raise InputError(f"{file}: metric must have a name, and the goal minimize")
    return ["--metric", str(metric.get("name"))]


def _values(file: Path, name: str, parameter: Any) -> list[str]:
    """The values of a parameter, as they are typed."""
    if isinstance(parameter, Mapping) and set(parameter) == {"value"}:
        parameter = {"values": [parameter["value"]]}
    if not isinstance(parameter, Mapping) or set(parameter) != {"values"}:
        parameter = {"values": None}
    if not isinstance(parameter["values"], list) or not parameter["values"]:
        raise InputError(f"{file}: parameters.{name}: expected values (a list) or value, as a grid has them")
    if any(not isinstance(value, str | int | float) for value in parameter["values"]):
        raise InputError(f"{file}: parameters.{name}: expected numbers, texts, true or false (W&B types null as None)")
    return [str(value).lower() if isinstance(value, bool) else str(value) for value in parameter["values"]]


def _listed(values: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


def _seeds(file: Path, values: list[str]) -> list[str]:
    if not all(value.isdecimal() for value in values) or [int(v) for v in values] != [
        int(values[0]) + index for index in range(len(values))
    ]:
        raise InputError(f"{file}: parameters.seed: expected whole numbers in a row, such as [1, 2, 3]")
    return ["--seed", values[0], "--seeds", str(len(values))]
