"""Pairs of bytes and subwords, from training to the picture of the attention."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import read_metrics
from seq2seq_models import random_model, small_config
from small_tokenizer import SmallTokenizer

from data.config import PairConfig
from data.pair_batches import PairData
from data.strings import GeneratedPairs, Pair
from data.vocabulary import END, SPECIAL, Vocabulary
from decoding.options import parse
from decoding.sampling import Sampling
from decoding.targets import search
from seq2seq.accuracy import accuracy_by_length, exact_match, losses, predict
from seq2seq.attention_map import attention_figure, cross_attention
from seq2seq.config import ModelConfig, Seq2SeqConfig
from seq2seq.evaluate import measure, write
from seq2seq.task import LoadedSeq2Seq, Seq2SeqTask, load_seq2seq, train_seq2seq
from training.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("small_tokenizer")


def pairs_config(folder: Path, **data: object) -> Seq2SeqConfig:
    """Numbers from English into German, with a sign that takes three bytes."""
    rows = "".join(f"number {n} €,Zahl {n} €\n" for n in range(120))
    (folder / "pairs.csv").write_text(f"source,target\n{rows}")
    config = small_config()
    options = {"task": "pairs", "source": str(folder / "pairs.csv"), "tokenizer": "bytes"} | data
    return replace(config, model=replace(config.model, max_len=32), data=PairConfig(**options))  # type: ignore[arg-type]


def best_line(run: Path) -> dict[str, float]:
    """The metrics of the best checkpoint."""
    return min((line for line in read_metrics(run) if "val_loss" in line), key=lambda line: line["val_loss"])


@pytest.fixture
def trained(tmp_path: Path) -> LoadedSeq2Seq:
    """A run of a few steps."""
    train_seq2seq(pairs_config(tmp_path), output_dir=tmp_path / "run")
    return load_seq2seq(tmp_path / "run")


def test_a_run_measures_bits_per_byte_and_its_vocabulary_comes_back(tmp_path: Path, trained: LoadedSeq2Seq) -> None:
    assert len(trained.vocabulary) == SPECIAL + len(SmallTokenizer())
    data = PairData(trained.config.data, 32, trained.config.seed)
    best = best_line(tmp_path / "run")
    size = sum(len(f"Zahl {pair.source.split()[1]} €".encode()) for pair in data.validation)
    assert best["bits_per_byte"] == pytest.approx(best["val_loss"] * data.validation_targets / math.log(2) / size)
    measured = losses(trained.model, trained.vocabulary, data.validation, 7)
    assert measured.nats_per_token == pytest.approx(best["val_loss"], rel=1e-5)
    assert measured.bits_per_byte == pytest.approx(best["bits_per_byte"], rel=1e-5)


def test_a_run_goes_on_with_its_tokenizer_and_no_other(tmp_path: Path, trained: LoadedSeq2Seq) -> None:
    longer = replace(trained.config, training=replace(trained.config.training, max_steps=14))
    assert train_seq2seq(longer, output_dir=tmp_path / "run", resume=True).counters.step == 14
    other = replace(longer, data=replace(longer.data, tokenizer="words"))
    with pytest.raises(InputError, match="cannot go on with .*: data_sha256 was"):
        train_seq2seq(other, output_dir=tmp_path / "run", resume=True)


def test_a_runs_own_pairs_are_measured_by_characters_with_the_tokenizer_of_its_checkpoint(
    tmp_path: Path, trained: LoadedSeq2Seq, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = {len(pair.source) for pair in PairData(trained.config.data, 32, trained.config.seed).validation}
    monkeypatch.setattr("data.vocabulary.make_tokenizer", None)
    given = ["--checkpoint", str(tmp_path / "run"), "--split", "val"]
    measure(parse(given), trained)
    _, _, loss, bits, _, *rows = capsys.readouterr().out.splitlines()
    assert loss.endswith(" nats per token")
    best = best_line(tmp_path / "run")
    assert bits == f"bits per byte {best['bits_per_byte']:.4f}"
    assert [int(row.split()[0]) for row in rows[:-1]] == sorted(lengths)


def test_targets_and_beams_are_text_and_nothing_is_unknown(
    tmp_path: Path, trained: LoadedSeq2Seq, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(tmp_path / "run"), "--source", "never seen: 漢", "--max_new_tokens", "5"]
    picture = tmp_path / "attention.png"
    write(parse([*given, "--attention", str(picture)]), trained, Sampling(temperature=0))
    greedy = capsys.readouterr().out.splitlines()[0]
    assert picture.stat().st_size > 10_000
    write(parse([*given, "--beams", "3"]), trained, Sampling(temperature=0))
    found = [line.split("  (log-probability")[0] for line in capsys.readouterr().out.splitlines()]
    beams = search(trained.model, trained.vocabulary.encode("never seen: 漢"), width=3, max_new_tokens=5)
    texts = [trained.vocabulary.decode(token for token in beam.tokens if token != END) for beam in beams]
    assert "\n".join(found) == "\n".join(texts)
    source = trained.vocabulary.encode("never seen: 漢")
    assert greedy == trained.vocabulary.decode(
        token for token in search(trained.model, source, width=1, max_new_tokens=5)[0].tokens if token != END
    )


def test_the_picture_names_tokens_and_bytes_and_takes_no_token_for_a_formula() -> None:
    vocabulary = Vocabulary(SmallTokenizer())
    model = random_model(len(vocabulary))
    source, target = vocabulary.encode("number $\\$é"), vocabulary.encode("ab\n$$")
    figure = attention_figure(cross_attention(model, source, target), source, target, vocabulary)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [*"⊢", "number␣", *r"$\$", r"\xc3", r"\xa9", "⊣"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ab", r"\n", "$", "$", "⊣"]
    figure.canvas.draw()


def test_strings_of_a_length_are_one_row_whatever_their_tokens() -> None:
    config = replace(small_config(), data=PairConfig(symbols="abé", max_length=3, tokenizer="bytes", val_samples=20))
    task = Seq2SeqTask(config)
    assert len(task.data.vocabulary) == SPECIAL + len(SmallTokenizer())
    pairs = GeneratedPairs("copy", "abé", 3, 3, 1).distinct("test", 20)
    assert len({len(task.data.vocabulary.encode(pair.source)) for pair in pairs}) > 1
    (row,) = accuracy_by_length(task.model, task.data.vocabulary, pairs, 10)
    assert (row.length, row.pairs) == (3, len(pairs))
    with pytest.raises(InputError, match=r"model.max_len \(7\) minus 2 .*, over the 2 bytes of a symbol, got 3"):
        replace(config, model=replace(config.model, max_len=7))


@torch.inference_mode()
def test_predictions_are_compared_as_text() -> None:
    vocabulary = Vocabulary(SmallTokenizer())
    pairs = [Pair("ab", "Zahl €"), Pair("a", "b")]
    assert exact_match(["Zahl €", "Zahl"], pairs, vocabulary) == [True, False]
    config = ModelConfig(num_layers=1, d_model=16, num_heads=2, d_ff=16, max_len=16)
    model = random_model(len(vocabulary), **vars(config))
    assert len(predict(model, vocabulary, pairs, 2)) == 2
