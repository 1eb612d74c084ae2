"""Peak throughput, by the names that torch gives to GPUs."""

import pytest

from training.runtime.errors import InputError
from training.runtime.hardware import CARDS, find_card, peak_flops
from training.runtime.precision import Precision


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4080", 97.5),
        ("NVIDIA GeForce RTX 4080 SUPER", 104.4),
        ("NVIDIA GeForce RTX 4070", 58.3),
        ("NVIDIA GeForce RTX 4070 SUPER", 71.0),
        ("NVIDIA GeForce RTX 4070 Ti", 80.2),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 88.2),
        ("NVIDIA GeForce RTX 5070 Ti", 87.9),
        ("NVIDIA GeForce RTX 5070", 61.7),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
    ],
)
def test_a_name_finds_its_own_card_and_no_neighbour(name: str, tera: float) -> None:
    assert peak_flops(name, "bf16") == peak_flops(name, "fp16") == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    ("name", "tera"),
    [("NVIDIA GeForce RTX 4090", 82.6), ("NVIDIA GeForce RTX 3060", 12.75), ("NVIDIA A100-SXM4-40GB", 19.5)],
)
def test_fp32_means_cuda_cores(name: str, tera: float) -> None:
    assert peak_flops(name, "fp32") == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 156.0),
        ("NVIDIA H100 80GB HBM3", 494.7),
        ("NVIDIA GeForce RTX 3090", 35.6),
        ("NVIDIA GeForce RTX 4090", 82.6),
        ("NVIDIA GeForce RTX 5090", 104.75),
    ],
)
def test_tf32_is_half_of_bf16(name: str, tera: float) -> None:
    assert peak_flops(name, "tf32") == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 5070 Ti Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA RTX A600",
        "Quadro RTX 6000",
        "NVIDIA L40",
        "AMD Radeon RX 7900 XTX",
        "mps",
        "cpu",
        "",
    ],
)
def test_an_unknown_device_has_no_figure(name: str) -> None:
    for precision in ("bf16", "fp16", "fp32", "tf32", "fp64"):
        assert peak_flops(name, precision) is None


@pytest.mark.parametrize("name", ["Tesla T4", "Tesla V100-SXM2-16GB"])
def test_cards_older_than_bf16_have_fp16_only(name: str) -> None:
    assert peak_flops(name, "bf16") is None
    assert peak_flops(name, "tf32") is None
    assert peak_flops(name, "fp16") is not None


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_figures_are_tera_and_dense(precision: Precision) -> None:
    # No card listed does more than an H200 without sparsity.
    peak, best = peak_flops("NVIDIA GeForce RTX 5090", precision), peak_flops("NVIDIA H200", "bf16")
    assert peak is not None
    assert best is not None
    assert 1e13 < peak < best


def test_fp64_has_no_figure() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp64") is None


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("rtx 4090", "NVIDIA GeForce RTX 4090"),
        ("RTX-4070-Ti-Super", "NVIDIA GeForce RTX 4070 Ti SUPER"),
        ("NVIDIA GeForce RTX 3060", "NVIDIA GeForce RTX 3060"),
        ("h100 pcie", "NVIDIA H100 PCIe"),
        ("T4", "Tesla T4"),
        ("a6000", "NVIDIA RTX A6000"),
    ],
)
def test_a_card_is_found_as_people_write_it(asked: str, name: str) -> None:
    assert find_card(asked) == name


def test_an_unknown_card_names_its_neighbours_and_all_that_are_known() -> None:
    with pytest.raises(InputError) as caught:
        find_card("RTX 4095")
    message = str(caught.value)
    assert message.startswith("gpu 'RTX 4095' is not known: did you mean RTX 4090")
    assert message.endswith("V100-PCIE-32GB and V100-PCIE-16GB")
    with pytest.raises(InputError, match="mean A100-SXM4-80GB, A100-SXM4-40GB, A100 80GB PCIe or A100-PCIE-40GB"):
        find_card("A100")
    for asked in ("", "…", "Radeon"):
        with pytest.raises(InputError, match="Known are RTX 5090, "):
            find_card(asked)


def test_figures_of_cards_are_of_the_right_size() -> None:
    for name, card in CARDS.items():
        assert 8 <= card.memory <= 141, name
        assert 250 <= card.bandwidth <= 4800, name
        assert 70 <= card.watts <= 700, name
        assert card.pcie[0] in (3, 4, 5), name
        assert ("GeForce" in name) is (card.p2p is False), name
        assert 3 <= card.tensor_cores * 1e3 / card.bandwidth <= 500, name
