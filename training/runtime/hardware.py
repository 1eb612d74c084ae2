"""How fast a GPU could be at most: what a run's speed is measured against.

TFLOP/s of dense matrices at boost clock, summed in fp32 as torch sums them. GeForce cards do that at half the rate of
sums in fp16, and most of NVIDIA's advertised numbers take half of each matrix for zeros ("sparsity"): neither is in
these.

Sources, all NVIDIA's:

- The whitepapers of GA102 (3090, A6000), Ada (4090), RTX Blackwell (3090, 4090, 5090, 5070), RTX PRO Blackwell (6000
  Ada, PRO 6000), V100, A100 and H100: rows "Peak BF16 Tensor TFLOPS with FP32 Accumulate" and "Peak FP32 TFLOPS". In
  all of them, and in the datasheets, "Peak TF32 Tensor TFLOPS" is half of the first.
- The comparison page of the other GeForce cards: "AI TOPS" / 16 (50 series) or / 8 (40 series), and CUDA cores x boost
  clock x 4 (all). The two agree with each other, and with the whitepapers.
- The datasheets of V100, T4, L4, L40S, A100, H100 and H200.
"""

# On bf16 and fp16. On fp32, these cards do exactly half: 128 multiply-adds per clock and multiprocessor, not 256.
_GEFORCE = {
    "5090": 209.5,
    "5080": 112.6,
    "5070 Ti": 87.9,
    "5070": 61.7,
    "5060 Ti": 47.4,
    "5060": 38.4,
    "4090": 165.2,
    "4080 SUPER": 104.4,
    "4080": 97.5,
    "4070 Ti SUPER": 88.2,
    "4070 Ti": 80.2,
    "4070 SUPER": 71.0,
    "4070": 58.3,
    "4060 Ti": 44.1,
    "4060": 30.2,
    "3090 Ti": 80.0,
    "3090": 71.2,
    "3080 Ti": 68.2,
    "3080": 59.5,  # With 10 GB. The one with 12 GB has the same name and 3 % more.
    "3070 Ti": 43.5,
    "3070": 40.6,
    "3060 Ti": 32.4,
    "3060": 25.5,
}

# On bf16 and fp16, and on fp32.
_PROFESSIONAL = {
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": (503.8, 125.0),
    "NVIDIA RTX 6000 Ada Generation": (364.2, 91.1),
    "NVIDIA RTX A6000": (154.8, 38.7),
    "NVIDIA H200": (989.4, 66.9),
    "NVIDIA H200 NVL": (835.5, 60.0),
    "NVIDIA H100 80GB HBM3": (989.4, 66.9),
    "NVIDIA H100 NVL": (835.5, 60.0),
    "NVIDIA H100 PCIe": (756.0, 51.2),
    "NVIDIA A100-SXM4-80GB": (312.0, 19.5),
    "NVIDIA A100-SXM4-40GB": (312.0, 19.5),
    "NVIDIA A100 80GB PCIe": (312.0, 19.5),
    "NVIDIA A100-PCIE-40GB": (312.0, 19.5),
    "NVIDIA L40S": (362.05, 91.6),
    "NVIDIA L4": (121.0, 30.3),
    "Tesla T4": (65.0, 8.1),
    "Tesla V100-SXM2-32GB": (125.0, 15.7),
    "Tesla V100-SXM2-16GB": (125.0, 15.7),
    "Tesla V100-PCIE-32GB": (112.0, 14.0),
    "Tesla V100-PCIE-16GB": (112.0, 14.0),
}

_PEAKS = {f"NVIDIA GeForce RTX {card}": (peak, peak / 2) for card, peak in _GEFORCE.items()} | _PROFESSIONAL


def peak_flops(device_name: str, precision: str) -> float | None:
    """The most floating point operations per second that a GPU does in matrix products.

    Args:
        device_name: As `torch.cuda.get_device_name` gives it. It must match to the letter: a laptop's GPU, a "D" or a
            Max-Q of the same number is another one.
        precision: bf16, fp16 and tf32 run on tensor cores, fp32 on CUDA cores.

    Returns:
        Operations per second, or None where no figure is known, or the GPU has no tensor cores for bf16 and TF32.
    """
    tensor_cores, cuda_cores = _PEAKS.get(device_name, (None, None))
    since_ampere = None if device_name.startswith("Tesla") else tensor_cores
    peaks = {
        "bf16": since_ampere,
        "tf32": None if since_ampere is None else since_ampere / 2,
        "fp16": tensor_cores,
        "fp32": cuda_cores,
    }
    peak = peaks.get(precision)
    return None if peak is None else peak * 1e12
