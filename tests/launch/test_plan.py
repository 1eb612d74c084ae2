"""The command that plans a run: by a card's name, and by a probe of the device that is here."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, command

import training.planning.probe as probing
from launch.plan import main
from training.planning import plan as planning
from training.runtime.errors import exit_code

GPT, PAIRS = ROOT / "configs/gpt/seed.yaml", ROOT / "configs/seq2seq/copy.yaml"
SMALL = ["--model.num_layers", "1", "--model.d_model", "32", "--model.num_heads", "2", "--model.d_ff", "48"]
SMALL += ["--training.batch_size", "8", "--training.max_steps", "6", "--training.eval_interval", "3"]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Types the command in an empty folder, and gives its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probing, "SECONDS", 0.2)

    def typed(*options: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["plan.py", *map(str, options)])
        return exit_code(main)

    return typed


def test_a_card_by_its_name(plan: Any, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ["--data.source", text_file, "--training.epochs", "null", "--training.max_steps", "1000"]
    assert plan("--config", GPT, *text, "--gpu", "4090", "--gpus", "2", "--json", "p.json") == 0
    figures = json.loads((tmp_path / "p.json").read_text())
    assert (figures["device"], figures["precision"], figures["gpus"]) == ("NVIDIA GeForce RTX 4090", "bf16", 2)
    assert figures["flops_per_step"] == pytest.approx(6 * 113e6 * 16384, rel=0.15)
    seconds = figures["seconds"]
    assert seconds["training"] == pytest.approx(1000 * seconds["step"])
    assert sum(seconds[name] for name in ("training", "evaluations", "saves")) == pytest.approx(seconds["total"])
    assert figures["kilowatt_hours"] == pytest.approx(2 * 450 * seconds["total"] / 3.6e6)
    one, two, four, _ = figures["cards"]
    assert one["seconds_per_step"] == pytest.approx(figures["flops_per_step"] / (0.35 * 165.2e12), rel=0.1)
    assert 1.5 < two["ratio"] < 2, "much to compute"
    assert two["seconds_per_step"] == seconds["step"]
    printed = capsys.readouterr().out
    assert re.search(r"^model       11[\d,]+ parameters$", printed, re.MULTILINE)
    assert "speed       an estimate: 35% of the 165.2 TFLOP/s of its maker are assumed" in printed
    assert f"two cards win: {two['ratio']:.2f} times the speed of one" in printed
    assert f"{four['verdict']}: {four['ratio']:.2f} times the speed of one" in printed
    assert "an estimate: 900 W all the time" in printed
    assert printed.endswith("p.json\n")


def test_two_cards_lose_with_a_small_model(plan: Any, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data.source", text_file, *SMALL, "--model.max_len", "32", "--training.compile", "model"]
    assert plan("--config", GPT, *small, "--gpu", "RTX 3090", "--link", "pcie3-x8") == 0
    assert re.search(r"^two cards lose: 0\.\d\d times the speed of one$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.ci
def test_what_does_not_fit_says_what_would(plan: Any, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--config", GPT, "--data.source", text_file, "--gpu", "3070"]
    assert plan(*base, "--training.micro_batch_size", "32", "--model.num_layers", "14") == 0
    told = capsys.readouterr().out
    fits = re.search(r"32 sequences at once, of [\d.]+ GB to count on: too much; (.*), (\d+) would fit", told)
    assert fits is not None
    assert fits[1] == "--training.micro_batch_size auto"
    assert plan(*base, "--training.micro_batch_size", fits[2], "--model.num_layers", "14") == 0
    assert re.search(
        rf" GB for \d+ sequences at once, of .* GB to count on; {fits[2]} would fit", capsys.readouterr().out
    )
    large = ["--model.num_layers", "40", "--model.d_model", "1152", "--training.recompute", "blocks"]
    assert plan(*base, *large) == 0
    told = capsys.readouterr().out
    assert "not even one would fit; with FSDP2 (configs/accelerate/fsdp2.yaml) one does on " in told


@pytest.mark.parametrize("kind", ["gpt", pytest.param("pairs", marks=pytest.mark.ci)])
def test_the_device_that_is_here_is_probed_and_the_plan_is_checked(
    kind: str, plan: Any, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--data.source", text_file, "--model.max_len", "32"] if kind == "gpt" else ["--data.val_samples", "16"]
    own += ["--training.ema_decay", "0.9", "--training.precision", "fp32"]
    config = GPT if kind == "gpt" else PAIRS
    assert plan("--config", config, *SMALL, *own, "--check", "6", "--json", "p.json") == 0
    figures = json.loads((tmp_path / "p.json").read_text())
    assert figures["device"].startswith("cpu: ")
    assert (figures["num_steps"], figures["evaluations"]) == (6, 2)
    assert figures["memory"]["fits"]
    assert figures["memory"]["parts"]["average"] == 4 * figures["parameters"]
    assert {"training", "total"} <= figures["check"].keys()
    for row in figures["check"].values():
        assert row["ratio"] == pytest.approx(row["planned"] / row["measured"])
    total = figures["seconds"]["total"]
    assert 0 < figures["seconds"]["training"] < total
    assert "kilowatt_hours" not in figures, "nobody knows what a CPU draws"
    assert "cards" not in figures
    printed = capsys.readouterr().out
    assert "probe       some steps of training, a part of an evaluation, and a checkpoint" in printed
    assert re.search(r"tokens/s in some steps here$", printed, re.MULTILINE)
    assert re.search(r"^total, s +[\d.]+ +[\d.]+ +[\d.]+$", printed, re.MULTILINE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "text.txt"], "it leaves nothing behind"


@pytest.mark.ci
def test_of_a_long_step_a_part_is_timed(
    plan: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "LONGEST_STEP", 0.0)
    probed: list[probing.Measured] = []
    probe = planning.probe
    monkeypatch.setattr(planning, "probe", lambda *asked: probed.append(probe(*asked)) or probed[0])
    own = ["--data.source", text_file, "--model.max_len", "16", "--training.micro_batch_size", "2", "--link", "1"]
    assert plan("--config", GPT, *SMALL, *own, "--gpus", "2", "--json", "p.json") == 0
    assert probed[0].samples == 4, "two passes of two sequences"
    figures = json.loads((tmp_path / "p.json").read_text())
    assert [row["cards"] for row in figures["cards"]] == [1, 2, 4, 8]
    assert figures["cards"][0]["seconds_per_step"] == pytest.approx(probed[0].step)


def test_without_room_nothing_is_trained(
    plan: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "available_memory", lambda: 10**5)
    assert plan("--config", GPT, *SMALL, "--data.source", text_file, "--model.max_len", "16") == 0
    told = capsys.readouterr().out
    assert "not even one would fit: take a smaller model or context" in told
    assert "not timed, since it does not fit" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "4095"], "gpu '4095' is not known: did you mean RTX "),
        (["--gpus", "0"], "gpus must be at least 1, got 0"),
        (["--gpu", "4090", "--check", "3"], "check: it trains on the one device that is here"),
        (["--link", "wire"], "link must be pcie3-x8 (to pcie5-x16)"),
        (["--gpu", "4090", "--link", "nvlink"], "link nvlink: the card does not come with it"),
        (["--efficiency", "2"], "efficiency must be above 0 and at most 1, got 2"),
        (["--json", "p.txt"], "cannot write p.txt: expected a name that ends in .json"),
        (["--model.layers", "2"], "unknown option model.layers: did you mean"),
        (["--training.batch_size", "0"], "training.batch_size must be at least 1, got 0"),
        (["--gpu", "4090", "--gpus", "8", "--training.batch_size", "4"], "training.batch_size must be at least proc"),
        (["--gpu", "T4", "--training.precision", "bf16"], "training.precision bf16: there is no figure of an T4"),
        (["--gpus", "2"], "gpus is 2, and there is no GPU here: name one by --gpu, or give a --link"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    plan: Any, options: list[str], message: str, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("--config", GPT, *SMALL, "--data.source", text_file, "--model.max_len", "16", *options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("gpt/shakespeare", "--training.batch_size 16 --check 6"),
        ("gpt/quick", "--model.d_model 256 --model.d_ff 768 --training.batch_size 48 --check 12"),
        (
            "seq2seq/copy",
            "--model.d_model 256 --model.d_ff 768 --data.max_length 60 --training.batch_size 256 --check 12",
        ),
    ],
)
def test_a_plan_is_near_what_happens(config: str, options: str, tmp_path: Path, text_file: Path) -> None:
    """Memory within 20 %; seconds, of a machine that may be shared, within a factor.

    It is a process of its own: what other tests have left free would be used again, and not be counted.
    """
    data = ["--data.source", text_file] if config.startswith("gpt") else []
    each = ["--training.eval_interval", "6", "--training.checkpoint_interval", "6"]
    text_file.write_text(text_file.read_text() * 40)
    given = ["--config", ROOT / f"configs/{config}.yaml", *options.split(), *each, *data, "--json", "p.json"]
    done = command(ROOT / "launch/plan.py", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check = json.loads((tmp_path / "p.json").read_text())["check"]
    assert 0.8 < check["memory"]["ratio"] < 1.2
    assert 0.5 < check["total"]["ratio"] < 2
