"""How much memory a training takes of one device, by a formula.

Sizes: N tokens at once, T of a sequence, M model size, H heads, K key-value heads, D head size, F feed-forward size, V
vocabulary, P weights, of which Q are trained. A number has w bytes (4; 8 in fp64), in products p (2 in bf16 and fp16,
else w), in attention a (p, but 4 on a CPU that computes bf16's attention in fp32).

- weights, gradients: w P and w Q; gradients as if all were there before the first activation goes.
- copies of weights: in 16 bits, which autocast keeps until the backward pass, 2 bytes for each of a matrix; else w
  for each of the matrices that are laid side by side for one product.
- optimizer: adamw 2 w Q; muon w for each weight of a block's matrix, and 2 w for the others.
- average: w Q where there is one.
- activations: of each token what norms, attention and feed-forward layers keep; of a part that is computed twice
  its input, and all of the one at work. Weights that are not trained let less be kept, which is not counted. Where
  parts of a sequence do not see each other, a byte for each of T, and a of them in each layer; on a GPU, whose kernel
  for masks takes rows of 16 and no groups, for each head if T is no multiple of 16, and keys and values for each head.
- gradients at work: those by the activations of one block.
- logits: 3 w N V, for their softmax and the gradients of both; of a chunk, where the loss is computed in chunks.
- gathered, over several shards: two blocks and what is outside of blocks, w for each weight and its gradient.
- allocator, on a CPU: what it holds, about a third of all that comes and goes; more where batches differ in size.
"""

from bisect import bisect_right
from typing import NamedTuple

import torch
from torch import nn

from training.config.sections import RunConfig
from training.config.shape import TransformerConfig
from training.loss import MAX_LOGITS_BYTES
from training.recompute import blocks_of
from training.trained import num_trained, trained

ACTIVATIONS, AT_WORK = "activations, estimated", "gradients at work"
COMES_AND_GOES = ("gradients", "copies of weights", ACTIVATIONS, AT_WORK, "logits")
BY_ALLOCATOR = 0.35
"""What the C library's allocator holds of a CPU's memory, in pieces too small for what comes next, as a share of what
comes and goes: 0.15 to 0.4 in trainings under Linux."""
OF_MANY_SIZES = {2: 0.9, 4: 0.5, 8: 0.5}
"""The same where batches differ in size, by the bytes of a product's dtype: 0.9 to 1.1 in bf16, where tensors of two
dtypes stand side by side, 0.4 to 0.6 in fp32."""
SIDE_BY_SIDE = ("query", "key", "value", "gate", "up")
"""Layers whose weights are laid side by side for one product (`layers/products.py`); gate and up where there are both.
"""


class _How(NamedTuple):
    """How a step is computed.

    Attributes:
        w, p, a: Bytes of a number.
        on_gpu: Whether on a GPU.
        length: Tokens of a sequence, T.
        masked: Whether a mask says which of them see each other.
    """

    w: int
    p: int
    a: int
    on_gpu: bool
    length: float
    masked: bool

    @property
    def plain(self) -> bool:
        """Whether PyTorch's own operations compute what lies between products, not `layers.native`."""
        return self.on_gpu or self.w == 8


def expected_bytes(
    model: nn.Module,
    config: RunConfig,
    precision: str,
    targets: int,
    *,
    length: float | None = None,
    shards: int = 1,
    on_gpu: bool | None = None,
    varying: bool = False,
) -> dict[str, int]:
    """What a step keeps at once on one device, by the parts that this file begins with.

    An encoder-decoder's sources are taken to be as long as its targets. What Muon computes with when all activations
    have gone is left out, as is what a library takes for itself.

    Args:
        model, config: What is trained.
        precision: The dtype of products.
        targets: Tokens that go through the model at once, padding included.
        length: Those of a sequence; None for a context.
        shards: How many devices share weights, gradients, optimizer and average (FSDP2).
        on_gpu: Whether it is for a GPU; None for what the model is on.
        varying: Whether batches differ in size.
    """
    if on_gpu is None:
        on_gpu = next(model.parameters()).device.type != "cpu"
    how = _how(precision, on_gpu, min(targets, length or config.model.max_len), masked=config.is_masked)
    blocks, weights = list(blocks_of(model)), _weights(model)
    learning = num_trained(model)
    in_blocks = {id(p): p.numel() for block in blocks for p in trained(block).values() if p.ndim == 2}
    by_muon = sum(in_blocks.values()) if config.optimizer.name == "muon" else 0
    vocabulary = next((module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)), 0)
    sizes = list(map(_weights, blocks))
    gathered = weights - sum(sizes) + 2 * max(sizes, default=0) if shards > 1 else 0
    found = {
        "weights": how.w * weights / shards,
        "copies of weights": _copied_bytes(model, blocks, config, how),
        "gradients": how.w * learning / shards,
        "optimizer": how.w * (2 * learning - by_muon) / shards,
        "average": how.w * learning / shards if config.training.ema_decay else 0,
        ACTIVATIONS: targets * _kept_bytes(blocks, config, how),
        AT_WORK: targets * _gradients_at_work(config.model, how),
        "logits": 3 * min(how.w * targets * vocabulary, MAX_LOGITS_BYTES),
        "gathered": 2 * how.w * gathered,
    }
    if not on_gpu:
        share = OF_MANY_SIZES[how.p] if varying else BY_ALLOCATOR
        found["allocator"] = share * sum(found[name] for name in COMES_AND_GOES)
    return {name: round(size) for name, size in found.items() if size}


