"""The options that the fields of configurations make: what each may be, its default, and what it means."""

import inspect
import math
import re
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from training.config.plain_yaml import dump_yaml, load_yaml
from training.config.sections import OnResume, Section


class Kind:
    """What an option may be: a bool, int, float, str, one of some words (a Literal), None, or a union of these."""

    def __init__(self, annotation: Any) -> None:
        parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        self.words = tuple(word for part in parts for word in get_args(part))
        self.types = tuple(part for part in parts if get_origin(part) is not Literal)

    def __str__(self) -> str:
        words = [f"one of {', '.join(map(repr, self.words))}"] if self.words else []
        return " or ".join([*words, *("null" if kind is NoneType else kind.__name__ for kind in self.types)])

    def __call__(self, text: str) -> Any:
        """The value that is typed as `text`: a word, or plain YAML; where text is allowed all is text, save null."""
        value: Any = text
        if str in self.types or not {*self.types} - {NoneType}:
            value = None if NoneType in self.types and text in ("null", "Null", "NULL", "~") else text
        elif text.strip() and text not in self.words:
            with suppress(yaml.YAMLError):
                value = load_yaml(text)
        return self.checked(value)

    def checked(self, value: Any) -> Any:
        """The value, as a float where it is one; an `ArgumentTypeError` where it is none of what it may be."""
        if type(value) is int and float in self.types:
            return float(value)
        if type(value) in self.types or (type(value) is str and value in self.words):
            return value
        raise ArgumentTypeError(f"expected {self}, got {shown(value)}")


class Option(NamedTuple):
    """An option of a configuration: its name (section.field), the class that it is a field of, and what that says."""

    name: str
    owner: type[Section]
    kind: Kind
    default: Any
    meaning: str
    on_resume: OnResume


def options_of(owner: type[Section], prefix: str = "") -> Iterator[Option]:
    """The options of a configuration's class, or of a section's, each section's together."""
    annotations, meanings = get_type_hints(owner), _meanings(owner)
    own = sorted(fields(owner), key=lambda field: _is_section(annotations[field.name]))
    for field in own:  # Sections come last, whatever a class that derives from another adds.
        annotation, name = annotations[field.name], prefix + field.name
        if _is_section(annotation):
            yield from options_of(annotation, f"{name}.")
        else:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            on_resume = field.metadata.get("on_resume", owner.on_resume)
            yield Option(name, owner, Kind(annotation), default, meanings.get(field.name, ""), on_resume)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _meanings(owner: type) -> dict[str, str]:
    """What the docstrings of a class, and of those that it derives from, say of its attributes."""
    meanings: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        attributes = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE):
            meanings[name] = " ".join(meaning.split())
    return meanings


def shown(value: Any) -> str:
    """A value as YAML has it, in one line."""
    text = dump_yaml(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return one_line(text.removesuffix("\n...\n"), max_length=80)


def one_line(message: str, max_length: int = 300) -> str:
    """Put a message into one line of printable characters, without its middle where it is too long."""
    message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    return message if len(message) <= max_length else f"{message[: max_length - 43]} … {message[-40:]}"
