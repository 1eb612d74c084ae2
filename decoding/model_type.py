"""Which model a checkpoint or a configuration is of, before any of it is loaded; no torch."""

from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from training.runtime.errors import InputError
from training.storage.finding import find_checkpoint
from training.storage.reading import read_json, read_yaml

ModelType = Literal["gpt", "seq2seq"]
A_MODEL: dict[ModelType, str] = {"gpt": "a GPT", "seq2seq": "an encoder-decoder"}
OLDER: dict[str, ModelType] = {"vocabulary.json": "seq2seq", "tokenizer.json": "gpt"}
"""Files that tell the model of a checkpoint which does not say it."""


def checkpoint_model_type(path: Path) -> ModelType | None:
    """Which model the best checkpoint of a run, or one checkpoint, is of.

    None where it cannot be read, or is of no model here: whoever loads it says why.
    """
    try:
        folder = find_checkpoint(path)
    except (InputError, OSError):
        return None
    with suppress(InputError, LookupError, TypeError):
        said = read_json(folder / "state.json")["identity"]["model_type"]
        return next((model_type for model_type in get_args(ModelType) if model_type == said), None)
    return next((model_type for name, model_type in OLDER.items() if (folder / name).exists()), None)


def config_model_type(path: Path) -> ModelType | None:
    """Which model a configuration file is for; None where it cannot be read: whoever parses it says why."""
    try:
        values = read_yaml(path)
    except InputError:
        return None
    data = values.get("data") if isinstance(values, dict) else None
    return "seq2seq" if isinstance(data, dict) and "task" in data else "gpt"


def asked_model_type(arguments: Sequence[str]) -> ModelType | None:
    """Which model a command line is about: that of its --checkpoint or its --config, whatever else it asks for."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--checkpoint", "--config"):
        parser.add_argument(option, type=Path, nargs="?")
    asked, _ = parser.parse_known_args(arguments)
    if asked.checkpoint is not None:
        return checkpoint_model_type(asked.checkpoint)
    return None if asked.config is None else config_model_type(asked.config)


def check_model_type(arguments: Sequence[str], own: ModelType) -> None:
    """Raise an `InputError` where a training is asked for with the configuration, or the run, of the other model."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--config", "--output_dir"):
        parser.add_argument(option, type=Path, nargs="?")
    parser.add_argument("--resume", action="store_true")
    asked, _ = parser.parse_known_args(arguments)
    file = asked.config
    if file is None and asked.resume and asked.output_dir is not None:
        file = asked.output_dir / "config.yaml"
    # A file of an encoder-decoder says the task of its pairs; one that says none may be a part of either.
    if own == "gpt" and file is not None and config_model_type(file) == "seq2seq":
        raise InputError(f"{file} is of {A_MODEL['seq2seq']}: use launch/train_seq2seq.py")
    if own == "seq2seq" and file != asked.config and file is not None and config_model_type(file) == "gpt":
        raise InputError(f"{file} is of {A_MODEL['gpt']}: use launch/train_gpt.py")
