"""Byte-level BPE by the library `tokenizers`: learnt from texts, or of a tokenizer.json in the library's format.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; over bytes, Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners".
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.tokenizers.byte_tokenizer import NUM_BYTES, utf8
from data.tokenizers.chat import Chat, read_chat
from training.runtime.errors import InputError
from training.runtime.packages import needed_package
from training.storage.reading import MalformedFileError, parse_json

END_OF_TEXT = "<|endoftext|>"
ENDS_OF_TEXT = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "<|im_end|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "</s>",
    "<eos>",
    "[EOS]",
)
"""What the token that ends a text is called in a tokenizer.json."""
MIN_FREQUENCY = 2
"""Two tokens become one where they stand side by side so often."""
BATCH_CHARACTERS = 2**22
"""The library takes some 20 bytes for each character that it encodes at once."""
MAX_PIECE = 2**16
PROBE = f"A  b\t\r\n\n  é e\u0301 \u212b ﬁ it's 2026 漢字 \U0001f642\u200d {END_OF_TEXT}</s> \u00a0x "
"""A text of what tokenizers change: spaces and lines, letters that can be written in two ways, names of tokens."""


def _byte_symbols() -> dict[str, int]:
    """The characters by which a byte-level vocabulary writes the bytes 0 to 255: those that can be seen as they are."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(NUM_BYTES) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(NUM_BYTES + n): byte for n, byte in enumerate(others)}


BYTE_SYMBOLS = _byte_symbols()


class SubwordTokenizer:
    """A byte-level BPE. Names of special tokens in a text are text, and no token is added at its beginning.

    Args:
        content: Of a tokenizer.json in the library's format.
        file: Which one, for errors and notes, and for the chat template beside it; None for one that is no file.
        notes: What is to be said of how it came about.

    Raises:
        MalformedFileError: The library cannot read it, or it is not byte-level; the message names the file.
    """

    def __init__(self, content: str, file: Path | None = None, notes: tuple[str, ...] = ()) -> None:
        library = needed_package("tokenizers", "a tokenizer of subwords")
        self._content, self._folder = content, file and file.parent
        self._prompts_are_messages = False
        file = file or Path("tokenizer.json")
        saved = parse_json(content, file)
        _check(saved, file)
        try:
            self._library = library.Tokenizer.from_str(content)
        except Exception as error:  # The library raises nothing more special.
            fault = f"the library tokenizers {library.__version__} cannot read it: {error}"
            raise MalformedFileError(file, fault) from error
        self._library.encode_special_tokens = True
        self._library.no_truncation()
        self._library.no_padding()
        self._library.model.dropout = None
        self._bytes, self.end_of_text = self._read_vocabulary()
        self.notes = (*notes, *(f"{file}: {note}" for note in self._faults(saved)))

    def _read_vocabulary(self) -> tuple[list[bytes], int | None]:
        """What each token stands for, and the one that ends a text."""
        added = {entry.content: token for token, entry in self._library.get_added_tokens_decoder().items()}
        vocabulary = self._library.get_vocab()
        found = [b""] * (max(vocabulary.values()) + 1)
        for symbols, token in vocabulary.items():
            found[token] = symbols.encode() if symbols in added else _bytes_of(symbols)
        end = next((added[name] for name in ENDS_OF_TEXT if name in added), None)
        if end is not None:
            found[end] = b""
        return found, end

    def __len__(self) -> int:
        return len(self._bytes)

    def encode(self, text: str, name: str = "the text", way_on: str = "", *, skip: bool = False) -> NDArray[np.int32]:
        """The tokens of a text; see `data.tokenizers.byte_tokenizer.utf8`. There is nothing to skip."""
        utf8(text, name)
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The tokens of each text, by the library's threads: as many as cores, one with TOKENIZERS_PARALLELISM=false.

        Raises:
            InputError: A text has a lone surrogate.
        """
        found = []
        for group in _groups(texts):
            try:
                encodings = self._library.encode_batch_fast(group, add_special_tokens=False)
            except TypeError:
                for text in group:
                    utf8(text)
                raise
            found += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        return found

    def encode_prompt(self, prompt: str) -> list[int]:
        """The tokens of a text to continue, or of a message to answer; see `follow`.

        Raises:
            InputError: The chat template refuses it.
        """
        if self._prompts_are_messages and self.chat is not None:
            try:
                asked = self.chat.render([{"role": "user", "content": prompt}], asks=True)
            except ValueError as error:
                raise InputError(f"the prompt: {error}") from error
            return self.encode_marked([asked])[0].tolist()
        return self.encode(prompt, "the prompt").tolist()

    @cached_property
    def chat(self) -> Chat | None:
        """How conversations are written, where a file beside the tokenizer.json says it."""
        return None if self._folder is None else read_chat(self._folder)

    def encode_marked(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The tokens of texts that a chat template wrote, in which names of special tokens are these tokens."""
        utf8("".join(texts))
        found = self._library_of_chat.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in found]

    @cached_property
    def _library_of_chat(self) -> Any:
        library = type(self._library).from_str(self._content)
        library.no_truncation()
        library.no_padding()
        library.model.dropout = None
        return library

    def follow(self, chat: Chat) -> None:
        """From now on a prompt is a message of a user, and what ends a turn of the assistant ends a text."""
        self._prompts_are_messages = True
        ending = self.encode_marked([chat.ending])[0].tolist()
        if ending and ending[-1] in self._library.get_added_tokens_decoder():
            self.end_of_text = ending[-1]
            self._bytes[ending[-1]] = b""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 show as U+FFFD."""
        return b"".join(self._bytes[token] for token in ids).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for the end of a text."""
        return self._bytes[token]

    def to_json(self) -> str:
        """The content of tokenizer.json, as it was given."""
        return self._content

    def _faults(self, saved: dict[str, Any]) -> Iterator[str]:
        """Why what is decoded may be another text than what was encoded, and what else is unusual."""
        if self.end_of_text is None:
            yield f"it has no token that ends a text ({', '.join(ENDS_OF_TEXT)}): documents are joined without"
        missing = len(BYTE_SYMBOLS.keys() - self._library.get_vocab(with_added_tokens=False).keys())
        if missing:
            yield f"{missing} of the 256 bytes have no token: characters that are made of them are lost"
        found = self.decode(self.encode(PROBE).tolist())
        normalizers = [str(part.get("type")) for part in _parts(saved.get("normalizer"), "normalizers")]
        if found == PROBE:
            return
        if normalizers:
            yield f"it normalises text ({', '.join(normalizers)}), so that not all that it reads can be given back"
        elif found == " " + PROBE:
            yield "it puts a space before each text"
        elif not missing:
            yield "it does not give back all that it reads"


