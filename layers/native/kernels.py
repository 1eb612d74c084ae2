"""The functions of `kernels.cpp` with their gradients. Each says what it computes in torch's own operations.

Shapes: B batch, T query tokens, S key tokens, H heads, D head size, F feed-forward size.
"""

import ctypes
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from layers.native import build

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
MIN_ELEMENTS = 4096
"""Of a tensor; with fewer, a call costs more than it saves."""
MAX_HEAD_SIZE = 256
_DTYPES = (torch.float32, torch.bfloat16)
_ADDRESS, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Group(NamedTuple):
    """Heads that lie side by side."""

    heads: int
    norm: Any
    rotated: bool


class _Heads(ctypes.Structure):
    _fields_ = [
        *((name, _INTEGER) for name in ("batch", "tokens", "heads", "size", "row_stride")),
        *((name, _ADDRESS) for name in ("weight", "cos", "sin")),
        *((name, _INTEGER) for name in ("angle_batch", "angle_head")),
        ("epsilon", _FLOAT),
    ]


class _Dropout(ctypes.Structure):
    _fields_ = [("keys", _ADDRESS), ("site", ctypes.c_int32), ("threshold", ctypes.c_int32), ("scale", _FLOAT)]


class _Scores(ctypes.Structure):
    _fields_ = [
        *((name, _INTEGER) for name in ("batch", "heads", "queries", "keys")),
        ("scale", _FLOAT),
        ("causal", ctypes.c_bool),
        ("mask", _ADDRESS),
        *((name, _INTEGER) for name in ("mask_batch", "mask_query")),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    """The built library, or None where there is no compiler that builds it."""
    try:
        return build.library(SOURCE, *FLAGS)
    except build.NativeError:
        return None


def serve(x: Tensor) -> bool:
    """Whether the functions here take a tensor: it lies on a CPU, is large enough, and is not being traced."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype not in _DTYPES or x.numel() < MIN_ELEMENTS:
        return False
    return type(x) in (Tensor, torch.nn.Parameter) and _library() is not None


def threshold(p: float) -> int:
    """Of whole numbers of 32 bits, spread evenly from -2^31 on, the share `p` is below this."""
    return round(p * 2**32) - 2**31


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the library; tensors go as their addresses, and the number of threads comes last."""
    library = _library()
    assert library is not None
    getattr(library, name)(*map(_as_c, arguments), _INTEGER(torch.get_num_threads()))


def _as_c(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _ADDRESS(value.data_ptr())
    return {int: _INTEGER, float: _FLOAT}.get(type(value), lambda same: same)(value)


def _is_bf16(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def _dtype_of_products(x: Tensor) -> torch.dtype:
    """What a matrix product would turn `x` into, if that is a dtype for which there are kernels."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype in _DTYPES and x.dtype == torch.float32 else x.dtype


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x, dtype=_dtype_of_products(x))
        ctx.sizes = x.numel() // x.size(-1), x.size(-1), epsilon, _is_bf16(x), _is_bf16(y)
        _call("rms_norm_forward", x, weight, y, *ctx.sizes)
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, dweights = torch.empty_like(x), torch.zeros(torch.get_num_threads(), x.size(-1))
        _call("rms_norm_backward", dy.contiguous(), x, weight, dx, dweights, *ctx.sizes)
        return dx, dweights.sum(0), None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`F.rms_norm(x, weight.shape, weight, epsilon)`; under autocast in the dtype that a product would turn it into."""
    return _applied(_RMSNorm, x, weight.float(), epsilon)


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, angles: Sequence[Tensor] | None, size: int, epsilon: float, groups: Sequence[Group],
        *weights: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        x = x.contiguous()
        ctx.asked = angles, size, epsilon, groups
        ctx.save_for_backward(x, *weights)
        results = []
        for part, heads in _SplitHeads._parts(x, ctx.asked, weights):
            y = x.new_empty(x.size(0), heads.heads, x.size(1), size)
            _call("split_heads_forward", part, y, ctypes.byref(heads), _is_bf16(x))
            results.append(y)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        dx, dweights = torch.empty_like(x), []
        parts = zip(_SplitHeads._parts(x, ctx.asked, weights), _SplitHeads._parts(dx, ctx.asked, weights), strict=True)
        for ((part, heads), (dpart, _)), dy, weight in zip(parts, gradients, weights, strict=True):
            sums = torch.zeros(torch.get_num_threads(), heads.size)
            _call("split_heads_backward", dy.contiguous(), part, dpart, sums, ctypes.byref(heads), _is_bf16(x))
            dweights.append(None if weight is None else sums.sum(0))
        return dx, None, None, None, None, *dweights

    @staticmethod
    def _parts(x: Tensor, asked: tuple[Any, ...], weights: Sequence[Tensor | None]) -> Iterator[tuple[Tensor, _Heads]]:
        angles, size, epsilon, groups = asked
        first = 0
        for group, weight in zip(groups, weights, strict=True):
            heads = _Heads(x.size(0), x.size(1), group.heads, size, x.size(2), epsilon=epsilon)
            heads.weight = None if weight is None else weight.data_ptr()
            if group.rotated and angles is not None:
                cos, sin = angles
                heads.cos, heads.sin = cos.data_ptr(), sin.data_ptr()
                if cos.ndim == 4:
                    heads.angle_batch, heads.angle_head = (cos.stride(d) * (cos.size(d) > 1) for d in (0, 1))
            yield x[..., first * size :], heads
            first += group.heads


def split_heads(x: Tensor, size: int, groups: Sequence[Group], rotary: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    """Cut (B, T, H * D) into groups of heads, each of shape (B, heads, T, D).

    Args:
        x: What one product has computed for all groups.
        size: Head size D.
        groups: Their heads; a norm of root mean square by head; and whether they are then rotated.
        rotary: Cosines and sines, as in `RotaryAngles`; None for no rotation.
    """
    angles = None if rotary is None else [angle.float().contiguous() for angle in rotary]
    for angle in angles or ():  # What does not fit is an error here: the kernels read what they are told to.
        for heads in (group.heads for group in groups if group.rotated):
            angle.expand(x.size(0), heads, x.size(1), size)
        if angle.shape[-2:] != (x.size(1), size):
            raise ValueError(f"expected angles of {x.size(1)} tokens and {size} columns, got {tuple(angle.shape)}")
    weights = [None if group.norm is None else group.norm.weight.float() for group in groups]
    epsilon = next((group.norm.eps for group in groups if group.norm is not None), 0.0)
    return _applied(_SplitHeads, x, angles, size, epsilon, tuple(groups), *weights)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        y = x.new_empty(*x.shape[:-1], x.size(-1) // 2)
        _call("glu_forward", x, y, y.numel() // y.size(-1), y.size(-1), _is_bf16(x))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _call("glu_backward", dy.contiguous(), x, dx, dy.numel() // dy.size(-1), dy.size(-1), _is_bf16(x))
        return dx


def swiglu(x: Tensor) -> Tensor:
    """`silu(gate) * up` of (…, 2 F), where gate and up lie side by side: (…, F)."""
    return _applied(_SwiGLU, x)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keys_B: Tensor, site: int, p: float) -> Tensor:
        ctx.asked = keys_B, site, p
        return _Dropped._drop(x, *ctx.asked)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _Dropped._drop(dy, *ctx.asked), None, None, None

    @staticmethod
    def _drop(x: Tensor, keys_B: Tensor, site: int, p: float) -> Tensor:
        x = x.contiguous()
        y, how = torch.empty_like(x), _dropout(keys_B, site, p)
        _call("dropped", x, y, x.size(0), x.numel() // x.size(0), ctypes.byref(how), _is_bf16(x))
        return y


def dropout(x: Tensor, keys_B: Tensor, site: int, p: float) -> Tensor:
    """`torch.where(keep_mask(keys_B, x.shape, site, p), x / (1 - p), 0)`; see `layers/dropout.py`."""
    return _applied(_Dropped, x, keys_B, site, p)


def _dropout(keys_B: Tensor, site: int, p: float) -> _Dropout:
    return _Dropout(keys_B.data_ptr(), site, threshold(p), 1 / (1 - p))


class _DroppedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask_BTS: Tensor | None, causal: bool,
        keys_B: Tensor, p: float,
    ) -> Tensor:  # fmt: skip
        scores_BHTS = q_BHTD @ k_BHSD.mT
        scores = _Scores(*scores_BHTS.shape, q_BHTD.size(-1) ** -0.5, causal)
        if mask_BTS is not None:
            mask_BTS = mask_BTS.expand(scores_BHTS.size(0), -1, -1).contiguous()
            if mask_BTS.size(1) not in (1, scores_BHTS.size(2)) or mask_BTS.size(2) != scores_BHTS.size(3):
                raise ValueError(f"the mask {tuple(mask_BTS.shape)} does not fit scores {tuple(scores_BHTS.shape)}")
            scores.mask = mask_BTS.data_ptr()
            scores.mask_batch, scores.mask_query = (mask_BTS.stride(d) * (mask_BTS.size(d) > 1) for d in (0, 1))
        dropped_BHTS, how = torch.empty_like(scores_BHTS), _dropout(keys_B, 0, p)
        pointers = ctypes.byref(scores), ctypes.byref(how)
        _call("dropped_softmax_forward", scores_BHTS, dropped_BHTS, *pointers, _is_bf16(scores_BHTS))
        ctx.asked = scores, how
        ctx.save_for_backward(q_BHTD, k_BHSD, v_BHSD, scores_BHTS, dropped_BHTS)
        return dropped_BHTS @ v_BHSD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BHTD: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTD, k_BHSD, v_BHSD, scores_BHTS, dropped_BHTS = ctx.saved_tensors
        pointers = [ctypes.byref(structure) for structure in ctx.asked]
        with torch.autocast("cpu", enabled=False):  # The kernel takes gradients of the dtype of the scores.
            changes_BHTS = dy_BHTD @ v_BHSD.mT
            _call("dropped_softmax_backward", changes_BHTS, scores_BHTS, *pointers, _is_bf16(scores_BHTS))
            dq_BHTD, dk_BHSD = changes_BHTS @ k_BHSD, changes_BHTS.mT @ q_BHTD
            return dq_BHTD, dk_BHSD, dropped_BHTS.mT @ dy_BHTD, None, None, None, None


def attention_with_dropout(
    q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask_BTS: Tensor | None, causal: bool, keys_B: Tensor, p: float
) -> Tensor:
    """`dropout(softmax(Q K^T / sqrt(D))) V`, where a query sees what the mask and causality let it see.

    torch's fused attention on a CPU has no dropout, and its other way takes three times as long.
    """
    return _applied(_DroppedAttention, q_BHTD, k_BHSD, v_BHSD, mask_BTS, causal, keys_B, p)


def _applied(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]
