"""Loading a model from a checkpoint."""

from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from training.config.command_line import parse_config_text
from training.config.sections import RunConfig
from training.runtime.errors import InputError
from training.storage.checkpoint import Checkpoint, CheckpointError, DamagedCheckpointError
from training.storage.finding import open_checkpoint
from training.storage.own_class import OwnClassError, import_own_class, own_class
from training.storage.state import saved_state
from training.storage.whole import fill
from training.trained import kept

Config = TypeVar("Config", bound=RunConfig)
Model = TypeVar("Model", bound=nn.Module)
Vocabulary = TypeVar("Vocabulary", bound=Sized)
EMBEDDING = "embedding.weight"
"""What the models call their table with a row for each symbol of the vocabulary."""
Weights = Literal["ema", "raw"]
Device = torch.device | str


def read_into(
    wanted: Mapping[str, Tensor], checkpoint: Checkpoint, name: str, vocabulary: str = "the vocabulary"
) -> None:
    """Fill tensors with those of `NAME.safetensors`, which are the same: by name, shape and type, no more, no less.

    Args:
        wanted: The tensors. Those of a run in fp64 are saved in fp64, and may go on in another precision.
        checkpoint: Where the others are.
        name: Of the file.
        vocabulary: Where the symbols come from that the embedding is for.

    Raises:
        DamagedCheckpointError: They are not what was written; the tensors are good for nothing then.
        CheckpointError: They are others; the message names file and tensor.
    """
    saved = checkpoint.header(name)
    fp64 = saved_state(checkpoint).setup.get("precision") == "fp64"
    faults = [f"{key} is missing" for key in wanted.keys() - saved.keys()]
    faults += [f"{key} is unknown" for key in saved.keys() - wanted.keys()]
    for key in wanted.keys() & saved.keys():
        tensor, shape, saved_dtype = wanted[key], tuple(saved[key].shape), saved[key].torch_dtype
        # A tensor without dimensions counts steps, in fp32 whatever the weights are.
        weights = tensor.ndim > 0 and tensor.is_floating_point()
        dtype = (torch.float64 if fp64 else torch.float32) if weights else tensor.dtype
        if shape != tensor.shape:
            reason = f" for the {len(tensor)} symbols of {vocabulary}" if key == EMBEDDING else ""
            faults.append(f"{key} has the shape {shape}, expected {tuple(tensor.shape)}{reason}")
        elif saved_dtype != dtype:
            faults.append(f"{key} is of {saved_dtype}, expected {dtype}".replace("torch.", ""))
    if faults:
        checkpoint.verify(name)  # Damage is told as such.
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise CheckpointError(f"{checkpoint.folder / name}.safetensors: {min(faults)}{more}")
    for key, value in checkpoint.read(name):
        fill(wanted[key], value)


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, weights: Weights | None = None, vocabulary: str = "the vocabulary"
) -> Weights:
    """Give a model the weights of a checkpoint, and say which ones.

    Args:
        model: Fresh, of the checkpoint's shape.
        checkpoint: Where they are.
        weights: "ema" for the average of the weights, "raw" for those of the step; None for the average where the
            checkpoint has one.
        vocabulary: The file with the symbols that the model was made for.

    Raises:
        CheckpointError: The checkpoint has no average.
        InputError: The model has other weights.
    """
    has_average = "ema.safetensors" in checkpoint.files
    weights = weights or ("ema" if has_average else "raw")
    if weights == "ema" and not has_average:
        raise CheckpointError(f"{checkpoint.folder} has no average of the weights (--training.ema_decay): use raw")
    name = {"ema": "ema", "raw": "model"}[weights]
    try:
        read_into(kept(model), checkpoint, name, vocabulary)
    except DamagedCheckpointError:
        raise
    except CheckpointError as error:
        raise InputError(
            f"the weights of {checkpoint.folder} are not those of a {type(model).__name__}: load them with the class "
            f"that was trained (model_class=…); {error}"
        ) from error
    return weights


class Loaded(NamedTuple, Generic[Model, Vocabulary, Config]):
    """A trained model.

    Attributes:
        model: In evaluation mode, in fp32.
        vocabulary: What its tokens stand for.
        config: Of its run.
        weights: Which ones it has: "ema" or "raw".
        data_sha256: Of what it was trained on.
    """

    model: Model
    vocabulary: Vocabulary
    config: Config
    weights: Weights
    data_sha256: str


def class_of_model(checkpoint: Checkpoint, usual: type[Model], *, trust_code: bool) -> type[Model]:
    """The class that made the model of a checkpoint.

    Args:
        checkpoint: Of which run.
        usual: What made it where the run names no class of one's own.
        trust_code: Import that one, which runs its module.

    Raises:
        InputError: The run names one, and its code is not trusted; or it cannot be imported, or is another thing.
    """
    identity = saved_state(checkpoint).identity
    name = own_class(identity)
    if name is None:
        return usual
    if not trust_code:
        raise InputError(
            f"the model of {checkpoint.folder} was made by a class of one's own, {name}: --trust_code (in Python "
            f"trust_code=True) imports it, which runs its code"
        )
    found = import_own_class(identity)
    if not issubclass(found, usual):
        raise OwnClassError(f"{name}, which made the model of {checkpoint.folder}, is no {usual.__name__}")
    return found


def load_model(
    path: Path | str,
    device: Device,
    weights: Weights | None,
    model_class: type[Model] | None,
    usual_class: type[Model],
    config_class: type[Config],
    vocabulary_file: str,
    read_vocabulary: Callable[[str, Path], Vocabulary],
    kind: str,
    *,
    trust_code: bool,
    prepare: Callable[[Model, Config], None] = lambda model, config: None,
) -> Loaded[Model, Vocabulary, Config]:
    """Load the best checkpoint of a run, or one checkpoint.

    Args:
        path: The folder of a run or of a checkpoint.
        device: Where the model goes.
        weights: As in `load_weights`.
        model_class: What was trained: made of the model's configuration and the size of the vocabulary; None for what
            the checkpoint says.
        usual_class: What that is where it says nothing.
        config_class: Of its run.
        vocabulary_file, read_vocabulary: The file with the vocabulary, and what reads its content, given its path too.
        kind: What such a model is called, for an error.
        trust_code: Import a class of one's own that the checkpoint names.
        prepare: Given the fresh model, makes it what the checkpoint has the weights of.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, it has no average, or another class of configuration.
        InputError: It is another model's.
    """
    checkpoint = open_checkpoint(Path(path), in_part=True)
    if vocabulary_file not in checkpoint.files:
        raise InputError(f"{checkpoint.folder} is no {kind}'s: it has no {vocabulary_file}")
    vocabulary = read_vocabulary(checkpoint.text(vocabulary_file), checkpoint.folder / vocabulary_file)
    try:
        config = parse_config_text(config_class, checkpoint.text("config.yaml"))
    except InputError as error:
        raise CheckpointError(f"{checkpoint.folder / 'config.yaml'}: {error}") from error
    made_by = model_class or class_of_model(checkpoint, usual_class, trust_code=trust_code)
    model = made_by(config.model, len(vocabulary))
    prepare(model, config)
    loaded = load_weights(model, checkpoint, weights, vocabulary_file)
    sha256 = str(saved_state(checkpoint).identity.get("data_sha256"))
    return Loaded(model.to(device).float().eval(), vocabulary, config, loaded, sha256)
