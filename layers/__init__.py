"""What both models are built of: attention, key-value cache, feed-forward, norm, positions, blocks. Imports torch."""

import os

# OpenMP's threads wait by sleeping soon, also for who imports this first: `training/runtime/threads.py` says why.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")

from layers.attention import MultiHeadAttention, mask_of_documents
from layers.block import Block, Memory
from layers.cache import CachePositions, KVCache, LayerCache
from layers.feed_forward import GELU, SwiGLU
from layers.norm import LayerNorm, RMSNorm
from layers.positions import LearnedPositions, RotaryAngles, RotaryPositions, SinusoidalPositions, build_positions
from layers.transformer import Transformer

__all__ = [
    "GELU",
    "Block",
    "CachePositions",
    "KVCache",
    "LayerCache",
    "LayerNorm",
    "LearnedPositions",
    "Memory",
    "MultiHeadAttention",
    "RMSNorm",
    "RotaryAngles",
    "RotaryPositions",
    "SinusoidalPositions",
    "SwiGLU",
    "Transformer",
    "build_positions",
    "mask_of_documents",
]
