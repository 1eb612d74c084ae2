"""The tokens of sources and targets: three special ones, then those of a tokenizer."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from data.config import TOKENIZER_BYTES
from data.tokenizers.symbols import UNITS, Symbols, split
from data.tokenizers.tokenizer import Tokenizer, make_tokenizer, read_tokenizer
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
    def learnt(cls, name: str, texts: Iterable[str], learn_bytes: int = TOKENIZER_BYTES) -> "Vocabulary":
        """The vocabulary that `--data.tokenizer` names, learnt from training texts; see `make_tokenizer`."""
        if name in UNITS:
            return cls(Symbols.from_texts(texts, UNITS[name]))
        return cls(make_tokenizer(name, texts, learn_bytes))

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

    @property
    def notes(self) -> Sequence[str]:
        """What is to be said of its tokenizer as a run begins."""
        return () if isinstance(self.tokenizer, Symbols) else self.tokenizer.notes

    def encode(self, text: str, name: str = "the text") -> list[int]:
        """The token ids of a text, without special tokens; see `Symbols.encode`."""
        return [SPECIAL + int(token) for token in self.tokenizer.encode(text, name)]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of some texts has, without special ones; symbols that are unknown count as well."""
        if isinstance(self.tokenizer, Symbols):
            return [len(split(text, self.tokenizer.unit)) for text in texts]
        return [len(tokens) for tokens in self.tokenizer.encode_batch(texts)]

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

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for, which need not be whole characters."""
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
