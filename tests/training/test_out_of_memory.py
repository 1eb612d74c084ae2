"""Memory that runs out in mid-run: one line says where, where it went, and what helps most."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT, command, with_training

from gpt.config import GPTConfig
from gpt.task import GPTTask, train_gpt
from training import out_of_memory
from training.config.command_line import config_to_yaml
from training.optimizer import MuonAdamW
from training.planning.memory import expected_bytes
from training.runtime.errors import InputError
from training.runtime.sizes import gigabytes
from training.saving import Saver
from training.storage.checkpoint import CheckpointStore
from training.task import loss_sum

ERROR = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. Error code 12"


def fails(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError(ERROR)


def in_training(model: torch.nn.Module, *arguments: Any) -> Any:
    return fails() if model.training else loss_sum(model, *arguments)


def in_evaluation(model: torch.nn.Module, *arguments: Any) -> Any:
    return loss_sum(model, *arguments) if model.training else fails()


def message(config: GPTConfig, folder: Path, **how: Any) -> str:
    with pytest.raises(InputError) as error:
        train_gpt(config, output_dir=folder / "run", **how)
    assert InputError.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def options_in(text: str) -> list[str]:
    return re.findall(r"--(training\.\S+ \S+|optimizer\.\S+ \S+) saves", text)


@pytest.fixture
def large(config: GPTConfig, monkeypatch: pytest.MonkeyPatch) -> GPTConfig:
    """A run with AdamW and an average, in fp32 on a device that bf16 would be slow on."""
    monkeypatch.setattr(out_of_memory, "has_fast_bf16", lambda device: False)
    config = replace(config, optimizer=replace(config.optimizer, name="adamw"))
    return with_training(config, ema_decay=0.9, max_steps=6)


def test_a_step_says_where_the_memory_went_and_what_saves_most(
    large: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.loss.loss_sum", in_training)
    said = message(large, tmp_path)
    assert said.startswith(
        "out of memory at 64 bytes more in a training step of 8 sequences at once: by formula it takes weights 0.0 MB, "
    )
    model = GPTTask(large).model

    def total(config: GPTConfig, sequences: int) -> int:
        return sum(expected_bytes(model, config, "fp32", 16 * sequences, length=16).values())

    for name, size in expected_bytes(model, large, "fp32", 16 * 8, length=16).items():
        assert f"{name.partition(',')[0]} {gigabytes(size)}" in said
    muon = replace(large, optimizer=replace(large.optimizer, name="muon"))
    saved = {
        "training.micro_batch_size 4": total(large, 8) - total(large, 4),
        "training.recompute blocks": total(large, 8) - total(with_training(large, recompute="blocks"), 8),
        "optimizer.name muon": total(large, 8) - total(muon, 8),
        "training.ema_decay 0": total(large, 8) - total(with_training(large, ema_decay=0.0), 8),
    }
    best = sorted(saved, key=lambda name: -saved[name])[:3]
    assert options_in(said) == best
    assert said.endswith(", ".join(f"--{name} saves {gigabytes(saved[name])}" for name in best))
    alone = message(with_training(large, accumulation_steps=1), tmp_path / "other")
    assert "--training.micro_batch_size 4 --training.accumulation_steps null saves" in alone


@pytest.mark.parametrize(
    ("owner", "name", "place", "helps"),
    [
        (MuonAdamW, "_adamw_step", "in the optimizer", {"optimizer.name muon", "training.ema_decay 0"}),
        (torch, "_foreach_lerp_", "in the moving average", {"optimizer.name muon", "training.ema_decay 0"}),
        (CheckpointStore, "save", "while a checkpoint was saved", {"optimizer.name muon", "training.ema_decay 0"}),
        (GPTTask, "__init__", "as the run began: take a smaller model, or less data", set()),
    ],
)
def test_other_places_have_other_remedies(
    large: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, place: str, helps: Any
) -> None:
    monkeypatch.setattr(owner, name, fails)
    said = message(large, tmp_path)
    assert said.startswith(f"out of memory at 64 bytes more {place}")
    assert set(options_in(said)) == helps
    assert said.endswith(", a smaller model" if helps else "less data")


def test_an_evaluation_is_helped_by_its_own_batch_size(
    large: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.loss.loss_sum", in_evaluation)
    said = message(large, tmp_path)
    assert said.startswith("out of memory at 64 bytes more in an evaluation: by formula it takes weights")
    assert "gradients" not in said
    assert options_in(said)[0] == "training.eval_batch_size 32"
    assert "micro_batch_size" not in said


def test_a_run_that_goes_on_is_told_what_it_can_go_on_with(
    large: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_gpt(with_training(large, max_steps=4), output_dir=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("training.loss.loss_sum", in_training)
        said = message(large, tmp_path, resume=True)
        assert sorted(options_in(said)) == ["training.micro_batch_size 4", "training.recompute blocks"]
    monkeypatch.setattr(Saver, "restore", fails_inside(Saver.restore))
    assert " while a checkpoint was loaded: by formula" in message(large, tmp_path, resume=True)


def fails_inside(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose first call of another one fails, in a frame of its own."""

    def failing(self: Saver, *arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.task, "checkpoint_files", fails)
            return method(self, *arguments)

    return failing


