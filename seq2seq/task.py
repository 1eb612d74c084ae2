"""The encoder-decoder as a task for the training loop, and loading it from a checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from data.pair_batches import PairData
from data.strings import Pair
from data.vocabulary import Vocabulary
from seq2seq.accuracy import exact_match, predict, token_accuracy
from seq2seq.choices import VOCABULARY_FILE
from seq2seq.config import Seq2SeqConfig
from seq2seq.model import EncoderDecoder
from training.run import Result, train
from training.runtime.errors import InputError
from training.seeds import generator
from training.storage.loading import Weights, load_weights, saved_config
from training.storage.run_folder import open_checkpoint
from training.storage.state import saved_state
from training.task import Batch

SAMPLES = 5
WIDEST = 40
"""Characters of a text that the table of samples shows."""


class Seq2SeqTask:
    """A fresh encoder-decoder and its pairs. Subclasses may bring another model or more metrics.

    Args:
        config: The configuration.
    """

    model_class: type[EncoderDecoder] = EncoderDecoder
    shows_samples = True

    def __init__(self, config: Seq2SeqConfig) -> None:
        self.config = config
        self.data = PairData(config.data, config.model.max_len, config.seed, config.model.random_positions)
        self.model = self.model_class(config.model, len(self.data.vocabulary))
        self.model.init_weights(generator(config.seed, "weights"))
        self.samples_per_epoch = self.data.pairs_per_epoch
        self.tokens_per_sample = self.data.mean_target
        self.flops_per_token = self.model.flops_per_token(self.data.mean_source / self.data.mean_target)
        self.data_origin = self.data.pairs.origin
        self.data_notes = self.data.notes
        self.data_sha256 = self.data.pairs.sha256

    def training_batch(self, first: int, count: int) -> Batch:
        """Pairs of the endless stream; see `PairData`."""
        return self.data.training_batch(first, count)

    def validation_batches(self, batch_size: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        """Pairs of the validation split; see `PairData`."""
        return self.data.validation_batches(batch_size, rank, num_ranks)

    def describe_samples(self, first: int, count: int) -> str:
        """Which pairs stand at a place of the stream."""
        return self.data.describe_samples(first, count)

    def sample(self, seed: int) -> str:
        """A table of validation pairs with what the model makes of them."""
        places = torch.randperm(len(self.data.validation), generator=generator(seed))[:SAMPLES].tolist()
        pairs = [self.data.validation[place] for place in sorted(places)]
        with evaluating(self.model):
            predictions = predict(self.model, self.data.vocabulary, pairs, SAMPLES)
        return sample_table(pairs, predictions, self.data.vocabulary)

    def metrics(self, val_loss: float) -> Mapping[str, float]:
        """`token_accuracy`, and the `exact_match` of greedy decoding, both from 0 to 1."""
        pairs, vocabulary, batch = self.data.decoded, self.data.vocabulary, self.config.training.eval_batch_size
        with evaluating(self.model):
            right = exact_match(predict(self.model, vocabulary, pairs, batch), pairs, vocabulary)
            accuracy = token_accuracy(self.model, vocabulary, pairs, batch)
        return {"token_accuracy": accuracy, "exact_match": sum(right) / len(right)}

    def checkpoint_files(self) -> Mapping[str, str]:
        """The vocabulary."""
        return {VOCABULARY_FILE: self.data.vocabulary.to_json()}


@contextmanager
def evaluating(model: EncoderDecoder) -> Iterator[None]:
    """The model in evaluation mode, for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def sample_table(pairs: Sequence[Pair], predictions: Sequence[str | None], vocabulary: Vocabulary) -> str:
    """Sources, predictions and targets side by side."""
    rows: list[tuple[str, ...]] = [("source", "prediction", "target", "")]
    for pair, prediction, right in zip(pairs, predictions, exact_match(predictions, pairs, vocabulary), strict=True):
        mark = "" if right else "wrong"
        shown = (pair.source, "… (no end)" if prediction is None else prediction, pair.target)
        rows.append((*map(_short, shown), mark))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _short(text: str) -> str:
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def train_seq2seq(
    config: Seq2SeqConfig,
    *,
    task: type[Seq2SeqTask] = Seq2SeqTask,
    output_dir: Path | None = None,
    resume: bool = False,
) -> Result:
    """Train an encoder-decoder; see `training.run.train`."""
    return train(lambda: task(config), config, output_dir=output_dir, resume=resume)


class LoadedSeq2Seq(NamedTuple):
    """A trained model, ready to decode with.

    Attributes:
        model: In evaluation mode, in fp32.
        vocabulary: Its symbols.
        config: Of its run.
        weights: Which ones it has: "ema" or "raw".
        data_sha256: Of the pairs that it was trained on.
    """

    model: EncoderDecoder
    vocabulary: Vocabulary
    config: Seq2SeqConfig
    weights: Weights
    data_sha256: str


def load_seq2seq(
    path: Path,
    device: torch.device | str = "cpu",
    *,
    weights: Weights | None = None,
    model_class: type[EncoderDecoder] = EncoderDecoder,
) -> LoadedSeq2Seq:
    """Load the best checkpoint of a run, or one checkpoint.

    Args:
        path: The folder of a run or of a checkpoint.
        device: Where the model goes.
        weights: "ema" for the average of the weights, "raw" for those of the step; None for the average where the
            checkpoint has one.
        model_class: What was trained.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, or it has no average.
        InputError: It is not an encoder-decoder's.
    """
    checkpoint = open_checkpoint(path)
    if VOCABULARY_FILE not in checkpoint.files:
        raise InputError(f"{checkpoint.folder} is no encoder-decoder's: it has no {VOCABULARY_FILE}")
    vocabulary = Vocabulary.from_json(checkpoint.text(VOCABULARY_FILE), checkpoint.folder / VOCABULARY_FILE)
    config = saved_config(Seq2SeqConfig, checkpoint)
    model = model_class(config.model, len(vocabulary))
    weights = load_weights(model, checkpoint, weights, VOCABULARY_FILE)
    sha256 = str(saved_state(checkpoint).identity.get("data_sha256"))
    return LoadedSeq2Seq(model.to(device).float().eval(), vocabulary, config, weights, sha256)
