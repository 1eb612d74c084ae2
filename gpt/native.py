"""A step of the model on a CPU in C++ (`native.cpp`), over the model's own weights and cache.

The machine's C++ compiler builds it at first use, in some seconds, for this very processor; the result is kept in the
user's cache folder.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt.model import GPT, Block
from layers import (
    Int8Linear,
    KVCache,
    LearnedPositions,
    MultiHeadAttention,
    RMSNorm,
    RotaryPositions,
    SinusoidalPositions,
    SwiGLU,
)

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
MOST_TOKENS = 32
"""With more tokens at once, torch's matrix products are faster."""

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_KNOWN = (
    *(GPT, Block, MultiHeadAttention, SwiGLU, RMSNorm, Int8Linear),
    *(LearnedPositions, RotaryPositions, SinusoidalPositions),
    *(nn.Linear, nn.Embedding, nn.ModuleList, nn.Identity, nn.Dropout),
)
_ADDRESS, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class NativeError(Exception):
    """The native step cannot be had; the message says why."""


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("weights", _ADDRESS),
        ("scales", _ADDRESS),
        *((name, _INTEGER) for name in ("rows", "columns", "kind")),
    ]


class _Block(ctypes.Structure):
    _fields_ = [
        ("attention_norm", _ADDRESS),
        *((name, _Matrix) for name in ("query", "key", "value", "out")),
        *((name, _ADDRESS) for name in ("query_norm", "key_norm", "feed_forward_norm")),
        *((name, _Matrix) for name in ("gate", "up", "down")),
        *((name, _ADDRESS) for name in ("keys", "values")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, _INTEGER) for name in ("layers", "width", "heads", "kv_heads", "head_size", "hidden")),
        *((name, _FLOAT) for name in ("epsilon", "embedding_scale")),
        ("embedding", _Matrix),
        *((name, _ADDRESS) for name in ("positions", "cos", "sin", "norm")),
        ("head", _Matrix),
        ("blocks", ctypes.POINTER(_Block)),
    ]


class _Tokens(ctypes.Structure):
    _fields_ = [
        *((name, _ADDRESS) for name in ("ids", "lengths")),
        *((name, _INTEGER) for name in ("batch", "count", "slots", "cache_kind")),
        ("logits", _ADDRESS),
        ("threads", _INTEGER),
    ]


@cache
def library() -> ctypes.CDLL:
    """The built library.

    Raises:
        NativeError: There is no compiler, or it failed.
    """
    compiler = find_compiler()
    try:
        built = _cache_folder() / f"native-{_fingerprint(compiler)}.so"
        if not built.exists():
            built.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=built.parent) as folder:
                # Whoever builds it at the same time replaces it by the same.
                build(compiler, Path(folder, built.name)).replace(built)
        return _load(built)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"]
        raise NativeError(f"{compiler} failed: {said[0]}") from error
    except OSError as error:
        raise NativeError(f"{compiler} could not build it: {error}") from error


def _load(built: Path) -> ctypes.CDLL:
    try:
        found = ctypes.CDLL(str(built))
    except OSError:
        built.unlink()  # Damaged: the next one builds it anew.
        raise
    found.read_tokens.restype = ctypes.c_bool
    return found


def build(compiler: str, output: Path) -> Path:
    """Compile the library into a file, and return that."""
    subprocess.run([*shlex.split(compiler), *FLAGS, str(SOURCE), "-o", str(output)], capture_output=True, check=True)
    return output


