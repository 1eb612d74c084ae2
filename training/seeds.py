"""Every random draw is a pure function of (seed, step, rank) and of what it is for."""

import hashlib

import torch


def derive_seed(seed: int, *parts: int | str) -> int:
    """Hash `seed` and `parts` (step, rank, purpose …) to 32 bits, all that torch's CPU generator keeps of a seed."""
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def generator(seed: int, *parts: int | str) -> torch.Generator:
    """A CPU generator for one purpose, seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *parts))
