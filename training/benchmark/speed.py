"""What a training's speed is measured against: how fast the same device multiplies matrices."""

import statistics
import time

import torch

READINGS = 9
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


@torch.no_grad()
def products_per_second(device: torch.device, precision: str) -> float:
    """Floating point operations per second in products of large square matrices by torch: the median of some readings.

    The matrices are drawn at random: a GPU multiplies zeros and ones faster than it ever trains.
    """
    of_halves = precision in ("bf16", "fp16")
    size, repeats = ((8192 if of_halves else 4096), 10) if device.type == "cuda" else (1024, 1)
    matrix = torch.randn(size, size, device=device).to(DTYPES[precision])
    seconds = []
    for _ in range(READINGS + 2):  # Two to warm up.
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            matrix @ matrix
        _wait(device)
        seconds.append((time.perf_counter() - start) / repeats)
    return 2 * size**3 / statistics.median(seconds[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
