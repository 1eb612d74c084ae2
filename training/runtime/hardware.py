"""How fast a GPU could be at most, what it holds and what it draws: figures of its maker.

TFLOP/s of dense matrices at boost clock, summed in fp32 as torch sums them. GeForce cards do that at half the rate of
sums in fp16, and most of NVIDIA's advertised numbers take half of each matrix for zeros ("sparsity"): neither is in
these.

Sources, all NVIDIA's:

- The whitepapers of GA102 (3090, A6000), Ada (4090), RTX Blackwell (3090, 4090, 5090, 5070), RTX PRO Blackwell (6000
  Ada, PRO 6000), V100, A100 and H100: rows "Peak BF16 Tensor TFLOPS with FP32 Accumulate" and "Peak FP32 TFLOPS". In
  all of them, and in the datasheets, "Peak TF32 Tensor TFLOPS" is half of the first. Also memory, its bandwidth, and
  "TGP" or "TDP".
- The comparison page of the other GeForce cards: "AI TOPS" / 16 (50 series) or / 8 (40 series), and CUDA cores x boost
  clock x 4 (all). The two agree with each other, and with the whitepapers. Memory, its bus times its speed, "Total
  Graphics Power", and the bus to the host.
- The datasheets of V100, T4, L4, L40S, A100, H100 and H200.
- That GeForce cards do not reach each other's memory over PCIe: NVIDIA's answers for the 40 series
  (github.com/NVIDIA/nccl-tests/issues/117, where CUDA's own test says the same of a 2080 Ti).
"""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from training.runtime.errors import InputError


class Card(NamedTuple):
    """A GPU.

    Attributes:
        tensor_cores: TFLOP/s in bf16 and fp16.
        cuda_cores: TFLOP/s in fp32.
        memory: GB; of two cards with one name the smaller.
        bandwidth: GB/s of its memory.
        watts: What the board draws at most.
        pcie: Generation and lanes of its way to the host.
        p2p: Whether its driver lets it reach another card's memory without the host's; None where nobody is sure.
        nvlink: GB/s to others in one direction, where the board comes with it.
    """

    tensor_cores: float
    cuda_cores: float
    memory: int
    bandwidth: float
    watts: int
    pcie: tuple[int, int]
    p2p: bool | None = True
    nvlink: float = 0.0


# Of each TFLOP/s on bf16 and fp16 (on fp32, these cards do exactly half: 128 multiply-adds per clock and
# multiprocessor, not 256), GB, GB/s, watts, PCIe.
_GEFORCE = {
    "5090": (209.5, 32, 1792, 575, (5, 16)),
    "5080": (112.6, 16, 960, 360, (5, 16)),
    "5070 Ti": (87.9, 16, 896, 300, (5, 16)),
    "5070": (61.7, 12, 672, 250, (5, 16)),
    "5060 Ti": (47.4, 8, 448, 180, (5, 8)),  # And one with 16 GB.
    "5060": (38.4, 8, 448, 145, (5, 8)),
    "4090": (165.2, 24, 1008, 450, (4, 16)),
    "4080 SUPER": (104.4, 16, 736, 320, (4, 16)),
    "4080": (97.5, 16, 717, 320, (4, 16)),
    "4070 Ti SUPER": (88.2, 16, 672, 285, (4, 16)),
    "4070 Ti": (80.2, 12, 504, 285, (4, 16)),
    "4070 SUPER": (71.0, 12, 504, 220, (4, 16)),
    "4070": (58.3, 12, 504, 200, (4, 16)),
    "4060 Ti": (44.1, 8, 288, 160, (4, 8)),  # And one with 16 GB.
    "4060": (30.2, 8, 272, 115, (4, 8)),
    "3090 Ti": (80.0, 24, 1008, 450, (4, 16)),
    "3090": (71.2, 24, 936, 350, (4, 16)),
    "3080 Ti": (68.2, 12, 912, 350, (4, 16)),
    "3080": (59.5, 10, 760, 320, (4, 16)),  # The one with 12 GB has the same name and 3 % more.
    "3070 Ti": (43.5, 8, 608, 290, (4, 16)),
    "3070": (40.6, 8, 448, 220, (4, 16)),
    "3060 Ti": (32.4, 8, 448, 200, (4, 16)),
    "3060": (25.5, 12, 360, 170, (4, 16)),  # Most have 12 GB, a late one 8.
}

