"""Compiled training: when, that it is done once, that it changes nothing, and what happens where it cannot be.

Most of it is about what is compiled, not about the compiler: a backend that runs the graph as it was read is enough.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import command, read_metrics, torchrun, with_training
from seq2seq_models import small_config
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from gpt.config import GPTConfig
from gpt.task import GPTTask, train_gpt
from seq2seq.task import Seq2SeqTask, train_seq2seq
from training import compiling, loss
from training.compiling import WORTH, choose_mode
from training.config.command_line import config_to_yaml
from training.config.sections import TrainingConfig
from training.storage.checkpoint import Checkpoint

Counting = Callable[[str], Any]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Let training be compiled by a backend of torch, and count how often it is."""
    monkeypatch.setattr(compiling, "has_cpp_compiler", lambda: True)

    def use(backend: str) -> Any:
        counter = CompileCounterWithBackend(backend)
        monkeypatch.setattr(compiling, "BACKEND", counter)
        counters.clear()
        return counter

    return use


@pytest.fixture
def short(config: GPTConfig) -> GPTConfig:
    """Four steps of two blocks, with dropout."""
    return with_training(config, max_steps=4, eval_interval=2, checkpoint_interval=2, ema_decay=0.9)


def curve(run: Path) -> list[tuple[Any, ...]]:
    return [tuple(line.get(key, 0.0) for key in ("train_loss", "val_loss", "grad_norm")) for line in read_metrics(run)]


def same_curve(run: Path, plain: Path) -> bool:
    """Up to rounding: what is traced does without the layers' own kernels."""
    return all(one == pytest.approx(two, rel=1e-4) for one, two in zip(curve(run), curve(plain), strict=True))


def setup(run: Path) -> Any:
    return Checkpoint(run / "checkpoints/last").state["setup"]["compile"]


@pytest.mark.parametrize(
    ("asked", "device", "work", "processes", "mode", "reason"),
    [
        ("auto", CPU, 1e20, 1, "off", "a CPU has faster kernels of its own"),
        ("auto", GPU, WORTH["cuda"], 2, "off", "the run is too short to pay for it"),
        ("auto", GPU, 2 * WORTH["cuda"], 2, "blocks", "pays in a run of this length"),
        ("auto", GPU, 0.99 * WORTH["cuda"], 1, "off", "the run is too short to pay for it"),
        ("auto", GPU, WORTH["cuda"], 1, "model", "pays in a run of this length"),
        ("auto", torch.device("mps"), math.inf, 1, "off", "not tried on mps"),
        ("off", GPU, math.inf, 1, "off", "as configured"),
        ("blocks", CPU, 0.0, 1, "blocks", "as configured"),
    ],
)
def test_auto_goes_by_device_and_length(
    asked: Any, device: torch.device, work: float, processes: int, mode: str, reason: str
) -> None:
    assert choose_mode(TrainingConfig(compile=asked), device, work, processes) == (mode, reason)


@pytest.mark.parametrize(
    ("mode", "accumulation_steps"),
    [
        ("blocks", 1),
        pytest.param("model", 3, marks=pytest.mark.ci),  # Eight samples in three parts are of two sizes.
        pytest.param("blocks", 3, marks=pytest.mark.nightly),
        pytest.param("model", 1, marks=pytest.mark.nightly),
    ],
)
def test_one_code_serves_all_blocks_and_steps_and_changes_no_number(
    short: GPTConfig, tmp_path: Path, counting: Counting, mode: Any, accumulation_steps: int
) -> None:
    counter = counting("eager")
    short = with_training(short, accumulation_steps=accumulation_steps)
    train_gpt(short, output_dir=tmp_path / "plain")
    assert (counter.frame_count, setup(tmp_path / "plain")) == (0, "off")
    train_gpt(with_training(short, compile=mode), output_dir=tmp_path / "run")
    assert counter.frame_count == 1
    assert not counters["graph_break"]
    assert setup(tmp_path / "run") == mode
    assert same_curve(tmp_path / "run", tmp_path / "plain")
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "compile_seconds" in line] == [1]
    assert 0 < lines[0]["seconds"] < lines[0]["compile_seconds"]


