"""From YAML and the command line to typed configurations: argparse over the dataclasses, with errors of one line.

Names and types are checked here, ranges by the configurations themselves.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, fields
from functools import reduce
from itertools import groupby, takewhile
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_type_hints

import yaml

from training.config.fields import Kind, one_line, options_of, shown
from training.config.plain_yaml import dump_yaml, load_yaml
from training.config.sections import RunConfig, Section
from training.runtime.errors import InputError
from training.storage.reading import FileError, read_text

Config = TypeVar("Config", bound=RunConfig)


class Namespace(argparse.Namespace):
    """Values of options; those of a section in a `Namespace` of its own: `x.data.source` is `x["data.source"]`."""

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            section, dot, leaf = name.rpartition(".")
            setattr(vars(self).setdefault(section, Namespace()) if dot else self, leaf, value)

    def __getitem__(self, name: str) -> Any:
        return reduce(getattr, name.split("."), self)


class StrictParser(argparse.ArgumentParser):
    """argparse's parser with errors raised as an `InputError` of one line; an unknown option names its nearest."""

    def __init__(self, **options: Any) -> None:
        super().__init__(add_help=False, allow_abbrev=False, **options)
        self._kinds: dict[str, Kind] = {}
        """What a configuration may say, by full names."""
        self._older: dict[str, str] = {}
        """Names that older configurations have, and those of now."""
        self.register("action", "config", _ReadConfig)
        super().add_argument("-h", "--help", action="store_true", help="Show this help message and exit.")

    def error(self, message: str) -> NoReturn:
        """Raise the message as an `InputError`."""
        raise InputError(one_line(re.sub(r"^argument (?:-h/)?--", "", message)))

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Add an option, as argparse does. The action "config" reads a file of options, and adds --print_config."""
        if "choices" in options:
            options["type"] = Literal[tuple(options.pop("choices"))]
        if "type" in options:
            options = _typed(names[0], Kind(options.pop("type")), **options)
        action = super().add_argument(*names, **options)
        if isinstance(action, _ReadConfig):
            super().add_argument("--print_config", action="store_true", help="Print the configuration and exit.")
        elif action.nargs is None:
            self._kinds[action.dest] = options["type"]
        elif action.nargs == 0:
            self._kinds[action.dest] = Kind(bool)
        return action

    def add_class_arguments(self, config_class: type[Section], skip: Collection[str] = ()) -> None:
        """Add the fields of a configuration as options, those of a section as a group."""
        wanted = (option for option in options_of(config_class) if option.name not in skip)
        for owner, options in groupby(wanted, lambda option: option.owner):
            group = self.add_argument_group((owner.__doc__ or "").partition("\n")[0].rstrip("."))
            names = owner.older_names.items()
            self._older |= {f"{owner.section}.{older}": f"{owner.section}.{name}" for older, name in names}
            for name, _, kind, default, meaning, _ in options:
                group.add_argument(f"--{name}", **_typed(name, kind, default=default, help=meaning))
                self._kinds[name] = kind

    def get_defaults(self) -> Namespace:
        """The values of options that are not given."""
        return Namespace(**{action.dest: action.default for action in self._actions})

    def parse_args(self, args: Sequence[str] | None = None) -> Namespace:  # type: ignore[override]
        """Parse, and answer --help and --print_config.

        Raises:
            InputError: An option is unknown or has a value of the wrong type, or the configuration file is no good.
        """
        values = self.parse_only(sys.argv[1:] if args is None else args)
        if values.help:  # With what is given, and what a configuration file says.
            self.set_defaults(**{name: shown(values[name]) for name in self._kinds})
            self.print_help()
            self.exit()
        if "print_config" in values and values.print_config:
            tops = dict.fromkeys(name.partition(".")[0] for name in self._kinds)
            tree = {name: vars(v) if isinstance(v := values[name], Namespace) else v for name in tops}
            print(dump_yaml(tree), end="")
            self.exit()
        return values

    def parse_only(self, args: Sequence[str]) -> Namespace:
        """Parse; whether --help and --print_config are asked for is among the values. Errors as of `parse_args`."""
        for argument in takewhile(lambda argument: argument != "--", args):
            name = argument.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in self._option_string_actions:
                self._refuse(name[2:])
            if argument == f"{name}=--":  # Which argparse drops, and takes a list of nothing for the value.
                self.error(f"{name.lstrip('-')}: expected one argument")
        required = [action for action in self._actions if action.required and {"-h", "--help"} & set(args)]
        for action in required:
            action.required = False  # For the help, that is.
        values, others = self.parse_known_args(args)
        for action in required:
            action.required = True
        if others:  # Which the shell may have made of one value.
            hint = "put a value with spaces, or a pattern such as '*.txt', in quotes"
            self.error(f"unrecognized arguments: {' '.join(others)}: {hint}")
        return Namespace(**vars(values))

    def read_config(self, text: str) -> dict[str, Any]:
        """The values of a configuration in YAML, by full names.

        Raises:
            InputError: The text is not plain YAML, or has an unknown name or a value of the wrong type.
        """
        try:
            content = load_yaml(text)
        except yaml.YAMLError as error:
            problem = str(error).replace('in "<unicode string>", ', "at ")
            self.error(f"the configuration is not plain YAML: {problem}")
        if not isinstance(content, dict):
            self.error(f"a configuration is made of lines such as seed: 1, got {shown(content)}")
        values = dict(self._leaves(content))
        for older, name in self._older.items():
            if older in values and name not in values:
                values[name] = values.pop(older)
        for name, value in values.items():
            if name not in self._kinds:
                self._refuse(name)
            try:
                if value is not None or self.get_default(name) is not None:
                    values[name] = self._kinds[name].checked(value)
            except argparse.ArgumentTypeError as error:
                self.error(f"{name}: {error}")
        return values

    def build(self, config_class: type[Config], values: Namespace) -> Config:
        """The typed configuration among parsed values.

        Raises:
            InputError: A value is out of range.
        """
        classes = get_type_hints(config_class)
        parts = {field.name: values[field.name] for field in fields(config_class)}
        built = {name: classes[name](**vars(part)) for name, part in parts.items() if isinstance(part, Namespace)}
        return config_class(**(parts | built))

    def _sections(self) -> set[str]:
        return {name.rpartition(".")[0] for name in self._kinds} - {""}

    def _leaves(self, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """The full names of options in a configuration, with their values."""
        sections = self._sections()
        for name, value in content.items():
            section = name.rpartition(".")[0]
            if section in sections:
                self.error(f"{shown(name)}: in a configuration, write {section} as a section of its own")
            if name in sections and not isinstance(value, dict):
                self.error(f"{name}: expected a section with options of its own, got {shown(value)}")
            if isinstance(value, dict) and (value or name in sections):
                yield from ((f"{name}.{leaf}", inner) for leaf, inner in value.items())
            else:
                yield name, value

    def _refuse(self, name: str) -> NoReturn:
        """Say that there is no such option, and which one may be meant."""
        if name in self._sections():
            self.error(f"{name} is a section: give its options one by one, --{name}.NAME VALUE")
        options = {option[2:] for option in self._option_string_actions if option.startswith("--")}
        near = difflib.get_close_matches(name, options - {name}, n=1)
        self.error(f"unknown option {shown(name)}: {f'did you mean {near[0]}?' if near else 'see --help'}")


class _ReadConfig(argparse.Action):
    """Reads a configuration file; options after it change what it says."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        try:
            vars(namespace).update(parser.read_config(read_text(Path(values))))
        except InputError as error:
            parser.error(str(error) if isinstance(error, FileError) else f"{values}: {error}")
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), values])


