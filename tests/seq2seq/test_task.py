"""The encoder-decoder as a task: batches, measures, the table of samples, training, resuming, loading."""

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from helpers import read_metrics, with_training
from seq2seq_models import small_config
from torch import Tensor, nn

from data.config import PairConfig
from data.pairs.batches import PairData, make_batch
from data.pairs.strings import GeneratedPairs, Pair
from data.tokenizers.symbols import Symbols
from data.tokenizers.vocabulary import END, PAD, START, Vocabulary
from decoding.targets import Decoded
from gpt.config import GPTConfig
from gpt.task import train_gpt
from seq2seq.accuracy import accuracy_by_length, exact_match, predict, token_accuracy
from seq2seq.config import Seq2SeqConfig
from seq2seq.model import EncoderDecoder
from seq2seq.task import Seq2SeqTask, evaluating, load_seq2seq, sample_table, train_seq2seq
from training.config.sections import TrainingConfig
from training.runtime.errors import InputError
from training.storage.checkpoint import Checkpoint
from training.storage.state import check_identity, run_identity
from training.task import IGNORED, loss_sum


def learnable(**training: object) -> Seq2SeqConfig:
    """A task that is learnt in seconds: copy 1 to 3 of 8 symbols."""
    config = small_config()
    return replace(config, training=replace(config.training, **training))


def test_a_batch_shifts_its_targets_by_one_and_pads_both_sides() -> None:
    batch = make_batch([([1, 5, 2], [5, 6, 2]), ([1, 7, 8, 2], [2])])
    source_BS, input_BT = batch.inputs
    assert source_BS.tolist() == [[START, 5, END, PAD], [START, 7, 8, END]]
    assert input_BT.tolist() == [[START, 5, 6], [START, PAD, PAD]]
    assert batch.targets_BT.tolist() == [[5, 6, END], [END, IGNORED, IGNORED]]
    assert batch.num_targets == 4


@torch.no_grad()
def test_the_loss_counts_tokens_and_not_padding() -> None:
    task = Seq2SeqTask(small_config())
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.normal_(0.0, 0.2)
    pairs = [([1, 5, 2], [5, 6, 2]), ([1, 7, 8, 2], [2]), ([1, 3, 2], [3, 4, 5, 6, 2])]
    together = loss_sum(task.model, make_batch(pairs))
    alone = sum(loss_sum(task.model, make_batch([pair])) for pair in pairs)
    assert float(together) == pytest.approx(float(alone), rel=1e-5)


@torch.no_grad()
def test_label_smoothing_is_the_mixture_that_it_says() -> None:
    task = Seq2SeqTask(small_config())
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.normal_(0.0, 0.2)
    batch = make_batch([([1, 5, 2], [5, 6, 2]), ([1, 7, 8, 2], [2])])
    logs_BTV = task.model(*batch.inputs).log_softmax(-1)
    counted_BT = batch.targets_BT != IGNORED
    evenly = -(logs_BTV.mean(-1) * counted_BT).sum()
    expected = 0.9 * loss_sum(task.model, batch) + 0.1 * evenly
    assert float(loss_sum(task.model, batch, 0.1)) == pytest.approx(float(expected), rel=1e-5)


def test_ranks_share_the_validation_pairs_and_none_comes_twice() -> None:
    data = PairData(small_config().data, 16, seed=1)
    shares = [list(data.validation_batches(7, rank, 3)) for rank in range(3)]
    rows = [tuple(row[row > END].tolist()) for share in shares for batch in share for row in batch.inputs[0]]
    assert len(rows) == len(data.validation)
    assert len(set(rows)) == len(rows)


def test_every_so_many_th_pair_is_a_part_of_the_validation_pairs() -> None:
    data = PairData(small_config().data, 16, seed=1)
    batches = [batch for rank in range(2) for batch in data.validation_batches(4, rank, 2, 5)]
    rows = [tuple(row[row > END].tolist()) for batch in batches for row in batch.inputs[0]]
    assert sorted(rows) == sorted(tuple(data.vocabulary.encode(pair.source)) for pair in data.validation[::5])
    assert data.validation_targets == sum(batch.num_targets for batch in data.validation_batches(9, 0, 1))


