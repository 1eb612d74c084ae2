"""The tokens of rows with answers, in memory: to train on, and to validate on.

Shapes: N tokens of all rows, R rows, V vocabulary.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, islice, repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.answers.rows import Answered, FoundRows, LeftOut, answered
from data.config import TextConfig
from data.split import HASH_BYTES, MIN_DOCUMENTS, position
from data.tokenizers.characters import CharTokenizer
from data.tokenizers.chat import Chat, Segment
from data.tokenizers.own_tokenizer import check_characters
from data.tokenizers.tokenizer import Tokenizer, chat_of, follow_chat, make_tokenizer, read_tokenizer, unit_of
from training.runtime.errors import InputError

VERSION = 1
"""Of the way from rows to their tokens."""
ROWS_AT_ONCE = 1024


class RowTokens(NamedTuple):
    """Rows, one after the other.

    Attributes:
        tokens_N: Of all rows.
        counts_N: Which of them a model is to write.
        starts_R: Where each row begins, and where the last one ends.
    """

    tokens_N: NDArray[np.int32]
    counts_N: NDArray[np.bool_]
    starts_R: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts_R) - 1

    @property
    def num_targets(self) -> int:
        """How many tokens count."""
        return int(self.counts_N.sum())

    def target_bytes(self, tokenizer: Tokenizer) -> int:
        """Of how many bytes of UTF-8 these are made."""
        bytes_V = np.array([len(tokenizer.token_bytes(token)) for token in range(len(tokenizer))])
        return int(bytes_V[self.tokens_N[self.counts_N]].sum())


class AnswerTokens(NamedTuple):
    """The tokens of rows, by split, with what made them.

    `prompt` is the first one to validate on, as far as its characters are known; "" where there is none.
    """

    training: RowTokens
    validation: RowTokens
    tokenizer: Tokenizer
    sha256: str
    notes: tuple[str, ...]
    prompt: str


class _Scan(NamedTuple):
    """What one pass over rows finds: their SHA-256, which of them are held out, and their characters."""

    sha256: str
    held_out: list[bool]
    distinct: str


def answer_tokens(rows: FoundRows, data: TextConfig, context: int, tokenizer: Tokenizer | None = None) -> AnswerTokens:
    """Read rows, and make tokens of them.

    Args:
        rows: Where they are.
        data: Their columns, how to split them, and into which tokens.
        context: Tokens that a model reads at once, T: a row may have one more, the last of which is not read.
        tokenizer: One that exists, in the place of the one that the configuration names.

    Raises:
        InputError: A row is bad, a split has none, its characters are unknown, or the rows are not those of a moment
            ago any more.
    """
    tokenizer, scans = _prepared(rows, data, tokenizer)
    chat, left_out = _chat(tokenizer, data), LeftOut(data.on_bad_row == "skip")
    follow_chat(tokenizer, data)
    maker = _Maker(tokenizer, data, context, left_out)
    for found, scan in zip((rows.training, rows.validation), scans, strict=False):
        assert found is not None
        digest = hashlib.sha256()
        of_rows = zip(answered(found, data, chat, left_out), chain(scan.held_out, repeat(False)), strict=False)
        while batch := list(islice(of_rows, ROWS_AT_ONCE)):
            for (_, row), _ in batch:
                digest.update(_content(row))
            maker.add([named for named, _ in batch], [held_out for _, held_out in batch])
        if digest.hexdigest() != scan.sha256:
            raise InputError(f"{rows.origin} has changed while it was read: start again")
    training, validation = maker.made()
    for name, made in (("train", training), ("validate", validation)):
        if not len(made):
            said = "".join(f"; {note}" for note in left_out.notes)
            more = "more of them" if len(scans[0].held_out) < MIN_DOCUMENTS else "more prompts, by which they are split"
            raise InputError(f"{rows.origin} has no rows to {name} on: it takes {more}{said}")
    notes = (*_said(scans, rows), *tokenizer.notes, *left_out.notes)
    return AnswerTokens(training, validation, tokenizer, _digest(scans, data, tokenizer), notes, maker.prompt)


def answers_sha256(rows: FoundRows, data: TextConfig, tokenizer: Tokenizer | None = None) -> str:
    """What a run's rows are known by: their text, which of it counts, their split, and the tokenizer."""
    tokenizer, scans = _prepared(rows, data, tokenizer)
    return _digest(scans, data, tokenizer)


