"""How much memory a step should take of one device, by a formula."""

from bisect import bisect_right

from torch import nn

from training.config.sections import RunConfig
from training.loss import MAX_LOGITS_BYTES
from training.recompute import blocks_of

ACTIVATIONS = "activations, estimated"


def expected_bytes(model: nn.Module, config: RunConfig, precision: str, targets: int) -> dict[str, int]:
    """What a step keeps at once on one device, by a formula. With P weights of w bytes (4; 8 in fp64):

    - weights, gradients: w P each.
    - weights in 16 bits, which autocast keeps from the forward to the backward pass: 2 bytes for each of a matrix.
    - optimizer: adamw 2 w P; muon w for each weight of a block's matrix, and 2 w for the others.
    - average: w P where there is one.
    - activations: each linear layer's input and output in the dtype of products, for each target at once; of a part
      that is computed twice only its input, and all of the one at work. Four times the logits in fp32: they, their
      softmax, and the gradients of both; of a chunk, where the loss is computed in chunks. This is an estimate: it
      leaves out what norms, dropout and attention keep, counts an input that several layers share once for each, and
      takes an encoder-decoder's sources to be as long as its targets.

    Args:
        model, config: What is trained.
        precision: The dtype of products.
        targets: Tokens that go through the model at once.
    """
    width = 8 if precision == "fp64" else 4
    product_width = 2 if precision in ("bf16", "fp16") else width
    matrices = sum(layer.weight.numel() for layer in _linear(model))
    in_blocks = {id(p): p.numel() for block in blocks_of(model) for p in block.parameters() if p.ndim == 2}
    weights = sum(parameter.numel() for parameter in model.parameters())
    vocabulary = next(module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))
    logits = min(width * targets * vocabulary, MAX_LOGITS_BYTES)
    kept = _kept_bytes(model, config.training.recompute, width, product_width)
    by_muon = sum(in_blocks.values()) if config.optimizer.name == "muon" else 0
    found = {
        "weights": width * weights,
        "weights in 16 bits": 2 * matrices if product_width == 2 else 0,
        "gradients": width * weights,
        "optimizer": width * (2 * weights - by_muon),
        "average": width * weights if config.training.ema_decay else 0,
        ACTIVATIONS: targets * kept + 4 * logits,
    }
    return {name: size for name, size in found.items() if size}


def largest_micro_batch(
    model: nn.Module, config: RunConfig, precision: str, tokens_per_sample: float, free_bytes: int
) -> int:
    """How many sequences go through the model at once at most, so that all of `expected_bytes` fits; 0 for none.

    Args:
        model, config, precision: As of `expected_bytes`.
        tokens_per_sample: Targets of a sequence.
        free_bytes: What the training may take of the device, its weights and optimizer included.
    """

    def needed(sequences: int) -> int:
        return sum(expected_bytes(model, config, precision, round(sequences * tokens_per_sample)).values())

    return bisect_right(range(1, config.training.batch_size + 1), free_bytes, key=needed)


def _linear(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _features(module: nn.Module) -> int:
    """Inputs and outputs of all linear layers."""
    return sum(layer.in_features + layer.out_features for layer in _linear(module))


def _kept_bytes(model: nn.Module, recompute: str, width: int, product_width: int) -> int:
    """What the linear layers keep of a token until the backward pass."""
    twice = list(blocks_of(model)) if recompute != "none" else []
    if recompute == "attention":
        twice = [child for block in twice for name, child in block.named_children() if name.endswith("attention")]
    inputs = sum(_linear(part)[0].in_features for part in twice)
    at_work = max(map(_features, twice), default=0)
    return product_width * (_features(model) - sum(map(_features, twice)) + at_work) + width * inputs