def learn_subwords(texts: Iterable[str], size: int, learn_bytes: int) -> SubwordTokenizer:
    """A byte-level BPE of at most `size` tokens, the end of a text among them, in the words of GPT-2.

    The same texts give the same tokenizer, on any number of cores.

    Args:
        texts: What to learn from.
        size: 256 for the bytes, one for the end of a text, and the merges.
        learn_bytes: How much of the texts to take at most, evenly from all of them.
    """
    library = needed_package("tokenizers", "a tokenizer of subwords")
    pieces, every, total = evenly_taken(texts, learn_bytes)
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=MIN_FREQUENCY,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(BYTE_SYMBOLS),
    )
    made.train_from_iterator((piece.decode() for piece in pieces), trainer)
    taken = sum(map(len, pieces))
    notes = []
    if every > 1:
        notes.append(f"bpe:{size} was learnt from {taken:,} of {total:,} bytes, taken evenly (--data.tokenizer_bytes)")
    if made.get_vocab_size() < size:
        notes.append(f"bpe:{size} has {made.get_vocab_size():,} entries: no other pair of tokens comes twice")
    return SubwordTokenizer(made.to_str(), notes=tuple(notes))


def evenly_taken(texts: Iterable[str], max_bytes: int) -> tuple[list[bytes], int, int]:
    """Pieces of texts, in UTF-8, at equal distances: as many as `max_bytes` hold, or half of that.

    Returns:
        The pieces, every how many-th one they are, and the bytes of all.
    """
    taken: list[bytes] = []
    size, every, total, length = 0, 1, 0, max(min(MAX_PIECE, max_bytes // 64), 1)
    pieces = (text[start : start + length] for text in texts for start in range(0, len(text), length))
    for number, piece in enumerate(pieces):
        content = utf8(piece)
        total += len(content)
        if number % every == 0:
            taken.append(content)
            size += len(content)
        while size > max_bytes and len(taken) > 1:
            taken, every = taken[::2], 2 * every
            size = sum(map(len, taken))
    return taken, every, total


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts that are encoded at once, which bounds what the library holds."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > BATCH_CHARACTERS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def _bytes_of(symbols: str) -> bytes:
    """The bytes that an entry of the vocabulary is written for; one that is no such entry stands for itself."""
    try:
        return bytes(BYTE_SYMBOLS[symbol] for symbol in symbols)
    except KeyError:
        return symbols.encode()


def _check(saved: Any, file: Path) -> None:
    """Raise a `MalformedFileError` unless what a tokenizer.json holds is a byte-level BPE."""
    model = saved.get("model") if isinstance(saved, dict) else None
    expected = "expected a byte-level BPE in the format of the library tokenizers, as GPT-2 and Llama 3 have"
    if not isinstance(model, dict):
        raise MalformedFileError(file, f"no tokenizer: {expected}")
    kind = model.get("type", "BPE")
    pre_tokenizers = _parts(saved.get("pre_tokenizer"), "pretokenizers")
    byte_level = any(part.get("type") == "ByteLevel" for part in pre_tokenizers)
    marked = bool(model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    if kind != "BPE" or not byte_level or marked:
        what = "with marks at the ends of words" if marked else "that is not byte-level"
        raise MalformedFileError(file, f"a tokenizer of the kind {kind} {what}: {expected}, or --data.tokenizer bytes")


def _parts(saved: Any, name: str) -> list[dict[str, Any]]:
    """A part of a tokenizer, or those of a sequence of them."""
    if not isinstance(saved, dict):
        return []
    return [part for inner in saved.get(name, []) for part in _parts(inner, name)] if name in saved else [saved]
