"""From YAML and command line to typed configurations, by jsonargparse, with errors of one line."""

import difflib
import re
from dataclasses import asdict, fields
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace

from training.config import RunConfig
from training.errors import InputError

Config = TypeVar("Config", bound=RunConfig)

_UNKNOWN = (
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'"),
    re.compile(r"Option '(?P<key>[\w.]+)' is not accepted"),
    re.compile(r"unrecognized arguments: --(?P<key>[^\s=]+)"),
)


class StrictParser(ArgumentParser):
    """jsonargparse's parser with errors raised as an `InputError` of one line; an unknown option names its nearest."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as an `InputError`."""
        raise InputError(_one_line(message, self._valid_names())) from ex

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse, as jsonargparse does, and report a configuration file that is no text."""
        try:
            return super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            raise InputError(f"the configuration file is not UTF-8: {error}") from error

    def _valid_names(self) -> list[str]:
        return [name.removeprefix("--") for action in self._actions for name in action.option_strings]

    def build(self, config_class: type[Config], values: Namespace) -> Config:
        """The typed configuration among parsed values.

        Raises:
            InputError: A value is out of range.
        """
        built = self.instantiate(values)
        return config_class(**{field.name: built[field.name] for field in fields(config_class)})


def _one_line(message: str, valid_names: list[str]) -> str:
    """Put a message of the parser into one line, in our words where the parser shows Python's types."""
    message = " ".join(message.split())
    for pattern in _UNKNOWN:
        found = pattern.search(message)
        if found:
            key = ".".join(part for part in (found.groupdict().get("group"), found["key"]) if part)
            near = difflib.get_close_matches(key, valid_names, n=1)
            return f"unknown option {key}: " + (f"did you mean {near[0]}?" if near else "see --help")
    message = re.sub(r'Parser key "([\w.]+)": ', r"\1: ", message)
    message = re.sub(r"Expected a typing\.Literal\[(.*?)\]\. Got value: ", r"expected one of \1, got ", message)
    return re.sub(r"Expected a (?:<class '(\w+)'>|(.+?))\. Got value: ", r"expected \1\2, got ", message)


def parse_config_text(config_class: type[Config], text: str) -> Config:
    """Read a configuration from YAML.

    Raises:
        InputError: The text is not YAML, or has an unknown key or a bad value.
    """
    parser = StrictParser()
    parser.add_class_arguments(config_class)
    return parser.build(config_class, parser.parse_string(text))


def config_to_yaml(config: RunConfig) -> str:
    """A configuration as YAML, every field written out."""
    return yaml.safe_dump(asdict(config), sort_keys=False)
