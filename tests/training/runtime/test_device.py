"""What a run decides to compute on."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, command, with_training

from gpt.config import GPTConfig
from gpt.task import train_gpt
from training.runtime import device as module
from training.runtime.device import unequal_devices_warning
from training.runtime.errors import InputError
from training.runtime.gpus import check_gpus, idle_gpus_warning
from training.runtime.precision import ProcessDevice

CPU = torch.device("cpu")
FAST = ProcessDevice("NVIDIA GeForce RTX 3090", fast_bf16=True, fast_fp16=True, tf32=True)
SLOW = ProcessDevice("NVIDIA GeForce RTX 2080", fast_bf16=False, fast_fp16=True)


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_tf32_is_set_for_a_training_and_undone_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_gather_devices", lambda device: [FAST])
    first = module.make_accelerator("fp32", tf32=True)
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cuda.matmul.allow_tf32
    assert "fp32 (as configured), products in TF32" in first.description
    assert first.warnings == []
    module.make_accelerator("fp32")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32


def test_tf32_changes_nothing_of_a_run_in_another_precision_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_gather_devices", lambda device: [FAST])
    runtime = module.make_accelerator("bf16", tf32=True)
    assert runtime.warnings == ["training.tf32 is for fp32 products, of which a run in bf16 has few: it changes little"]
    assert "TF32" not in runtime.description
    module.make_accelerator("fp32")


def test_tf32_on_a_cpu_ends_a_run_at_once(config: GPTConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.tf32 needs an NVIDIA GPU .*, cpu is none: leave it out"):
        train_gpt(with_training(config, tf32=True), output_dir=tmp_path / "run")


def test_processes_that_do_not_find_each_other_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(num_processes=1, device=CPU)
    monkeypatch.setattr(module, "Accelerator", lambda **options: alone)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "PartialState", lambda **options: alone)
    monkeypatch.setattr(module, "_gather_devices", lambda device: [SLOW])
    with pytest.raises(InputError, match="the launcher started 2 processes, but on cpu each is alone"):
        module.make_accelerator("fp32")


@pytest.mark.parametrize(("gpus", "local", "idle"), [(4, "1", 3), (2, "2", 0), (0, "1", 0)])
def test_idle_gpus_are_named(monkeypatch: pytest.MonkeyPatch, gpus: int, local: str, idle: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    warning = idle_gpus_warning(int(local))
    if idle:
        assert warning is not None
        assert warning.startswith(f"{idle} of {gpus} GPUs stand idle")
        assert f"accelerate launch --multi_gpu --num_processes {gpus}" in warning
    else:
        assert warning is None


def test_unequal_cards_are_warned_of_and_equal_ones_counted() -> None:
    warning = unequal_devices_warning([FAST, SLOW, FAST])
    assert warning is not None
    assert warning.startswith("2 x RTX 3090 + RTX 2080: each step waits for the slowest")
    assert "CUDA_VISIBLE_DEVICES=" in warning
    assert unequal_devices_warning([FAST, FAST]) is None
    assert unequal_devices_warning([SLOW]) is None


def test_a_run_starts_with_the_warnings_of_its_machine(
    monkeypatch: pytest.MonkeyPatch, config: GPTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_gather_devices", lambda device: [FAST, SLOW])
    monkeypatch.setattr(module, "idle_gpus_warning", lambda num_processes: "2 of 4 GPUs stand idle")
    train_gpt(with_training(config, max_steps=1), output_dir=tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert lines[0] == "warning     2 of 4 GPUs stand idle"
    assert lines[1].startswith("warning     RTX 3090 + RTX 2080: each step waits for the slowest")


def test_windows_is_refused_in_one_line_that_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "platform", "win32")
    with pytest.raises(InputError, match="Windows itself is not supported: run this inside WSL2"):
        module.make_accelerator("auto")


def test_everything_imports_without_what_windows_lacks(tmp_path: Path) -> None:
    # The libraries bring their own ways around it; ours come after it is taken away.
    script = tmp_path / "imports.py"
    script.write_text(
        "import sys, torch, accelerate, accelerate.tracking\n"
        "sys.modules |= dict.fromkeys(('fcntl', 'resource', 'termios', 'pwd'))\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import train_gpt, evaluate\n"
        "sys.argv, sys.platform = ['train_gpt.py'], 'win32'\n"
        "sys.exit(train_gpt.exit_code(train_gpt.main))\n"
    )
    done = command(script, ROOT / "launch", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: Windows itself is not supported: run this inside WSL2 (docs/platforms.md)\n"


def with_gpus(monkeypatch: pytest.MonkeyPatch, built: str, *capabilities: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "get_arch_list", built.split)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80 sm_90", (8, 6), True),
        ("sm_80 sm_90", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_75 sm_80 sm_86 sm_90 sm_100 sm_120", (12, 0), True),
        ("sm_120", (12, 1), True),
        ("sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90", (12, 0), False),
        ("sm_90 compute_90", (12, 0), True),
        ("sm_90 compute_120", (9, 0), True),
        ("compute_120", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_100f sm_120", (10, 3), True),
        ("sm_75 sm_80 sm_86 sm_90 sm_100 sm_120", (7, 0), False),
    ],
)
def test_code_runs_on_later_gpus_of_its_generation_and_ptx_on_all_later_ones(
    monkeypatch: pytest.MonkeyPatch, built: str, capability: tuple[int, int], runs: bool
) -> None:
    with_gpus(monkeypatch, built, capability)
    with nullcontext() if runs else pytest.raises(InputError):
        check_gpus(1)


def test_a_gpu_without_code_is_named_with_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, "sm_80 sm_90", (9, 0), (12, 0))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"Card 1 is sm_120, and torch .* is built for sm_80 sm_90: .*whl/cu130"):
        module.make_accelerator("auto")
    check_gpus(1)  # A card that nothing runs on may be of any age.
    with_gpus(monkeypatch, "sm_75 sm_120", (7, 0))
    with pytest.raises(InputError, match=r"Card 0 is sm_70.*whl/cu126"):
        module.inference_device()


@pytest.mark.parametrize("cuda", [None, "12.6"])
def test_builds_that_name_no_architectures_are_not_judged(monkeypatch: pytest.MonkeyPatch, cuda: str | None) -> None:
    with_gpus(monkeypatch, "" if cuda else "gfx942", (9, 4))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    check_gpus(1)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", None])
def test_inference_runs_where_torch_finds_an_accelerator(monkeypatch: pytest.MonkeyPatch, kind: str | None) -> None:
    found = torch.device(kind) if kind else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
    assert module.inference_device().type == (kind or "cpu")