def test_a_training_batch_is_a_pure_function_of_its_place() -> None:
    data = PairData(small_config().data, 16, seed=1)
    whole, again = data.training_batch(0, 8), PairData(small_config().data, 16, seed=1)
    again.training_batch(50, 3)
    assert torch.equal(again.training_batch(0, 8).targets_BT, whole.targets_BT)
    sources = [pair.source for pair in data.pairs.stream("train", 0, 8)]
    assert [data.vocabulary.decode(row[row > END].tolist()) for row in whole.inputs[0]] == sources
    assert data.describe_samples(4, 5) == ", ".join(f"string {n} ({sources[n]})" for n in (4, 5, 6)) + " and 2 more"


def test_a_share_of_the_training_pairs_stands_at_random_positions() -> None:
    data = PairData(small_config().data, 16, seed=1, random_positions=0.25)
    source_BS, _, positions_BP = data.training_batch(0, 400).inputs
    counts = (source_BS != PAD).sum(1).tolist()
    rows = [row[:count].tolist() for row, count in zip(positions_BP, counts, strict=True)]
    assert all(row == sorted(set(row)) and row[-1] < 16 for row in rows)
    moved = [row for row in rows if row != list(range(len(row)))]
    assert 70 < len(moved) < 130
    assert {position for row in moved for position in row} == set(range(16))
    again_BP = data.training_batch(250, 20).inputs[2]
    assert again_BP.tolist() == positions_BP[250:270, : again_BP.size(1)].tolist(), "whatever else is in the batch"
    assert [len(batch.inputs) for batch in data.validation_batches(30, 0, 1)] == [2, 2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt to copy up to 3 symbols."""
    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_seq2seq(learnable(max_steps=200, eval_interval=100), output_dir=folder)
    return folder


def test_training_learns_and_measures(trained: Path) -> None:
    first, last = (line for line in read_metrics(trained) if "val_loss" in line)
    assert first["val_loss"] < math.log(11)
    assert last["val_loss"] < 0.1
    assert last["exact_match"] > 0.95
    assert 0.95 < last["token_accuracy"] <= 1
    data = Seq2SeqTask(learnable()).data
    assert last["tokens"] == sum(data.training_batch(16 * step, 16).num_targets for step in range(200))
    sample = (trained / "samples/step-00000200.txt").read_text().splitlines()
    assert sample[0].split() == ["source", "prediction", "target"]
    assert len(sample) == 6


def test_the_samples_are_printed_at_each_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_seq2seq(learnable(max_steps=2, eval_interval=1), output_dir=tmp_path / "run")
    printed = capsys.readouterr().out
    assert printed.count("source") == printed.count("prediction") == 2
    assert (tmp_path / "run/samples/step-00000001.txt").read_text() in printed


def test_a_trained_model_comes_back_and_measures_the_same(trained: Path) -> None:
    loaded = load_seq2seq(trained)
    pairs = PairData(loaded.config.data, loaded.config.model.max_len, loaded.config.seed).validation
    right = exact_match(predict(loaded.model, loaded.vocabulary, pairs, 10), pairs, loaded.vocabulary)
    best = min((line for line in read_metrics(trained) if "val_loss" in line), key=lambda line: line["val_loss"])
    assert sum(right) / len(right) == best["exact_match"]
    assert token_accuracy(loaded.model, loaded.vocabulary, pairs, 10) == pytest.approx(best["token_accuracy"])


def test_accuracy_by_length_counts_whole_targets(trained: Path) -> None:
    loaded = load_seq2seq(trained)
    wrong = [Pair("abc", "abd"), Pair("ab", "a"), Pair("a", "ab")]
    right = [Pair(text, text) for text in ("abc", "cab", "ab", "a")]
    rows = accuracy_by_length(loaded.model, loaded.vocabulary, right + wrong, 4)
    assert [(row.length, row.pairs, row.correct) for row in rows] == [(1, 2, 1), (2, 2, 1), (3, 3, 2)]
    assert rows[2].exact_match == 2 / 3


def test_token_accuracy_is_the_share_of_targets_and_not_of_padding() -> None:
    class Copying:
        """It foretells the source's own tokens."""

        embedding = nn.Embedding(1, 1)

        def __call__(self, source_BS: Tensor, input_BT: Tensor) -> Tensor:
            return nn.functional.one_hot(source_BS[:, 1:], 11).float()

    model, vocabulary = cast(EncoderDecoder, Copying()), Vocabulary(Symbols("abcdefgh", "characters"))
    pairs = [Pair("abcd", "abcd"), Pair("e", "e"), Pair("fg", "fg")]
    assert token_accuracy(model, vocabulary, pairs, 8) == 1.0
    pairs += [Pair("gh", "ga")]
    for batch_size in (1, 3, 8):
        assert token_accuracy(model, vocabulary, pairs, batch_size) == pytest.approx(12 / 13)


def test_a_target_without_an_end_is_no_match() -> None:
    vocabulary = Vocabulary(Symbols("abc", "characters"))
    assert exact_match([None, "a"], [Pair("a", "a")] * 2, vocabulary) == [False, True]


def test_a_target_that_came_to_no_end_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([Decoded((3, 4), -1.0, True), Decoded((3, 4, 5), -1.0, False)])
    monkeypatch.setattr("seq2seq.accuracy.decode", lambda model, sources, max_new_tokens: [next(found)])
    pairs = [Pair("ab", "ab"), Pair("abc", "abc")]
    predictions = predict(cast(EncoderDecoder, None), Vocabulary(Symbols("abc", "characters")), pairs, 1)
    assert predictions == ["ab", None]


def test_word_targets_match_whatever_spaces_stand_between() -> None:
    vocabulary = Vocabulary(Symbols(["a", "b"], "words"))
    assert exact_match(["a b"], [Pair("x", " a   b")], vocabulary) == [True]


def test_the_table_shows_texts_side_by_side_and_marks_what_is_wrong() -> None:
    pairs = [Pair("ab", "ba"), Pair("long " * 20, "x\ny"), Pair("c", "c")]
    vocabulary = Vocabulary.learnt("characters", ["long abcxy\n"])
    assert sample_table(pairs, ["ba", None, "d"], vocabulary).splitlines() == [
        f"source{' ' * 36}prediction  target",
        f"ab{' ' * 40}ba          ba",
        f"{('long ' * 20)[:39]}…  … (no end)  x\\ny    wrong",
        f"c{' ' * 41}d           c       wrong",
    ]


def test_evaluating_gives_back_the_mode() -> None:
    model = Seq2SeqTask(small_config()).model
    with evaluating(model):
        assert not model.training
    assert model.training


def test_another_class_or_a_gpts_checkpoint_is_refused(trained: Path, config: GPTConfig, tmp_path: Path) -> None:
    from seq2seq.model import EncoderDecoder

    class Other(EncoderDecoder):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            self.more = torch.nn.Linear(1, 1)

    with pytest.raises(InputError, match="are not those of a Other: load them with the class that was trained"):
        load_seq2seq(trained, model_class=Other)
    with pytest.raises(InputError, match="does not exist: expected a run's folder or a checkpoint's"):
        load_seq2seq(tmp_path / "nowhere")
    train_gpt(with_training(config, max_steps=1), output_dir=tmp_path / "gpt")
    with pytest.raises(InputError, match="step-00000001 is no encoder-decoder's: it has no vocabulary.json"):
        load_seq2seq(tmp_path / "gpt/checkpoints/step-00000001")


def test_a_run_goes_on_only_with_the_same_task(tmp_path: Path) -> None:
    config = learnable(max_steps=2)
    train_seq2seq(config, output_dir=tmp_path / "run")
    other = replace(config, data=replace(config.data, task="reverse"))
    with pytest.raises(InputError, match="cannot go on with .*: data_sha256 was "):
        train_seq2seq(other, output_dir=tmp_path / "run", resume=True)


def test_strings_come_in_the_order_that_they_always_did_so_older_runs_go_on(tmp_path: Path) -> None:
    train_seq2seq(learnable(max_steps=2), output_dir=tmp_path / "run")
    newest = Checkpoint(tmp_path / "run/checkpoints/last")
    del newest.state["identity"]["data_order"]
    check_identity(newest, run_identity(learnable(), Seq2SeqTask(learnable())))


def test_the_test_strings_of_a_run_are_those_of_no_training(trained: Path) -> None:
    data = load_seq2seq(trained).config.data
    pairs = Seq2SeqTask(learnable()).data.pairs
    seen = {pairs.pair("train", index).source for index in range(200 * 16)}
    test = GeneratedPairs("copy", data.symbols, data.min_length, data.max_length, seed=1).distinct("test", 100)
    assert not seen & {pair.source for pair in test}


def test_data_config_defaults_make_a_task() -> None:
    assert Seq2SeqTask(
        Seq2SeqConfig(data=PairConfig(val_samples=20), training=TrainingConfig(max_steps=1))
    ).data.origin.startswith("copy strings of 1 to 20")
