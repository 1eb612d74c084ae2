"""Pairs of bytes and subwords, from training to the picture of the attention."""

import math
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
from helpers import read_metrics
from seq2seq_models import random_model, small_config

from data.config import PairConfig
from data.pairs.batches import PairData
from data.pairs.strings import GeneratedPairs, Pair
from data.tokenizers.vocabulary import END, SPECIAL, Vocabulary
from decoding.options import parse
from decoding.sampling import Sampling
from decoding.targets import search
from demo.results import Transduction
from seq2seq.accuracy import accuracy_by_length, exact_match, losses
from seq2seq.attention_map import attention_figure, cross_attention
from seq2seq.evaluate import measure, write
from seq2seq.task import LoadedSeq2Seq, Seq2SeqTask, load_seq2seq, train_seq2seq
from training.runtime.errors import InputError

SIZES = {"bytes": SPECIAL + 257, "bpe:300": SPECIAL + 300}


def best_line(run: Path) -> dict[str, float]:
    """The metrics of the best checkpoint."""
    return min((line for line in read_metrics(run) if "val_loss" in line), key=lambda line: line["val_loss"])


@pytest.fixture(scope="module", params=list(SIZES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps that brings numbers from English into German, with a sign that takes three bytes."""
    folder = tmp_path_factory.mktemp("subwords")
    rows = "".join(f"number {n * n * n} €,Zahl {n * n * n} €\n" for n in range(120))
    (folder / "pairs.csv").write_text(f"source,target\n{rows}")
    small, source = small_config(), str(folder / "pairs.csv")
    model, data = replace(small.model, max_len=32), PairConfig(task="pairs", source=source, tokenizer=request.param)
    train_seq2seq(replace(small, model=model, data=data), output_dir=folder / "run")
    return folder / "run"


@pytest.fixture
def loaded(run: Path) -> LoadedSeq2Seq:
    return load_seq2seq(run)


def test_a_run_measures_bits_per_byte_and_its_vocabulary_comes_back(run: Path, loaded: LoadedSeq2Seq) -> None:
    assert len(loaded.vocabulary) == SIZES[loaded.config.data.tokenizer]
    data, best = PairData(loaded.config.data, 32, loaded.config.seed), best_line(run)
    size = sum(len(f"Zahl {pair.source.split()[1]} €".encode()) for pair in data.validation)
    assert best["bits_per_byte"] == pytest.approx(best["val_loss"] * data.validation_targets / math.log(2) / size)
    measured = losses(loaded.model, loaded.vocabulary, data.validation, 7)
    assert measured.nats_per_token == pytest.approx(best["val_loss"], rel=1e-5)
    assert measured.bits_per_byte == pytest.approx(best["bits_per_byte"], rel=1e-5)


def test_a_run_goes_on_with_its_tokenizer_and_no_other(run: Path, loaded: LoadedSeq2Seq, tmp_path: Path) -> None:
    copytree(run, tmp_path / "run", symlinks=True)
    longer = replace(loaded.config, training=replace(loaded.config.training, max_steps=14))
    assert train_seq2seq(longer, output_dir=tmp_path / "run", resume=True).counters.step == 14
    other = replace(longer, data=replace(longer.data, tokenizer="bpe:290"))
    with pytest.raises(InputError, match="cannot go on with .*: data.tokenizer was .*; data_sha256 was"):
        train_seq2seq(other, output_dir=tmp_path / "run", resume=True)


def test_a_runs_own_pairs_are_measured_by_characters_with_the_tokenizer_of_its_checkpoint(
    run: Path, loaded: LoadedSeq2Seq, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = {len(pair.source) for pair in PairData(loaded.config.data, 32, loaded.config.seed).validation}
    monkeypatch.setattr("data.tokenizers.vocabulary.make_tokenizer", None)
    measure(parse(["--checkpoint", str(run), "--split", "val"]), loaded)
    _, _, loss, bits, _, *rows = capsys.readouterr().out.splitlines()
    best = best_line(run)
    assert loss == f"loss          {best['val_loss']:.4f} nats per token"
    assert bits == f"bits per byte {best['bits_per_byte']:.4f}"
    assert [int(row.split()[0]) for row in rows[:-1]] == sorted(lengths)


def test_targets_and_beams_are_text_and_nothing_is_unknown(
    run: Path, loaded: LoadedSeq2Seq, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(run), "--source", "never seen: 漢", "--max_new_tokens", "5"]
    source = loaded.vocabulary.encode("never seen: 漢")

    def texts(width: int) -> str:
        beams = search(loaded.model, source, width=width, max_new_tokens=5)
        return "".join(f"{loaded.vocabulary.decode(t for t in beam.tokens if t != END)}\n" for beam in beams)

    picture = tmp_path / "attention.png"
    write(parse([*given, "--attention", str(picture)]), loaded, Sampling(temperature=0))
    assert capsys.readouterr().out == texts(1)
    assert picture.stat().st_size > 10_000
    write(parse([*given, "--beams", "3"]), loaded, Sampling(temperature=0))
    lines = capsys.readouterr().out.split("\n")
    assert "\n".join(line.split("  (log-probability")[0] for line in lines) == texts(3)


def test_the_picture_names_tokens_and_bytes_and_takes_no_token_for_a_formula() -> None:
    vocabulary = Vocabulary.learnt("bpe:258", ["$$ $$"])
    model = random_model(len(vocabulary))
    source, target = vocabulary.encode("a $$\\$é"), vocabulary.encode("ab\n$$")
    figure = attention_figure(cross_attention(model, source, target), source, target, vocabulary)
    axes = figure.axes[0]
    labels = [*"⊢a␣", "$$", *r"\$", r"\xc3", r"\xa9", "⊣"]
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", r"\n", "$$", "⊣"]
    figure.canvas.draw()


def test_strings_of_a_length_are_one_row_whatever_their_tokens() -> None:
    data = PairConfig(symbols="abcdé", max_length=3, tokenizer="bpe:260", val_samples=20)
    task = Seq2SeqTask(replace(small_config(), data=data))
    assert len(task.data.vocabulary) == SPECIAL + 260
    pairs = GeneratedPairs("copy", "abcdé", 3, 3, 1).distinct("test", 20)
    assert len({len(task.data.vocabulary.encode(pair.source)) for pair in pairs}) > 1
    (row,) = accuracy_by_length(task.model, task.data.vocabulary, pairs, 10)
    assert (row.length, row.pairs) == (3, len(pairs))
    with pytest.raises(InputError, match=r"model.max_len \(7\) minus 2 .*, over the 2 bytes of a symbol, got 3"):
        replace(task.config, model=replace(task.config.model, max_len=7))


def test_the_page_holds_back_a_character_until_it_is_whole(loaded: LoadedSeq2Seq) -> None:
    vocabulary = loaded.vocabulary
    tokens = vocabulary.encode("€漢")
    assert len(tokens) > 3
    for count in range(len(tokens) + 1):
        symbols = Transduction(loaded=loaded, source="", source_tokens=[], tokens=tokens[:count]).symbols
        assert len(symbols) == count
        assert "€漢".startswith("".join(symbols))
    assert "".join(symbols) == "€漢"


def test_predictions_are_compared_as_text() -> None:
    vocabulary = Vocabulary.learnt("bytes", [])
    pairs = [Pair("ab", "Zahl €"), Pair("a", "b")]
    assert exact_match(["Zahl €", "Zahl"], pairs, vocabulary) == [True, False]