def test_bf16_helps_where_it_is_fast(large: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_memory, "has_fast_bf16", lambda device: True)
    monkeypatch.setattr("training.loss.loss_sum", in_training)
    assert "training.precision bf16" in options_in(message(with_training(large, recompute="blocks"), tmp_path))


def test_a_gpu_says_what_torch_has_and_of_which_rank(large: GPTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"mem_get_info": (5 * 10**8, 24 * 10**9), "max_memory_allocated": 21 * 10**9, "memory_reserved": 22 * 10**9}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    accelerator = SimpleNamespace(device=torch.device("cuda"), num_processes=2, process_index=1)
    runtime: Any = SimpleNamespace(accelerator=accelerator, precision="bf16", sharding=None)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    said = out_of_memory.explain(error, runtime, large, GPTTask(large), 4, resumable=False)
    assert said.startswith("out of memory at 2.00 GiB more as the run began on rank 1: by formula it takes weights ")
    assert (
        "; torch had allocated 21.00 GB at most, and reserves 22.00 GB of 24.00 GB, "
        "of which CUDA and other programs have 1.50 GB. What helps most: "
    ) in said
    state = [expected_bytes(GPTTask(large).model, large, "bf16", 0, length=16, shards=shards) for shards in (1, 2)]
    whole, halves = (sum(sizes[name] for name in out_of_memory.STATE) for sizes in state)
    assert f"accelerate launch --config_file configs/accelerate/fsdp2.yaml saves {gigabytes(whole - halves)}" in said
    assert (ROOT / "configs/accelerate/fsdp2.yaml").exists()
    runtime.sharding = "as it is"
    assert "fsdp2" not in out_of_memory.explain(error, runtime, large, GPTTask(large), 4, resumable=False)


def test_of_another_kind_of_model_no_formula_is_known(
    large: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_memory, "TransformerConfig", int)
    monkeypatch.setattr("training.loss.loss_sum", in_training)
    assert message(large, tmp_path).endswith(
        "of 8 sequences at once: take less at once (--training.micro_batch_size), or a smaller model"
    )


LIMITED = """
import os, resource, runpy, sys
taken = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (taken + 600 * 2**20,) * 2)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_process_that_may_take_no_more_ends_with_the_line(large: GPTConfig, tmp_path: Path) -> None:
    model = replace(large.model, d_model=256, d_ff=2048, max_len=256)
    wide = with_training(replace(large, model=model), batch_size=512, micro_batch_size=512)
    (tmp_path / "config.yaml").write_text(config_to_yaml(wide))
    (tmp_path / "limited.py").write_text(LIMITED)
    options = ["--config", "config.yaml", "--output_dir", "run"]
    done = command("limited.py", ROOT / "launch/train_gpt.py", *options, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert re.match(
        r"error: out of memory at \d+ bytes more in a training step of 512 sequences at once: ", done.stderr
    )
    assert "Traceback" not in done.stderr
    assert options_in(done.stderr)[0] == "training.micro_batch_size 256"


def test_of_weights_in_shards_a_process_has_its_share_and_gathers_them_to_evaluate(config: GPTConfig) -> None:
    task, use = GPTTask(config), out_of_memory.Use(config, "fp32", 1)
    whole, shares = (out_of_memory.needed(task, use._replace(shards=n), out_of_memory.EVALUATION) for n in (1, 2))
    assert shares["weights"] == whole["weights"] / 2
    assert shares["gathered"] == whole["weights"]
    assert "gathered" not in whole


def test_an_evaluation_of_documents_side_by_side_holds_their_mask(config: GPTConfig) -> None:
    task = GPTTask(config)
    apart = replace(config, data=replace(config.data, packing="documents"))
    assert apart.is_masked
    alone, masked = (
        out_of_memory.needed(task, out_of_memory.Use(each, "fp32", 1), out_of_memory.EVALUATION)["evaluated sequences"]
        for each in (config, apart)
    )
    length = config.model.max_len
    # A byte of each pair of tokens, and four of what torch's attention adds to the products.
    assert masked - alone == 5 * config.training.eval_batch_size * length**2
