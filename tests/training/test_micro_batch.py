"""How many sequences go through the model at once: what fits, on all ranks; and the steps stay what they are."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import read_metrics, with_training
from torch import Tensor

from gpt.config import GPTConfig
from gpt.task import train_gpt
from training import micro_batch
from training.config.command_line import StrictParser
from training.config.sections import TrainingConfig
from training.micro_batch import (
    MicroBatching,
    check_split,
    free_bytes,
    largest_part,
    largest_that_fits,
    sequences_at_once,
    sizes_to_try,
)
from training.runtime.errors import InputError
from training.storage.checkpoint import Checkpoint
from training.task import loss_sum


class Rank:
    """What the choice asks of Accelerate."""

    def __init__(self, kind: str, num_processes: int = 1) -> None:
        self.device, self.num_processes = torch.device(kind), num_processes


def batching(kind: str = "cuda", num_processes: int = 1, tokens: float = 256.0, **training: Any) -> MicroBatching:
    asked = TrainingConfig(**({"max_steps": 1, "batch_size": 32} | training))
    accelerator: Any = Rank(kind, num_processes)
    return MicroBatching(asked, accelerator, tokens)


@pytest.mark.parametrize(
    ("training", "num_processes", "refusal"),
    [
        ({"micro_batch_size": 4}, 1, None),
        ({"micro_batch_size": 400}, 1, None),
        ({"accumulation_steps": 5}, 2, None),
        ({"micro_batch_size": 4, "accumulation_steps": 8}, 1, None),
        ({"micro_batch_size": 4, "accumulation_steps": 4}, 2, None),
        ({"micro_batch_size": 5, "accumulation_steps": 4}, 2, None),  # Of 16 three are of 5: it takes a fourth.
        ({"micro_batch_size": 32, "accumulation_steps": 1}, 1, None),
        ({"micro_batch_size": 4, "accumulation_steps": 8}, 2, "4 makes 4 accumulation steps of .*32 over 2 .* says 8"),
        ({"micro_batch_size": 4, "accumulation_steps": 1}, 1, "4 makes 8 accumulation steps of .*32 over 1 .* says 1"),
        ({"micro_batch_size": 4, "accumulation_steps": 9}, 1, "4 makes 8 .* says 9: give one of them alone .*--train"),
        ({"accumulation_steps": 17}, 2, r"batch_size must be at least processes x .*\(2 x 17\), got 32"),
        ({}, 33, r"batch_size must be at least processes x training.accumulation_steps \(33 x 1\), got 32"),
    ],
)
def test_a_step_is_split_in_one_way(training: dict[str, Any], num_processes: int, refusal: str | None) -> None:
    asked = TrainingConfig(max_steps=1, batch_size=32, **training)
    if refusal is None:
        check_split(asked, num_processes)
    else:
        with pytest.raises(InputError, match=refusal):
            check_split(asked, num_processes)


@pytest.mark.parametrize(
    ("values", "refusal"),
    [
        (["--training.micro_batch_size", "8"], None),
        (["--training.micro_batch_size", "auto"], None),
        (["--training.accumulation_steps", "null"], None),
        (
            ["--training.micro_batch_size", "0"],
            "micro_batch_size must be auto or at least 1, and at most 1000000, got 0",
        ),
        (["--training.micro_batch_size", "all"], "micro_batch_size: expected one of 'auto' or int, got all"),
        (["--training.accumulation_steps", "0"], "accumulation_steps must be null or at least 1, and at most 1000000"),
        (["--training.micro_batch_size", "null"], "micro_batch_size: expected one of 'auto' or int, got null"),
    ],
)
def test_what_the_options_may_be(values: list[str], refusal: str | None) -> None:
    parser = StrictParser()
    parser.add_class_arguments(GPTConfig)
    arguments = ["--training.max_steps", "3", *values]
    if refusal is None:
        training = parser.build(GPTConfig, parser.parse_args(arguments)).training
        assert training.micro_batch_size in ("auto", 8)
        assert training.accumulation_steps is None
    else:
        with pytest.raises(InputError, match=refusal):
            parser.build(GPTConfig, parser.parse_args(arguments))


def test_parts_and_what_of_them_is_at_once() -> None:
    training = TrainingConfig(max_steps=1, batch_size=32)
    assert [largest_part(training, ranks) for ranks in (1, 2, 3)] == [32, 16, 11]
    assert [sequences_at_once(training, 2, size) for size in (0, 1, 5, 6, 16, 99)] == [16, 1, 4, 6, 16, 16]
    assert largest_part(TrainingConfig(max_steps=1, batch_size=32, accumulation_steps=3), 2) == 6


@pytest.mark.parametrize(
    ("tokens", "setup", "size"),
    [
        (256.0, {}, 8),
        (3000.0, {}, 1),
        (7.5, {}, 273),
        (256.0, {"micro_batch": 16}, 16),
        (256.0, {"micro_batch": 0}, 8),  # By a GPU, in an older version.
        (256.0, {"micro_batch": 16, "micro_batch_tried": "32 does not fit, 16 fits"}, 8),  # By a GPU.
        (256.0, {"micro_batch": -3}, 8),
        (256.0, {"micro_batch": "all"}, 8),
    ],
)
def test_a_cpu_takes_what_a_table_says_or_what_it_took(tokens: float, setup: dict[str, Any], size: int) -> None:
    chosen = batching("cpu", tokens=tokens)
    chosen.go_on(setup)
    assert (chosen.size, chosen.is_to_be_tried) == (size, False)
    assert chosen.record == {"micro_batch": size, "micro_batch_tried": ""}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_number_is_taken_as_it_is(kind: str) -> None:
    chosen = batching(kind, micro_batch_size=6)
    chosen.go_on({"micro_batch": 16})
    assert (chosen.size, chosen.is_to_be_tried) == (6, False)
    assert chosen.description == "6 sequences at once, in 6 parts (as configured)"
    assert chosen.changes == ["micro_batch was 16, is now 6 (as configured): the steps to come differ for it"]


@pytest.mark.parametrize(
    ("part", "sizes"), [(1, [1]), (2, [1, 2]), (12, [1, 2, 3, 4, 6, 8, 12]), (31, [1, 2, 4, 8, 16, 31])]
)
def test_sizes_are_divisors_and_powers_of_two(part: int, sizes: list[int]) -> None:
    assert sizes_to_try(part) == sizes


def test_the_largest_that_fits_is_found_wherever_one_begins() -> None:
    sizes = sizes_to_try(96)
    for limit in range(98):
        for estimate in (0, 1, 5, 48, 96, 1000):
            tried: list[int] = []
            found = largest_that_fits(sizes, estimate, lambda size: tried.append(size) or size <= limit)  # noqa: B023
            assert found == max((size for size in sizes if size <= limit), default=0)
            assert len(set(tried)) == len(tried)
            assert tried[0] == max((size for size in sizes if size <= estimate), default=1)


def test_a_gpu_takes_the_most_that_fits() -> None:
    chosen = batching()
    assert chosen.is_to_be_tried
    chosen.try_sizes(16, lambda size: size <= 9, free=7_200_000_000)
    assert chosen.size == 8
    assert chosen.description == ("8 sequences at once, in 4 parts (auto: 16 does not fit, 8 fits, in 7.20 GB)")
    assert chosen.record == {"micro_batch": 8, "micro_batch_tried": "16 does not fit, 8 fits"}
    whole = batching(accumulation_steps=2)
    whole.try_sizes(1000, lambda size: True)
    assert whole.description == "16 sequences at once, in 2 parts (auto: 16 fits)"
    with pytest.raises(MemoryError):
        batching().try_sizes(0, lambda size: False)


def test_the_card_with_the_least_room_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other card is estimated to hold 4 sequences, and holds 5; it has 3 GB."""
    asked: list[list[int]] = []
    beside = {"estimates": [4], "room": [3_000_000_000]}

    def gathered(numbers: list[int]) -> list[int]:
        asked.append(numbers)
        if len(asked) == 1:
            return numbers + beside["estimates"]
        return numbers + (beside["room"] if numbers[0] > 1 else [int(sizes[-1] <= 5)])

    sizes: list[int] = []
    monkeypatch.setattr(micro_batch, "gather_object", gathered)
    chosen = batching(num_processes=2)
    chosen.try_sizes(16, lambda size: sizes.append(size) or True, free=7_200_000_000)
    assert sizes == [4, 8], "16 fits here, 4 everywhere"
    assert chosen.size == 4
    assert "auto: 4 fits, 8 does not fit, in 3.00 GB" in chosen.description


