"""A run is never overwritten."""

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from gpt.config import GPTConfig
from training import train_command
from training.runtime.errors import InputError
from training.storage import files
from training.storage.run_folder import RunFolder, choose_run_folder


@pytest.fixture(autouse=True)
def in_tmp_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_runs_are_numbered_in_turn_and_numbers_are_not_used_again() -> None:
    assert [str(choose_run_folder("a", None, resume=False).path) for _ in range(3)] == [
        "runs/a-1",
        "runs/a-2",
        "runs/a-3",
    ]
    Path("runs/a-2").rmdir()
    assert choose_run_folder("a", None, resume=False).path == Path("runs/a-4")
    assert choose_run_folder("a-1", None, resume=False).path == Path("runs/a-1-1")


def test_resume_without_a_folder_takes_the_newest_run_or_starts_one() -> None:
    assert choose_run_folder("a", None, resume=True).path == Path("runs/a-1")
    for number in (2, 10, 11):
        Path(f"runs/a-{number}").mkdir()
        if number != 11:
            RunFolder(Path(f"runs/a-{number}")).create("")
    assert choose_run_folder("a", None, resume=True).path == Path("runs/a-10")


def test_a_folder_with_a_run_inside_is_refused_with_both_ways_out() -> None:
    run = choose_run_folder("a", Path("mine"), resume=False)
    run.create("name: a\ntraining:\n  max_steps: 1\n")
    with pytest.raises(InputError) as caught:
        choose_run_folder("a", Path("mine"), resume=False)
    assert str(caught.value) == (
        "mine already holds a run: go on with it by adding --resume, or choose another --output_dir"
    )
    assert choose_run_folder("a", Path("mine"), resume=True).path == Path("mine")


@pytest.mark.parametrize("resume", [False, True])
def test_files_of_others_are_never_written_over(resume: bool) -> None:
    for name, make in (("config.yaml", lambda path: path.write_text("title: a\n")), ("checkpoints", Path.mkdir)):
        Path(f"of {name}").mkdir()
        make(Path(f"of {name}", name))
        with pytest.raises(InputError, match=f"of {name} holds {name}, but no run: choose another --output_dir"):
            choose_run_folder("a", Path(f"of {name}"), resume=resume)
    assert Path("of config.yaml/config.yaml").read_text() == "title: a\n"


def test_a_copied_checkpoint_is_no_folder_for_a_run() -> None:
    Path("copy").mkdir()
    for name in ("config.yaml", "manifest.json"):
        Path("copy", name).touch()
    for resume in (False, True):
        with pytest.raises(InputError, match="^--output_dir copy is a checkpoint, not a run's folder: choose another"):
            choose_run_folder("a", Path("copy"), resume=resume)


def test_an_empty_folder_serves_and_a_file_does_not() -> None:
    Path("empty").mkdir()
    assert choose_run_folder("a", Path("empty"), resume=False).path == Path("empty")
    Path("file").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        choose_run_folder("a", Path("file"), resume=False)


def test_a_folder_that_cannot_be_made_is_one_line() -> None:
    Path("file").write_text("")
    with pytest.raises(InputError, match="cannot write to the run's folder file/run: Not a directory"):
        RunFolder(Path("file/run")).claim()


def test_a_run_has_one_writer_at_a_time() -> None:
    first, second = RunFolder(Path("run")), RunFolder(Path("run"))
    first.claim()
    with pytest.raises(InputError, match="another process is writing to run: wait for its end, or stop it"):
        second.claim()
    first.release()
    second.claim()


def test_a_look_at_a_run_keeps_no_other_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    looking, waits = RunFolder(Path("run")), list[float]()
    looking.claim()

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            looking.release()

    monkeypatch.setattr("time.sleep", wait)
    RunFolder(Path("run")).claim()
    assert len(waits) == 3


def test_a_sample_that_was_cut_short_is_none() -> None:
    run = RunFolder(Path("run"))
    run.create("")
    run.write_sample(1, "dé")
    assert run.read_sample(1) == "dé"
    Path("run/samples/step-00000001.txt").write_bytes("dé".encode()[:-1])
    assert run.read_sample(1) is None
    assert run.read_sample(2) is None


@pytest.mark.parametrize(
    ("made_again", "message"),
    [
        (True, "another process is writing to run: wait for its end, or stop it"),
        (False, "cannot write to the run's folder run: No such file or directory"),
    ],
)
def test_a_folder_that_is_removed_while_it_is_claimed_is_not_claimed(
    monkeypatch: pytest.MonkeyPatch, made_again: bool, message: str
) -> None:
    lock = fcntl.flock

    def removed_first(file: Any, operation: int) -> None:
        Path("run").rename("gone")
        if made_again:
            Path("run").mkdir()
            Path("run/.lock").write_text("")
        lock(file, operation)

    monkeypatch.setattr("fcntl.flock", removed_first)
    with pytest.raises(InputError, match=message):
        RunFolder(Path("run")).claim()


