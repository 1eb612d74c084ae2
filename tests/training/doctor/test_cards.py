"""What is said of cards, by what torch tells of them."""

import ctypes
from typing import Any

import pytest
import torch

from training.doctor import cards
from training.doctor.findings import Finding

ADA, BLACKWELL, TURING = (8, 9), (12, 0), (7, 5)
NAMES = {ADA: "NVIDIA GeForce RTX 4090", BLACKWELL: "NVIDIA GeForce RTX 5090", TURING: "NVIDIA GeForce RTX 2080"}
GIB = 2**30


def look(
    monkeypatch: pytest.MonkeyPatch,
    *capabilities: tuple[int, int],
    built: str = "sm_75 sm_80 sm_86 sm_90",
    cuda: str | None = "12.6",
    driver: tuple[int, int] | None = (13, 0),
    free: float = 23.0,
) -> dict[str, Finding]:
    """What is found with such cards, each of 24 GiB, by its name."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(cards, "driver_cuda", lambda: driver)
    fakes: dict[str, Any] = {
        "get_arch_list": built.split,
        "device_count": lambda: len(capabilities),
        "get_device_capability": lambda device: capabilities[getattr(device, "index", device)],
        "get_device_name": lambda device: NAMES[capabilities[getattr(device, "index", device)]],
        "mem_get_info": lambda index: (int(free * GIB), 24 * GIB),
        "is_bf16_supported": lambda including_emulation: True,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(
        "training.runtime.precision.has_fast_bf16",
        lambda device: device.type == "cuda" and capabilities[device.index] >= (8, 0),
    )
    return {finding.name: finding for finding in cards.look_at_cards()}


def test_two_good_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(monkeypatch, ADA, ADA)
    assert {finding.status for finding in found.values()} == {"good"}
    assert found["card 1"].measured == "NVIDIA GeForce RTX 4090, sm_89, 23.0 of 24.0 GiB free"
    assert found["cards"].measured == "2 of one kind"
    assert found["bf16"].measured == "training.precision auto is bf16 here (fast here)"


def test_a_build_without_code_for_one_card_names_the_build_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(monkeypatch, ADA, BLACKWELL)
    assert found["card 0"].status == "good"
    assert found["card 1"].status == "fault"
    assert found["card 1"].measured.startswith("NVIDIA GeForce RTX 5090 is sm_120, and torch")
    assert found["card 1"].measured.endswith("is built for sm_75 sm_80 sm_86 sm_90")
    assert found["card 1"].advice.endswith("--index-url https://download.pytorch.org/whl/cu130")
    assert look(monkeypatch, BLACKWELL, built="sm_90 sm_120")["card 0"].status == "good"


@pytest.mark.parametrize(
    ("cuda", "driver", "count", "status", "said"),
    [
        ("12.6", (12, 8), 1, "good", "NVIDIA's, for CUDA 12.8"),
        (
            "13.0",
            (12, 8),
            1,
            "fault",
            "NVIDIA's, for CUDA 12.8: too old for a torch of CUDA 13.0: renew the driver, or",
        ),
        ("12.8", (12, 2), 1, "warning", "NVIDIA's, for CUDA 12.2, torch is for 12.8: renew it to compile"),
        ("12.6", (12, 8), 0, "fault", "torch sees no card: does nvidia-smi see a card? CUDA_VISIBLE_DEVICES may hide"),
        ("12.6", None, 0, "not checked", "no NVIDIA driver here"),
    ],
)
def test_a_driver_serves_builds_of_its_own_major_version_and_older(
    monkeypatch: pytest.MonkeyPatch, cuda: str, driver: Any, count: int, status: str, said: str
) -> None:
    finding = look(monkeypatch, *[ADA] * count, cuda=cuda, driver=driver)["driver"]
    assert finding.status == status
    assert said in str(finding)


def test_a_build_for_a_cpu_beside_a_driver_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = look(monkeypatch, cuda=None, driver=(13, 0))["torch"]
    assert finding.status == "fault"
    assert "no CUDA, and NVIDIA's driver is here: pip install torch==" in str(finding)
    assert finding.advice.endswith("whl/cu130")


@pytest.mark.parametrize(("free", "status"), [(23.0, "good"), (20.0, "warning"), (0.5, "fault")])
def test_memory_that_others_hold_is_told(monkeypatch: pytest.MonkeyPatch, free: float, status: str) -> None:
    finding = look(monkeypatch, ADA, free=free)["card 0"]
    assert finding.status == status
    assert f"{free:.1f} of 24.0 GiB free" in finding.measured
    assert ("nvidia-smi" in finding.advice) == (status != "good")


def test_unequal_cards_and_one_without_bf16_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(monkeypatch, ADA, TURING)
    assert str(found["cards"]).startswith("warning      cards        RTX 4090 + RTX 2080: each step waits for the slow")
    assert found["bf16"].status == "warning"
    assert "auto is fp16 here (the tensor cores of RTX 2080 know no bf16)" in found["bf16"].measured
    assert "leave the older cards out" in found["bf16"].advice


def test_without_a_gpu_it_says_what_it_could_not_check() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    found = {finding.name: finding for finding in cards.look_at_cards()}
    assert str(found["cards"]) == "not checked  cards        no NVIDIA GPU here: a run computes on cpu"
    assert found["bf16"].status == "good"


@pytest.mark.parametrize(("number", "expected"), [(12080, (12, 8)), (13000, (13, 0)), (0, None)])
def test_the_drivers_own_number_is_read(monkeypatch: pytest.MonkeyPatch, number: int, expected: Any) -> None:
    class Driver:
        def cuDriverGetVersion(self, where: Any) -> int:
            where._obj.value = number
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert cards.driver_cuda() == expected
