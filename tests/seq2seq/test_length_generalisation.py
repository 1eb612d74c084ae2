"""Trainings of each recipe, measured by length."""

import sys
from pathlib import Path

import pytest
from helpers import ROOT, python_file
from seq2seq_models import small_config

from seq2seq.length_generalisation import RECIPES, Trial, measure_trial, plot, table, train_trial
from training.config.command_line import config_to_yaml
from training.runtime.errors import CommandError

SCRIPT = ROOT / "launch/train_seq2seq.py"


@pytest.fixture(autouse=True)
def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(python_file(tmp_path)))


def test_recipes_are_every_kind_of_positions() -> None:
    assert {positions for positions, *_ in RECIPES.values()} == {"sinusoidal", "learned", "rotary"}
    assert {cross for _, cross, _ in RECIPES.values()} == {"content", "start", "both_ends"}


@pytest.mark.ci
def test_a_trial_is_trained_once_and_measured_by_length(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(config_to_yaml(small_config()))
    trial = Trial(task="copy", recipe="rotary, from both ends", seed=3)
    extra = ["--training.max_steps", "60", "--data.tokenizer", "bpe:270"]  # Strings of a length differ in tokens.
    run = train_trial(trial, SCRIPT, config, tmp_path, extra)
    first = (run.checkpoints / "last/state.json").stat().st_mtime_ns
    train_trial(trial, SCRIPT, config, tmp_path, extra)
    assert (run.checkpoints / "last/state.json").stat().st_mtime_ns == first
    row = measure_trial(trial, run, longest=6, pairs_per_length=20)
    assert sorted(row["by_length"]) == [1, 2, 3, 4, 5, 6]
    assert all(0 <= value <= 1 for value in row["by_length"].values())
    assert (row["seed"], row["steps"], row["trained_lengths"]) == (3, 60, [1, 3])
    assert row["longer_exact_match"] == pytest.approx(sum(row["by_length"][n] for n in (4, 5, 6)) / 3)
    again = row | {"seed": 4, "longer_exact_match": 0.0, "task": "reverse"}
    lines = table([row, again]).splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["copy", "reverse"]
    plot([row, again], tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").stat().st_size > 10_000


def test_a_training_that_fails_says_why(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(config_to_yaml(small_config()))
    trial = Trial(task="copy", recipe="learned", seed=1)
    with pytest.raises(
        CommandError, match=r"training copy-learned-content-0.0-1 ended with code 2: error: unknown option x"
    ):
        train_trial(trial, SCRIPT, config, tmp_path, ["--x", "1"])