_PROFESSIONAL = {
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": Card(503.8, 125.0, 96, 1792, 600, (5, 16)),
    "NVIDIA RTX 6000 Ada Generation": Card(364.2, 91.1, 48, 960, 300, (4, 16)),
    "NVIDIA RTX A6000": Card(154.8, 38.7, 48, 768, 300, (4, 16)),
    "NVIDIA H200": Card(989.4, 66.9, 141, 4800, 700, (5, 16), nvlink=450),
    "NVIDIA H200 NVL": Card(835.5, 60.0, 141, 4800, 600, (5, 16)),
    "NVIDIA H100 80GB HBM3": Card(989.4, 66.9, 80, 3350, 700, (5, 16), nvlink=450),
    "NVIDIA H100 NVL": Card(835.5, 60.0, 94, 3900, 400, (5, 16)),
    "NVIDIA H100 PCIe": Card(756.0, 51.2, 80, 2000, 350, (5, 16)),
    "NVIDIA A100-SXM4-80GB": Card(312.0, 19.5, 80, 2039, 400, (4, 16), nvlink=300),
    "NVIDIA A100-SXM4-40GB": Card(312.0, 19.5, 40, 1555, 400, (4, 16), nvlink=300),
    "NVIDIA A100 80GB PCIe": Card(312.0, 19.5, 80, 1935, 300, (4, 16)),
    "NVIDIA A100-PCIE-40GB": Card(312.0, 19.5, 40, 1555, 250, (4, 16)),
    "NVIDIA L40S": Card(362.05, 91.6, 48, 864, 350, (4, 16), p2p=None),
    "NVIDIA L4": Card(121.0, 30.3, 24, 300, 72, (4, 16), p2p=None),
    "Tesla T4": Card(65.0, 8.1, 16, 300, 70, (3, 16), p2p=None),
    "Tesla V100-SXM2-32GB": Card(125.0, 15.7, 32, 900, 300, (3, 16), nvlink=150),
    "Tesla V100-SXM2-16GB": Card(125.0, 15.7, 16, 900, 300, (3, 16), nvlink=150),
    "Tesla V100-PCIE-32GB": Card(112.0, 14.0, 32, 900, 250, (3, 16)),
    "Tesla V100-PCIE-16GB": Card(112.0, 14.0, 16, 900, 250, (3, 16)),
}

CARDS = {
    f"NVIDIA GeForce RTX {name}": Card(peak, peak / 2, memory, bandwidth, watts, pcie, p2p=False)
    for name, (peak, memory, bandwidth, watts, pcie) in _GEFORCE.items()
} | _PROFESSIONAL
"""By the names that `torch.cuda.get_device_name` gives. They must match to the letter: a laptop's GPU, a "D" or a Max-Q
of the same number is another one."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """The most floating point operations per second that a GPU does in matrix products.

    Args:
        device_name: As `torch.cuda.get_device_name` gives it.
        precision: bf16, fp16 and tf32 run on tensor cores, fp32 on CUDA cores.

    Returns:
        Operations per second, or None where no figure is known, or the GPU has no tensor cores for bf16 and TF32.
    """
    card = CARDS.get(device_name)
    if card is None:
        return None
    since_ampere = None if device_name.startswith("Tesla") else card.tensor_cores
    peaks = {
        "bf16": since_ampere,
        "tf32": None if since_ampere is None else since_ampere / 2,
        "fp16": card.tensor_cores,
        "fp32": card.cuda_cores,
    }
    peak = peaks.get(precision)
    return None if peak is None else peak * 1e12


def short_name(device_name: str) -> str:
    """A name as people say it: RTX 4090, H100 PCIe."""
    for maker in ("NVIDIA ", "Tesla ", "GeForce "):
        device_name = device_name.removeprefix(maker)
    return device_name


def find_card(asked: str) -> str:
    """The full name of the card that a person means: "4090", "rtx 4090", "A100-SXM4-80GB".

    Raises:
        InputError: There is none, or more than one; the message names those that come near, and all.
    """
    words = {_plain(name): name for name in CARDS}
    words |= {_plain(short_name(name)): name for name in CARDS}
    words |= {_plain(short_name(name).removeprefix("RTX ")): name for name in CARDS}
    found = words.get(_plain(asked)) if asked else None
    if found is not None:
        return found
    inside = [name for name in CARDS if _plain(asked) and _plain(asked) in _plain(name)]
    near = difflib.get_close_matches(_plain(asked), words, n=3, cutoff=0.5)
    meant = inside or list(dict.fromkeys(words[word] for word in near))
    hint = f"did you mean {_listed(meant, 'or')}? " if meant else ""
    raise InputError(f"gpu {asked!r} is not known: {hint}Known are {_listed(CARDS, 'and')}")


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _listed(names: Iterable[str], word: str) -> str:
    short = list(map(short_name, names))
    return f" {word} ".join([", ".join(short[:-1]), short[-1]] if len(short) > 1 else short)
