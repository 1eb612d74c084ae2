"""What both models are built of: attention, key-value cache, feed-forward, norm, positions. Imports torch only."""

from layers.attention import MultiHeadAttention
from layers.cache import KVCache, LayerCache
from layers.feed_forward import SwiGLU
from layers.norm import RMSNorm
from layers.positions import LearnedPositions, RotaryPositions, SinusoidalPositions

__all__ = [
    "KVCache",
    "LayerCache",
    "LearnedPositions",
    "MultiHeadAttention",
    "RMSNorm",
    "RotaryPositions",
    "SinusoidalPositions",
    "SwiGLU",
]
