"""What a model learns from: the section `data` of a configuration, for text and for pairs of texts."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from data.mix import MIX, parse_mix
from training.config.sections import Section, is_line, setting, shown
from training.runtime.errors import InputError

TINY_SHAKESPEARE = "karpathy/tiny_shakespeare"
Unknown = Literal["error", "skip"]
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
PAIR_SOURCES = f"a file that ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, or hub:OWNER/NAME"
OnBadRow = Literal["stop", "skip"]
Packing = Literal["joined", "documents"]
FRAME = 2
"""A source takes so many tokens more than its symbols: start and end. A target takes one more, the start or the end."""
TEXT_SOURCES = (
    "auto, comedies, hub, hub:OWNER/NAME, a text file or a folder of them, a pattern, several of these with commas, or "
    "python"
)

MIN_BPE, MAX_BPE = 257, 10**6
"""The size of a byte-level BPE: the bytes and the end of a text at least."""
TOKENIZERS = f"characters, bytes, bpe:N with N from {MIN_BPE} to {MAX_BPE:,}, or a file tokenizer.json"
TOKENIZER_BYTES = 50_000_000
ROWS, HUB = "sources with rows: hub:OWNER/NAME, .jsonl and .parquet files", "sources hub:OWNER/NAME only"
ANSWER_COLUMNS = ("prompt_column", "answer_column", "messages_column")
FOR_SOURCES = {
    "column": ROWS,
    **dict.fromkeys(ANSWER_COLUMNS, ROWS),
    "on_bad_row": ROWS,
    "include": "folders of files, and for python",
    "revision": HUB,
    "subset": HUB,
}
"""Which sources an option is for."""


def bpe_size(tokenizer: str) -> int | None:
    """N of a tokenizer bpe:N, else None."""
    named = re.fullmatch(r"bpe:(\d{1,7})", tokenizer, re.ASCII)
    return int(named[1]) if named else None


def known_tokenizer(name: str) -> bool:
    """Whether a name is that of a tokenizer."""
    size = bpe_size(name)
    if size is not None:
        return MIN_BPE <= size <= MAX_BPE
    return name in ("characters", "bytes") or (is_line(name) and name.endswith(".json") and name[:4] != "bpe:")


def hub_name(source: str) -> str | None:
    """OWNER/NAME of a source hub:OWNER/NAME, else None."""
    named = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)", source, re.ASCII)
    return named[1] if named else None


@dataclass(frozen=True, kw_only=True)
class TextConfig(Section):
    """Where the text comes from, and which part of it is for validation, unless a data set has a split for it.

    What a source holds is known by its content: another way to the same text changes no step.

    Attributes:
        source: auto (Tiny Shakespeare from the packaged plays, else from the hub), comedies (those of Shakespeare that
            Tiny Shakespeare leaves out, from the same package), hub (Tiny Shakespeare from the
            Hugging Face hub), hub:OWNER/NAME (a data set of the hub: trains on its split train, validates on
            validation, else test, else a part of train), python (the Python sources of this environment: the
            standard library and the installed packages), a text file, a .jsonl or .parquet file with a column of text,
            a folder of such files, a pattern such as 'texts/*.txt', or several of these with commas; files are joined,
            those of a folder in sorted order.
        mix: Several sources with weights in the place of one, such as 'a.txt=0.7,b/=0.3': that share of the training
            windows is of each, which goes through epochs of its own; each is split by itself, and validation takes all.
            The other options hold for those that they are for.
        include: Which files of folders are read: a pattern for their path below the folder, such as '**/*.py', or
            several with commas; one without a slash is for the name alone. Null for all that are text.
        column: Column of a hub data set, a .jsonl or a .parquet file that holds the text; of a nested one the path, as
            in translation.en. Each row is a document, and with characters ends a line; rows without text (null) are
            skipped.
        prompt_column: Column with a prompt, in the place of `column`. Then rows are pairs, and the loss is that of the
            answers alone; with data.answer_column.
        answer_column: Column with the answer that follows the prompt.
        messages_column: Column with a conversation, a list of messages with a role and a content each, in the place of
            prompt and answer: written by the chat template beside the tokenizer.json, and the loss is that of what the
            role assistant says.
        packing: What stands side by side in a window: joined (documents, of which each token sees all that come
            before), or documents (they do not see each other, and positions begin anew with each). Rows with answers
            never see each other.
        on_bad_row: What a row without such a column, or without text in it, does, or one with an answer that is longer
            than the model's context: stop (the run ends and names it), or skip (such rows are left out, counted and
            listed).
        revision: Branch, tag or commit of a hub data set; null for its main branch.
        subset: Subset (configuration) of a hub data set that has several; null for its default.
        unknown: What to do with characters that a validation split of its own has and the training text lacks: error,
            or skip them.
        validation_share: How much of a text without a validation text of its own is for validation: of 1,000 documents
            (files, rows) or more that share of them, by a hash of each one's content; else the last part of the text.
        tokenizer: What a token is: characters, bytes (nothing is ever unknown), bpe:N (a byte-level BPE of N entries,
            learnt from the training text), or a tokenizer.json of a byte-level BPE in the format of the library
            tokenizers. With all but characters an end-of-text token follows each document.
        tokenizer_bytes: From how many bytes of the training text bpe:N is learnt at most; they are taken evenly from
            all of it.
    """

    section = "data"
    source: str = setting("auto", on_resume="same")
    mix: str | None = setting(None, on_resume="same")
    include: str | None = setting(None, on_resume="same")
    column: str = setting("text", on_resume="same")
    prompt_column: str | None = setting(None, on_resume="same")
    answer_column: str | None = setting(None, on_resume="same")
    messages_column: str | None = setting(None, on_resume="same")
    packing: Packing = setting("joined", on_resume="refused")
    on_bad_row: OnBadRow = setting("stop", on_resume="same")
    revision: str | None = setting(None, on_resume="same")
    subset: str | None = setting(None, on_resume="same")
    unknown: Unknown = setting("error", on_resume="same")
    validation_share: float = setting(0.1, on_resume="refused")
    tokenizer: str = setting("characters", on_resume="refused")
    tokenizer_bytes: int = setting(TOKENIZER_BYTES, on_resume="same")

    def __post_init__(self) -> None:
        self.check("validation_share", 0 < self.validation_share < 1, "between 0 and 1")
        for name in ("source", "mix", "include", "column", *ANSWER_COLUMNS, "revision", "subset"):
            self.check(name, is_line(getattr(self, name) or ""), "text of one line, in UTF-8")
        self._check_answers()
        if self.mix is not None:
            self._check_mix()
            return
        self.check("source", self.source != "", TEXT_SOURCES)
        self.check("source", self.hub_name is not None or not self.source.startswith("hub:"), TEXT_SOURCES)
        self.check("include", self.include is None or self.include.strip(" ,") != "", "a pattern such as '**/*.py'")
        self.check("tokenizer", known_tokenizer(self.tokenizer), TOKENIZERS)
        self.check("tokenizer_bytes", 1000 <= self.tokenizer_bytes <= 10**12, "between 1000 and 10^12")
        for name, fits in self._fitting(self.source).items():
            value = getattr(self, name)
            self.check(name, value != "", "a name")
            if value != getattr(TextConfig, name) and not fits:
                raise InputError(f"data.{name} is for {FOR_SOURCES[name]}, got data.source {shown(self.source)}")

    def _check_answers(self) -> None:
        given = list(self.answer_columns)
        if len(given) == 1 and given != ["messages_column"]:
            other = next(name for name in ANSWER_COLUMNS if name not in given)
            raise InputError(f"data.{given[0]} is for rows of a prompt and its answer: give data.{other} too")
        if "messages_column" in given and len(given) > 1:
            raise InputError(
                "data.messages_column is for rows without data.prompt_column and data.answer_column: leave them out"
            )
        if given and self.column != TextConfig.column:
            raise InputError(f"data.column is for rows of text, in the place of data.{given[0]}: leave one out")
        if given and self.mix is not None:
            raise InputError(f"data.{given[0]} is for one source: give data.source in the place of data.mix")

    def _check_mix(self) -> None:
        self.check("mix", parse_mix(self.mix or "") != {}, MIX)
        if self.source != TextConfig.source:
            raise InputError(f"data.mix names the sources: leave out data.source, got {shown(self.source)}")
        for name in FOR_SOURCES:  # The parts are checked as they are made.
            left = [getattr(part, name) for part in self.parts.values()]
            if getattr(self, name) not in left:
                raise InputError(f"data.{name} is for {FOR_SOURCES[name]}, and data.mix has none")

    @staticmethod
    def _fitting(source: str) -> dict[str, bool]:
        """Whether the options that are for some sources alone are for this one."""
        hub = source == "hub" or hub_name(source) is not None
        rows = hub or source not in ("auto", "comedies", "python")
        files = not hub and source not in ("auto", "comedies")
        of_rows = dict.fromkeys(("column", *ANSWER_COLUMNS, "on_bad_row"), rows)
        return of_rows | {"include": files, "revision": hub, "subset": hub}

    @property
    def answer_columns(self) -> dict[str, str]:
        """The columns of prompt and answer, or of messages, by the options that name them; none for rows of text."""
        columns = {name: getattr(self, name) for name in ANSWER_COLUMNS}
        return {name: column for name, column in columns.items() if column is not None}

    @property
    def parts(self) -> dict[str, "TextConfig"]:
        """The configuration of each source of a mix, by its name."""
        parts = {}
        for source in parse_mix(self.mix or ""):
            fitting = self._fitting(source)
            if Path(source).suffix not in ("", ".jsonl", ".parquet") and not fitting["revision"]:
                fitting["column"] = False  # A text file has none.
            others = {name: getattr(TextConfig, name) for name, fits in fitting.items() if not fits}
            parts[source] = replace(self, source=source, mix=None, **others)
        return parts

    @property
    def hub_name(self) -> str | None:
        """OWNER/NAME, where the source is the hub."""
        if self.source == "hub":
            return TINY_SHAKESPEARE
        return hub_name(self.source)


@dataclass(frozen=True, kw_only=True)
class PairConfig(Section):
    """What to learn.

    Attributes:
        task: copy or reverse (strings of random symbols), or pairs (a source text and its target, from a file or the
            hub).
        symbols: The alphabet of copy and reverse, each symbol one character.
        min_length: Symbols in the shortest string of copy and reverse.
        max_length: Symbols in the longest one.
        source: For pairs: a file of JSON lines or an array of JSON (.jsonl, .json), of separated values (.csv, .tsv,
            whatever separates them) or of Parquet (.parquet), or hub:OWNER/NAME (a data set of the Hugging Face hub;
            validates on its split validation, and tests on test, where it has them). Other pairs are split by a hash of
            their source text: 80 % for training, 10 % each for validation and test.
        source_column: Column of pairs with the source text; of a nested one the path, as in translation.en, and of a
            .csv or .tsv without a line of names the number, from 1 on.
        target_column: Column of pairs with the target text.
        on_bad_row: What a row that is no pair, or that is longer than the model's context, does: stop (the run ends and
            names it), or skip (such rows are left out, counted and listed).
        revision: Branch, tag or commit of a hub data set; null for its main branch.
        subset: Subset (configuration) of a hub data set that has several; null for its default.
        tokenizer: What a token is: characters, words (what stands between spaces; for pairs only), bytes, bpe:N (a
            byte-level BPE of N entries, learnt from the training pairs), or a tokenizer.json as for a text.
        tokenizer_bytes: From how many bytes of the training pairs bpe:N is learnt at most; they are taken evenly from
            all of them.
        val_samples: Strings of copy and reverse to validate on. Of pairs the whole split counts for the loss, and so
            many at most are decoded.
    """

    section = "data"
    older_names: ClassVar = {"tokens": "tokenizer"}
    task: Literal["copy", "reverse", "pairs"] = "copy"
    symbols: str = "abcdefghijklmnopqrstuvwxyz"
    min_length: int = 1
    max_length: int = 20
    source: str | None = setting(None, on_resume="same")
    source_column: str = setting("source", on_resume="same")
    target_column: str = setting("target", on_resume="same")
    on_bad_row: OnBadRow = setting("stop", on_resume="same")
    revision: str | None = setting(None, on_resume="same")
    subset: str | None = setting(None, on_resume="same")
    tokenizer: str = setting("characters", on_resume="refused")
    tokenizer_bytes: int = setting(TOKENIZER_BYTES, on_resume="same")
    val_samples: int = setting(1000, on_resume="same")

    def __post_init__(self) -> None:
        self.check_counts(max_value=10**12)
        self.check("symbols", is_line(self.symbols), "characters of one line")
        self.check("symbols", len(set(self.symbols)) == len(self.symbols) >= 1, "different characters, at least one")
        self.check("min_length", self.min_length >= 1, "at least 1")
        self.check("max_length", self.max_length >= self.min_length, f"at least data.min_length ({self.min_length})")
        self.check("val_samples", 1 <= self.val_samples <= 10_000, "between 1 and 10000")
        generated = self.task != "pairs"
        self.check("tokenizer", self.tokenizer == "words" or known_tokenizer(self.tokenizer), f"words, {TOKENIZERS}")
        self.check("tokenizer_bytes", self.tokenizer_bytes >= 1000, "at least 1000")
        if generated and self.tokenizer == "words":
            raise InputError(f"data.tokenizer words is for data.task pairs: the strings of {self.task} have no spaces")
        for name in ("source", "source_column", "target_column", "on_bad_row"):
            value = getattr(self, name)
            self.check(name, value is None or (value != "" and is_line(value)), "text of one line, in UTF-8")
            if generated and value != getattr(PairConfig, name):
                raise InputError(f"data.{name} is for data.task pairs only, got data.task {self.task}")
        if not generated:
            for name in ("symbols", "min_length", "max_length"):
                if getattr(self, name) != getattr(PairConfig, name):
                    raise InputError(f"data.{name} is for data.task copy and reverse only, got data.task pairs")
            source = self.source or ""
            named = self.hub_name or (Path(source).suffix.lower() in FORMATS and not source.startswith("hub:"))
            self.check("source", bool(named), f"{PAIR_SOURCES}, with data.task pairs")
        for name in ("revision", "subset"):
            value = getattr(self, name)
            self.check(name, value is None or (value != "" and is_line(value)), "a name")
            if value is not None and self.hub_name is None:
                raise InputError(f"data.{name} is for sources hub:OWNER/NAME only, got data.source {self.source}")

    @property
    def hub_name(self) -> str | None:
        """OWNER/NAME, where the pairs come from the hub."""
        return hub_name(self.source or "")