def _typed(name: str, kind: Kind, **options: Any) -> dict[str, Any]:
    """What argparse is to know of an option, with a help that says what it may be, and its default."""
    nullable = NoneType in kind.types
    others = tuple(other.__name__ for other in kind.types if other is not NoneType)
    choices = (*kind.words, *others) if kind.words else ("true", "false") * (bool in kind.types)
    metavar = f"{{{','.join(choices)}{',null' * nullable}}}" if choices else re.split("[-.]", name)[-1].upper()
    notes = [] if choices else [f"type: {kind}"]
    if nullable or options.get("default") is not None:
        notes.append("default: %(default)s")
    meaning = options.pop("help", "").replace("%", "%%")
    return {"type": kind, "metavar": metavar, "help": f"{meaning} ({', '.join(notes)})" if notes else meaning} | options


def given_options(arguments: Sequence[str]) -> set[str]:
    """The names of the options of a command line."""
    return {argument.partition("=")[0][2:] for argument in arguments if argument.startswith("--")}


def parse_config_text(config_class: type[Config], text: str) -> Config:
    """Read a configuration from YAML.

    Raises:
        InputError: The text is not YAML, or has an unknown key or a bad value.
    """
    parser = StrictParser()
    parser.add_class_arguments(config_class)
    parser.set_defaults(**parser.read_config(text))
    return parser.build(config_class, parser.get_defaults())


def config_to_yaml(config: RunConfig) -> str:
    """A configuration as YAML, every field written out."""
    return dump_yaml(asdict(config))
