"""From a text to the tokens of its splits: the split, SHA-256, ends of text, what is unknown, what is counted."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batches.windows import TextData, as_tensor, on_device
from data.cache.tokens import Tokenized, sha256, tokenized
from data.config import TextConfig
from data.sources.documents import Chunk
from data.split import position
from data.text import Source
from data.tokenizers import own_tokenizer
from data.tokenizers.byte_tokenizer import ByteTokenizer
from data.tokenizers.characters import CharTokenizer
from data.tokenizers.tokenizer import Tokenizer, make_tokenizer
from training.runtime.errors import InputError


@dataclass
class Pieces:
    """Documents, each in the pieces that it is given in."""

    documents: Sequence[Sequence[str]]

    def __iter__(self) -> Iterator[Chunk]:
        for document in self.documents:
            for number, text in enumerate(document, 1):
                yield Chunk(text, last=number == len(document))

    def fingerprint(self) -> None:
        return None


class Wide(ByteTokenizer):
    """Bytes, with the end of text as the last of so many tokens."""

    def __init__(self, size: int) -> None:
        self.size, self.end_of_text = size, size - 1

    def __len__(self) -> int:
        return self.size

    def to_json(self) -> str:
        return f"{self.size} tokens"


def pieces(*documents: str | Sequence[str], validation: Sequence[Sequence[str]] | None = None) -> Source:
    held_out = None if validation is None else Pieces(validation)
    return Source(Pieces([[text] if isinstance(text, str) else text for text in documents]), "pieces", held_out)


def decoded(found: Tokenized) -> tuple[str, str]:
    """What the tokens of characters stand for."""
    training, validation = (found.tokenizer.decode(part.tokens_N.tolist()) for part in found[:2])
    return training, validation


@pytest.mark.parametrize("length", [1, 9, 10, 11, 999, 1_000_003, 10**12 + 7])
def test_the_cut_at_a_tenth_is_where_it_always_was(length: int) -> None:
    assert position(length, 0.1) == length * 90 // 100
    assert position(length, 0.25) == length * 3 // 4


def test_where_a_text_is_cut_into_pieces_changes_nothing() -> None:
    whole = "".join(f"line {number}\n" for number in range(500))
    expected = tokenized(pieces(whole), TextConfig())
    for size in (1, 7, 512, 4000):
        cut = tokenized(pieces([whole[i : i + size] for i in range(0, len(whole), size)]), TextConfig())
        assert decoded(cut) == decoded(expected) == (whole[: len(whole) * 9 // 10], whole[len(whole) * 9 // 10 :])
        assert cut.sha256 == expected.sha256 == hashlib.sha256(whole.encode()).hexdigest()


def test_many_documents_are_split_by_their_content() -> None:
    texts = [f"number {number % 3000}." for number in range(3500)]
    data = TextConfig(validation_share=0.2)
    found = tokenized(pieces(*texts), data)
    training, validation = ({f"number {rest}" for rest in text.split("number ")} for text in decoded(found))
    assert training & validation == {"number "}
    assert "".join(decoded(found)).count(".") == 3500
    held_out = len(validation) - 1
    assert 0.15 < held_out / 3000 < 0.25
    assert found.notes == (
        f"split by documents: {sum(text in validation for text in texts):,} of 3,500 to validate on",
    )
    # What stands beside a document does not matter, nor does the order.
    again = tokenized(pieces(*texts[::-2], *(f"other {number}" for number in range(1000))), data)
    assert {text for text in texts[::-2] if text in validation} == {
        f"number {rest}".split("other")[0] for rest in decoded(again)[1].split("number ")[1:]
    }
    assert sha256(pieces(*texts), data) == found.sha256 != hashlib.sha256("".join(texts).encode()).hexdigest()


def test_a_long_document_is_held_out_whole() -> None:
    texts = [[f"{number}: ", "a" * (number % 5), "."] for number in range(1000)]
    found = tokenized(pieces(*texts), TextConfig(validation_share=0.5))
    for text in decoded(found):
        assert all(f"{part}." in map("".join, texts) for part in text.split(".")[:-1])


def test_999_documents_are_split_by_position() -> None:
    texts = [f"{number}." for number in range(999)]
    assert decoded(tokenized(pieces(*texts), TextConfig()))[1] == "".join(texts)[position(len("".join(texts)), 0.1) :]


def test_all_that_changes_the_splits_changes_the_sha256() -> None:
    def of(source: Source, share: float = 0.1, tokenizer: Tokenizer | None = None) -> str:
        return sha256(source, TextConfig(validation_share=share), tokenizer)

    plain, ends = hashlib.sha256(b"abcdef").hexdigest(), ByteTokenizer()
    assert (
        of(pieces("abc", "def")) == of(pieces("abcdef")) == of(pieces("abcdef"), tokenizer=CharTokenizer("a")) == plain
    )
    many = [str(number) for number in range(1000)]
    different = {
        plain,
        of(pieces("abcdef"), 0.2),
        of(pieces("abcdef"), 0.3),
        of(pieces("abc", validation=[["def"]])),
        of(pieces("abc", "def"), tokenizer=ends),
        of(pieces("abcdef"), tokenizer=ends),
        of(pieces("abcd", "ef"), tokenizer=ends),
        of(pieces(*many)),
        of(pieces("".join(many))),
        of(pieces(*many), 0.2),
    }
    assert len(different) == 10


def test_each_document_that_ends_is_followed_by_the_end_of_text() -> None:
    found = tokenized(
        pieces("ab", "", ["c", "d", "efghij"], validation=[["k", "l"], ["m"]]), TextConfig(), ByteTokenizer()
    )
    training, validation = (part.tokens_N.tolist() for part in found[:2])
    assert training == [*b"ab", 256, 256, *b"cdefghij", 256]
    assert validation == [*b"kl", 256, *b"m", 256]
    # A document that the cut goes through ends behind it.
    found = tokenized(pieces("abcd", "efghij"), TextConfig(), ByteTokenizer())
    assert [part.tokens_N.tolist() for part in found[:2]] == [[*b"abcd", 256, *b"efghi"], [*b"j", 256]]


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_tokens_take_16_bits_where_they_fit(size: int, dtype: str) -> None:
    found = tokenized(pieces("abc" * 20), TextConfig(), Wide(size))
    assert found.validation.tokens_N.dtype == dtype
    assert found.validation.tokens_N[-1] == size - 1


def test_the_bytes_of_the_targets_are_counted() -> None:
    source = pieces("äb" * 100, validation=[["öäü€a", "🙂"]])
    with pytest.raises(InputError):
        tokenized(source, TextConfig())
    found = tokenized(source, TextConfig(unknown="skip"))
    assert (found.training.num_bytes, found.validation.num_bytes) == (3 * 100, 2)
    assert found.validation.target_bytes(found.tokenizer) == 0
    text = pieces("äöü€a🙂" * 100)
    data = TextData(text, context=8, seed=1)
    assert data.validation_bytes == 10 * (2 + 2 + 2 + 3 + 1 + 4) - 2
    assert TextData(text, 8, 1, TextConfig()).validation_targets == 59


def test_an_unknown_character_is_found_in_any_piece() -> None:
    source = pieces("ab\n" * 50, validation=[["ab\nab", "\na"], ["bb", "b$"], ["$é"]])
    with pytest.raises(InputError) as caught:
        tokenized(source, TextConfig())
    assert str(caught.value) == (
        "unknown character '$' (U+0024) at line 3, column 5 of the validation text: it does not occur in the training "
        "text (all that do not, with their number: '$' 2, 'é' 1); --data.unknown skip leaves them out"
    )
    found = tokenized(source, TextConfig(unknown="skip"))
    assert decoded(found)[1] == "ab\nab\nabbb"
    assert found.notes == ("the validation text: 3 unknown characters skipped",)


def test_only_the_split_that_is_measured_must_be_known() -> None:
    source, known = pieces("xyz" * 30 + "ababababab"), CharTokenizer("ab")
    found = tokenized(source, TextConfig(), known, ["validation"])
    assert decoded(found) == ("", "ababababab")
    with pytest.raises(InputError, match="unknown character 'x' .* of the training text"):
        tokenized(source, TextConfig(), known, ["training"])


def test_too_many_different_characters_are_refused_with_a_way_out() -> None:
    signs = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000))) + "".join(map(chr, range(0x20000, 0x20000 + 20_000)))
    with pytest.raises(InputError) as caught:
        tokenized(pieces(signs), TextConfig())
    assert str(caught.value) == (
        "the text has 40,000 different characters, and the model's head would have a row for each: "
        "use --data.tokenizer bytes or bpe:16384"
    )


def test_a_text_shorter_than_a_window_is_told_in_tokens() -> None:
    with pytest.raises(
        InputError, match="training split of pieces has 3 characters, too few for one context of 8: use"
    ):
        TextData(pieces("abcd"), context=8, seed=1)


def test_subwords_are_learnt_once_from_the_training_split_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    learnt = []

    def learn(name: str, texts: Iterable[str], learn_bytes: int) -> Tokenizer:
        learnt.append("".join(texts))
        return make_tokenizer(name, learnt[-1:], learn_bytes)

    monkeypatch.setattr(own_tokenizer, "make_tokenizer", learn)
    data = TextConfig(tokenizer="bpe:300")
    source = pieces("abc" * 300 + "xyz" * 33 + "x")
    first, again = tokenized(source, data), tokenized(source, data)
    assert learnt == ["abc" * 300]
    assert again.sha256 == first.sha256 == sha256(source, data, again.tokenizer)
    # Another text, share or size is another one.
    tokenized(source, replace(data, validation_share=0.2))
    tokenized(source, replace(data, tokenizer="bpe:301"))
    tokenized(pieces("abc" * 300, validation=[["abc" * 30]]), data)
    assert len(learnt) == 4
    assert learnt[3] == "abc" * 300


def test_tokens_are_mapped_and_not_copied() -> None:
    found = tokenized(pieces("abc" * 1000), TextConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor(found.training.tokens_N)
    assert isinstance(found.training.tokens_N, np.memmap)
    assert not found.training.tokens_N.flags.writeable
    assert tensor.data_ptr() == found.training.tokens_N.ctypes.data


def test_tokens_on_a_device_are_the_same() -> None:
    for dtype, numbers in (("uint16", [0, 32_767, 32_768, 65_535]), ("uint32", [0, 65_536, 199_999])):
        on_cpu = on_device(as_tensor(np.array(numbers, dtype)), torch.device("cpu"))
        assert (on_cpu.dtype, on_cpu.tolist()) == (torch.int32, numbers)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(InputError, match="data.validation_share must be between 0 and 1, got"):
        TextConfig(validation_share=share)