@pytest.mark.parametrize(
    ("setup", "limit", "num_processes", "tried", "size", "change"),
    [
        ({"micro_batch": 8, "micro_batch_tried": "8 fits"}, 32, 1, [8], 8, None),
        ({"micro_batch": 32, "micro_batch_tried": "32 fits"}, 40, 2, [16], 32, None),
        ({"micro_batch": 32, "micro_batch_tried": "32 fits"}, 9, 1, [32, 16, 8], 8, "was 32, is now 8 (auto: 32 d"),
        ({"micro_batch": 0}, 40, 1, [32], 32, None),  # An older version took the whole share.
        ({"micro_batch": 0}, 20, 1, [32, 16], 16, "was 32, is now 16 (auto: 32 does not fit"),
        ({"micro_batch": 8}, 40, 1, [32], 32, "was 8, is now 32 (auto: 32 fits): the steps to come differ"),
    ],
)
def test_a_resume_on_a_gpu_takes_the_same_or_says_why_it_cannot(
    monkeypatch: pytest.MonkeyPatch,
    setup: dict[str, Any],
    limit: int,
    num_processes: int,
    tried: list[int],
    size: int,
    change: str | None,
) -> None:
    monkeypatch.setattr(micro_batch, "gather_object", lambda numbers: numbers)
    chosen, asked = batching(num_processes=num_processes), list[int]()
    chosen.go_on(setup)
    assert chosen.changes == []
    chosen.try_sizes(32, lambda number: asked.append(number) or number <= limit)
    assert (asked, chosen.size) == (tried, size)
    assert [line for line in chosen.changes if change is None or change not in line] == []
    assert len(chosen.changes) == (change is not None)


