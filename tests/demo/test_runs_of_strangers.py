"""Runs that are large, linked or broken: one never costs the others."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from demo.catalogue import Catalogue
from demo.curves import COLUMNS, METRICS, Metrics, read_curves
from training.runtime.errors import InputError
from training.storage.run_folder import RunFolder

LINES = 50_000


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """A copy of the runs."""
    shutil.copytree(runs, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


def lines(first: int, last: int, loss: float = 2.0) -> str:
    return "".join(
        json.dumps({"step": n, "train_loss": loss, "tokens_per_second": 9.0}) + "\n" for n in range(first, last)
    )


def steps(metrics: Metrics, run: RunFolder) -> list[int]:
    return [int(step) for step in metrics.read(run)[:: len(COLUMNS)]]


def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs, once for each line that was parsed."""
    found: list[str] = []
    iterate = RunFolder.iterate_metrics

    def noted(self: RunFolder, **options: Any) -> Any:
        for line in iterate(self, **options):
            found.append(self.path.name)
            yield line

    monkeypatch.setattr(RunFolder, "iterate_metrics", noted)
    return found


def test_metrics_are_read_once_and_then_from_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, metrics, seen = RunFolder(tmp_path), Metrics(), parsed(monkeypatch)
    assert steps(metrics, run) == []
    run.metrics_file.write_text(lines(0, 1000))
    assert steps(metrics, run) == steps(metrics, run) == list(range(1000))
    assert len(seen) == 1000
    with run.metrics_file.open("a") as file:
        file.write(lines(1000, 1003) + '{"step": 10')
    assert steps(metrics, run) == list(range(1003))
    assert len(seen) == 1004, "the new ones, and one that is known"
    run.metrics_file.write_text(lines(0, 500) + lines(500, 510, loss=3.0))
    assert steps(metrics, run) == list(range(510)), "a resumed run has taken back its last ones"
    assert metrics.read(run)[-len(COLUMNS) + 1] == 3.0
    assert len(seen) == 1015
    run.metrics_file.write_text("")
    assert steps(metrics, run) == []


def test_a_loss_over_a_part_of_the_split_has_a_name_of_its_own_and_is_nothing_to_compare(folder: Path) -> None:
    run = RunFolder(folder / "small")
    run.metrics_file.write_text('{"step": 20, "val_loss_subset": 0.5}\n{"step": 40, "val_loss_subset": 0.25}\n')
    (entry,) = [entry for entry in Catalogue(folder).entries() if entry.name == "small"]
    assert (entry.val_loss, entry.val_loss_subset) == (None, 0.25)
    assert "(val_loss_subset 0.250, " in entry.label
    (line,) = [line for line in read_curves([run]).charts["loss"] if "train" not in line.name]
    assert (line.name, line.points) == ("small, val_loss_subset", [(20, 0.5), (40, 0.25)])


def test_a_long_run_costs_a_look_at_the_page_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = RunFolder(folder / "small"), parsed(monkeypatch)
    run.metrics_file.write_text(lines(0, 40) + '{"step": 40, "val_loss": 1.25}\n' + lines(41, LINES))
    catalogue = Catalogue(folder)
    by_name = {entry.name: entry for entry in catalogue.entries()}
    assert by_name["small"].val_loss == 1.25
    before = len(seen)
    assert catalogue.entries() == list(by_name.values())
    assert len(seen) == before, "what has not changed is not read"
    with run.metrics_file.open("a") as file:
        file.write(lines(LINES, LINES + 1))
    seen.clear()
    assert catalogue.seq2seq("copy")
    assert "small" not in seen, "one run is found without reading the others"


def test_a_run_on_another_disk_is_offered(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "small", tmp_path / "other-disk")
    (folder / "small").symlink_to(tmp_path / "other-disk")
    catalogue = Catalogue(folder)
    assert {entry.name for entry in catalogue.entries()} == {"small", "copy"}
    assert [run.path.name for run in catalogue.folders()] == ["copy", "small"]
    assert catalogue.gpt("small").config.model.d_model == 16


def broken(folder: Path) -> dict[str, str]:
    """Many copies of a run, each broken in its own way, and what should be said of it."""

    def copy(name: str) -> Path:
        shutil.copytree(folder / "small", folder / name, symlinks=True)
        return folder / name

    def state(name: str, content: str) -> None:
        for checkpoint in copy(name).glob("checkpoints/step-*"):
            (checkpoint / "state.json").write_text(content)

    state("infinite", '{"step": 1e999}')
    state("quoted", '{"step": "40"}')
    state("deep", "[" * 100_000)
    state("long", f'{{"step": {"4" * 400}}}')
    (copy("lines") / "metrics.jsonl").write_text("[" * 100_000 + "\n")
    pipe = copy("fifo") / "metrics.jsonl"
    pipe.unlink()
    os.mkfifo(pipe)
    for file in copy("directory").glob("checkpoints/step-*/state.json"):
        file.unlink()
        file.mkdir()
    (folder / "loop").symlink_to("loop")
    os.mkdir(os.path.join(os.fsencode(folder), b"caf\xe9"))
    return {
        "infinite": "state.json: the number",
        "quoted": "step: expected a whole number",
        "deep": "state.json: nested too deep",
        "long": "state.json: a number of 400 digits",
        "lines": "metrics.jsonl: line",
        "fifo": "metrics.jsonl: not a regular file",
        "directory": "state.json: Is a directory",
        r"caf\xe9": "its name is not UTF-8",
    }


def test_what_is_broken_is_left_out_and_said_and_the_others_stay(folder: Path) -> None:
    expected = broken(folder)
    catalogue = Catalogue(folder)
    assert {entry.name for entry in catalogue.entries()} == {"small", "copy"}
    left_out = catalogue.left_out()
    assert set(left_out) == set(expected)
    for name, fault in expected.items():
        assert fault in left_out[name], left_out[name]
        assert str(folder) not in left_out[name]
        json.dumps(left_out).encode()
    assert catalogue.gpt("small")
    with pytest.raises(InputError, match=r"^there is no trained run 'quoted' \(.*step: expected a whole number"):
        catalogue.gpt("quoted")
    curves = read_curves(catalogue.folders())
    drawn = {line.name.partition(",")[0] for line in curves.charts["loss"]}
    assert {"small", "copy", "quoted"} <= drawn
    assert not {"lines", "fifo"} & drawn
    assert {"lines", "fifo"} <= set(METRICS.faults)
