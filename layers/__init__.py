"""What both models are built of: attention, key-value cache, feed-forward, norm, positions, blocks. Imports torch."""

import os

# OpenMP's threads wait by sleeping soon, also for who imports this first: `training/threads.py` says why.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")

from layers.attention import MultiHeadAttention
from layers.beam_search import Beam, beam_search
from layers.block import Block, Memory
from layers.cache import KVCache, LayerCache, Place
from layers.feed_forward import SwiGLU
from layers.initialisation import init_weights
from layers.norm import RMSNorm
from layers.positions import LearnedPositions, RotaryPositions, SinusoidalPositions, Turn, build_positions
from layers.quantized import Int8Linear
from layers.sampling import Chosen, Sampler, Sampling

__all__ = [
    "Beam",
    "Block",
    "Chosen",
    "Int8Linear",
    "KVCache",
    "LayerCache",
    "LearnedPositions",
    "Memory",
    "MultiHeadAttention",
    "Place",
    "RMSNorm",
    "RotaryPositions",
    "Sampler",
    "Sampling",
    "SinusoidalPositions",
    "SwiGLU",
    "Turn",
    "beam_search",
    "build_positions",
    "init_weights",
]
