"""What evaluate.py makes of pairs and sources whose symbols the model does not know."""

from dataclasses import replace
from pathlib import Path

import pytest
from seq2seq_models import random_model, small_config

from data.config import PairConfig
from data.pairs.files import FilePairs
from data.pairs.strings import split_of
from data.tokenizers.symbols import Symbols
from data.tokenizers.vocabulary import Vocabulary
from decoding.options import parse
from decoding.sampling import Sampling
from seq2seq.evaluate import held_out_pairs, write
from seq2seq.task import LoadedSeq2Seq
from training.runtime.errors import InputError


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedSeq2Seq:
    """A model, and the pairs that it is said to have learnt, one of which is too long and was skipped."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for name in ("manifest.json", "vocabulary.json"):  # Which tell the options whose they are.
        Path("run", name).write_text("{}")
    Path("own.csv").write_text("source,target\n" + "".join(f"{n},{n}\n" for n in range(300)) + f"{'1' * 99},1\n")
    model = random_model(13)
    data = PairConfig(task="pairs", source="own.csv", on_bad_row="skip")
    config = replace(small_config(), data=data, model=model.config)
    pairs = FilePairs(config.data, config.seed)
    pairs.check_lengths(config.model.max_len)
    return LoadedSeq2Seq(model.eval(), Vocabulary(Symbols("0123456789", "characters")), config, "raw", pairs.sha256)


def other_pairs(rows: list[str]) -> list[str]:
    """The options that measure on the test split of other pairs."""
    Path("other.csv").write_text("source,target\n" + "".join(f"{row}\n" for row in rows))
    return ["--checkpoint", "run", "--split", "test", "--data.source", "other.csv"]


def test_pairs_with_unknown_symbols_are_named_all_at_once_or_skipped(
    loaded: LoadedSeq2Seq, capsys: pytest.CaptureFixture[str]
) -> None:
    tested = [str(n) for n in range(1000) if split_of(str(n)) == "test"]
    strange = next(n for n in range(100) if split_of(f"€{n}€") == "test")
    given = other_pairs([f"{n},{n}" for n in range(1000)] + [f"€{strange}€,é"])
    with pytest.raises(
        InputError,
        match=rf"^1 of {len(tested) + 1} pairs have characters that are not in the vocabulary, the first is other.csv, "
        r"line 1002: '€' 2, 'é' 1 \(--data.unknown skip leaves them out\)$",
    ):
        held_out_pairs(parse(given), loaded)
    pairs, _ = held_out_pairs(parse([*given, "--data.unknown", "skip"]), loaded)
    assert sorted(pair.source for pair in pairs) == sorted(tested)
    assert "left out     1 of" in capsys.readouterr().err
    only = other_pairs([f"{n}x,é" for n in range(300)])
    with pytest.raises(InputError, match=r"^\d+ of \d+ pairs have characters that .*: 'x' \d+, 'é' \d+$"):
        held_out_pairs(parse([*only, "--data.unknown", "skip"]), loaded)


def test_bad_rows_of_other_pairs_do_as_the_run_did_unless_told(
    loaded: LoadedSeq2Seq, capsys: pytest.CaptureFixture[str]
) -> None:
    given = other_pairs([*(f"{n},{n}" for n in range(300)), "7", f"1,{'1' * 99}"])
    held_out_pairs(parse(given), loaded)
    assert (
        "note         2 rows left out: line 302 (column target is missing), line 303 (the " in capsys.readouterr().err
    )
    with pytest.raises(InputError, match="other.csv, line 302: column target is missing"):
        held_out_pairs(parse([*given, "--data.on_bad_row", "stop"]), loaded)


def test_the_runs_own_pairs_are_known_by_what_was_not_skipped(loaded: LoadedSeq2Seq) -> None:
    pairs, origin = held_out_pairs(parse(["--checkpoint", "run", "--split", "test"]), loaded)
    assert {split_of(pair.source) for pair in pairs} == {"test"}
    assert origin.sha256 == loaded.data_sha256


def test_unknown_symbols_of_a_source_are_named_or_left_out(
    loaded: LoadedSeq2Seq, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", "run", "--max_new_tokens", "3", "--source"]
    write(parse([*given, "12"]), loaded, Sampling(temperature=0))
    plain = capsys.readouterr()
    with pytest.raises(InputError, match=r"'€' at position 1 of --source: .* \(--data.unknown skip goes on without\)$"):
        write(parse([*given, "€1é2"]), loaded, Sampling(temperature=0))
    write(parse([*given, "€1é2", "--data.unknown", "skip"]), loaded, Sampling(temperature=0))
    skipped = capsys.readouterr()
    assert skipped.out == plain.out
    assert "left out of --source: '€' 1, 'é' 1" in skipped.err
    with pytest.raises(InputError, match="--source is empty"):
        write(parse([*given, "€", "--data.unknown", "skip"]), loaded, Sampling(temperature=0))