def largest_micro_batch(
    model: nn.Module,
    config: RunConfig,
    precision: str,
    tokens_per_sample: float,
    free_bytes: int,
    *,
    shards: int = 1,
    on_gpu: bool | None = None,
    varying: bool = False,
) -> int:
    """How many sequences go through the model at once at most, so that all of `expected_bytes` fits.

    Args:
        model, config, precision, shards, on_gpu, varying: As of `expected_bytes`.
        tokens_per_sample: Targets of a sequence, padding included.
        free_bytes: What the training may take of the device, its weights and optimizer included. It is an estimate:
            leave some of the device free.

    Returns:
        A number up to `training.batch_size`; 0 where not one fits.
    """

    def needed(sequences: int) -> int:
        asked, length = (model, config, precision, round(sequences * tokens_per_sample)), tokens_per_sample
        return sum(expected_bytes(*asked, length=length, shards=shards, on_gpu=on_gpu, varying=varying).values())

    return bisect_right(range(1, config.training.batch_size + 1), free_bytes, key=needed)


def _how(precision: str, on_gpu: bool, length: float, *, masked: bool) -> _How:
    w = 8 if precision == "fp64" else 4
    p = 2 if precision in ("bf16", "fp16") else w
    # As layers/attention.py decides; older versions of torch do not tell.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    amx = capabilities.get("amx_bf16", False)
    return _How(w, p, p if on_gpu or amx else max(p, 4), on_gpu, length, masked)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _copied_bytes(model: nn.Module, blocks: list[nn.Module], config: RunConfig, how: _How) -> int:
    """Weights that a forward pass makes anew and keeps; of blocks that are computed twice, those of one."""
    in_16_bits, side_by_side = how.p == 2, SIDE_BY_SIDE if config.model.activation == "swiglu" else SIDE_BY_SIDE[:3]
    sizes = [
        sum(
            layer.weight.numel()
            for name, layer in block.named_modules()
            if isinstance(layer, nn.Linear) and (in_16_bits or name.rpartition(".")[2] in side_by_side)
        )
        for block in blocks
    ]
    of_blocks = max(sizes, default=0) if config.training.recompute == "blocks" else sum(sizes)
    head = next((m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)), 0)
    return how.p * (of_blocks + (head if in_16_bits else 0))


def _attention(shape: TransformerConfig, how: _How) -> float:
    """What attention keeps of a token: a product for queries, keys and values; these; its result; its mask."""
    width, pairs = shape.num_heads * shape.head_size, 2 * shape.kv_heads * shape.head_size
    product = how.p * (width + pairs)
    if shape.dropout and not how.on_gpu:  # Keys and values for each head; the weights, before and after dropout.
        return product + how.a * (3 * width + 2 * shape.num_heads * how.length) + how.p * width
    rotated = shape.positions == "rotary" or shape.qk_norm
    heads: float = width + pairs
    if how.plain:  # Values are a part of the product, as are queries and keys that are neither normed nor rotated.
        heads = width + pairs // 2 if rotated else 0
    if how.masked and how.on_gpu and pairs < 2 * width:
        heads = (width if rotated else 0) + 2 * width
    mask = how.a * how.length if how.masked else 0
    if how.on_gpu and how.length % 16:
        mask *= shape.num_heads
    results = how.a + (how.p if how.a != how.p else 0)
    return product + how.a * heads + results * width + mask + 4 * shape.num_heads


def _feed_forward(shape: TransformerConfig, how: _How) -> float:
    """What is kept of a token. SwiGLU: gate, up, what goes down, and in PyTorch's own operations silu of the gate.
    GELU: up, and what goes down.
    """
    kept = 2 if shape.activation != "swiglu" else 4 if how.plain else 3
    return how.p * shape.d_ff * kept


def _kept_bytes(blocks: list[nn.Module], config: RunConfig, how: _How) -> float:
    """What is kept of a token until the backward pass."""
    shape: TransformerConfig = config.model
    width, attention, feed_forward = shape.d_model, _attention(shape, how), _feed_forward(shape, how)
    norm = (how.w + how.p) * width  # What goes in, and what comes out.
    mask = width if shape.dropout and how.plain else 0  # A byte for each; layers.native computes it again.
    kept: float = 2 * norm + 2 * mask  # Embeddings, and the norms behind the last block of a stack.
    kept += how.length if how.masked else 0
    largest = 0.0
    recompute = config.training.recompute
    for block in blocks:
        crossings = sum(name.endswith("attention") for name, _ in block.named_children())
        inside = crossings * (norm + mask + attention) + norm + mask + feed_forward
        largest = max(largest, inside)
        kept += {"none": inside, "attention": inside - crossings * attention, "blocks": how.w * width}[recompute]
    again = {"none": 0.0, "attention": attention, "blocks": largest}[recompute]
    return kept + again


def _gradients_at_work(shape: TransformerConfig, how: _How) -> float:
    """Of a token, in one block: those of its feed-forward layer or of its attention, whichever are more."""
    scores = how.a * shape.num_heads * how.length if shape.dropout and not how.on_gpu else 0
    hidden = shape.d_ff * (3 if shape.activation == "swiglu" else 2)
    attended = 2 * how.a * shape.num_heads * shape.head_size
    return how.w * shape.d_model + max(how.p * (hidden + shape.d_model), attended + scores)
