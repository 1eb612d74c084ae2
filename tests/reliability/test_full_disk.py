"""A disk that fills up in the middle of a save, at each tenth of it."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import with_training
from reliability.full_disk import TENTHS, largest_file, refused_saves, results

from gpt.config import GPTConfig
from gpt.task import train_gpt
from training.runtime.errors import SaveError
from training.storage.checkpoint import Checkpoint, CheckpointError, CheckpointStore

SOME_TENTHS = TENTHS[::4]
"""`make reliability` does it at each of them."""


@pytest.fixture
def largest(config: GPTConfig, tmp_path: Path) -> int:
    """Size of the largest file of a checkpoint; makes the run `whole`."""
    train_gpt(config, output_dir=tmp_path / "whole")
    return max(file.stat().st_size for file in (tmp_path / "whole/checkpoints/last").iterdir())


@pytest.mark.nightly
@pytest.mark.parametrize("background", [False, True])
def test_a_run_goes_on_to_the_next_save_if_so_configured(
    config: GPTConfig,
    tmp_path: Path,
    largest: int,
    capsys: pytest.CaptureFixture[str],
    background: bool,
) -> None:
    config = with_training(config, on_save_error="continue", background_saves=background)
    for tenth in TENTHS:
        run = tmp_path / f"run-{tenth}"
        with refused_saves({5, 8, 10}, largest * tenth // 10):
            train_gpt(config, output_dir=run)
        warnings = [line for line in capsys.readouterr().out.splitlines() if "cannot write checkpoint" in line]
        assert [f"cannot write checkpoint {run}/checkpoints/step-{step:08d}: File too large" in line
                for step, line in zip((5, 8, 10), warnings, strict=True)] == [True] * 3, warnings  # fmt: skip
        assert all(line.endswith("the run goes on, the newest checkpoint is of step 4") for line in warnings)
        assert results(run) == results(tmp_path / "whole")
        assert sorted(os.listdir(run / "checkpoints")) == ["best", "last", "step-00000004", "step-00000012"]
        assert os.readlink(run / "checkpoints/best") == "step-00000012"


def test_a_run_stops_otherwise_and_ends_as_if_nothing_had_been(
    config: GPTConfig, tmp_path: Path, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train_gpt.py"])
    for tenth in SOME_TENTHS:
        run = tmp_path / f"run-{tenth}"
        message = (
            "cannot write checkpoint .*step-00000008: File too large; the newest checkpoint is of step 5. "
            "When that is mended, go on with: .* --resume"
        )
        with refused_saves({8}, largest * tenth // 10), pytest.raises(SaveError, match=message):
            train_gpt(config, output_dir=run)
        assert sorted(os.listdir(run / "checkpoints")) == ["best", "last", "step-00000004", "step-00000005"]
        assert Checkpoint(run / "checkpoints/last").state["step"] == 5
        train_gpt(config, output_dir=run, resume=True)
        assert results(run) == results(tmp_path / "whole")


@pytest.mark.usefixtures("capsys")  # What is printed while files are refused goes to none.
def test_in_the_background_it_stops_at_the_next_save_and_ends_the_same(
    config: GPTConfig, tmp_path: Path, largest: int
) -> None:
    """What else the run writes meanwhile may be refused as well, and is written later."""
    config = with_training(config, background_saves=True)
    for tenth in SOME_TENTHS:
        run = tmp_path / f"run-{tenth}"
        message = "cannot write checkpoint .*step-00000008: File too large; the newest checkpoint is of step 10. When"
        with refused_saves({8}, largest * tenth // 10), pytest.raises(SaveError, match=message):
            train_gpt(config, output_dir=run)
        assert sorted(os.listdir(run / "checkpoints")) == ["best", "last", "step-00000005", "step-00000010"]
        train_gpt(config, output_dir=run, resume=True)
        assert results(run) == results(tmp_path / "whole")


@pytest.mark.parametrize("background", [False, True])
def test_the_last_save_of_a_run_must_succeed(config: GPTConfig, tmp_path: Path, largest: int, background: bool) -> None:
    config = with_training(config, on_save_error="continue", background_saves=background)
    with refused_saves({12}, largest // 2), pytest.raises(SaveError, match="the newest checkpoint is of step 10"):
        train_gpt(config, output_dir=tmp_path / "run")


def test_leftovers_are_cleaned_at_the_next_start(config: GPTConfig, tmp_path: Path) -> None:
    train_gpt(config, output_dir=tmp_path / "run")
    leftover = tmp_path / "run/checkpoints/.step-00000016.new"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    train_gpt(config, output_dir=tmp_path / "run", resume=True)
    assert not leftover.exists()


def test_metrics_that_a_full_disk_refused_are_written_later(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training import reporting

    train_gpt(config, output_dir=tmp_path / "whole")
    original = reporting.RunFolder.append_metrics

    def limited(run: Any, metrics: Any) -> None:
        full = 2 <= metrics["step"] <= 4
        with largest_file(run.metrics_file.stat().st_size + 30 if full else resource.RLIM_INFINITY):
            original(run, metrics)

    monkeypatch.setattr(reporting.RunFolder, "append_metrics", limited)
    train_gpt(config, output_dir=tmp_path / "run")
    assert "run/metrics.jsonl: File too large; metrics are kept for later" in capsys.readouterr().out
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False
    ) if shutil.which("mount") else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.ci
def test_a_disk_that_is_really_full(
    config: GPTConfig, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_gpt(config, output_dir=tmp_path / "whole")
    size = sum(file.stat().st_size for file in (tmp_path / "whole/checkpoints/last").glob("*.safetensors"))
    original, filler = CheckpointStore.save, small_disk / "filler"
    for tenth in SOME_TENTHS:
        run = small_disk / f"run-{tenth}"

        def filling(store: CheckpointStore, step: int, *, left: int = size * tenth // 10, **arguments: Any) -> Path:
            if step == 8:
                filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - left))
            return original(store, step, **arguments)

        with monkeypatch.context() as patch:
            patch.setattr(CheckpointStore, "save", filling)
            with pytest.raises(SaveError, match="No space left on device; the newest checkpoint is of step 5"):
                train_gpt(config, output_dir=run)
        assert Checkpoint(run / "checkpoints/last").state["step"] == 5
        with pytest.raises(CheckpointError, match="no space for a checkpoint in .*: 0.0 MB each, 0.0 MB free"):
            train_gpt(config, output_dir=run, resume=True)
        filler.unlink()
        train_gpt(config, output_dir=run, resume=True)
        assert results(run) == results(tmp_path / "whole")
        shutil.rmtree(run)
