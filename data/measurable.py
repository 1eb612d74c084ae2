"""A split of a text, or of rows with answers, to measure a loss on: what `launch/evaluate.py --split` goes through."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal, NamedTuple

from data.answers.tokens import answer_tokens
from data.answers.windows import PackedRows
from data.batches.windows import as_tensor, end_of_documents, side_by_side
from data.cache.tokens import tokenized
from data.config import TextConfig
from data.text import Source
from data.tokenizers.tokenizer import Tokenizer, unit_of
from training.task import Batch

Split = Literal["train", "val"]


class Measurable(NamedTuple):
    """What a loss is the mean over, in batches.

    Attributes:
        batches: Those of one rank.
        num_targets, num_bytes: In those of all ranks: targets, and of how many bytes of UTF-8 they are made.
        notes: What was done to read them.
        said: What there is, in words.
    """

    batches: Iterable[Batch]
    num_targets: int
    num_bytes: int
    notes: Sequence[str]
    said: str


def measurable_text(
    source: Source, data: TextConfig, tokenizer: Tokenizer, split: Split, context: int, share: tuple[int, int, int]
) -> Measurable:
    """A split of a text, or of all texts of a mix.

    Args:
        source: Where it comes from.
        data: How it is split.
        tokenizer: Of the model.
        split: Which one.
        context: Tokens that the model reads at once.
        share: The size of a batch, this rank and the number of ranks.
    """
    texts = [(source.parts[name], part) for name, part in data.parts.items()] or [(source, data)]
    found = [tokenized(*text, tokenizer, ["validation" if split == "val" else "training"]) for text in texts]
    tokens = [each.validation if split == "val" else each.training for each in found]
    end = end_of_documents(tokenizer, data)
    batches = (side_by_side(as_tensor(part.tokens_N), context, *share, end=end) for part in tokens)
    return Measurable(
        chain.from_iterable(batches),
        sum(max(len(part.tokens_N) - 1, 0) for part in tokens),
        sum(part.target_bytes(tokenizer) for part in tokens if len(part.tokens_N)),
        [note for each in found for note in each.notes],
        f"{sum(len(part.tokens_N) for part in tokens)} {unit_of(tokenizer)}s",
    )


def measurable_answers(
    source: Source, data: TextConfig, tokenizer: Tokenizer, split: Split, context: int, share: tuple[int, int, int]
) -> Measurable:
    """A split of rows with answers; the arguments are those of `measurable_text`."""
    assert source.rows is not None
    found = answer_tokens(source.rows, data, context, tokenizer)
    rows = found.validation if split == "val" else found.training
    batches = PackedRows(rows, context).batches(*share)
    about = rows.num_targets, rows.target_bytes(tokenizer), found.notes
    return Measurable(batches, *about, f"{len(rows):,} rows")
