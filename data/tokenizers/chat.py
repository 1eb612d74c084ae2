"""Chat templates: how a conversation becomes a text, as the files beside a tokenizer.json say.

They are programs in Jinja, of any origin, and run in its sandbox.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from training.runtime.packages import needed_package
from training.storage.reading import MalformedFileError, read_text

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.ext import Extension

TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
SPECIAL = re.compile(r"\w+_token")
BEGIN, END, OTHER = "\ufdd0", "\ufdd1", "\ufdd2"
"""Characters that no text has, as Unicode keeps them for programs: around what a template marks as the assistant's, and
in the place of an answer, to see what of a text depends on it."""
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
        extensions = ["jinja2.ext.loopcontrols", _generation_tag()]
        environment = sandbox(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False} | options)
        environment.globals["raise_exception"] = _refuse
        template: Template = environment.from_string(self.template)
        return template

    def render(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """A conversation as text; with `asks`, up to where an answer of the assistant begins.

        Raises:
            ValueError: The template refuses it; the message says why, in words.
        """
        return self._marked(messages, asks=asks).replace(BEGIN, "").replace(END, "")

    def _marked(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """The same, with marks around what stands between `{% generation %}` and `{% endgeneration %}`."""
        jinja = needed_package("jinja2", "a chat template")
        try:
            return str(self._compiled.render(messages=messages, add_generation_prompt=asks, **self.special))
        except (jinja.TemplateError, TypeError, ValueError) as error:
            raise ValueError(f"the chat template refuses it: {str(error) or type(error).__name__}") from error

    @cached_property
    def ending(self) -> str:
        """What follows an answer, without the white space behind it: the token that ends a turn, as a rule."""
        whole = self.render([{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}])
        _, found, after = whole.rpartition("ANSWER")
        return after.rstrip() if found else ""

    @cached_property
    def _asking(self) -> str:
        """What follows a question, up to where its answer begins."""
        return self.render([{"role": "user", "content": "QUESTION"}], asks=True).rpartition("QUESTION")[2]

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """A conversation until the end of its last answer; what the assistant says counts, with the end of its turn.

        That is what the template marks as such (`{% generation %}`), where it does. Else it is what it writes of an
        answer, which need not be all of it, from where it lets one begin. White space around an answer is left out.

        Raises:
            ValueError: The template refuses it, or does not write an answer.
        """
        stripped = [{**m, "content": m["content"].strip()} if m["role"] == "assistant" else m for m in messages]
        if any(mark in message["content"] for message in stripped for mark in (BEGIN, END, OTHER)):
            raise ValueError("a message holds one of U+FDD0 to U+FDD2, which are no characters")
        marked = self._marked(stripped)
        return list(self._of_marks(marked) if BEGIN in marked else self._segments(stripped, marked))

    def _of_marks(self, marked: str) -> Iterator[Segment]:
        parts = marked.split(END)[:-1]
        for number, part in enumerate(parts, start=1):
            before, _, answer = part.partition(BEGIN)
            # What follows the end of the last turn is never written.
            ends = number == len(parts) and answer.rstrip().endswith(self.ending)
            yield Segment(before, counts=False)
            yield Segment(answer.rstrip() if ends else answer, counts=True)

    def _segments(self, messages: Sequence[Message], whole: str) -> Iterator[Segment]:
        done = 0
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                begin, end = self._place(messages, number, whole, done)
                yield Segment(whole[done:begin], counts=False)
                yield Segment(whole[begin:end], counts=True)
                done = end

    def _place(self, messages: Sequence[Message], number: int, whole: str, done: int) -> tuple[int, int]:
        """Where an answer begins and ends in a whole conversation, in which `done` is the end of the one before.

        A template may write a message in another way where others follow, so that what it writes of the first ones
        alone need not be how the whole begins.
        """
        before = None
        with suppress(ValueError):  # Some refuse to let an answer begin there.
            before = self.render(messages[:number], asks=True)
        message = messages[number]
        if before is not None and whole.startswith(said := f"{before}{message['content']}{self.ending}"):
            return len(before), len(said)
        other = self.render([*messages[:number], {**message, "content": OTHER}, *messages[number + 1 :]])
        if OTHER not in other:
            raise ValueError(f"the chat template does not write message {number + 1}, an answer")
        first = _in_common(whole, other)
        last = len(whole) - _in_common(whole[first:][::-1], other[first:][::-1])
        last += len(self.ending) if whole.startswith(self.ending, last) else 0
        if before is not None and done <= len(before) <= first and whole.startswith(before):
            return len(before), last
        asking = whole.rfind(self._asking, done, first)
        return (first if asking < 0 else asking + len(self._asking)), last

    def files(self) -> dict[str, str]:
        """The content of the files that say so."""
        return {TEMPLATE: self.template, SETTINGS: json.dumps(dict(self.special), ensure_ascii=False)}


def _refuse(message: str) -> None:
    raise ValueError(message)


def _in_common(one: str, other: str) -> int:
    """With how many characters two texts begin alike."""
    return bisect_left(range(min(len(one), len(other))), True, key=lambda n: one[: n + 1] != other[: n + 1])


def _generation_tag() -> "type[Extension]":
    """The tag `{% generation %}` of transformers, around what the assistant says: marks begin and end of it."""
    nodes = needed_package("jinja2.nodes", "a chat template")
    extension: type[Extension] = needed_package("jinja2.ext", "a chat template").Extension

    def parse(_: Any, parser: Any) -> list[Any]:
        line = next(parser.stream).lineno
        begin, end = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (BEGIN, END))
        return [begin, *parser.parse_statements(("name:endgeneration",), drop_needle=True), end]

    return type("GenerationTag", (extension,), {"tags": {"generation"}, "parse": parse})


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