@pytest.mark.ci
@pytest.mark.parametrize(("mode", "kinds"), [("blocks", 2), ("model", 1)])
def test_one_code_serves_batches_of_all_lengths(tmp_path: Path, counting: Counting, mode: Any, kinds: int) -> None:
    counter = counting("eager")
    config = with_training(small_config(), max_steps=8, eval_interval=0, batch_size=2)
    config = replace(config, data=replace(config.data, max_length=10))
    data = Seq2SeqTask(config).data
    batches = [data.training_batch(2 * step, 2) for step in range(8)]
    assert len({tuple(tensor.shape for tensor in batch.inputs) for batch in batches}) > 4
    train_seq2seq(config, output_dir=tmp_path / "plain")
    train_seq2seq(with_training(config, compile=mode), output_dir=tmp_path / "run")
    assert counter.frame_count == kinds
    assert not counters["graph_break"]
    assert same_curve(tmp_path / "run", tmp_path / "plain")


@pytest.mark.parametrize(
    ("mode", "recompute"),
    [
        ("blocks", "blocks"),
        pytest.param("model", "attention", marks=pytest.mark.ci),
        pytest.param("blocks", "attention", marks=pytest.mark.nightly),
        pytest.param("model", "blocks", marks=pytest.mark.nightly),
    ],
)
def test_what_is_recomputed_is_a_part_of_the_compiled_code(
    short: GPTConfig, tmp_path: Path, counting: Counting, mode: Any, recompute: Any
) -> None:
    counter = counting("aot_eager")
    short = with_training(short, max_steps=2)
    train_gpt(short, output_dir=tmp_path / "plain")
    train_gpt(with_training(short, compile=mode, recompute=recompute), output_dir=tmp_path / "run")
    assert counter.frame_count == 1
    assert not counters["graph_break"]
    assert same_curve(tmp_path / "run", tmp_path / "plain")


