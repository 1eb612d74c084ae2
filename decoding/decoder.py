"""Three modes of a decode step, for the same logits up to rounding.

`eager` runs the model as it stands. `compiled` runs what torch.compile makes of it, on a GPU as a CUDA graph
(`decoding/compiled.py`). `native` runs on a CPU in C++ (`decoding/native`).

Shapes: B batch, T tokens, M model size, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn

from decoding.choices import Mode, Precision
from decoding.compiled import CompiledStep, missing_for_compiling
from decoding.int8 import Int8Linear
from decoding.merging import merge_products
from decoding.models import LanguageModel
from decoding.native import NativeError, NativeStep
from layers import KVCache
from training.runtime.errors import InputError
from training.runtime.precision import cpu_has_fast_bf16

CHUNK = 512
"""Tokens of a prompt that are read at once, which bounds the memory for it."""

MAX_TOKENS = 32
"""With more tokens at once, torch's matrix products are faster than those of the native step."""

COMPILED_STEPS = 5000
"""On a GPU, tokens of a text from which on compiling pays: it took 21 s to save 4.6 ms a step (docs/results)."""

Model = TypeVar("Model", bound=nn.Module)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.bfloat16}


def convert(model: Model, precision: Precision, *, merge: bool = True) -> Model:
    """Make a model that no longer trains ready to be decoded from, in place, and return it.

    Args:
        model: As it was loaded.
        precision: Its dtype; int8 means `Int8Linear` layers in a model of bf16.
        merge: Join matrices that read the same inputs (`decoding/merging.py`), which gives weights other names.
    """
    if precision == "int8":
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child))
    for parameter in model.parameters():  # The tables of positions stay as exact as they are.
        parameter.data = parameter.data.to(_DTYPES[precision])
    if merge:
        merge_products(model)
    return model


def resolved(mode: Mode, device: torch.device, steps: int) -> Mode:
    """What auto means for so many steps on a device: compiled where they pay for it on a GPU; auto stays on a CPU.

    The same question has the same answer: nothing is timed.
    """
    if mode != "auto" or device.type == "cpu":
        return mode
    return "compiled" if steps >= COMPILED_STEPS and missing_for_compiling(device) is None else "eager"


class Decoder:
    """Reads sequences with a model and a cache; several threads may, each with caches of its own.

    Args:
        model: In evaluation mode.
        mode: How single tokens are read; see `resolved` for auto.
        steps: How many will be read one after the other, as far as is known.

    Raises:
        InputError: `mode` cannot be had; the message says why.
    """

    def __init__(self, model: LanguageModel, mode: Mode = "auto", steps: int = 0) -> None:
        if mode not in get_args(Mode):
            raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode}")
        device = model.embedding.weight.device
        mode = resolved(mode, device, steps)
        if mode == "compiled" and (missing := missing_for_compiling(device)):
            raise InputError(f"there is no compiled step here: {missing}")
        self.model, self.mode = model, mode
        self._native: NativeStep | None = None
        if mode in ("auto", "native"):
            try:
                self._native = NativeStep(model)
            except NativeError as error:
                if mode == "native":
                    raise InputError(f"there is no native step here: {error}") from error
            self.mode = "native" if self._native else "eager"
        # Without instructions for bf16, torch multiplies its matrices at a sixth of the speed of fp32.
        self._native_is_faster = model.embedding.weight.dtype == torch.bfloat16 and not cpu_has_fast_bf16()
        self._compiled = CompiledStep(model) if mode == "compiled" else None
        # By their number of sequences. A thread takes one out of a list in a single step, so no other can have it too.
        self._free: defaultdict[int, list[KVCache]] = defaultdict(list)

    @torch.inference_mode()
    def take_cache(self, batch_size: int = 1, max_len: int | None = None) -> KVCache:
        """An empty cache for sequences of up to `max_len` tokens (None: of the context).

        A compiled step is made for one size, so its caches are as long as the context, and are used again.
        """
        if self._compiled is None:
            return self.model.new_cache(batch_size, max_len)
        try:
            cache = self._free[batch_size].pop()
        except IndexError:
            return self.model.new_cache(batch_size)
        cache.reset()
        return cache

    def give_back(self, cache: KVCache) -> None:
        """Allow `take_cache` to hand out a cache again."""
        if self._compiled is not None:
            self._free[cache.batch_size].append(cache)

    @torch.inference_mode()
    def prefill(self, tokens_BT: Tensor, cache: KVCache, counts: Sequence[int] | None = None) -> Tensor:
        """Read prompts, in chunks.

        Args:
            tokens_BT: New tokens of each sequence, padded at their ends.
            cache: Of these sequences.
            counts: How many tokens each sequence has here; None for T. Of a sequence with none, the logits mean
                nothing.

        Returns:
            Logits of the token after each sequence, (B, V).

        Raises:
            ValueError: The tokens do not fit into the cache.
        """
        counts = [tokens_BT.size(1)] * tokens_BT.size(0) if counts is None else counts
        if self._native is not None and self._native_is_faster and min(counts) == tokens_BT.size(1):
            return self._prefill_natively(self._native, tokens_BT, cache)
        last_BM: Tensor | None = None
        for start in range(0, tokens_BT.size(1), CHUNK):
            chunk_BT = tokens_BT[:, start : start + CHUNK]
            here = [min(max(count - start, 0), chunk_BT.size(1)) for count in counts]
            whole = min(here) == chunk_BT.size(1)
            cache_positions = cache.extend(chunk_BT.size(1), here)
            hidden_BTM = self.model.hidden_states(chunk_BT, cache, cache_positions, last_only=whole)
            if whole:
                last_BM = hidden_BTM[:, -1]
                continue
            here_B = torch.tensor(here, device=tokens_BT.device)
            ends_BM = hidden_BTM[torch.arange(len(here), device=tokens_BT.device), (here_B - 1).clamp(min=0)]
            last_BM = ends_BM if last_BM is None else torch.where(here_B[:, None] > 0, ends_BM, last_BM)
        assert last_BM is not None
        return self.model.logits(last_BM[:, None])[:, 0]

    def _prefill_natively(self, step: NativeStep, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """The same in small pieces, where torch's products of many tokens are slow."""
        cache.check_room(tokens_BT.size(1))
        pieces = torch.split(tokens_BT, max(MAX_TOKENS // len(tokens_BT), 1), 1)
        return [step(piece_BT, cache)[:, -1] for piece_BT in pieces][-1]

    @torch.inference_mode()
    def decode_step(self, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """Read a few more tokens of each sequence, by the mode's own way.

        Returns:
            Logits after each of them, (B, T, V).

        Raises:
            ValueError: They do not fit into the cache.
        """
        if self._native is not None and tokens_BT.numel() <= MAX_TOKENS:
            return self._native(tokens_BT, cache)
        if self._compiled is None or tokens_BT.size(1) > 1:
            return self.model(tokens_BT, cache)
        return self._compiled(tokens_BT, cache)
