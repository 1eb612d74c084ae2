"""Multi-head attention, for self-attention and cross-attention.

Shapes: B batch, T query tokens, S key tokens, H heads (queries) or key-value heads, G query heads of a key-value head,
D head size, M model size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.cache import CachePositions, LayerCache
from layers.dropout import Dropout
from layers.native import kernels
from layers.native.kernels import Group
from layers.norm import RMSNorm
from layers.positions import RotaryAngles, apply_rotary
from layers.products import linears

# A constant, because torch.compile cannot trace the question. Older versions of torch have no answer.
CPU_HAS_AMX: bool = getattr(torch.cpu, "get_capabilities", dict[str, bool])().get("amx_bf16", False)
UNGROUPED_WITH_MASK = "cuda"
"""Where most cards have no fused kernel for both a mask and fewer key-value heads than heads: flash attention takes no
mask, and the memory-efficient kernel no groups (torch 2.11 to 2.13; cuDNN's takes both, and comes first on few cards).
What is left repeats the heads itself, and keeps a score for each head and pair of tokens."""


def _attend(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, **options: Any) -> Tensor:
    """torch's fused attention, in the dtype that the device is fast at; for a compiled step on a GPU, our own.

    On a CPU without AMX, bf16 attention has a slow backward pass: with all else in bf16, attention in fp32 takes a
    quarter off a training step (docs/results/README.md).
    """
    if q_BHTD.size(2) == 1 and q_BHTD.device.type == "cuda" and torch.compiler.is_compiling():
        return attend_with_one_query(q_BHTD, k_BHSD, v_BHSD, options["attn_mask"])
    if options["attn_mask"] is not None and q_BHTD.device.type == UNGROUPED_WITH_MASK:
        k_BHSD, v_BHSD = _ungrouped(q_BHTD, k_BHSD), _ungrouped(q_BHTD, v_BHSD)
        options["enable_gqa"] = False
    if q_BHTD.dtype != torch.bfloat16 or q_BHTD.device.type != "cpu" or CPU_HAS_AMX:
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, **options)
    with torch.autocast("cpu", enabled=False):
        y_BHTD = F.scaled_dot_product_attention(q_BHTD.float(), k_BHSD.float(), v_BHSD.float(), **options)
    return y_BHTD.to(q_BHTD.dtype)


def _ungrouped(q_BHTD: Tensor, x_BHSD: Tensor) -> Tensor:
    """Keys or values, with as many heads as the queries have."""
    groups = q_BHTD.size(1) // x_BHSD.size(1)
    return x_BHSD.repeat_interleave(groups, 1) if groups > 1 else x_BHSD


def attend_with_one_query(q_BH1D: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask_B11S: Tensor | None) -> Tensor:
    """The attention of one query for each head, in sums that torch.compile makes a few small kernels of.

    torch's fused kernels let one block of threads walk through all keys of a head, which with a single query leaves
    most of a GPU idle: a token of 12 layers in fp32 took 1.14 ms with them, and 0.40 ms with this (docs/results).

    Args:
        q_BH1D: The queries; as many heads as there are key-value heads, or a multiple of them.
        k_BHSD, v_BHSD: Keys and values.
        mask_B11S: True for keys that are seen; None for all.

    Returns:
        A tensor of shape (B, H, 1, D), of the queries' dtype.
    """
    q_BHG1D = q_BH1D.view(k_BHSD.size(0), k_BHSD.size(1), -1, 1, q_BH1D.size(-1))
    scores_BHGS = (q_BHG1D.float() * k_BHSD[:, :, None].float()).sum(-1) / q_BH1D.size(-1) ** 0.5
    if mask_B11S is not None:
        scores_BHGS = scores_BHGS.masked_fill(~mask_B11S, -torch.inf)
    y_BHGD = (scores_BHGS.softmax(-1)[..., None] * v_BHSD[:, :, None].float()).sum(-2)
    return y_BHGD.view(q_BH1D.shape).to(q_BH1D.dtype)


def attend_with_dropout(
    q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask_BTS: Tensor | None, causal: bool, dropout: Dropout
) -> Tensor:
    """Attention whose weights are dropped as `dropout` says; the arguments are those of `_attend`, before it.

    torch's fused attention on a CPU has no dropout, and on a GPU draws masks of its own.
    """
    k_BHSD, v_BHSD = _ungrouped(q_BHTD, k_BHSD), _ungrouped(q_BHTD, v_BHSD)
    dtype = q_BHTD.dtype
    if dtype == torch.bfloat16 and not CPU_HAS_AMX:
        q_BHTD, k_BHSD, v_BHSD = q_BHTD.float(), k_BHSD.float(), v_BHSD.float()
    with torch.autocast("cpu", enabled=False):
        if kernels.serve(q_BHTD):
            asked = mask_BTS, causal, dropout.keys_of(q_BHTD), dropout.p
            return kernels.attention_with_dropout(q_BHTD, k_BHSD, v_BHSD, *asked).to(dtype)
        scores_BHTS = q_BHTD @ k_BHSD.mT / q_BHTD.size(-1) ** 0.5
        if mask_BTS is not None:
            scores_BHTS = scores_BHTS.masked_fill(~mask_BTS.unsqueeze(1), -torch.inf)
        if causal:
            scores_BHTS = scores_BHTS.masked_fill(~_causal_mask(q_BHTD, k_BHSD), -torch.inf)
        return (dropout(scores_BHTS.softmax(-1)) @ v_BHSD).to(dtype)


def mask_of_documents(positions_BT: Tensor) -> Tensor:
    """What tokens see where documents stand side by side, (B, T, T): those of their own document until themselves.

    Args:
        positions_BT: The position of each token in its document, which begins at 0.
    """
    documents_BT = (positions_BT == 0).cumsum(1)
    return (documents_BT[:, :, None] == documents_BT[:, None]).tril()


def _causal_mask(q_BHTD: Tensor, k_BHSD: Tensor) -> Tensor:
    size = q_BHTD.size(2), k_BHSD.size(2)
    return torch.ones(size, dtype=torch.bool, device=q_BHTD.device).tril()


class MultiHeadAttention(nn.Module):
    """`softmax(Q K^T / sqrt(D)) V`, projected back to the model size (Vaswani et al. 2017, section 3.2).

    With fewer key-value heads than heads, each key-value head serves a group of query heads (Ainslie et al. 2023).
    With `qk_norm`, queries and keys are normalised per head before they meet, which keeps the logits bounded
    (Henry et al. 2020, with RMSNorm in place of the unit length).

    Args:
        d_model: Model size M, a multiple of `num_heads`.
        num_heads: Query heads.
        num_kv_heads: Key-value heads, a divisor of `num_heads`; None for as many as heads.
        dropout: Probability that an attention weight is dropped in training.
        qk_norm: Normalise queries and keys.
        head_size: Head size D; None for `d_model / num_heads`.
        bias: Whether the four matrices have a bias.
        norm_eps: Of the norms of queries and keys.

    Raises:
        ValueError: `num_heads` does not divide `d_model`, or `num_kv_heads` does not divide `num_heads`.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        dropout: float = 0.0,
        qk_norm: bool = False,
        head_size: int | None = None,
        bias: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        kv_heads = num_kv_heads or num_heads
        if (head_size is None and d_model % num_heads) or num_heads % kv_heads:
            raise ValueError(
                f"expected num_kv_heads to divide num_heads and num_heads to divide d_model, "
                f"got {kv_heads}, {num_heads} and {d_model}"
            )
        self.head_size = head_size or d_model // num_heads
        self.grouped = kv_heads != num_heads
        self.qk_norm = qk_norm
        self.dropout = Dropout(dropout)
        self.heads = {"query": num_heads, "key": kv_heads, "value": kv_heads}
        self.query = nn.Linear(d_model, num_heads * self.head_size, bias=bias)
        self.key = nn.Linear(d_model, kv_heads * self.head_size, bias=bias)
        self.value = nn.Linear(d_model, kv_heads * self.head_size, bias=bias)
        self.out = nn.Linear(num_heads * self.head_size, d_model, bias=bias)
        self.query_norm: nn.Module = RMSNorm(self.head_size, norm_eps) if qk_norm else nn.Identity()
        self.key_norm: nn.Module = RMSNorm(self.head_size, norm_eps) if qk_norm else nn.Identity()
        self.merged: nn.Module | None = None  # Query, key and value in one, where a model no longer trains.

    def forward(
        self,
        x_BTM: Tensor,
        memory_BSM: Tensor | None = None,
        *,
        causal: bool = False,
        mask_BTS: Tensor | None = None,
        rotary: RotaryAngles | None = None,
        memory_rotary: RotaryAngles | None = None,
        cache: LayerCache | None = None,
        cache_positions: CachePositions | None = None,
    ) -> Tensor:
        """Let each token of `x_BTM` gather from the tokens it may see.

        Args:
            x_BTM: Where queries come from, and keys and values too unless `memory_BSM` is given.
            memory_BSM: Where keys and values come from in cross-attention.
            causal: Token t sees tokens 0 to t only.
            mask_BTS: True where a query may see a key, broadcast over heads; (B, 1, S) serves for padding.
            rotary: Angles by which queries, and in self-attention keys, are rotated; None for no rotation.
            memory_rotary: Angles of the keys of `memory_BSM`.
            cache: Keys and values of earlier tokens of the same sequences; see `cache_positions`.
            cache_positions: Where the new tokens stand in the cache, which stores their keys and values, and what they
                see. None for a cache that is only read: its first S tokens, as `mask_BTS` says, in cross-attention
                over what `cache_cross_attention` stored.

        Returns:
            A tensor of shape (B, T, M).
        """
        stores = cache is None or cache_positions is not None
        if stores and memory_BSM is None:
            q_BHTD, k_BHSD, v_BHSD = self._project(x_BTM, rotary, "query", "key", "value")
        else:
            (q_BHTD,) = self._project(x_BTM, rotary, "query")
            if stores:
                assert memory_BSM is not None
                k_BHSD, v_BHSD = self._project(memory_BSM, memory_rotary, "key", "value")
        if cache is not None:
            if cache_positions is not None:
                cache.store(k_BHSD, v_BHSD, cache_positions)
                slots, causal, mask_BTS = cache_positions.slots, cache_positions.causal, cache_positions.mask_BTS
            elif mask_BTS is None:
                raise ValueError("expected a mask of the tokens in a cache that is only read")
            else:
                slots = mask_BTS.size(-1)
            k_BHSD, v_BHSD = cache.read(slots)
            q_BHTD = q_BHTD.to(k_BHSD.dtype)
        y_BHTD = self._attend(q_BHTD, k_BHSD, v_BHSD, mask_BTS, causal)
        y_BTM = y_BHTD.transpose(1, 2).flatten(2)
        return self.out(y_BTM if cache is None else y_BTM.to(x_BTM.dtype))

    def _attend(self, q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask_BTS: Tensor | None, causal: bool) -> Tensor:
        if self.dropout.is_active and self.dropout.keys_B is not None and q_BHTD.device.type == "cpu":
            return attend_with_dropout(q_BHTD, k_BHSD, v_BHSD, mask_BTS, causal, self.dropout)
        mask = None if mask_BTS is None else mask_BTS.unsqueeze(1)
        if causal and mask is not None:
            mask, causal = _causal_mask(q_BHTD, k_BHSD) & mask, False
        return _attend(
            *(q_BHTD, k_BHSD, v_BHSD),
            attn_mask=mask,
            dropout_p=self.dropout.p if self.dropout.is_active else 0.0,
            is_causal=causal if q_BHTD.size(2) > 1 else False,  # A compiler that leaves sizes open wants a bool.
            enable_gqa=self.grouped,
        )

    def cache_cross_attention(
        self,
        memory_BSM: Tensor,
        cache: LayerCache,
        cache_positions: CachePositions,
        memory_rotary: RotaryAngles | None = None,
    ) -> None:
        """Store the keys and values of `memory_BSM` for cross-attention that reads `cache` alone."""
        k_BHSD, v_BHSD = self._project(memory_BSM, memory_rotary, "key", "value")
        cache.store(k_BHSD, v_BHSD, cache_positions)

    def weights(
        self,
        x_BTM: Tensor,
        memory_BSM: Tensor,
        *,
        mask_BTS: Tensor | None = None,
        rotary: RotaryAngles | None = None,
        memory_rotary: RotaryAngles | None = None,
    ) -> Tensor:
        """The attention weights of `x_BTM` over `memory_BSM`, for people to look at: (B, H, T, S), with sums of 1.

        The arguments are those of `forward` in cross-attention, which never holds these weights itself.
        """
        (q_BHTD,), (k_BHSD,) = self._project(x_BTM, rotary, "query"), self._project(memory_BSM, memory_rotary, "key")
        k_BHSD = k_BHSD.repeat_interleave(q_BHTD.size(1) // k_BHSD.size(1), 1)
        scores_BHTS = q_BHTD @ k_BHSD.mT / self.head_size**0.5
        if mask_BTS is not None:
            scores_BHTS = scores_BHTS.masked_fill(~mask_BTS.unsqueeze(1), -torch.inf)
        return scores_BHTS.softmax(-1)

    def _project(self, x_BTM: Tensor, rotary: RotaryAngles | None, *names: str) -> tuple[Tensor, ...]:
        """Queries, keys or values of tokens, (B, H, T, D) each; queries and keys are normed and rotated."""
        whole = self.merged if len(names) == 3 else None
        products = linears(x_BTM, *(self.get_submodule(name) for name in names), merged=whole)
        norms = {"query": self.query_norm, "key": self.key_norm} if self.qk_norm else {}
        groups = [Group(self.heads[name], norms.get(name), name != "value") for name in names]
        side_by_side = len(products) == 1
        if side_by_side and self.head_size <= kernels.MAX_HEAD_SIZE and kernels.serve(products[0]):
            return kernels.split_heads(products[0], self.head_size, groups, rotary)
        if side_by_side:
            products = torch.split(products[0], [group.heads * self.head_size for group in groups], -1)
        return tuple(self._heads(*each, rotary) for each in zip(products, groups, strict=True))

    def _heads(self, x_BTM: Tensor, group: Group, rotary: RotaryAngles | None) -> Tensor:
        """Split (B, T, H * D) into (B, H, T, D)."""
        x_BHTD = x_BTM.view(*x_BTM.shape[:-1], group.heads, self.head_size).transpose(1, 2)
        x_BHTD = x_BHTD if group.norm is None else group.norm(x_BHTD)
        return x_BHTD if rotary is None or not group.rotated else apply_rotary(x_BHTD, rotary)
