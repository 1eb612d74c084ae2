"""Chat templates: how a conversation becomes a text, as the files beside a tokenizer.json say.

They are programs in Jinja, of any origin, and run in its sandbox.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from training.runtime.packages import needed_package
from training.storage.reading import MalformedFileError, read_text

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
SPECIAL = re.compile(r"\w+_token")
GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")
"""Marks of what the assistant says, which few templates have; it is found without."""
Message = Mapping[str, str]


class Segment(NamedTuple):
    """A piece of a row, and whether a model is to learn to write it."""

    text: str
    counts: bool


@dataclass(frozen=True)
class Chat:
    """How conversations are written.

    Args:
        template: In Jinja.
        special: The names of special tokens, such as `eos_token`, by which the template calls them.
    """

    template: str
    special: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _compiled(self) -> "Template":
        sandbox = needed_package("jinja2.sandbox", "a chat template").ImmutableSandboxedEnvironment
        # As transformers sets it; what it gives of the clock is left out, so that the same rows stay the same text.
        environment = sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _refuse
        template: Template = environment.from_string(GENERATION.sub("", self.template))
        return template

    def render(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """A conversation as text; with `asks`, up to where an answer of the assistant begins.

        Raises:
            ValueError: The template refuses it; the message says why, in words.
        """
        jinja = needed_package("jinja2", "a chat template")
        try:
            return str(self._compiled.render(messages=messages, add_generation_prompt=asks, **self.special))
        except (jinja.TemplateError, TypeError, ValueError) as error:
            raise ValueError(f"the chat template refuses it: {str(error) or type(error).__name__}") from error

    @cached_property
    def ending(self) -> str:
        """What follows an answer, without the white space behind it: the token that ends a turn, as a rule."""
        whole = self.render([{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}])
        return whole[whole.rindex("ANSWER") + len("ANSWER") :].rstrip()

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """A conversation until the end of its last answer; what the assistant says counts, with the end of its turn.

        White space around an answer is left out.

        Raises:
            ValueError: The template refuses it, or does not write an answer as it stands.
        """
        stripped = [{**m, "content": m["content"].strip()} if m["role"] == "assistant" else m for m in messages]
        return list(self._segments(stripped, self.render(stripped)))

    def _segments(self, messages: Sequence[Message], whole: str) -> Iterator[Segment]:
        done = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], asks=True)
            place = whole.find(message["content"], len(before))
            if not whole.startswith(before) or place < 0:
                raise ValueError(f"the chat template does not write message {number + 1}, an answer, as it stands")
            end = place + len(message["content"])
            end += len(self.ending) if whole.startswith(self.ending, end) else 0
            yield Segment(whole[done : len(before)], counts=False)
            yield Segment(whole[len(before) : end], counts=True)
            done = end

    def files(self) -> dict[str, str]:
        """The content of the files that say so."""
        return {TEMPLATE: self.template, SETTINGS: json.dumps(dict(self.special), ensure_ascii=False)}


def _refuse(message: str) -> None:
    raise ValueError(message)


def read_chat(folder: Path) -> Chat | None:
    """The chat template in a folder with a tokenizer.json, if there is one.

    Raises:
        FileError: A file cannot be read, or is none.
    """
    settings = _settings(folder / SETTINGS)
    template = settings.get("chat_template")
    if (folder / TEMPLATE).exists():
        template = read_text(folder / TEMPLATE)
    elif isinstance(template, list):  # Several, by name.
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        return None
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in settings.items()}
    special = {n: text for n, text in contents.items() if SPECIAL.fullmatch(n) and isinstance(text, str)}
    return Chat(template, special)


def _settings(file: Path) -> dict[str, Any]:
    """The content of a tokenizer_config.json, which may have numbers of any length; none where there is no file."""
    if not file.exists():
        return {}
    try:
        settings = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise MalformedFileError(file, f"not JSON ({error})") from error
    return settings if isinstance(settings, dict) else {}
