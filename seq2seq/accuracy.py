"""How many targets a model gets right, greedily: in all, and by length."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from data.pairs.batches import encode, make_batch
from data.pairs.strings import Pair
from data.tokenizers.vocabulary import Vocabulary
from decoding.targets import decode
from seq2seq.model import EncoderDecoder
from training.loss import LossModel
from training.runtime.errors import require_finite
from training.task import IGNORED

Advance = Callable[[int], None]


class LengthAccuracy(NamedTuple):
    """Of the pairs whose sources are of one length.

    Attributes:
        length: Characters of the source, or words, where they are the tokens.
        pairs: How many.
        correct: How many targets came out whole and right, their ends included.
    """

    length: int
    pairs: int
    correct: int

    @property
    def exact_match(self) -> float:
        """The share that is correct, 0 to 1."""
        return self.correct / self.pairs


def predict(
    model: EncoderDecoder,
    vocabulary: Vocabulary,
    pairs: Sequence[Pair],
    batch_size: int,
    advance: Advance = lambda pairs: None,
) -> list[str | None]:
    """The greedy target of each source as text; None for one that came to no end.

    A target is given up where it has become longer than any that is asked for.

    Args:
        model: In evaluation mode.
        vocabulary: Its tokens.
        pairs: The sources; those of a batch should be of similar length.
        batch_size: Sources to decode at once.
        advance: Called with the size of each batch.
    """
    predictions: list[str | None] = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        encoded = encode(batch, vocabulary)
        longest = max(len(target) for _, target in encoded)
        for found in decode(model, [source[1:-1] for source, _ in encoded], max_new_tokens=longest):
            predictions.append(vocabulary.decode(found.tokens) if found.ended else None)
        advance(len(batch))
    return predictions


def exact_match(predictions: Sequence[str | None], pairs: Sequence[Pair], vocabulary: Vocabulary) -> list[bool]:
    """Which predictions are the target to the last symbol."""
    targets = (vocabulary.decode(vocabulary.encode(pair.target)) for pair in pairs)
    return [prediction == target for prediction, target in zip(predictions, targets, strict=True)]


def accuracy_by_length(
    model: EncoderDecoder,
    vocabulary: Vocabulary,
    pairs: Sequence[Pair],
    batch_size: int,
    advance: Advance = lambda pairs: None,
) -> list[LengthAccuracy]:
    """Exact match of greedy decoding for each length of source; see `predict`."""
    right = exact_match(predict(model, vocabulary, pairs, batch_size, advance), pairs, vocabulary)
    lengths = [vocabulary.length(pair.source) for pair in pairs]
    counts, hits = Counter(lengths), Counter(length for hit, length in zip(right, lengths, strict=True) if hit)
    return [LengthAccuracy(length, counts[length], hits[length]) for length in sorted(counts)]


@torch.inference_mode()
def token_accuracy(model: EncoderDecoder, vocabulary: Vocabulary, pairs: Sequence[Pair], batch_size: int) -> float:
    """The share of target tokens, ends included, that are the likeliest after the true tokens before them: 0 to 1."""
    hits = targets = 0
    device = model.embedding.weight.device
    for start in range(0, len(pairs), batch_size):
        batch = make_batch(encode(pairs[start : start + batch_size], vocabulary)).to(device)
        counted_BT = batch.targets_BT != IGNORED
        likeliest = model(*batch.inputs).max(-1)
        require_finite([float(likeliest.values.max())])
        hits += int(((likeliest.indices == batch.targets_BT) & counted_BT).sum())
        targets += int(counted_BT.sum())
    return hits / targets


class Losses(NamedTuple):
    """What the targets of some pairs, their ends included, cost a model that is told the true tokens before each.

    Attributes:
        nats_per_token: The mean over tokens.
        bits_per_byte: The sum over the bytes of the targets in UTF-8, which compares across tokenizers.
    """

    nats_per_token: float
    bits_per_byte: float


def bits_per_byte(nats: float, pairs: Sequence[Pair]) -> float:
    """What all targets of some pairs cost together, in nats, as bits for each of their bytes."""
    return nats / math.log(2) / sum(len(pair.target.encode()) for pair in pairs)


@torch.inference_mode()
def losses(model: EncoderDecoder, vocabulary: Vocabulary, pairs: Sequence[Pair], batch_size: int) -> Losses:
    """Measure the loss over every target token of some pairs.

    Raises:
        NonFiniteError: It is not finite.
    """
    nats, targets, loss_model = 0.0, 0, LossModel(model)
    for start in range(0, len(pairs), batch_size):
        batch = make_batch(encode(pairs[start : start + batch_size], vocabulary))
        inputs, targets_BT = batch.to(model.embedding.weight.device)
        nats += float(loss_model(*inputs, targets_BT))
        targets += batch.num_targets
    require_finite([nats])
    return Losses(nats / targets, bits_per_byte(nats, pairs))
