"""Runs of a sweep as processes that only seem to train."""

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from training.runtime.errors import InputError, StoppedBySignal
from training.storage.run_folder import RunFolder
from training.sweep.grid import run_name
from training.sweep.record import Sweep, SweepRun, read_sweep
from training.sweep.report import plot, show
from training.sweep.running import Runner, make_slots

TRAINING = """
import json, os, signal, sys, time
from pathlib import Path
place, losses, code, wait = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
def stop(*_):
    print("saved", flush=True)
    os._exit(3)
signal.signal(signal.SIGTERM, stop)
place.mkdir(exist_ok=True)
with (place / "starts").open("a") as file:
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), time.monotonic(), file=file)
for number, loss in enumerate(losses, 1):
    with (place / "metrics.jsonl").open("a") as file:
        print(json.dumps({"step": 10 * number, "seconds": number, "tokens": 5, "val_loss": loss}), file=file)
time.sleep(wait)
with (place / "ends").open("a") as file:
    print(time.monotonic(), file=file)
print("error: no luck" if code else "well", flush=True)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.sweep.running._POLL_SECONDS", 0.01)


class Place:
    """A folder with a sweep, whose runs do what is said for each."""

    def __init__(self, folder: Path, early_stop: bool = False) -> None:
        self.folder, self.sweep = folder, Sweep("gpt", "val_loss", early_stop)
        self.does: dict[str, tuple[list[float], int, float]] = {}
        self.said: list[str] = []
        (folder / "training.py").write_text(TRAINING)

    def add(self, rate: str, seed: int, losses: Sequence[float], code: int = 0, wait: float = 0.0) -> None:
        name = f"{rate}-{seed}"
        self.sweep.add(SweepRun(name, {"rate": rate}, seed))
        self.does[name] = (list(losses), code, wait)

    def run(self, slots: Sequence[dict[str, str]] = ({},), **options: Any) -> None:
        def command(run: SweepRun, place: Path) -> list[str]:
            losses, code, wait = self.does[run.name]
            return ["-S", str(self.folder / "training.py"), str(place), json.dumps(losses), str(code), str(wait)]

        Runner(self.sweep, self.folder, command, slots, say=self.said.append, **options).run_all()

    def lines(self, name: str, file: str = "starts") -> list[str]:
        return (self.folder / name / file).read_text().splitlines()

    @property
    def states(self) -> list[str]:
        return [run.state for run in self.sweep.runs]


def test_however_a_run_ends_it_is_a_row_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    place.add("low", 1, [3.0, 2.0])
    place.add("high", 1, [3.0], code=2)
    place.add("high", 2, [], code=4)
    place.add("high", 3, [2.5], code=-signal.SIGKILL)
    place.add("low", 2, [4.0, 1.0, 1.5])
    place.run()
    assert place.states == ["done", "failed", "diverged", "failed", "done"]
    assert [run.fault for run in place.sweep.runs[1:4]] == ["no luck", "no luck", "ended by SIGKILL"]
    assert [run.loss for run in place.sweep.runs] == [2.0, 3.0, None, 2.5, 1.0]
    assert read_sweep(tmp_path) == place.sweep
    best, other = place.sweep.summaries()
    assert (best.setting, best.done, best.of, best.mean, best.lowest) == ({"rate": "low"}, 2, 2, 1.5, 1.0)
    assert best.deviation == pytest.approx(0.5**0.5)
    assert (other.mean, other.deviation, other.states) == (None, None, {"failed": 2, "diverged": 1})
    show(place.sweep)
    text = capsys.readouterr().out
    assert [line.split()[:4] for line in text.splitlines()[1:3]] == [
        ["rate=low", "2/2", "1.5000", "0.7071"],
        ["rate=high", "0/3", "2", "failed,"],
    ]
    assert "failed      high-3: ended by SIGKILL\n" in text
    plot(place.sweep, tmp_path, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_what_has_ended_is_not_run_again_and_what_failed_is(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for rate, code in (("done", 0), ("failed", 2), ("diverged", 4), ("stopped", 3)):
        place.add(rate, 1, [1.0], code=code)
    place.run()
    place.sweep = read_sweep(tmp_path)
    place.does = {name: (losses, 0, wait) for name, (losses, _, wait) in place.does.items()}
    place.run()
    assert [len(place.lines(run.name)) for run in place.sweep.runs] == [1, 2, 1, 2]
    assert place.states == ["done", "done", "diverged", "done"]
    assert [run.fault for run in place.sweep.runs] == [None, None, "no luck", None]


def test_as_many_runs_are_under_way_as_there_are_slots_each_with_its_card(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for seed in range(4):
        place.add("a", seed, [1.0], wait=0.4)
    place.run([{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "7"}])
    spans = {}
    for run in place.sweep.runs:
        card, began = place.lines(run.name)[0].split()
        spans[run.name] = card, float(began), float(place.lines(run.name, "ends")[0])
    assert {card for card, _, _ in spans.values()} == {"5", "7"}
    for name, (card, began, ended) in spans.items():
        at_once = [other for other, (_, start, end) in spans.items() if start < ended and began < end and other != name]
        assert all(spans[other][0] != card for other in at_once), "a card has one run at a time"
    assert place.states == ["done"] * 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_runs_with_a_checkpoint_and_starts_no_more(number: int, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.add("a", 1, [1.0])
    place.add("a", 2, [1.0], wait=60)
    place.add("a", 3, [1.0])

    def interrupt() -> None:
        while not (tmp_path / "a-2/metrics.jsonl").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(StoppedBySignal, match="^1 of 3 runs are done$"):
        place.run()
    sender.join()
    assert place.states == ["done", "stopped", "waiting"]
    assert (tmp_path / "logs/a-2.txt").read_text() == "saved\n"
    assert read_sweep(tmp_path) == place.sweep
    place.does["a-2"] = ([1.0], 0, 0.0)
    place.run()
    assert place.states == ["done"] * 3


def test_a_sweep_that_cannot_go_on_stops_what_it_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    place.add("a", 1, [1.0], wait=0.2)
    place.add("a", 2, [1.0], wait=60)

    def full(*_: object) -> None:
        while not (tmp_path / "a-2/metrics.jsonl").exists():
            time.sleep(0.02)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Sweep, "write", full)
    with pytest.raises(OSError, match="No space left"):
        place.run([{}, {}])
    assert (tmp_path / "logs/a-2.txt").read_text() == "saved\n"


def test_hopeless_runs_are_ended_with_a_checkpoint_and_the_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.sweep.running._LOOK_SECONDS", 0.0)
    place = Place(tmp_path, early_stop=True)
    for seed in (1, 2, 3):
        place.add("good", seed, [3.0, 2.0, 1.0])
    place.add("bad", 1, [3.0, 2.5], wait=60)
    place.add("fine", 1, [3.0, 1.9], wait=0.5)
    place.add("bad", 2, [9.0], wait=0.5)
    place.run(steps=60)
    assert place.states == ["done", "done", "done", "ended early", "done", "done"]
    assert (tmp_path / "logs/bad-1.txt").read_text() == "saved\n"
    assert [summary.mean for summary in place.sweep.summaries()] == [1.0, 1.9, 9.0]
    assert place.sweep.summaries()[2].states == {"ended early": 1, "done": 1}


def test_a_run_that_runs_without_the_sweep_is_left_to_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.add("a", 1, [1.0])
    other = RunFolder(tmp_path / "a-1")
    other.claim()
    with pytest.raises(InputError, match="a-1 is running without this sweep: stop it, or wait for its end"):
        place.run()
    other.release()
    assert place.states == ["waiting"]


def test_a_setting_is_one_in_any_order_and_a_name_that_is_taken_is_written_in_full() -> None:
    sweep = Sweep("gpt", "val_loss", False)
    for setting, seed in (
        ({"model.dropout": "0.1", "model.d_ff": "32"}, 1),
        ({"model.d_ff": "32", "model.dropout": "0.1"}, 1),
        ({"model.d_ff": "32", "model.dropout": "0.1"}, 2),
        ({"lora.dropout": "0.1", "model.d_ff": "32"}, 1),
    ):
        sweep.add(SweepRun(run_name(setting, seed), setting, seed))
    names = ["dropout=0.1,d_ff=32,seed=1", "dropout=0.1,d_ff=32,seed=2", "lora.dropout=0.1,model.d_ff=32,seed=1"]
    assert [run.name for run in sweep.runs] == names
    assert [summary.of for summary in sweep.summaries()] == [2, 1]


def test_a_loss_that_a_run_took_back_is_not_its_lowest(tmp_path: Path) -> None:
    run = SweepRun("a", {}, 1)
    for losses, lowest, step in (([3.0, 1.0], 1.0, 20), ([2.5, 2.6, 2.7], 2.5, 10)):
        lines = (json.dumps({"step": 10 * number, "val_loss": loss}) for number, loss in enumerate(losses, 1))
        (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
        run.measure(tmp_path, "val_loss")
        assert (run.loss, run.loss_step) == (lowest, step)


def test_a_run_whose_metrics_are_damaged_is_left_out_of_the_picture(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.add("$a_{$", 1, [2.0])
    place.add("b", 1, [3.0])
    place.run()
    (tmp_path / "b-1/metrics.jsonl").write_text("[1]\n[2]\n")
    plot(place.sweep, tmp_path, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").exists()


def test_losses_over_a_part_of_the_split_are_compared_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    lines = [{"step": 10, "val_loss_subset": 3.0}, {"step": 20, "val_loss_subset": 2.0, "val_loss": 2.5}]
    (tmp_path / "a/metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    runner = Runner(Sweep("gpt", "val_loss", True), tmp_path, lambda run, place: [], [{}])
    assert runner.curve(SweepRun("a", {}, 1)) == [(10, 3.0), (20, 2.0)]


@pytest.mark.parametrize(
    ("cards", "visible", "jobs", "slots"),
    [
        (0, None, None, [{}]),
        (0, None, 2, [{"OMP_NUM_THREADS": "4"}] * 2),
        (2, None, None, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        (2, "3, 5", None, [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]),
        (2, None, 1, [{"CUDA_VISIBLE_DEVICES": "0"}]),
    ],
)
def test_there_is_a_slot_for_each_card_or_one_on_a_cpu(
    cards: int,
    visible: str | None,
    jobs: int | None,
    slots: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: cards)
    monkeypatch.setattr("training.sweep.running.available_cores", lambda: 8)
    assert make_slots(jobs) == slots
    if cards:
        with pytest.raises(InputError, match="jobs must be at most 2, one for each card, got 3"):
            make_slots(3)
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        assert make_slots(None) == [{}]
