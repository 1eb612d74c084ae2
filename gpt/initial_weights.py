"""What `--init_from` does: a run begins with the weights, the shape and the tokenizer of a model that exists.

Its source is one of our runs or checkpoints, or a model folder of Hugging Face transformers. Reading the shape needs no
torch. Optimizer, counters and schedule start anew.

Shapes: V vocabulary, M model size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpt.config import GPTConfig, ModelConfig
from gpt.formats.from_transformers import CONFIG, read_shape, read_weights
from training.config.command_line import parse_config_text
from training.runtime.errors import InputError
from training.storage.checkpoint import Checkpoint
from training.storage.finding import open_checkpoint
from training.storage.manifest import verified_manifest
from training.storage.own_class import own_class
from training.storage.reading import FileError, MissingFileError, read_text
from training.storage.state import saved_state
from training.storage.tensor_file import SUFFIX

if TYPE_CHECKING:
    from torch import Tensor

    from data.tokenizers.tokenizer import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
TABLES, POSITIONS = ("embedding.weight", "head.weight"), "positions.embedding.weight"
"""The weights with a row for each token, and those with one for each place of the context."""


@dataclass(frozen=True)
class Origin:
    """What a run begins with.

    Attributes:
        path: The folder that it is in.
        description: What it is, for people to read.
        model: Its shape.
        tokenizer_name: What `data.tokenizer` calls the tokenizer.
        tokenizer_json, tokenizer_file: The content of its tokenizer.json, and where that is.
        checkpoint: What the weights are in, of a model of ours.
        form: What transformers calls such a model, of one of theirs.
    """

    path: Path
    description: str
    model: ModelConfig
    tokenizer_name: str
    tokenizer_json: str
    tokenizer_file: Path
    checkpoint: Checkpoint | None = None
    form: str | None = None

    @property
    def tokenizer(self) -> "Tokenizer":
        """Its tokenizer."""
        from data.tokenizers.tokenizer import read_tokenizer

        return read_tokenizer(self.tokenizer_json, self.tokenizer_file)

    def read(self) -> "tuple[dict[str, Tensor], str]":
        """All weights, in fp32, under the names of a GPT, and their SHA-256: of a model of ours, its average's."""
        if self.checkpoint is not None:
            name = weights_file(self.checkpoint)
            sha256 = verified_manifest(self.checkpoint.folder)[f"{name}{SUFFIX}"].sha256
            weights = {key: tensor.float() for key, tensor in self.checkpoint.read(name)}
            config = parse_config_text(GPTConfig, self.checkpoint.text("config.yaml"))
            if config.lora.rank:
                from layers.lora import with_adapter  # With torch.

                weights = with_adapter(base_weights(config), weights, config.lora.alpha / config.lora.rank)
            return weights, sha256
        assert self.form is not None
        found, sha256 = read_weights(self.path, self.form)
        if self.model.tie_embeddings:  # Some files have the embedding twice.
            found.pop("head.weight", None)
        return found, sha256


def weights_file(checkpoint: Checkpoint) -> str:
    """The file with the weights that a checkpoint is judged by: their average, where there is one."""
    return "ema" if f"ema{SUFFIX}" in checkpoint.files else "model"


def open_origin(source: str) -> Origin:
    """What `init_from` names.

    Raises:
        InputError: It is nothing that a GPT can begin with.
    """
    path = Path(source).expanduser()
    if not path.exists() and not path.is_symlink():
        raise InputError(
            f"init_from: {source} does not exist: expected the folder of a run, of a checkpoint, or of a model of "
            f"transformers (one of the hub: hf download OWNER/NAME --local-dir FOLDER)"
        )
    if (path / CONFIG).exists():
        return _of_transformers(path.absolute())
    return _of_ours(path)


def _of_transformers(folder: Path) -> Origin:
    file = folder / TOKENIZER_FILE
    try:
        content = read_text(file)
    except MissingFileError as error:
        raise MissingFileError(file, "there is no such file, and a model goes with its tokenizer") from error
    model, form = read_shape(folder)
    return Origin(folder, f"{folder}, a {form} of transformers", model, str(file), content, file, form=form)


def _of_ours(path: Path) -> Origin:
    checkpoint = open_checkpoint(path, in_part=True)
    if TOKENIZER_FILE not in checkpoint.files:
        raise InputError(f"init_from: {checkpoint.folder} is no GPT's: it has no {TOKENIZER_FILE}")
    file = checkpoint.folder / "config.yaml"
    try:
        config = parse_config_text(GPTConfig, checkpoint.text("config.yaml"))
    except InputError as error:
        raise FileError(file, str(error)) from error
    kind = "the average of the weights" if weights_file(checkpoint) == "ema" else "the weights"
    made_by = own_class(saved_state(checkpoint).identity)
    return Origin(
        checkpoint.folder,
        f"{kind} of {checkpoint.folder}" + (f", made by the class {made_by}" if made_by else ""),
        config.model,
        config.data.tokenizer,
        checkpoint.text(TOKENIZER_FILE),
        checkpoint.folder / TOKENIZER_FILE,
        checkpoint=checkpoint,
    )


def base_weights(config: GPTConfig) -> "Mapping[str, Tensor]":
    """The weights that a run begins with, in fp32 on the CPU, as a GPT of its shape names them.

    Raises:
        InputError: The source is gone, or its weights are not those that the run began with (`init_sha256`).
    """
    return read_base(config).weights


class Base(NamedTuple):
    """Weights that a run begins with, their SHA-256, and where they are from."""

    weights: "dict[str, Tensor]"
    sha256: str
    origin: Origin


def read_base(config: GPTConfig) -> Base:
    """The same as `base_weights`, with what they are."""
    if not config.lora.rank:
        return _read_base(config)
    try:
        return _read_base(config)
    except InputError as error:
        raise InputError(f"an adapter needs the model that it is put on: {error}") from error


def _read_base(config: GPTConfig) -> Base:
    assert config.init_from is not None
    origin = open_origin(config.init_from)
    weights, sha256 = origin.read()
    if config.init_sha256 not in (None, sha256):
        raise InputError(
            f"init_from: the weights of {config.init_from} are not those that are expected: their SHA-256 is {sha256}, "
            f"init_sha256 says {config.init_sha256}"
        )
    # Some models have rows for tokens that there are none of.
    longest = dict.fromkeys(TABLES, len(origin.tokenizer)) | {POSITIONS: config.model.max_len}
    for name, rows in longest.items():
        if name in weights and len(weights[name]) > rows:
            weights[name] = weights[name][:rows].clone()
    return Base(weights, sha256, origin)
