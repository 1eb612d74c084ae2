"""The encoder-decoder as a task for the training loop, and loading it from a checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from data.pairs.batches import PairData
from data.pairs.strings import Pair
from data.tokenizers.vocabulary import Vocabulary
from seq2seq.accuracy import bits_per_byte, exact_match, predict, token_accuracy
from seq2seq.config import Seq2SeqConfig
from seq2seq.model import EncoderDecoder
from training.run import Result, train
from training.seeds import generator
from training.storage.loading import Device, Loaded, Weights, load_model
from training.task import evaluating

VOCABULARY_FILE = "vocabulary.json"
SAMPLES = 5
WIDEST = 40
"""Characters of a text that the table of samples shows."""


class Seq2SeqTask:
    """A fresh encoder-decoder and its pairs. Subclasses may bring another model or more metrics."""

    model_type = "seq2seq"
    model_class: type[EncoderDecoder] = EncoderDecoder
    data_class: type[PairData] = PairData
    shows_samples = True

    def __init__(self, config: Seq2SeqConfig) -> None:
        self.config = config
        self.data = self.data_class(config.data, config.model.max_len, config.seed, config.model.random_positions)
        self.model = self.model_class(config.model, len(self.data.vocabulary))
        self.model.init_weights(generator(config.seed, "weights"))
        self.flops_per_token = self.model.flops_per_token(self.data.mean_source / self.data.tokens_per_sample)

    def sample(self, seed: int) -> str:
        """A table of validation pairs with what the model makes of them."""
        chosen = torch.randperm(len(self.data.validation), generator=generator(seed))[:SAMPLES].tolist()
        pairs = [self.data.validation[index] for index in sorted(chosen)]
        with evaluating(self.model):
            predictions = predict(self.model, self.data.vocabulary, pairs, SAMPLES)
        return sample_table(pairs, predictions, self.data.vocabulary)

    def metrics(self, val_loss: float | None) -> Mapping[str, float]:
        """`token_accuracy`, and the `exact_match` of greedy decoding, both from 0 to 1; `bits_per_byte` of targets."""
        pairs, vocabulary, batch = self.data.decoded, self.data.vocabulary, self.config.training.eval_batch_size
        with evaluating(self.model):
            right = exact_match(predict(self.model, vocabulary, pairs, batch), pairs, vocabulary)
            accuracy = token_accuracy(self.model, vocabulary, pairs, batch)
        measures = {"token_accuracy": accuracy, "exact_match": sum(right) / len(right)}
        if val_loss is not None:
            measures["bits_per_byte"] = bits_per_byte(val_loss * self.data.validation_targets, self.data.validation)
        return measures

    def checkpoint_files(self) -> Mapping[str, str]:
        """The vocabulary."""
        return {VOCABULARY_FILE: self.data.vocabulary.to_json()}


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


class LoadedSeq2Seq(Loaded[EncoderDecoder, Vocabulary, Seq2SeqConfig]):
    """A trained encoder-decoder, ready to write targets."""


def load_seq2seq(
    path: Path | str,
    device: Device = "cpu",
    *,
    weights: Weights | None = None,
    model_class: type[EncoderDecoder] | None = None,
    trust_code: bool = False,
) -> LoadedSeq2Seq:
    """Load the model of a run's best checkpoint, or of one checkpoint, as `model_class`; see `load_model`."""
    reader = EncoderDecoder, Seq2SeqConfig, VOCABULARY_FILE, Vocabulary.from_json, "encoder-decoder"
    return LoadedSeq2Seq(*load_model(path, device, weights, model_class, *reader, trust_code=trust_code))
