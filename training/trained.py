"""The way back from a checkpoint to a model."""

from typing import Literal

from torch import nn

from training.checkpoint import Checkpoint, CheckpointError
from training.errors import InputError

Weights = Literal["ema", "raw"]


def load_weights(model: nn.Module, checkpoint: Checkpoint, weights: Weights | None = None) -> Weights:
    """Give a model the weights of a checkpoint, and say which ones.

    Args:
        model: Fresh, of the checkpoint's shape.
        checkpoint: Where they are.
        weights: "ema" for the average of the weights, "raw" for those of the step; None for the average where the
            checkpoint has one.

    Raises:
        CheckpointError: The checkpoint has no average.
        InputError: The model has other weights.
    """
    has_average = "ema.safetensors" in checkpoint.files
    weights = weights or ("ema" if has_average else "raw")
    if weights == "ema" and not has_average:
        raise CheckpointError(f"{checkpoint.folder} has no average of the weights (--training.ema_decay): use raw")
    try:
        model.load_state_dict(checkpoint.tensors({"ema": "ema", "raw": "model"}[weights]))
    except RuntimeError as error:
        raise InputError(
            f"the weights of {checkpoint.folder} are not those of a {type(model).__name__}: load them with the class "
            f"that was trained (model_class=…)"
        ) from error
    return weights