def _prepared(rows: FoundRows, data: TextConfig, tokenizer: Tokenizer | None) -> tuple[Tokenizer, list[_Scan]]:
    """The tokenizer, and what all rows and those to validate on hold."""
    is_learnt = data.tokenizer == "characters" or data.tokenizer.startswith("bpe:")
    if tokenizer is None and not is_learnt:
        tokenizer = make_tokenizer(data.tokenizer, [])
    chat = None if tokenizer is None else _chat(tokenizer, data)
    if data.messages_column is not None and chat is None:
        raise InputError(
            "data.messages_column needs a chat template: use --data.tokenizer FOLDER/tokenizer.json with a "
            "chat_template.jinja or a tokenizer_config.json beside it that has one"
        )
    if rows.validation is None:
        scans = [_scan(rows.training, data, chat, data.validation_share)]
    else:
        scans = [_scan(rows.training, data, chat, 0.0), _scan(rows.validation, data, chat, 1.0)]
    return tokenizer or _learnt(rows, data, scans[0]), scans


def _chat(tokenizer: Tokenizer, data: TextConfig) -> Chat | None:
    chat = chat_of(tokenizer) if data.messages_column is not None else None
    if chat is not None:
        try:
            chat.segments([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}])
        except ValueError as error:
            raise InputError(f"the chat template beside the tokenizer.json serves no answers: {error}") from error
    return chat


def _scan(found: Iterable[tuple[str, object]], data: TextConfig, chat: Chat | None, share: float) -> _Scan:
    """One pass over rows, of which a share is held out: all of them for 1, and none for 0.

    Of many, a hash of each one's prompt says which: the same prompt is never in both splits. Of fewer, the last ones.
    """
    digest, distinct, held_out = hashlib.sha256(), set[str](), list[bool]()
    for _, row in answered(found, data, chat, LeftOut(data.on_bad_row == "skip")):  # type: ignore[arg-type]
        digest.update(_content(row))
        if data.tokenizer == "characters":
            distinct.update(*(segment.text for segment in row.segments))
        hashed = blake2b(row.prompt.encode(), digest_size=HASH_BYTES).digest()
        held_out.append(int.from_bytes(hashed, "big") < share * 2.0 ** (8 * HASH_BYTES))
    if len(held_out) < MIN_DOCUMENTS:
        cut = position(len(held_out), share)
        held_out = [number >= cut for number in range(len(held_out))]
    return _Scan(digest.hexdigest(), held_out, "".join(sorted(distinct)))


def _content(row: Answered) -> bytes:
    """What rows are known by."""
    return json.dumps(row.segments).encode() + b"\n"


def _learnt(rows: FoundRows, data: TextConfig, scan: _Scan) -> Tokenizer:
    """A tokenizer that is learnt, by one process of each machine: bpe:N from what is trained on.

    Characters are those of all rows that were looked through, held out or not.
    """
    from training.runtime.processes import once_per_machine

    def texts() -> Iterator[str]:
        skipped = LeftOut(data.on_bad_row == "skip")
        for (_, row), held_out in zip(answered(rows.training, data, None, skipped), scan.held_out, strict=False):
            if not held_out:
                yield "".join(segment.text for segment in row.segments)

    def learn() -> tuple[str, tuple[str, ...]]:
        if data.tokenizer == "characters":
            check_characters(scan.distinct)
            return CharTokenizer.from_texts([scan.distinct, "\n"]).to_json(), ()
        made = make_tokenizer(data.tokenizer, texts(), data.tokenizer_bytes)
        return made.to_json(), tuple(made.notes)

    content, notes = once_per_machine(learn)
    tokenizer = read_tokenizer(content)
    tokenizer.notes = notes
    return tokenizer


