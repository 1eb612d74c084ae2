"""What a model learns from: the section `data` of a configuration, for text and for pairs of texts."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from training.config.sections import Section, is_line, setting, shown
from training.runtime.errors import InputError

TINY_SHAKESPEARE = "karpathy/tiny_shakespeare"
Unknown = Literal["error", "skip"]
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
PAIR_SOURCES = f"a file that ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, or hub:OWNER/NAME"
PAIR_TOKENIZER = re.compile(r"characters|words|bytes|bpe:[1-9]\d{,8}|.*\.json", re.IGNORECASE)
PAIR_TOKENIZERS = "characters, words, bytes, bpe:N with a number of tokens N, or a tokenizer.json"
OnBadRow = Literal["stop", "skip"]
FRAME = 2
"""A source takes so many tokens more than its symbols: start and end. A target takes one more, the start or the end."""
TEXT_SOURCES = (
    "auto, hub, hub:OWNER/NAME, a text file or a folder of them, a pattern, several of these with commas, or python"
)

MIN_BPE, MAX_BPE = 257, 10**6
"""The size of a byte-level BPE: the bytes and the end of a text at least."""
TOKENIZERS = f"characters, bytes, bpe:N with N from {MIN_BPE} to {MAX_BPE:,}, or a file tokenizer.json"
TOKENIZER_BYTES = 50_000_000


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
        source: auto (Tiny Shakespeare from the packaged plays, else from the hub), hub (Tiny Shakespeare from the
            Hugging Face hub), hub:OWNER/NAME (a data set of the hub: trains on its split train, validates on
            validation, else test, else the last 10 % of train), python (the Python sources of this environment: the
            standard library and the installed packages), a text file, a .jsonl or .parquet file with a column of text,
            a folder of such files, a pattern such as 'texts/*.txt', or several of these with commas; files are joined,
            those of a folder in sorted order.
        include: Which files of folders are read: a pattern for their path below the folder, such as '**/*.py', or
            several with commas; one without a slash is for the name alone. Null for all that are text.
        column: Column of a hub data set, a .jsonl or a .parquet file that holds the text; of a nested one the path, as
            in translation.en. Each row is a document, and with characters ends a line; rows without text (null) are
            skipped.
        on_bad_row: What a row without such a column, or without text in it, does: stop (the run ends and names it), or
            skip (such rows are left out, counted and listed).
        revision: Branch, tag or commit of a hub data set; null for its main branch.
        subset: Subset (configuration) of a hub data set that has several; null for its default.
        unknown: What to do with characters that a validation split of its own has and the training text lacks: error,
            or skip them.
        tokenizer: What a token is: characters, bytes (nothing is ever unknown), bpe:N (a byte-level BPE of N entries,
            learnt from the training text), or a tokenizer.json of a byte-level BPE in the format of the library
            tokenizers. With all but characters an end-of-text token follows each document.
        tokenizer_bytes: From how many bytes of the training text bpe:N is learnt at most; they are taken evenly from
            all of it.
        validation_share: How much of a text without a validation text of its own is for validation: of 1,000 documents
            (files, rows) or more that share of them, by a hash of each one's content; else the last part of the text.
    """

    section = "data"
    source: str = setting("auto", on_resume="same")
    include: str | None = setting(None, on_resume="same")
    column: str = setting("text", on_resume="same")
    on_bad_row: OnBadRow = setting("stop", on_resume="same")
    revision: str | None = setting(None, on_resume="same")
    subset: str | None = setting(None, on_resume="same")
    unknown: Unknown = setting("error", on_resume="same")
    tokenizer: str = setting("characters", on_resume="refused")
    tokenizer_bytes: int = setting(TOKENIZER_BYTES, on_resume="same")
    validation_share: float = setting(0.1, on_resume="refused")

    def __post_init__(self) -> None:
        self.check("validation_share", 0 < self.validation_share < 1, "between 0 and 1")
        for name in ("source", "include", "column", "revision", "subset"):
            self.check(name, is_line(getattr(self, name) or ""), "text of one line, in UTF-8")
        self.check("source", self.source != "", TEXT_SOURCES)
        self.check("source", self.hub_name is not None or not self.source.startswith("hub:"), TEXT_SOURCES)
        self.check("include", self.include is None or self.include.strip(" ,") != "", "a pattern such as '**/*.py'")
        self.check("tokenizer", known_tokenizer(self.tokenizer), TOKENIZERS)
        self.check("tokenizer_bytes", 1000 <= self.tokenizer_bytes <= 10**12, "between 1000 and 10^12")
        made, hub = self.source in ("auto", "python"), self.hub_name is not None
        fitting = {
            "column": (hub or not made, "sources with rows: hub:OWNER/NAME, .jsonl and .parquet files"),
            "on_bad_row": (hub or not made, "sources with rows: hub:OWNER/NAME, .jsonl and .parquet files"),
            "include": (not hub and self.source != "auto", "folders of files, and for python"),
            "revision": (hub, "sources hub:OWNER/NAME only"),
            "subset": (hub, "sources hub:OWNER/NAME only"),
        }
        for name, (fits, what) in fitting.items():
            value = getattr(self, name)
            self.check(name, value != "", "a name")
            if value != getattr(TextConfig, name) and not fits:
                raise InputError(f"data.{name} is for {what}, got data.source {shown(self.source)}")

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
        tokenizer: What a token is: characters, words (what stands between spaces; of pairs only), bytes, bpe:N
            (byte-level BPE of N entries, learnt from the training pairs), or what a tokenizer.json says.
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
    tokenizer: str = setting("characters", on_resume="same")
    val_samples: int = setting(1000, on_resume="same")

    def __post_init__(self) -> None:
        self.check_counts(max_value=10**6)
        self.check("symbols", is_line(self.symbols), "characters of one line")
        self.check("symbols", len(set(self.symbols)) == len(self.symbols) >= 1, "different characters, at least one")
        self.check("min_length", self.min_length >= 1, "at least 1")
        self.check("max_length", self.max_length >= self.min_length, f"at least data.min_length ({self.min_length})")
        self.check("val_samples", 1 <= self.val_samples <= 10_000, "between 1 and 10000")
        generated = self.task != "pairs"
        self.check("tokenizer", PAIR_TOKENIZER.fullmatch(self.tokenizer) is not None, PAIR_TOKENIZERS)
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
