"""What the files of runs tell."""

import errno
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import PLAIN, make_run

from training.config.plain_yaml import dump_yaml
from training.config.sections import TrainingConfig
from training.runs.copying import copy_checkpoint
from training.runs.listing import age, find_runs, read_run, table_row
from training.runtime.errors import InputError


def test_a_run_is_done_or_stopped_or_running(tmp_path: Path) -> None:
    assert read_run(make_run(tmp_path / "done").path).state == "done"
    stopped = make_run(tmp_path / "stopped", [2.0])
    assert read_run(stopped.path).state == "stopped"
    stopped.claim()
    running = read_run(stopped.path)
    assert running.state == "running"
    stopped.release()
    assert read_run(stopped.path).state == "stopped"


def test_what_is_known_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [2.0, 3.0])
    found = read_run(run.path)
    assert (found.model, found.step, found.steps, found.tokens, found.seconds) == ("gpt", 20, 20, 640, 10.0)
    assert (found.val_loss, found.best, found.best_step) == (3.0, 2.0, 10)
    assert [(saved.step, saved.names, saved.val_loss) for saved in found.checkpoints] == [
        (10, ["best"], 2.0),
        (20, ["last"], 3.0),
    ]
    sizes = [file.lstat().st_size for file in run.path.rglob("*") if file.is_file() and not file.is_symlink()]
    assert found.size == sum(sizes)
    row = table_row(found)
    assert (row["step"], row["loss"], row["best"], row["checkpoints"]) == ("20/20", "3.0000", "2.0000", "2")


def test_a_running_run_is_further_than_its_newest_checkpoint_and_what_it_writes_is_no_damage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [2.0])
    run.append_metrics({"step": 17, "tokens": 99, "seconds": 5.0, "train_loss": 1.5})
    (run.checkpoints / "step-00000020").mkdir()
    assert read_run(run.path).state == "damaged"
    run.claim()
    found = read_run(run.path)
    assert (found.state, found.faults, found.step, found.tokens, found.val_loss) == ("running", [], 17, 99, 2.0)
    run.release()


@pytest.mark.parametrize(
    ("ends", "state"),
    [
        ({"epochs": 0.5}, "done"),
        ({"epochs": 0.51}, "stopped"),
        ({"max_tokens": 640}, "done"),
        ({"max_tokens": 671}, "done"),
        ({"max_tokens": 672}, "stopped"),
        ({"max_steps": 100, "epochs": 0.5}, "done"),
        ({"max_steps": 100, "patience": 1}, "done"),
        ({"max_steps": 100, "patience": 2}, "stopped"),
    ],
    ids=str,
)
def test_whatever_ends_a_run_is_its_end(ends: dict[str, Any], state: str, tmp_path: Path) -> None:
    config = replace(PLAIN, training=TrainingConfig(**ends))
    assert read_run(make_run(tmp_path / "run", [1.0, 2.0], config).path).state == state


def test_a_run_says_how_many_steps_it_takes_until_it_is_to_end_elsewhere(tmp_path: Path) -> None:
    """What a number of tokens comes to is a mean: the tokens of the steps that were done tell it roughly."""
    config = replace(PLAIN, training=TrainingConfig(max_tokens=700))
    run = make_run(tmp_path / "run", config=config, num_steps=20)
    assert (read_run(run.path).state, read_run(run.path).steps) == ("done", 20)
    run.create(dump_yaml(asdict(replace(config, training=TrainingConfig(max_tokens=960)))))
    assert (read_run(run.path).state, read_run(run.path).steps) == ("stopped", 30)


def test_damage_of_any_file_of_a_run_is_named(tmp_path: Path) -> None:
    for name in ("manifest.json", "state.json", "tokenizer.json", "model.safetensors"):
        run = make_run(tmp_path / name)
        file = run.checkpoints / "step-00000010" / name
        file.write_bytes(file.read_bytes()[:-1])
        found = read_run(run.path)
        assert found.state == "damaged"
        assert [name in fault for fault in found.faults] == [True]
        assert [saved.fault is None for saved in found.checkpoints] == [False, True]
    run.config_file.write_text("a: [")
    run.metrics_file.write_text("[1]\n")
    assert len(read_run(run.path).faults) == 3


def test_runs_are_found_in_folders_of_folders_but_not_behind_links(tmp_path: Path) -> None:
    for place, age_in_days in (("runs/a-1", 3), ("runs/sweeps/b-1/x", 1), ("runs/c", 2), ("elsewhere/d", 0)):
        run = make_run(tmp_path / place)
        for file in (run.path, *run.path.rglob("*")):
            os.utime(file, (1e9 - age_in_days, 1e9 - age_in_days), follow_symlinks=False)
    (tmp_path / "runs/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs/.pruned-e").mkdir()
    make_run(tmp_path / "runs/.pruned-e/e")
    assert [run.path.name for run in find_runs(tmp_path / "runs")] == ["x", "c", "a-1"]


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot look for runs in .*/none: No such file or directory"):
        find_runs(tmp_path / "none")
    with pytest.raises(InputError, match="holds no run: expected the folder of one"):
        read_run(tmp_path)


def test_without_locks_it_is_not_known_whether_a_run_is_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refusing(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    run = make_run(tmp_path / "run")
    run.claim()
    run.release()
    monkeypatch.setattr("fcntl.flock", refusing)
    assert read_run(run.path).state == "unknown"


def test_ages_have_their_largest_unit() -> None:
    assert [age(seconds) for seconds in (-1, 59, 90, 7200, 86_400 * 3)] == ["0 s", "59 s", "2 min", "2 h", "3 d"]


def test_a_checkpoint_is_no_run_wherever_it_lies(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs/run")
    copy_checkpoint(run.path, tmp_path / "runs/copy")
    (run.checkpoints / "step-00000010/manifest.json").unlink()
    (run.checkpoints / "damaged-step-00000030").mkdir()
    (run.checkpoints / "damaged-step-00000030/config.yaml").touch()
    assert [found.path for found in find_runs(tmp_path / "runs")] == [run.path]
    assert find_runs(run.path) == []
    for path in (tmp_path / "runs/copy", *run.checkpoints.iterdir()):
        with pytest.raises(InputError, match="holds no run: it is a checkpoint"):
            read_run(path)


def test_runs_in_runs_are_found_and_what_others_keep_there_is_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    inner = make_run(run.path / "tuned")
    (run.path / "wandb/offline-run-1/files").mkdir(parents=True)
    (run.path / "wandb/offline-run-1/files/config.yaml").touch()
    in_checkpoints = make_run(tmp_path / "checkpoints/mine")
    assert {found.path for found in find_runs(tmp_path)} == {run.path, inner.path, in_checkpoints.path}


def test_runs_behind_links_are_found_where_they_are_asked_for(tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere/run")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs/round").symlink_to(tmp_path / "runs")
    assert {found.path.resolve() for found in find_runs(tmp_path / "runs", links=True)} == {tmp_path / "elsewhere/run"}


def test_runs_that_are_removed_meanwhile_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    monkeypatch.setattr("training.runs.listing.walk_runs", lambda *_, **__: iter([run.path, tmp_path / "gone"]))
    assert [found.path for found in find_runs(tmp_path)] == [run.path]
