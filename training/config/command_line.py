"""From YAML and command line to typed configurations, by jsonargparse, with errors of one line.

jsonargparse is lenient where we are strict: it skips nulls, reads numbers from quoted text and sections from other
files, and looks for classes to import. So names and types are checked before it sees them. Ranges are checked by the
configurations themselves.
"""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from itertools import zip_longest
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace, set_dumper, set_loader

from training.config.plain_yaml import dump_yaml, load_yaml
from training.config.sections import RunConfig
from training.runtime.errors import InputError

Config = TypeVar("Config", bound=RunConfig)


def _load(text: str) -> Any:
    """Read YAML. jsonargparse reads quoted text once more, and would take "#" for a comment, and so for null."""
    value = load_yaml(text)
    return text if value is None and text.startswith("#") and "\n" not in text else value


set_loader("plain_yaml", _load, exceptions=(yaml.YAMLError,))
set_dumper("plain_yaml", dump_yaml)


class StrictParser(ArgumentParser):
    """jsonargparse's parser with errors raised as an `InputError` of one line; an unknown option names its nearest."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, parser_mode="plain_yaml", **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as an `InputError`."""
        if message.startswith("unrecognized arguments"):  # which the shell made of one value
            message += ": put a value with spaces, or a pattern such as '*.txt', in quotes"
        raise InputError(_one_line(message)) from ex

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """Add the fields of a class as options. The help leaves out those for a whole section, which are refused."""
        added = super().add_class_arguments(*args, **kwargs)
        sections = self._sections()
        for action in self._actions:
            if action.dest in sections:
                action.help = argparse.SUPPRESS
        return added

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *more: Any, **kwargs: Any
    ) -> Namespace:
        """Parse, as jsonargparse does, after a check of names and types.

        Raises:
            InputError: An option is unknown or has a value of the wrong type, or the configuration file is no good.
        """
        args = sys.argv[1:] if args is None else args
        self._check_options(args)
        try:
            return super().parse_args(args, *more, **kwargs)
        except UnicodeDecodeError as error:
            raise InputError(f"the configuration file is not UTF-8: {error}") from error

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Parse YAML, as jsonargparse does, after a check of names and types. Configuration files come here, too.

        Raises:
            InputError: The text is not plain YAML, or has an unknown name or a value of the wrong type.
        """
        try:
            values = load_yaml(content)
        except yaml.YAMLError as error:
            problem = str(error).replace('in "<unicode string>", ', "at ")
            raise InputError(_one_line(f"the configuration is not plain YAML: {problem}")) from error
        if not isinstance(values, dict):
            raise InputError(f"a configuration is made of lines such as seed: 1, got {_shown(values)}")
        for name, value in _leaves(values, self._sections()):
            self._check(name, value)
        return super().parse_string(content, *args, **kwargs)

    def build(self, config_class: type[Config], values: Namespace) -> Config:
        """The typed configuration among parsed values.

        Raises:
            InputError: A value is out of range.
        """
        built = self.instantiate(values)
        return config_class(**{field.name: built[field.name] for field in fields(config_class)})

    def _types(self) -> dict[str, Any]:
        """What each option may be, by its full name. One that is null unless given may say so, too."""
        types: dict[str, Any] = {}
        for action in self._actions:
            if action.nargs == 0 and action.const is True:
                types[action.dest] = bool
            elif hasattr(action, "_typehint"):
                types[action.dest] = action._typehint if action.default is not None else action._typehint | None
        return types

    def _sections(self) -> set[str]:
        return {name.rpartition(".")[0] for name in self._types()} - {""}

    def _check_options(self, args: Sequence[str]) -> None:
        """Check the arguments that look like `--name value` or `--name=value`, up to a bare `--`."""
        types, sections = self._types(), self._sections()
        for argument, following in zip_longest(args, args[1:]):
            name, equals, value = argument.partition("=")
            if argument == "--":
                return
            if not name.startswith("--") or " " in name:
                continue
            name, text = name[2:], value if equals else following
            action = self._option_string_actions.get(f"--{name}")
            if action is None or name in sections:
                self._refuse(name)
            if name in types and action.nargs != 0 and text is not None:
                self._check(name, _read(text, types[name]))

    def _check(self, name: str, value: Any) -> None:
        types = self._types()
        if name not in types:
            self._refuse(name)
        if not _fits(value, types[name]):
            raise InputError(f"{name}: expected {_described(types[name])}, got {_shown(value)}")

    def _refuse(self, name: str) -> NoReturn:
        """Say that there is no such option, and which one may be meant."""
        if name in self._sections():
            raise InputError(f"{name} is a section: give its options one by one, --{name}.NAME VALUE")
        options = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        near = difflib.get_close_matches(name, set(options) - self._sections() - {name}, n=1)
        raise InputError(f"unknown option {_shown(name)}: {f'did you mean {near[0]}?' if near else 'see --help'}")


def _leaves(values: dict[str, Any], sections: set[str]) -> Iterator[tuple[str, Any]]:
    """The full names of options in a configuration, with their values."""
    for name, value in values.items():
        section, dot, _ = name.rpartition(".")
        if dot and section in sections:
            raise InputError(f"{_shown(name)}: in a configuration, write {section} as a section of its own")
        if name in sections and not isinstance(value, dict):
            raise InputError(f"{name}: expected a section with options of its own, got {_shown(value)}")
        if isinstance(value, dict) and (value or name in sections):
            yield from ((f"{name}.{inner}", inner_value) for inner, inner_value in value.items())
        else:
            yield name, value


def _read(text: str, annotation: Any) -> Any:
    """What the text of an option stands for."""
    if annotation is str or str in get_args(annotation) or not text.strip():
        return text
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of an annotation's type. Of annotations other than a configuration's, jsonargparse decides."""
    if get_origin(annotation) is Literal:
        return isinstance(value, str) and value in get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return any(_fits(value, choice) for choice in get_args(annotation))
    if annotation is float:
        return type(value) in (int, float)
    return annotation not in (bool, int, str, NoneType) or type(value) is annotation


def _described(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(repr, get_args(annotation)))}"
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(map(_described, get_args(annotation)))
    return "null" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    text = dump_yaml(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return _one_line(text.removesuffix("\n...\n"), max_length=80)


def _one_line(message: str, max_length: int = 300) -> str:
    """Put a message into one line of printable characters, without its middle where it is too long."""
    message = re.sub(r'Parser key "([\w.]+)": ', r"\1: ", " ".join(message.split()))
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    return message if len(message) <= max_length else f"{message[: max_length - 43]} … {message[-40:]}"


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
    return dump_yaml(asdict(config))