def test_what_is_not_finite_is_absent_from_the_metrics() -> None:
    run = RunFolder(Path("run"))
    run.create("")
    run.append_metrics({"step": 1, "train_loss": float("nan"), "grad_norm": float("inf"), "learning_rate": 0.1})
    assert json.loads(run.metrics_file.read_text()) == {"step": 1, "learning_rate": 0.1}


def test_commands_can_be_typed_as_they_are_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["launch/train_gpt.py"])
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv/bin/python"))
    run = RunFolder(Path("my runs/a"))
    assert run.resume_command == (".venv/bin/python launch/train_gpt.py --output_dir 'my runs/a' --resume")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert run.resume_command.startswith(
        ".venv/bin/python -m torch.distributed.run --nproc_per_node 4 launch/train_gpt.py --output_dir"
    )
    for name, value in {"ACCELERATE_USE_CPU": "True", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    assert run.resume_command.startswith(
        "ACCELERATE_USE_CPU=True ACCELERATE_USE_FSDP=true FSDP_VERSION=2 .venv/bin/python -m torch.distributed.run "
    ), "or it would go on another way"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert run.resume_command == "the same command on every machine, with --resume"


def test_metrics_after_a_step_are_forgotten_with_what_was_cut_short() -> None:
    run = RunFolder(Path("run"))
    run.create("")
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "train_loss": 0.1 * step})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 4, "tr')
    run.forget_metrics_after(2)
    lines = run.metrics_file.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def run_with(*lines: str) -> RunFolder:
    run = RunFolder(Path("run"))
    run.create("")
    run.metrics_file.write_text("".join(f"{line}\n" for line in lines))
    return run


GOOD = '{"step": 1, "train_loss": 2.5}'


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"step": 1e999}', "the number '1e999', which is too large"),
        (f'{{"step": {"9" * 400}}}', "a number of 400 digits"),
        ("[" * 100_000, "longer than 65,536 bytes"),
        ('{"step": "7"}', "step: expected a number, got '7'"),
        ('{"step": 7.5}', r"step: expected a whole number from 0 to 1e\+15, got 7.5"),
        ('{"step": -7}', "step: expected a whole number from 0 to"),
        ('{"step": 7, "val_loss": null}', "val_loss: expected a number, got None"),
        ('{"step": 7, "val_loss": true}', "val_loss: expected a number, got True"),
        ('{"train_loss": 2.5}', "step is missing"),
        ("[7]", r"expected an object, got \[7\]"),
    ],
)
def test_a_line_of_metrics_that_is_not_as_it_should_be_is_named(line: str, fault: str) -> None:
    run = run_with(GOOD, line, GOOD)
    for read in (run.read_metrics, lambda: run.forget_metrics_after(5), lambda: run.metrics_of(0)):
        with pytest.raises(InputError, match=rf"^run/metrics.jsonl: line \d[\w ]*: {fault}"):
            read()


def test_metrics_are_read_from_the_end_and_a_run_without_has_none() -> None:
    run = run_with("nonsense", GOOD, '{"step": 2, "train_loss": 2.25}')
    assert next(run.iterate_metrics(newest_first=True)) == {"step": 2, "train_loss": 2.25}
    assert run.metrics_of(1) == {"step": 1, "train_loss": 2.5}
    assert RunFolder(Path("none")).read_metrics() == []
    assert RunFolder(Path("none")).metrics_of(1) is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
def test_without_locks_a_run_starts_and_says_what_that_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refusing(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refusing)
    monkeypatch.setattr(files, "_said", set())
    for _ in range(2):
        RunFolder(Path("run")).claim()
    assert capsys.readouterr().out == (
        "warning     the file system of run has no locks (flock): nothing keeps a second process from writing to the "
        f"same run, so start only one ({os.strerror(number)})\n"
    )


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(".lock"), Path.mkdir])
def test_a_lock_that_is_no_file_is_one_line_at_once(make: Any) -> None:
    Path("run").mkdir()
    make(Path("run/.lock"))
    with pytest.raises(InputError, match="run/.lock: not a regular file|cannot write to the run's folder run: "):
        RunFolder(Path("run")).claim()


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.write_text("[" * 100_000), "the configuration is not plain YAML"),
    ],
)
def test_a_run_whose_own_configuration_cannot_be_read_does_not_go_on(
    make: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resume(folder: str) -> None:
        monkeypatch.setattr("sys.argv", ["train.py", "--resume", "--output_dir", folder])
        train_command.train_command("train.py", "", ROOT / "configs/gpt/quick.yaml", GPTConfig, start, pytest.fail)

    def start(config: GPTConfig, run: RunFolder | None) -> Any:
        started.append(config.name)
        raise InputError("it started")

    started: list[str] = []
    Path("run").mkdir()
    make(Path("run/config.yaml"))
    with pytest.raises(InputError, match=f"^run/config.yaml: {fault}"):
        resume("run")
    assert started == []
    with pytest.raises(InputError, match="it started"):
        resume("other")
    assert started == ["gpt-quick"]
