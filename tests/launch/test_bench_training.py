"""The benchmark of training, on models of nothing: what it tells, what it writes, and that it leaves nothing behind."""

import gzip
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

import training.benchmark.measure as measuring
from launch.bench_training import main
from training.config.sections import RunConfig
from training.loop import Trainer
from training.runtime.errors import InputError, exit_code

GPT, PAIRS = ROOT / "configs/gpt/quick.yaml", ROOT / "configs/seq2seq/copy.yaml"
SMALL = ["--model.num_layers", "1", "--model.d_model", "16", "--model.num_heads", "2", "--model.d_ff", "16"]
SMALL += ["--training.batch_size", "4"]
SHORT = ["--warm_up", "1", "--steps", "4", "--rounds", "2"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Types the command in an empty folder, and gives its exit code."""
    monkeypatch.chdir(tmp_path)

    def typed(*options: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["bench_training.py", *map(str, options)])
        return exit_code(main)

    return typed


@pytest.mark.ci
def test_a_gpt_is_timed_in_turn_with_a_baseline(
    bench: Any, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = "slow=echo 'iter 0: loss 9.9, time 1.00ms, mfu 1%'; echo 'iter 1: loss 1.25, time 1000.00ms, mfu 1%'"
    files = ["--json", "b.json", "--plot", "b.png", "--profile", "traces"]
    own = ["--data.source", text_file, "--model.max_len", "16", "--training.precision", "fp32"]
    until = ["--until", "50", "--training.eval_interval", "3"]
    assert bench("--config", GPT, *SMALL, *SHORT, *own, *files, *until, "--peer", baseline, "--peer_tokens", "10") == 0
    figures = json.loads((tmp_path / "b.json").read_text())
    assert len(figures["rounds"]) == 2 * 2
    assert figures["slowest"] <= figures["tokens_per_second"] <= figures["fastest"]
    assert figures["tokens_per_step"] == 4 * 16
    assert figures["milliseconds_per_step"] == pytest.approx(1000 * 64 / figures["tokens_per_second"])
    achieved = figures["tokens_per_second"] * figures["flops_per_token"]
    assert figures["share_of_products"] == pytest.approx(achieved / figures["products_per_second"])
    [slow] = figures["baselines"]
    assert (slow["name"], slow["turns"], slow["loss"]) == ("slow", [10.0, 10.0], 1.25)
    assert slow["ratio"] == pytest.approx(figures["tokens_per_second"] / 10, rel=0.9)
    assert 0 < figures["peak_bytes"] < 2**31
    weights = 4 * figures["parameters"]
    assert figures["expected_bytes"]["weights"] == figures["expected_bytes"]["gradients"] == weights
    assert weights < figures["expected_bytes"]["optimizer"] < 2 * weights, "half of Muon's are enough"
    assert len(figures["expensive"]) == 10
    parts = figures["parts"]["milliseconds"]
    assert {"data", "forward", "backward", "optimizer", "other"} == parts.keys()
    assert sum(parts.values()) == pytest.approx(figures["parts"]["step_milliseconds"])
    assert min(parts["forward"], parts["backward"], parts["optimizer"]) > 0
    until = figures["until"]
    assert until["reached"]
    [evaluated] = until["curve"]
    assert evaluated["step"] == 3
    assert 0 < evaluated["val_loss"] <= 50
    assert 0 < evaluated["seconds"] < until["wall_seconds"]
    assert (tmp_path / "b.png").stat().st_size > 10_000
    with gzip.open(tmp_path / "traces/trace.json.gz") as file:
        assert any(event["name"] == "aten::mm" for event in json.load(file)["traceEvents"])
    printed = capsys.readouterr().out
    assert "slow: iter 1: loss 1.25, time 1000.00ms, mfu 1%" in printed
    assert "together, by formula" in printed
    assert "calls  aten::" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "b.png", "text.txt", "traces"]


@pytest.mark.nightly
def test_an_encoder_decoder_that_does_not_come_to_a_loss(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*SMALL, *SHORT, "--data.val_samples", "16", "--data.max_length", "8", "--training.ema_decay", "0.9"]
    options = ["--training.max_steps", "4", "--training.eval_interval", "2", "--until", "0.001", "--json", "b.json"]
    assert bench("--config", PAIRS, *small, *options) == 0
    figures = json.loads((tmp_path / "b.json").read_text())
    assert not figures["until"]["reached"]
    assert [evaluated["step"] for evaluated in figures["until"]["curve"]] == [2, 4]
    assert figures["expected_bytes"]["average"] == 4 * figures["parameters"]
    assert "validation loss 0.001 was not reached: " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_a_signal_ends_it_as_it_ends_others(bench: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.Rounds, "log", lambda *reported: signal.raise_signal(signal.SIGINT))
    assert bench("--config", GPT, *SMALL, *SHORT, "--data.source", text_file, "--model.max_len", "16") == 130


def test_a_hangup_that_was_ignored_is_ignored_again(
    bench: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under nohup a run would not hear the benchmark's own stop request."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert bench("--config", GPT, *SMALL, *SHORT, "--data.source", text_file, "--model.max_len", "16") == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_length_of_the_run_is_its_own_where_it_is_long_enough(
    bench: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `auto` chooses by the length of a run is chosen for that run, not for the benchmark."""
    configured: list[RunConfig] = []

    def note(trainer: Trainer, trackers: Any) -> None:
        configured.append(trainer.config)
        raise InputError("enough is known")

    monkeypatch.setattr(Trainer, "fit", note)
    for steps in ("3", "700"):
        options = ["--data.source", text_file, "--model.max_len", "16", "--training.max_steps", steps]
        assert bench("--config", GPT, *SMALL, *SHORT, *options) == 2
    assert [config.training.max_steps for config in configured] == [28, 700]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "rounds must be at least 1, got 0"),
        (["--peer_tokens", "0", "--peer", "true"], "peer_tokens must be at least 1, got 0"),
        (["--json", "b.txt"], "cannot write b.txt: expected a name that ends in .json"),
        (["--until", "2", "--training.eval_tokens", "999"], "--until goes by the whole validation split: leave"),
        (["--profile", "/dev/null/x"], "/dev/null/x: Not a directory"),
        (["--model.layers", "2"], "unknown option model.layers: did you mean"),
        (["--peer", "x=echo 1", "--peer_pattern", "1"], "peer_pattern must have a group"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    bench: Any, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--config", GPT, *options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


def test_a_baseline_that_fails_says_its_last_line(
    bench: Any, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*SMALL, *SHORT, "--data.source", text_file, "--model.max_len", "16"]
    assert bench("--config", GPT, *small, "--peer", "them=echo no such GPU; false") == 2
    assert capsys.readouterr().err == "error: the baseline them ended with code 1; its last line: no such GPU\n"
