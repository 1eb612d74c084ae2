"""The key-value cache: what attention has already computed, so that a new token costs one token.

Shapes: B batch, S key tokens, H key-value heads, D head size.
"""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one attention layer, in two tensors of fixed size that are written in place."""

    def __init__(self, keys_BHSD: Tensor, values_BHSD: Tensor) -> None:
        self._keys_BHSD = keys_BHSD
        self._values_BHSD = values_BHSD
        self.length = 0

    def append(self, keys_BHSD: Tensor, values_BHSD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens, and return all that are stored so far, as views.

        Raises:
            ValueError: The new tokens do not fit.
        """
        end = self.length + keys_BHSD.size(2)
        if end > self._keys_BHSD.size(2):
            raise ValueError(f"the cache holds {self._keys_BHSD.size(2)} tokens, {end} were asked for")
        self._keys_BHSD[:, :, self.length : end] = keys_BHSD
        self._values_BHSD[:, :, self.length : end] = values_BHSD
        self.length = end
        return self._keys_BHSD[:, :, :end], self._values_BHSD[:, :, :end]


class KVCache:
    """One `LayerCache` per layer, allocated at once and used again after `reset`.

    Args:
        num_layers: Number of attention layers.
        batch_size: Number of sequences B.
        num_kv_heads: Key-value heads H.
        max_len: Most tokens S that a sequence may hold.
        head_size: Head size D.
        device, dtype: Of the stored keys and values.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        max_len: int,
        head_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        memory = torch.zeros(2 * num_layers, batch_size, num_kv_heads, max_len, head_size, device=device, dtype=dtype)
        self.max_len = max_len
        self.layers = [LayerCache(memory[2 * i], memory[2 * i + 1]) for i in range(num_layers)]

    @property
    def length(self) -> int:
        """Tokens stored so far."""
        return self.layers[0].length

    def reset(self) -> None:
        """Forget all tokens; the memory stays allocated."""
        for layer in self.layers:
            layer.length = 0
