"""The GPT as a task for the training loop, and the way back from a checkpoint."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from gpt.config import GPTConfig
from gpt.data import TextData, load_source
from gpt.generation import generate
from gpt.model import GPT
from gpt.tokenizer import CharTokenizer
from training.command_line import config_to_yaml, parse_config_text
from training.errors import InputError
from training.run import Result, train
from training.run_folder import open_checkpoint
from training.seeds import generator
from training.task import Batch

SAMPLE_LENGTH = 300


class GPTTask:
    """A fresh GPT and its text.

    Args:
        config: The configuration.
    """

    def __init__(self, config: GPTConfig) -> None:
        self._data = TextData(load_source(config.data.source), config.model.max_len, config.seed)
        self.model = GPT(config.model, len(self._data.tokenizer))
        self.model.init_weights(generator(config.seed, "weights"))
        self.samples_per_epoch = self._data.windows_per_epoch
        self.tokens_per_sample = config.model.max_len
        self.data_origin = self._data.origin
        self.data_sha256 = self._data.sha256

    def training_batch(self, first: int, count: int) -> Batch:
        """Windows of the training text; see `TextData`."""
        return self._data.training_batch(first, count)

    def validation_batches(self, batch_size: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        """Windows of the validation text; see `TextData`."""
        return self._data.validation_batches(batch_size, rank, num_ranks)

    def sample(self, seed: int) -> str:
        """300 characters that follow a line break."""
        return "".join(sample_text(self.model, self._data.tokenizer, default_prompt(self._data.tokenizer), seed=seed))

    def checkpoint_files(self) -> Mapping[str, str]:
        """The tokenizer."""
        return {"tokenizer.json": self._data.tokenizer.to_json()}


def default_prompt(tokenizer: CharTokenizer) -> str:
    """A line break, or the first character of a vocabulary that has none."""
    return "\n" if "\n" in tokenizer.characters else tokenizer.characters[0]


def sample_text(
    model: GPT,
    tokenizer: CharTokenizer,
    prompt: str,
    *,
    max_new_tokens: int = SAMPLE_LENGTH,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Continue `prompt`, character by character; options as in `generate`."""
    was_training = model.training
    model.eval()
    try:
        ids = tokenizer.encode(prompt, "the prompt").tolist()
        tokens = generate(model, ids, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed)
        for token in tokens:
            yield tokenizer.decode([token])
    finally:
        model.train(was_training)


def train_gpt(config: GPTConfig, *, output_dir: Path | None = None, resume: bool = False) -> Result:
    """Train a GPT; see `training.run.train`."""
    return train(
        lambda: GPTTask(config), config, config_yaml=config_to_yaml(config), output_dir=output_dir, resume=resume
    )


class LoadedGPT(NamedTuple):
    """A trained model, ready to sample from."""

    model: GPT
    tokenizer: CharTokenizer


def load_gpt(path: Path, device: torch.device | str = "cpu") -> LoadedGPT:
    """Load the best checkpoint of a run, or one checkpoint.

    Args:
        path: The folder of a run or of a checkpoint.
        device: Where the model goes.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged.
        InputError: It is not a GPT's.
    """
    checkpoint = open_checkpoint(path)
    tokenizer = CharTokenizer.from_json(checkpoint.text("tokenizer.json"))
    config = parse_config_text(GPTConfig, checkpoint.text("config.yaml"))
    model = GPT(config.model, len(tokenizer))
    weights = checkpoint.tensors("model")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the weights of {checkpoint.folder} do not fit its configuration: {error}") from error
    return LoadedGPT(model.to(device).float().eval(), tokenizer)
