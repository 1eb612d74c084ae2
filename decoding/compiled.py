"""A step of one token for each sequence, by torch.compile, and on a GPU as a CUDA graph.

All blocks of a model are alike, so that one of them is compiled and serves for all. A CUDA graph then holds the kernels
of the whole step, so that a token costs one launch. A token of one sequence has a step of few kernels of its own
(`decoding/one_token.py`).

Shapes: B batch, T = 1 token, M model size, V vocabulary.
"""

from importlib.util import find_spec
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from decoding.models import LanguageModel
from decoding.one_token import OneTokenStep, supports_one_token_step
from layers import CachePositions, KVCache, LayerCache, RotaryAngles


def missing_for_compiling(device: torch.device) -> str | None:
    """What a device lacks for a compiled step, in words; None where it can be had."""
    if device.type != "cuda":
        return None
    if find_spec("triton") is None:
        return "the package triton is not installed"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 7 else f"Triton wants compute capability 7.0, this GPU has {major}.{minor}"


class CompiledStep:
    """Decodes a token of each sequence; compiles for the first number of sequences that it sees, and once more for any.

    Several threads may, each with caches of its own: a graph belongs to one cache.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._on_gpu = model.embedding.weight.device.type == "cuda"
        # Only with this does inductor write products with one token itself, and fuse them with what is around.
        options: dict[str, Any] = {"options": {"coordinate_descent_tuning": True}} if self._on_gpu else {}
        self._embed = torch.compile(_embed, fullgraph=True, **options)
        self._block = torch.compile(_block, fullgraph=True, **options)
        self._head = torch.compile(_head, fullgraph=True, **options)
        few_kernels = self._on_gpu and supports_one_token_step(model)
        self._one_token = OneTokenStep(model, options["options"]) if few_kernels else None
        self._graphs: dict[KVCache, _Graph] = {}
        self._recording = Lock()

    def __call__(self, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """Logits after the tokens, (B, T, V).

        Raises:
            ValueError: The cache is full.
        """
        cache.check_room(1)
        if not self._on_gpu:
            logits_BTV = self.run(tokens_BT, cache)
        else:
            if cache not in self._graphs:
                with self._recording:  # Of several threads one compiles, and only one at a time can record.
                    self._graphs[cache] = _Graph(self, cache)
            logits_BTV = self._graphs[cache](tokens_BT)
        cache.advance(1)
        return logits_BTV

    def run(self, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """The same of fixed shapes and addresses, without a question to the host, and without moving the cache on."""
        if self._one_token is not None and cache.batch_size == 1:
            return self._one_token(tokens_BT, cache)
        x_BTM, rotary, cache_positions = self._embed(self._model, tokens_BT, cache)
        for block, layer in zip(self._model.decoder_layers, cache.layers, strict=True):
            x_BTM = self._block(block, x_BTM, rotary, layer, cache_positions)
        return self._head(self._model, x_BTM)


def _embed(
    model: LanguageModel, tokens_BT: Tensor, cache: KVCache
) -> tuple[Tensor, RotaryAngles | None, CachePositions]:
    cache_positions = cache.next_positions(1, cache.max_len)
    return *model.embed(tokens_BT, cache_positions.positions_BT), cache_positions


def _block(
    block: nn.Module, x_BTM: Tensor, rotary: RotaryAngles | None, layer: LayerCache, cache_positions: CachePositions
) -> Tensor:
    return block(x_BTM, rotary, causal=True, cache=layer, cache_positions=cache_positions)


def _head(model: LanguageModel, x_BTM: Tensor) -> Tensor:
    return model.logits(x_BTM)


class _Graph:
    """The kernels of a step, which read their tokens from, and leave their logits in, memory that stays where it is."""

    def __init__(self, step: CompiledStep, cache: KVCache) -> None:
        self._tokens_BT = torch.zeros(cache.batch_size, 1, dtype=torch.int64, device=cache.lengths_B.device)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # Compiles and tunes; the slot that it writes is the one that the next token takes.
                step.run(self._tokens_BT, cache)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile: only what this one does can spoil what is recorded.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._logits_BTV = step.run(self._tokens_BT, cache)

    def __call__(self, tokens_BT: Tensor) -> Tensor:
        self._tokens_BT.copy_(tokens_BT)
        self._graph.replay()
        return self._logits_BTV.clone()
