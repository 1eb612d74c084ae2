"""A step of a decoder in C++ (`step.cpp`), over the model's own weights and cache."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from decoding.int8 import Int8Linear
from decoding.merging import Rows
from decoding.models import CachedModel, decoder_parts, unknown_parts
from layers.attention import MultiHeadAttention
from layers.block import Block, Memory
from layers.cache import KVCache
from layers.feed_forward import GELU, FeedForward, SwiGLU
from layers.native import build
from layers.native.build import NativeError
from layers.norm import LayerNorm, Norm, RMSNorm
from layers.positions import LearnedPositions, SinusoidalPositions

SOURCE = Path(__file__).with_name("step.cpp")
FLAGS = ("-ffp-contract=off",)
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_ADDRESS, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, _ADDRESS) for name in ("weights", "scales", "bias")),
        *((name, _INTEGER) for name in ("rows", "columns", "kind")),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", _ADDRESS), ("bias", _ADDRESS), ("epsilon", _FLOAT)]


class _Attention(ctypes.Structure):
    _fields_ = [
        ("norm", _Norm),
        *((name, _Matrix) for name in ("query", "key", "value", "out")),
        *((name, _Norm) for name in ("query_norm", "key_norm")),
    ]


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, _Attention) for name in ("own", "cross")),
        ("feed_forward_norm", _Norm),
        *((name, _Matrix) for name in ("gate", "up", "down")),
        ("activation", _INTEGER),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, _INTEGER) for name in ("layers", "width", "heads", "kv_heads", "head_size", "hidden")),
        ("embedding_scale", _FLOAT),
        ("embedding", _Matrix),
        *((name, _ADDRESS) for name in ("positions", "cos", "sin")),
        ("norm", _Norm),
        ("head", _Matrix),
        ("blocks", ctypes.POINTER(_Block)),
    ]


class _Tokens(ctypes.Structure):
    _fields_ = [
        *((name, _ADDRESS) for name in ("ids", "lengths")),
        *((name, ctypes.POINTER(_ADDRESS)) for name in ("own", "cross")),
        *((name, _INTEGER) for name in ("batch", "count", "slots", "cache_kind")),
        ("memory_lengths", _ADDRESS),
        *((name, _INTEGER) for name in ("memory_slots", "cross_rotary")),
        ("logits", _ADDRESS),
        ("threads", _INTEGER),
    ]


@cache
def library() -> ctypes.CDLL:
    """The built step.

    Raises:
        NativeError: There is no compiler, or it failed.
    """
    found = build.library(SOURCE, *FLAGS)
    found.read_tokens.restype = ctypes.c_bool
    return found


class NativeStep:
    """Reads a few new tokens of each sequence, by one pass over the weights of a decoder; in several threads at once.

    What belongs to a call stands in structures of its own: the GIL is released while it computes.

    Args:
        model: On the CPU, in evaluation mode, its matrices in fp32, bf16 or int8. They are read where they are, norms
            and positions are copied. Its very class must say `has_native_step`: a subclass may do anything.

    Raises:
        NativeError: There is no library, or the model has parts that it does not know.
    """

    def __init__(self, model: CachedModel) -> None:
        blocks = model.decoder_layers
        _check(model)
        self._library = library()
        self._vocab_size, d_model = model.embedding.weight.shape
        self._kept: list[Tensor] = []
        positions = model.positions.embedding.weight if isinstance(model.positions, LearnedPositions) else None
        if isinstance(model.positions, SinusoidalPositions):
            positions = model.positions.table_TM
        first = blocks[0]
        assert isinstance(first, Block)
        head_size, read = first.attention.head_size, [self._block(block) for block in blocks]
        self._model = _Model(
            layers=len(blocks),
            width=d_model,
            heads=first.attention.query.weight.size(0) // head_size,
            kv_heads=first.attention.key.weight.size(0) // head_size,
            head_size=head_size,
            hidden=max(block.up.rows for block in read),
            embedding_scale=model.embedding_scale,
            embedding=self._matrix(model.embedding),
            positions=self._copy(positions),
            cos=self._copy(None if model.rotary is None else model.rotary.cos_TD),
            sin=self._copy(None if model.rotary is None else model.rotary.sin_TD),
            norm=self._norm(model.norm),
            head=self._matrix(model.embedding if model.head is None else model.head),
            blocks=(_Block * len(blocks))(*read),
        )

    def __call__(self, tokens_BT: Tensor, cache: KVCache, memory: Memory | None = None) -> Tensor:
        """Read tokens that continue the sequences of `cache`; return their logits, (B, T, V) in fp32.

        Args:
            tokens_BT: Token ids.
            cache: Of the tokens before them.
            memory: With its cache: what cross-attention looks at, where the decoder has it.

        Raises:
            ValueError: They do not fit into the cache.
            IndexError: A token is not of the vocabulary; the cache is as it was.
        """
        batch, count = tokens_BT.shape
        cache.check_room(count)
        tokens_BT = tokens_BT.to(torch.int64).contiguous()
        logits_BTV = torch.empty(batch, count, self._vocab_size)
        tokens = _Tokens(
            ids=tokens_BT.data_ptr(),
            lengths=cache.lengths_B.data_ptr(),
            own=_addresses(cache),
            batch=batch,
            count=count,
            slots=cache.max_len,
            cache_kind=_KINDS[cache.dtype],
            logits=logits_BTV.data_ptr(),
            threads=torch.get_num_threads(),
        )
        if memory is not None:
            assert memory.cache is not None
            tokens.cross = _addresses(memory.cache)
            tokens.memory_lengths, tokens.memory_slots = memory.cache.lengths_B.data_ptr(), memory.cache.max_len
            tokens.cross_rotary = memory.rotary is not None
        if not self._library.read_tokens(ctypes.byref(self._model), ctypes.byref(tokens)):
            raise IndexError(f"expected tokens from 0 to {self._vocab_size - 1}")
        cache.advance(count)
        return logits_BTV

    def _block(self, block: nn.Module) -> _Block:
        assert isinstance(block, Block)
        result = _Block(
            own=self._attention(block.attention, block.attention_norm),
            feed_forward_norm=self._norm(block.feed_forward_norm),
            up=self._matrix(block.feed_forward.up),
            down=self._matrix(block.feed_forward.down),
            activation=_activation(block.feed_forward),
        )
        if isinstance(block.feed_forward, SwiGLU):
            result.gate = self._matrix(block.feed_forward.gate)
        if block.cross_attention is not None and block.cross_attention_norm is not None:
            result.cross = self._attention(block.cross_attention, block.cross_attention_norm)
        return result

    def _attention(self, attention: MultiHeadAttention, norm: Norm) -> _Attention:
        return _Attention(
            norm=self._norm(norm),
            query_norm=self._norm(attention.query_norm),
            key_norm=self._norm(attention.key_norm),
            **{name: self._matrix(getattr(attention, name)) for name in ("query", "key", "value", "out")},
        )

    def _norm(self, norm: nn.Module) -> _Norm:
        if isinstance(norm, nn.Identity):
            return _Norm()
        assert isinstance(norm, RMSNorm | LayerNorm)
        return _Norm(self._copy(norm.weight), self._copy(getattr(norm, "bias", None)), norm.eps)

    def _matrix(self, module: nn.Module) -> _Matrix:
        assert isinstance(module, nn.Linear | nn.Embedding | Int8Linear | Rows)
        weight = module.weight.detach()  # It keeps the memory, whatever becomes of the parameter.
        self._kept.append(weight)
        of_rows = [self._copy(getattr(module, name, None)) for name in ("scale_O", "bias")]
        return _Matrix(weight.data_ptr(), *of_rows, *weight.shape, _KINDS[weight.dtype])

    def _copy(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor.detach().to(torch.float32, copy=True).contiguous())
        return self._kept[-1].data_ptr()


def _activation(layer: FeedForward) -> int:
    """As `step.cpp` counts them."""
    return ("none", "tanh").index(layer.approximate) + 1 if isinstance(layer, GELU) else 0


def _addresses(cache: KVCache) -> "ctypes.Array[ctypes.c_void_p]":
    """Of the keys and the values of each layer."""
    rows = [rows_ND.data_ptr() for layer in cache.layers for rows_ND in layer.rows]
    return (_ADDRESS * len(rows))(*rows)


def _check(model: CachedModel) -> None:
    if unknown := unknown_parts(model):
        raise NativeError(f"the model has parts that it does not know: {', '.join(sorted(unknown))}")
    found = {str(tensor.dtype) for part in decoder_parts(model) for tensor in part.parameters()}
    if found - {"torch.float32", "torch.bfloat16"} or model.embedding.weight.device.type != "cpu":
        raise NativeError("it computes on the CPU, from weights in fp32, bf16 or int8")
