"""The tokens of sources and targets: three special ones, then those of a tokenizer."""

import codecs
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from data.symbols import Symbols, split
from data.tokenizer import Tokenizer, make_tokenizer, read_tokenizer
from training.storage.reading import parse_json

PAD, START, END = range(3)
SPECIAL = 3
NAMES = ("<pad>", "<start>", "<end>")


class Vocabulary:
    """The token ids of texts, after those of `PAD`, `START` and `END`.

    Args:
        tokenizer: Of characters or words, or one that `--data.tokenizer` names for a text as well: of bytes, or BPE.
    """

    def __init__(self, tokenizer: Symbols | Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._symbols = tokenizer if isinstance(tokenizer, Symbols) else None

    @classmethod
    def learnt(cls, name: str, texts: Iterable[str]) -> "Vocabulary":
        """The vocabulary that `--data.tokenizer` names, learnt from training texts where it is one that is learnt."""
        if name == "characters" or name == "words":
            return cls(Symbols.from_texts(texts, name))
        return cls(make_tokenizer(name, texts))

    def __len__(self) -> int:
        return SPECIAL + len(self.tokenizer)

    @property
    def unit(self) -> str:
        """What its tokens are called."""
        return "tokens" if self._symbols is None else self._symbols.unit

    @property
    def separator(self) -> str:
        """What stands between two tokens of a text."""
        return "" if self._symbols is None else self._symbols.separator

    def encode(self, text: str, name: str = "the text") -> list[int]:
        """The token ids of a text, without special tokens.

        Args:
            text: Any text.
            name: What to call it in an error.

        Raises:
            InputError: Symbols are not in the vocabulary; the message shows where the first stands, and all of them.
        """
        return [SPECIAL + int(token) for token in self.tokenizer.encode(text, name)]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of some texts has, without special ones; symbols that are unknown count as well."""
        if self._symbols is None:
            return [len(self.tokenizer.encode(text)) for text in texts]
        return [len(split(text, self._symbols.unit)) for text in texts]

    def length(self, text: str) -> int:
        """The length of a text, whatever its tokens are: in words, where they are words, else in characters."""
        return len(text) if self._symbols is None else len(split(text, self._symbols.unit))

    def unknown(self, texts: Iterable[str]) -> Counter[str]:
        """The symbols of texts that are not in the vocabulary, and how often they occur; to bytes and BPE none is."""
        return Counter() if self._symbols is None else self._symbols.unknown(texts)

    def without_unknown(self, text: str) -> str:
        """What is left of a text without such symbols."""
        return text if self._symbols is None else self._symbols.without_unknown(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids; special ones show as such, and bytes that are no UTF-8 as U+FFFD."""
        parts: list[str] = []
        for is_special, run in groupby(tokens, lambda token: token < SPECIAL):
            if is_special:
                parts += [NAMES[token] for token in run]
            else:
                parts.append(self.tokenizer.decode([token - SPECIAL for token in run]))
        return self.separator.join(parts)

    def names(self, tokens: Iterable[int]) -> list[str]:
        """What each token stands for by itself; bytes that are no whole character show as \\xe2."""
        return [self._bytes(token).decode(errors="backslashreplace") for token in tokens]

    def pieces(self, tokens: Iterable[int]) -> list[str]:
        """What each token adds to a text: a character of several tokens belongs to the last of them."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(self._bytes(token)) for token in tokens]

    def _bytes(self, token: int) -> bytes:
        if token < SPECIAL:
            return NAMES[token].encode()
        if isinstance(self.tokenizer, Symbols):
            return self.tokenizer.symbols[token - SPECIAL].encode()
        return self.tokenizer.token_bytes(token - SPECIAL)

    def to_json(self) -> str:
        """The content of vocabulary.json: the tokenizer's own."""
        return self.tokenizer.to_json()

    @classmethod
    def from_json(cls, content: str, file: Path = Path("vocabulary.json")) -> "Vocabulary":
        """Read what `to_json` wrote.

        Raises:
            MalformedFileError: It is no vocabulary; the message names the file.
        """
        value = parse_json(content, file)
        if isinstance(value, dict) and {"unit", "symbols"} & value.keys():
            return cls(Symbols.from_value(value, file))
        return cls(read_tokenizer(content, file))