def _digest(scans: Sequence[_Scan], data: TextConfig, tokenizer: Tokenizer) -> str:
    share = data.validation_share if len(scans) == 1 else None
    about = [VERSION, [scan.sha256 for scan in scans], share, tokenizer.to_json()]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _said(scans: Sequence[_Scan], rows: FoundRows) -> Iterator[str]:
    held_out, count = sum(scans[0].held_out), len(scans[0].held_out)
    if rows.validation is None:
        how = "split by their prompts" if count >= MIN_DOCUMENTS else "the last ones"
        yield f"{count:,} rows, {held_out:,} of them to validate on ({how}); the loss is that of the answers"
    else:
        yield f"{count:,} rows, and {len(scans[1].held_out):,} to validate on; the loss is that of the answers"


class _Maker:
    """Makes tokens of rows, in parts; the last token of an answer ends the text.

    Attributes:
        prompt: Of the first row to validate on that has one.
    """

    prompt = ""

    def __init__(self, tokenizer: Tokenizer, data: TextConfig, context: int, left_out: LeftOut) -> None:
        self._tokenizer, self._context, self._left_out = tokenizer, context, left_out
        self._skips_unknown, self._is_chat = data.unknown == "skip", data.messages_column is not None
        self._rows: list[list[tuple[NDArray[np.int32], NDArray[np.bool_]]]] = [[], []]

    def add(self, named: Sequence[tuple[str, Answered]], held_out: Sequence[bool]) -> None:
        """Take rows, each with its place and split."""
        segments = [self._ended(row.segments) for _, row in named]
        encoded = iter(
            self._encode([(location, s.text) for (location, _), own in zip(named, segments, strict=True) for s in own])
        )
        for (location, row), own, is_held_out in zip(named, segments, held_out, strict=True):
            pieces = [next(encoded) for _ in own]
            tokens = np.concatenate(pieces)
            counts = np.repeat([segment.counts for segment in own], [len(piece) for piece in pieces])
            end = self._tokenizer.end_of_text
            if end is not None and tokens[-1:].tolist() != [end]:
                tokens, counts = np.append(tokens, np.int32(end)), np.append(counts, True)
            counts[:1] = False  # Nothing stands before it.
            if reason := self._fault(tokens, counts):
                self._left_out.add(location, reason)
            else:
                self._rows[is_held_out].append((tokens, counts))
                if is_held_out and not self.prompt:
                    self.prompt = self._known(row.prompt)

    def _known(self, text: str) -> str:
        """A text without the characters that are unknown."""
        if not isinstance(self._tokenizer, CharTokenizer):
            return text
        return self._tokenizer.decode(self._tokenizer.encode(text, skip=True).tolist())

    def _ended(self, segments: list[Segment]) -> list[Segment]:
        """Of characters, which have no token that ends a text, an answer ends its line."""
        text = segments[-1].text
        if self._tokenizer.end_of_text is not None or text.endswith("\n"):
            return segments
        return [*segments[:-1], Segment(f"{text}\n", counts=True)]

    def _encode(self, texts: Sequence[tuple[str, str]]) -> list[NDArray[np.int32]]:
        if isinstance(self._tokenizer, CharTokenizer):
            rows = "with --init_from, --init_vocabulary shared gives them rows of their own"
            way_on, skip = f"--data.unknown skip leaves them out; {rows}", self._skips_unknown
            return [self._tokenizer.encode(text, location, way_on, skip=skip) for location, text in texts]
        if self._is_chat:
            return self._tokenizer.encode_marked([text for _, text in texts])  # type: ignore[attr-defined]
        return self._tokenizer.encode_batch([text for _, text in texts])

    def _fault(self, tokens: NDArray[np.int32], counts: NDArray[np.bool_]) -> str:
        most = self._context + 1
        if len(tokens) > most:
            unit = unit_of(self._tokenizer)
            return f"it has {len(tokens):,} {unit}s, at most {most:,} fit into model.max_len {self._context:,}"
        return "" if counts.any() else "it has nothing to answer"

    def made(self) -> list[RowTokens]:
        """The rows to train on, and those to validate on."""
        return [
            RowTokens(
                np.concatenate([tokens for tokens, _ in rows] or [np.zeros(0, np.int32)]),
                np.concatenate([counts for _, counts in rows] or [np.zeros(0, np.bool_)]),
                np.cumsum([0, *(len(tokens) for tokens, _ in rows)]),
            )
            for rows in self._rows
        ]