def test_in_shards_the_lowest_estimate_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "gather_object", lambda numbers: [*numbers, 5])
    chosen = batching(num_processes=2)
    chosen.take_estimate(9)
    assert chosen.description == "4 sequences at once, in 4 parts (auto: 4 by estimate)"
    resumed = batching(num_processes=2)
    resumed.go_on(chosen.record | {"micro_batch": 8})
    resumed.take_estimate(9)
    assert (resumed.size, resumed.changes) == (8, [])
    nothing = batching()
    nothing.take_estimate(0)
    assert nothing.size == 1


def test_a_run_without_steps_to_come_keeps_what_it_knows() -> None:
    chosen, setup = batching(), {"micro_batch": 8, "micro_batch_tried": "8 fits"}
    chosen.go_on(setup)
    assert chosen.record == setup


@pytest.mark.parametrize(("fraction", "expected"), [(1.0, 18 * 10**9 - 10**9), (0.5, 16 * 10**9 - 5 * 10**8)])
def test_what_a_gpu_has_left_counts_what_the_run_has_taken(
    monkeypatch: pytest.MonkeyPatch, fraction: float, expected: int
) -> None:
    """Of 32 GB others have 14; torch may have been told to take a part of the card alone."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12 * 10**9, 32 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: fraction)
    assert free_bytes(torch.device("cuda")) == expected
    assert free_bytes(torch.device("cpu")) is None


class SmallCard:
    """A CPU that sizes are tried on, with room for so many sequences while it trains."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.seen: list[int] = []
        monkeypatch.setattr(micro_batch, "cpu_micro_batch", lambda tokens: 0)

        def computed(model: torch.nn.Module, batch: Any, *arguments: Any) -> Tensor:
            if model.training:
                self.seen.append(len(batch.targets_BT))
                loss_sum(model, batch, *arguments)  # Memory runs out in the middle of it.
                if len(batch.targets_BT) > room:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return loss_sum(model, batch, *arguments)

        monkeypatch.setattr("training.loss.loss_sum", computed)


def test_what_is_tried_leaves_nothing_behind(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_training(config, max_steps=4, eval_interval=0)
    train_gpt(with_training(config, micro_batch_size=2), output_dir=tmp_path / "told")
    assert re.search("^micro-batch 2 sequences at once, in 4 parts .as configured.$", capsys.readouterr().out, re.M)
    card = SmallCard(monkeypatch, 3)
    train_gpt(config, output_dir=tmp_path / "tried")
    said = "8 does not fit, 4 does not fit, 2 fits"
    assert f"micro-batch 2 sequences at once, in 4 parts (auto: {said})\n" in capsys.readouterr().out
    assert card.seen == [8, 4, 2, 2, *[2] * 16], "beside the gradients of a turn before it, where there are some"
    told, tried = (Checkpoint(tmp_path / name / "checkpoints/last") for name in ("told", "tried"))
    for file in ("model", "optimizer"):
        tensors = tried.tensors(file)
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in told.tensors(file).items())
    losses = [[line["train_loss"] for line in read_metrics(tmp_path / name)] for name in ("told", "tried")]
    assert losses[0] == losses[1]
    assert told.state["setup"]["micro_batch"] == tried.state["setup"]["micro_batch"] == 2
    assert (told.state["setup"]["micro_batch_tried"], tried.state["setup"]["micro_batch_tried"]) == ("", said)


def test_a_run_of_which_no_sequence_fits_says_what_takes_the_memory(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallCard(monkeypatch, 0)
    with pytest.raises(
        InputError, match="^out of memory though a step was cut into single sequences: .*recompute"
    ) as e:
        train_gpt(config, output_dir=tmp_path / "run")
    assert "micro_batch_size" not in str(e.value)


def test_other_errors_of_a_trial_are_not_taken_for_memory(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallCard(monkeypatch, 8)
    monkeypatch.setattr("training.loss.loss_sum", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_gpt(config, output_dir=tmp_path / "run")


def test_runs_of_older_versions_go_on_without_a_word(
    config: GPTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their files spell out accumulation_steps: 1, and know no other size."""
    train_gpt(with_training(config, max_steps=4), output_dir=tmp_path / "run")
    last = (tmp_path / "run/checkpoints/last").resolve()
    text = (last / "config.yaml").read_text()
    old = text.replace("  micro_batch_size: auto\n", "").replace("accumulation_steps: null", "accumulation_steps: 1")
    assert old != text
    checkpoint = Checkpoint(last)
    original = Checkpoint.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "text", lambda self, name: old if name == "config.yaml" else original(self, name))
        capsys.readouterr()
        train_gpt(config, output_dir=tmp_path / "run", resume=True)
    said = capsys.readouterr().out
    assert "accumulation_steps" not in said
    assert "micro_batch" not in said
    assert checkpoint.state["step"] == 4


def test_accelerators_of_one_process_need_no_other(config: GPTConfig) -> None:
    assert MicroBatching(config.training, Accelerator(cpu=True), 16.0).size == 128
