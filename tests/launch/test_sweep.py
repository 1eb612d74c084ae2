"""`launch/sweep.py` as a person types it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, python_file, read_metrics

from launch.sweep import main
from training.runtime.errors import exit_code

SMALL = {
    "name: ": "small",
    "tracking: ": "none",
    "model:": "{num_layers: 1, d_model: 16, num_heads: 2, d_ff: 32, max_len: 32}",
    "data:": "{source: text.txt}",
    "training:": "{max_steps: 8, batch_size: 4, eval_interval: 4, precision: fp32}",
}
Said = Callable[..., tuple[int, str]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, text_file: Path) -> Said:
    """Run the command in a folder with a text and `small.yaml`: its exit code, and what it said."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text("".join(f"{name} {value}\n" for name, value in SMALL.items()))

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", [str(ROOT / "launch/sweep.py"), *words])
        code = exit_code(main)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


RATES = "optimizer.learning_rate=1e-3,3e-3"


def test_a_dry_run_shows_the_commands_and_makes_nothing(said: Said) -> None:
    code, text = said("--config", "small.yaml", "--grid", RATES, "--seeds", "2", "--seed", "7", "--dry_run")
    assert code == 0
    commands = [line for line in text.splitlines() if line.startswith("to run ")]
    assert len(commands) == 4
    assert commands[-1].endswith(
        "launch/train_gpt.py --config runs/sweeps/small-1/base.yaml --optimizer.learning_rate=3e-3 --seed=8 "
        "--output_dir runs/sweeps/small-1/learning_rate=3e-3,seed=8 --resume"
    )
    assert not Path("runs").exists()
    pairs = ROOT / "configs/seq2seq/copy.yaml"
    assert "launch/train_seq2seq.py --config" in said("--config", str(pairs), "--dry_run")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: --config"),
        ("--config small.yaml --grid optimizer.lerning_rate=1", "did you mean optimizer.learning_rate?"),
        ("--config small.yaml --grid optimizer.learning_rate=1,x", "optimizer.learning_rate: expected float, got x"),
        ("--config small.yaml --grid model.num_heads=2,3", "model.d_model must be"),
        ("--config small.yaml --grid model.num_heads", "grid: expected OPTION=VALUE,VALUE"),
        ("--config small.yaml --seeds 0", "seeds must be at least 1, got 0"),
        ("--config small.yaml --jobs 0", "jobs must be at least 1, got 0"),
        ("--config small.yaml --early_stop --grid data.source=a,b", "not with a grid over data.source"),
        ("--config small.yaml --grid jobs=1,2", "grid: jobs is an option of the sweep, not of a run"),
        (
            "--config small.yaml --grid optimizer.learning_rate=1e-3,0.001",
            "grid: optimizer.learning_rate=1e-3 and optimizer.learning_rate=0.001 are the same run",
        ),
        (
            "--config small.yaml --early_stop --metric bits_per_byte --training.eval_tokens 64",
            "early_stop: over a part of the validation split (training.eval_tokens) there are no bits per byte",
        ),
        ("--resume", "--resume goes on with the sweep in --output_dir: name that, and no --sweep"),
        ("--resume --output_dir x --sweep y", "--resume goes on with the sweep in --output_dir: name that, and no"),
        ("--resume --output_dir none", "none/base.yaml: there is no such file"),
        ("--sweep small.yaml", "small.yaml: expected a sweep of Weights & Biases, with a section parameters"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_made(words: str, message: str, said: Said) -> None:
    code, text = said(*words.split())
    assert (code, text.count("\n")) == (2, 1)
    assert message in text
    assert not Path("runs").exists()


def test_a_folder_in_use_is_never_another_sweep(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.sweep.running.Runner.run_all", lambda runner: None)
    to_do = ["--config", "small.yaml", "--grid", RATES, "--output_dir", "mine"]
    code, text = said(*to_do)
    assert (code, text.splitlines()[0]) == (1, "sweep       mine, 2 of 2 runs to do, 1 at once")
    assert said(*to_do) == (
        2,
        "error: mine is in use: go on with its sweep by --resume, or choose another --output_dir\n",
    )
    assert (
        "mine is a sweep of another configuration: leave --config and its options out"
        in (said("--output_dir", "mine", "--resume", "--model.d_model", "32")[1])
    )
    assert "mine, 2 of 2 runs" in said("--output_dir", "mine", "--resume")[1]
    more = ["--grid", "optimizer.learning_rate=3e-3,1e-2", "--seeds", "2"]
    assert "mine, 5 of 5 runs" in said("--output_dir", "mine", "--resume", *more)[1]
    same = ["--grid", "optimizer.learning_rate=0.003"]
    assert (
        "learning_rate=3e-3 and optimizer.learning_rate=0.003 are the same run"
        in (said("--output_dir", "mine", "--resume", *same)[1])
    )
    names = [run["name"] for run in json.loads(Path("mine/sweep.json").read_text())["runs"]]
    assert names == [
        *("learning_rate=1e-3,seed=1", "learning_rate=3e-3,seed=1", "learning_rate=3e-3,seed=2"),
        *("learning_rate=1e-2,seed=1", "learning_rate=1e-2,seed=2"),
    ]


def test_a_sweep_goes_on_by_its_own_metric_and_with_more_seeds_of_its_own_settings(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.sweep.running.Runner.run_all", lambda runner: None)
    said("--config", "small.yaml", "--grid", RATES, "--output_dir", "mine")
    code, text = said("--output_dir", "mine", "--resume", "--metric", "bits_per_byte")
    assert (code, text) == (2, "error: mine is a sweep by val_loss: leave --metric out\n")
    assert "mine, 4 of 4 runs" in said("--output_dir", "mine", "--resume", "--seeds", "2")[1]
    runs = json.loads(Path("mine/sweep.json").read_text())["runs"]
    rates = [(run["setting"]["optimizer.learning_rate"], run["seed"]) for run in runs]
    assert rates == [("1e-3", 1), ("3e-3", 1), ("1e-3", 2), ("3e-3", 2)]


def test_commands_are_as_they_are_typed_in_this_folder(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.sweep.running.Runner.run_all", lambda runner: None)
    config, place = Path("small.yaml").resolve(), Path("mine").resolve()
    monkeypatch.chdir(ROOT)
    words = ["--config", str(config), "--output_dir", str(place)]
    assert " launch/train_gpt.py --config " in said(*words, "--dry_run")[1]
    assert f" launch/sweep.py --output_dir {place} --resume\n" in said(*words)[1]


@pytest.mark.ci
def test_a_sweep_trains_and_what_failed_is_tried_again(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(python_file(tmp_path)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    grid = ["--grid", "data.source=text.txt,later.txt", "--seeds", "2"]
    code, text = said("--config", "small.yaml", *grid, "--output_dir", "mine")
    assert code == 1
    assert "4 runs did not come to their end" in text
    assert "later.txt does not exist" in text
    before = {
        run: read_metrics(tmp_path / "mine" / run) for run in ("source=text.txt,seed=1", "source=text.txt,seed=2")
    }
    Path("later.txt").write_text(Path("text.txt").read_text())
    code, text = said("--output_dir", "mine", "--resume")
    assert code == 0, text
    assert "mine, 2 of 4 runs to do" in text
    sweep: dict[str, Any] = json.loads(Path("mine/sweep.json").read_text())
    assert [run["state"] for run in sweep["runs"]] == ["done"] * 4
    assert [setting["done"] for setting in sweep["settings"]] == [2, 2]
    assert len({setting["mean"] for setting in sweep["settings"]}) == 1, "it is the same text"
    for run, metrics in before.items():
        assert read_metrics(tmp_path / "mine" / run) == metrics
        found = next(each for each in sweep["runs"] if each["name"] == run)
        assert found["loss"] == min(line["val_loss"] for line in metrics if "val_loss" in line)
    assert Path("mine/sweep.png").exists()
    assert said("--output_dir", "mine", "--resume")[0] == 0


@pytest.mark.nightly
def test_a_sweep_file_of_wandb_runs_offline(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(python_file(tmp_path)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("WANDB_MODE", "offline")
    file = (ROOT / "configs/sweeps/learning_rate.yaml").read_text().replace("configs/gpt/quick.yaml", "small.yaml")
    Path("sweep.yaml").write_text(file.replace("[0.01, 0.02, 0.03, 0.04, 0.06]", "[0.01, 0.02]"))
    code, text = said("--sweep", "sweep.yaml", "--output_dir", "mine")
    assert code == 0, text
    for rate in (0.01, 0.02):
        for seed in (1, 2):
            assert list(Path(f"mine/muon_learning_rate={rate},seed={seed}/wandb").glob("offline-run-*"))
