"""What `--data.mix` says: sources and their weights. No torch: `data/batches/mixed.py` makes batches of them."""

import hashlib
import json
import re
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

MIN_BLOCK, MAX_BLOCK = 1000, 10**6
"""Windows of a block; in each, every source has exactly its share."""
MIX = (
    f"SOURCE=WEIGHT, several with commas and each source once, with weights above 0 whose shares are whole numbers of "
    f"{MAX_BLOCK:,} parts"
)


def parse_mix(mix: str) -> dict[str, int]:
    """The sources of a mix, and how many windows of a block each has; none where it is no mix.

    >>> parse_mix("a.txt=0.7,b/=0.3")
    {'a.txt': 700, 'b/': 300}
    """
    items = [item.strip().rpartition("=") for item in mix.split(",")]
    weights = {
        source.strip(): Fraction(weight)
        for source, _, weight in items
        if source.strip() and re.fullmatch(r"\s*\d{1,12}(\.\d{1,12})?", weight, re.ASCII) and Fraction(weight) > 0
    }
    if len(weights) < len(items):
        return {}
    whole = lcm(*(weight.denominator for weight in weights.values()))
    counts = [int(weight * whole) for weight in weights.values()]
    counts = [count // gcd(*counts) for count in counts]
    if sum(counts) > MAX_BLOCK:
        return {}
    times = -(-MIN_BLOCK // sum(counts))
    return {source: count * times for source, count in zip(weights, counts, strict=True)}


def mixed_sha256(parts: Sequence[str], mix: str) -> str:
    """Of a mix: of its texts, each known by its SHA-256, and their weights, wherever the texts lie."""
    return hashlib.sha256(json.dumps([list(parts), list(parse_mix(mix).values())]).encode()).hexdigest()