def find_compiler() -> str:
    """The C++ compiler.

    Raises:
        NativeError: There is none.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise NativeError("there is no C++ compiler: install g++, or name one in CXX")
    return compiler


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transformers-from-scratch"


def _fingerprint(compiler: str) -> str:
    """Of all that the result depends on: the source, the compiler and its flags, and the processor."""
    version = subprocess.run([*shlex.split(compiler), "--version"], capture_output=True, check=True).stdout
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else []
    features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    content = repr((SOURCE.read_bytes(), version, FLAGS, features))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class NativeStep:
    """Reads a few new tokens of each sequence.

    Args:
        model: On the CPU, in evaluation mode, its matrices in fp32, bf16 or int8. They are read where they are, norms
            and positions are copied.

    Raises:
        NativeError: There is no library, or the model has parts that it does not know.
    """

    def __init__(self, model: GPT) -> None:
        self._check(model)
        self._library = library()
        self._vocab_size = model.vocab_size
        self._kept: list[Tensor] = []
        config = model.config
        self._blocks = (_Block * config.num_layers)(*(self._block(block) for block in model.blocks))
        positions = model.positions.embedding.weight if isinstance(model.positions, LearnedPositions) else None
        if isinstance(model.positions, SinusoidalPositions):
            positions = model.positions.table_TM
        self._model = _Model(
            layers=config.num_layers,
            width=config.d_model,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads or config.num_heads,
            head_size=config.d_model // config.num_heads,
            hidden=config.d_ff,
            epsilon=model.norm.eps,
            embedding_scale=config.d_model**0.5,
            embedding=self._matrix(model.embedding),
            positions=self._copy(positions),
            cos=self._copy(None if model.rotary is None else model.rotary.cos_TD),
            sin=self._copy(None if model.rotary is None else model.rotary.sin_TD),
            norm=self._copy(model.norm.weight),
            head=self._matrix(model.embedding if model.head is None else model.head),
            blocks=self._blocks,
        )

    def __call__(self, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """Read tokens that continue the sequences of `cache`; return their logits, (B, T, V) in fp32.

        Raises:
            ValueError: They do not fit into the cache.
            IndexError: A token is not of the vocabulary; the cache is as it was.
        """
        batch, count = tokens_BT.shape
        cache.check_room(count)
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            block.keys, block.values = layer.keys_BHSD.data_ptr(), layer.values_BHSD.data_ptr()
        tokens_BT = tokens_BT.to(torch.int64).contiguous()
        logits_BTV = torch.empty(batch, count, self._vocab_size)
        tokens = _Tokens(
            ids=tokens_BT.data_ptr(),
            lengths=cache.lengths_B.data_ptr(),
            batch=batch,
            count=count,
            slots=cache.max_len,
            cache_kind=_KINDS[cache.dtype],
            logits=logits_BTV.data_ptr(),
            threads=torch.get_num_threads(),
        )
        if not self._library.read_tokens(ctypes.byref(self._model), ctypes.byref(tokens)):
            raise IndexError(f"expected tokens from 0 to {self._vocab_size - 1}")
        cache.advance(count)
        return logits_BTV

    @staticmethod
    def _check(model: GPT) -> None:
        unknown = sorted({type(module).__name__ for module in model.modules() if type(module) not in _KNOWN})
        if unknown:
            raise NativeError(f"the model has parts that it does not know: {', '.join(unknown)}")
        wrong = {str(tensor.dtype) for tensor in model.parameters()} - {"torch.float32", "torch.bfloat16"}
        if wrong or model.embedding.weight.device.type != "cpu":
            raise NativeError("it computes on the CPU, from weights in fp32, bf16 or int8")

    def _block(self, block: nn.Module) -> _Block:
        assert isinstance(block, Block)
        attention, feed_forward = block.attention, block.feed_forward
        matrices = {name: self._matrix(getattr(attention, name)) for name in ("query", "key", "value", "out")}
        matrices |= {name: self._matrix(getattr(feed_forward, name)) for name in ("gate", "up", "down")}
        return _Block(
            attention_norm=self._copy(block.attention_norm.weight),
            query_norm=self._copy(getattr(attention.query_norm, "weight", None)),
            key_norm=self._copy(getattr(attention.key_norm, "weight", None)),
            feed_forward_norm=self._copy(block.feed_forward_norm.weight),
            **matrices,
        )

    def _matrix(self, module: nn.Module) -> _Matrix:
        assert isinstance(module, nn.Linear | nn.Embedding | Int8Linear)
        weight = module.weight.detach()  # It keeps the memory, whatever becomes of the parameter.
        self._kept.append(weight)
        scales = self._copy(module.scale_O) if isinstance(module, Int8Linear) else None
        return _Matrix(weight.data_ptr(), scales, *weight.shape, _KINDS[weight.dtype])

    def _copy(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor.detach().to(torch.float32, copy=True).contiguous())
        return self._kept[-1].data_ptr()
