"""The dtype that serves all devices of a run."""

import pytest
import torch

from training.runtime import precision as module
from training.runtime.errors import InputError
from training.runtime.precision import ProcessDevice, choose_precision, describe_device, has_fast_bf16, set_tf32

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
FAST, SLOW, OLD = (
    ProcessDevice("NVIDIA GeForce RTX 3090", fast_bf16=True, fast_fp16=True, tf32=True),
    ProcessDevice("NVIDIA GeForce RTX 2080", fast_bf16=False, fast_fp16=True),
    ProcessDevice("NVIDIA GeForce GTX 1080", fast_bf16=False),
)


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


@pytest.mark.parametrize(("fast", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_where_the_cpu_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, fast: bool, expected: str
) -> None:
    monkeypatch.setattr(module, "cpu_has_fast_bf16", lambda: fast)
    # torchrun under accelerate says "no" even where nothing was asked.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    precision, reason = choose_precision("auto", CPU, [ProcessDevice("cpu", has_fast_bf16(CPU))])
    assert precision == expected
    assert "fast" in reason


@pytest.mark.parametrize("native", [True, False])
def test_emulation_on_a_gpu_is_not_fast(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert has_fast_bf16(CUDA) == native


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([FAST, FAST], ("bf16", "fast here")),
        ([SLOW], ("fp16", "the tensor cores of RTX 2080 know no bf16")),
        ([FAST, SLOW], ("fp16", "the tensor cores of RTX 2080 know no bf16")),
        ([SLOW, FAST], ("fp16", "the tensor cores of RTX 2080 know no bf16")),
        ([FAST, OLD], ("fp32", "GTX 1080 is not fast at bf16")),
        ([SLOW, OLD], ("fp32", "RTX 2080 is not fast at bf16")),
        ([OLD], ("fp32", "GTX 1080 is not fast at bf16")),
    ],
)
def test_auto_takes_what_every_device_is_fast_at(devices: list[ProcessDevice], expected: tuple[str, str]) -> None:
    assert choose_precision("auto", CUDA, devices) == expected
    assert choose_precision("bf16", CUDA, devices) == ("bf16", "as configured")


@pytest.mark.parametrize(
    ("capability", "bf16", "fp16", "tf32"),
    [
        ((6, 1), False, False, False),
        ((7, 0), False, True, False),
        ((7, 5), False, True, False),
        ((8, 0), True, True, True),
        ((8, 9), True, True, True),
        ((12, 0), True, True, True),
    ],
)
def test_a_gpu_is_fast_at_what_its_tensor_cores_know(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], bf16: bool, fp16: bool, tf32: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: capability >= (8, 0))
    assert describe_device(CUDA) == ProcessDevice("card", bf16, fp16, tf32)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert describe_device(CUDA) == ProcessDevice("card", bf16), "what is known of NVIDIA's is not of others"


@pytest.mark.parametrize("devices", [[SLOW], [FAST, SLOW], [OLD]])
def test_tf32_where_a_device_lacks_it_is_one_clear_line(devices: list[ProcessDevice]) -> None:
    with pytest.raises(
        InputError, match=r"training\.tf32 needs an NVIDIA GPU of the Ampere .*, \w+ \d+ is none: leave"
    ):
        set_tf32(True, "fp32", devices)
    assert set_tf32(False, "fp32", devices) is None


def test_mps_computes_in_fp32_and_refuses_fp64() -> None:
    devices = [ProcessDevice("mps", has_fast_bf16(MPS))]
    assert choose_precision("auto", MPS, devices) == ("fp32", "mps is not fast at bf16")
    assert choose_precision("bf16", MPS, devices) == ("bf16", "as configured")
    with pytest.raises(InputError, match="fp64 is not available on mps"):
        choose_precision("fp64", MPS, devices)


def test_auto_follows_the_launch_configuration_and_an_explicit_choice_beats_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert choose_precision("auto", CUDA, [FAST]) == ("fp16", "from the launch configuration")
    assert choose_precision("fp32", CUDA, [FAST]) == ("fp32", "as configured")


def test_fp16_without_a_gpu_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"fp16 \(as configured\) needs a GPU, this run is on cpu: use bf16 or fp32"):
        choose_precision("fp16", CPU, [SLOW])
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(InputError, match=r"fp16 \(from the launch configuration\) needs a GPU"):
        choose_precision("auto", CPU, [SLOW])