@pytest.mark.ci
def test_a_loss_in_chunks_stays_outside_of_the_graph_and_its_chunks_are_compiled(
    short: GPTConfig, tmp_path: Path, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = counting("eager")
    vocab = len(GPTTask(short).data.tokenizer)
    monkeypatch.setattr(loss, "MAX_LOGITS_BYTES", 4 * vocab * 32)
    train_gpt(short, output_dir=tmp_path / "plain")
    train_gpt(with_training(short, compile="model"), output_dir=tmp_path / "run")
    assert counter.frame_count == 2, "what comes before the loss, and a chunk"
    assert same_curve(tmp_path / "run", tmp_path / "plain")


@pytest.mark.parametrize(
    "backend", [pytest.param("aot_eager", marks=pytest.mark.ci), pytest.param("inductor", marks=pytest.mark.nightly)]
)
def test_a_compiled_run_goes_on_to_the_bit_as_it_began(
    short: GPTConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counting: Counting,
    capsys: pytest.CaptureFixture[str],
    backend: str,
) -> None:
    """By auto, which takes what was taken, also where the run has become too short for it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    counting(backend)
    monkeypatch.setitem(compiling.WORTH, "cpu", 0.0)
    short = replace(short, model=replace(short.model, num_layers=1))
    train_gpt(short, output_dir=tmp_path / "whole")
    assert setup(tmp_path / "whole") == "model"
    monkeypatch.setitem(compiling.WORTH, "cpu", math.inf)
    (tmp_path / "whole/checkpoints/last/state.json").rename(tmp_path / "state.json")
    losses = curve(tmp_path / "whole")
    weights = (tmp_path / "whole/checkpoints/last/model.safetensors").read_bytes()
    capsys.readouterr()
    train_gpt(short, output_dir=tmp_path / "whole", resume=True)
    printed = capsys.readouterr().out
    assert "resuming    after step 2\n" in printed
    assert "compile     model (as the run began)\n" in printed
    assert "compiled    model in " in printed
    assert "compile was" not in printed
    assert curve(tmp_path / "whole") == losses
    assert (tmp_path / "whole/checkpoints/last/model.safetensors").read_bytes() == weights
    lines = read_metrics(tmp_path / "whole")
    assert [line["step"] for line in lines if "compile_seconds" in line] == [1, 3]
    train_gpt(short, output_dir=tmp_path / "whole", resume=True)
    assert "compiled    " not in capsys.readouterr().out, "no step is to come"
    train_gpt(with_training(short, compile="off", max_steps=5), output_dir=tmp_path / "whole", resume=True)
    assert "compile was 'model', is now 'off': the steps to come differ for it" in capsys.readouterr().out


def test_where_there_is_no_compiler_a_run_says_so_and_does_without(
    short: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch._inductor.cpp_builder.cpp_compiler_search", refuse)
    train_gpt(with_training(short, compile="model"), output_dir=tmp_path / "run")
    printed = capsys.readouterr().out
    assert "compile     off (there is no C++ compiler: install g++, or name one in CXX)\n" in printed
    assert "compiled    " not in printed
    assert setup(tmp_path / "run") == "off"
    assert not any("compile_seconds" in line for line in read_metrics(tmp_path / "run"))


def refuse(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("no compiler, no luck\nwith more below")


@pytest.mark.parametrize("mode", ["blocks", "model"])
def test_a_compiler_that_fails_costs_no_more_than_its_speed(
    short: GPTConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    counting: Counting,
    mode: Any,
) -> None:
    counting("eager")
    train_gpt(short, output_dir=tmp_path / "plain")
    monkeypatch.setattr(compiling, "BACKEND", refuse)
    train_gpt(with_training(short, compile=mode), output_dir=tmp_path / "run")
    assert "compile     off (torch.compile failed: " in (printed := capsys.readouterr().out)
    assert "no compiler, no luck)\n" in printed
    assert setup(tmp_path / "run") == "off"
    assert same_curve(tmp_path / "run", tmp_path / "plain")


def test_an_error_of_the_model_is_none_of_the_compiler(
    short: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: Counting
) -> None:
    counting("eager")

    def broken(*arguments: Any) -> Tensor:
        raise ZeroDivisionError

    monkeypatch.setattr(loss, "loss_sum", broken)
    with pytest.raises(ZeroDivisionError):
        train_gpt(with_training(short, compile="blocks"), output_dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("capability", "triton", "compiler", "said"),
    [
        ((6, 1), True, "gcc", "GTX 1080 is too old for Triton"),
        ((8, 9), False, "gcc", "there is no Triton that works here: pip install triton"),
        ((8, 9), True, None, "there is no C compiler, which Triton needs: install gcc"),
        ((8, 9), True, "gcc", None),
    ],
)
def test_what_a_gpu_needs_is_said(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], triton: bool, compiler: str | None, said: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080")
    monkeypatch.setattr(compiling, "has_triton", lambda: triton)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: compiler)
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: __file__)
    monkeypatch.setattr(compiling, "Path", lambda *parts: SimpleNamespace(exists=lambda: True))
    assert compiling.obstacle(GPU) == said


def test_a_torch_that_does_not_say_what_it_finds_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch.utils._triton", "torch._inductor.cpp_builder"):
        monkeypatch.setitem(sys.modules, name, None)
    assert compiling.has_triton()
    assert compiling.has_cpp_compiler()


SCRIPT = """
import sys
from launch.train_gpt import main
from training import compiling
compiling.BACKEND = "aot_eager"
main()
"""


@pytest.mark.parametrize(
    ("mode", "recompute", "accumulation_steps"),
    [
        pytest.param("blocks", "none", 2, marks=pytest.mark.ci),
        pytest.param("blocks", "blocks", 1, marks=pytest.mark.nightly),
        pytest.param("model", "none", 2, marks=pytest.mark.nightly),
        pytest.param("model", "attention", 1, marks=pytest.mark.nightly),
    ],
)
def test_two_compiled_processes_give_the_losses_of_one_that_is_not(
    short: GPTConfig, tmp_path: Path, mode: Any, recompute: Any, accumulation_steps: int
) -> None:
    short = with_training(short, precision="fp64", accumulation_steps=accumulation_steps)
    short = replace(short, model=replace(short.model, dropout=0.0))
    train_gpt(short, output_dir=tmp_path / "one")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "config.yaml").write_text(config_to_yaml(with_training(short, compile=mode, recompute=recompute)))
    options = ["--config", "config.yaml", "--output_dir", "two"]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = command(*torchrun(2), tmp_path / "script.py", *options, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"compiled    {mode} in ") == 1
    for one, two in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, abs=1e-8, rel=0)
