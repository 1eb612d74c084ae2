"""What is said of a run: the measures of the weights that leave, and none of the machine."""

import json
from pathlib import Path

from run_folders import make_run

from training.publishing.numbers import run_figures
from training.storage.finding import open_checkpoint


def test_measures_are_those_of_the_weights_that_leave(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tensors=("model", "ema"))
    checkpoint = open_checkpoint(run.path)
    assert run_figures(checkpoint, "ema").measures == {"val_loss": 1.0}
    assert run_figures(checkpoint, "raw").measures == {}, "nobody has measured them"
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    of_raw = {"raw_val_loss": 1.5, "train_loss": 2.0}
    run.metrics_file.write_text("".join(f"{json.dumps(line | of_raw)}\n" for line in lines))
    assert run_figures(checkpoint, "ema").measures == {"val_loss": 1.0}
    raw = run_figures(checkpoint, "raw")
    assert raw.measures == {"val_loss": 1.5}
    assert raw.losses == [(10, "2.0000", 1.5), (20, "2.0000", 1.5)]
    plain = open_checkpoint(make_run(tmp_path / "plain").path)
    assert run_figures(plain, "raw").measures == {"val_loss": 1.0}


def test_what_the_machine_did_measures_no_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1.0])
    line = json.loads(run.metrics_file.read_text()) | {"mfu": 0.3, "gpu_memory_gib": 2.5, "compile_seconds": 9.0}
    run.metrics_file.write_text(json.dumps(line) + "\n")
    assert run_figures(open_checkpoint(run.path), "raw").measures == {"val_loss": 1.0}
