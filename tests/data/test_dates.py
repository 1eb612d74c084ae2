"""The example of pairs."""

import json
import re
from datetime import date
from pathlib import Path

from helpers import ROOT, command

from data.config import PairConfig
from data.dates import generate, ways_to_write
from data.pairs.files import FilePairs


def test_a_date_in_several_forms() -> None:
    assert ways_to_write(date(1984, 3, 7)) == [
        "7 March 1984",
        "March 7, 1984",
        "Wednesday, 7 March 1984",
        "Wed Mar 7 1984",
        "07-MAR-1984",
        "7.3.1984",
    ]


def test_the_dates_are_different_and_those_of_the_seed() -> None:
    rows = list(generate(500, 1))
    assert len({source for source, _ in rows}) == 500
    assert rows == list(generate(500, 1)) != list(generate(500, 2))
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", target) for _, target in rows)


def test_the_file_is_one_that_pairs_are_read_from(tmp_path: Path) -> None:
    done = command("-m", "data.dates", "--output", "dates.jsonl", "--count", "300", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "300 dates in dates.jsonl; learn them with --config configs/seq2seq/dates.yaml\n"
    rows = [json.loads(line) for line in (tmp_path / "dates.jsonl").read_text().splitlines()]
    assert len(rows) == 300
    pairs = FilePairs(PairConfig(task="pairs", source=str(tmp_path / "dates.jsonl")), 1)
    assert sum(map(len, pairs.splits.values())) == 300
    assert (ROOT / "configs/seq2seq/dates.yaml").exists()


def test_bad_options_are_one_line(tmp_path: Path) -> None:
    for options, line in (
        (["--output", "no/x.jsonl"], "error: cannot write no/x.jsonl: No such file or directory\n"),
        (["--output", "x.jsonl", "--count", "0"], "error: count must be at least 1 and at most 219147, got 0\n"),
    ):
        done = command("-m", "data.dates", *options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (2, line)
