"""The configuration of a run that begins with a model that exists: shape and tokenizer are that model's. No torch."""

from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from gpt.config import GPTConfig, ModelConfig
from gpt.initial_weights import Origin, open_origin
from training.config.command_line import parse_config_text
from training.config.fields import options_of
from training.config.sections import shown
from training.runtime.errors import InputError, is_main_machine
from training.storage.reading import FileError, MissingFileError, parse_json, read_text
from training.storage.run_folder import RunFolder

DEFAULT_CONTEXT = 1024
"""The longest context that is taken without being asked for: those of published models fill a card with one text."""
FREE = ("dropout", "max_len")
"""What a run may have otherwise than its source."""
BEGINNING = ("init_from", "init_sha256", "init_vocabulary")


def completed(
    config: GPTConfig, given: Collection[str], run: RunFolder | None = None, resume: bool = False
) -> tuple[GPTConfig, tuple[str, ...]]:
    """A configuration with what its `init_from` decides, and what is to be said of that.

    Args:
        config: As it was asked for.
        given: The options that were asked for by name, and "config" where a file of them was: that one's shape gives
            way, but for dropout and a context that is shorter.
        run: The run that goes on, which needs its source no more; None for one that starts, or of which this machine
            knows nothing.
        resume: Whether to go on with a run where there is one.

    Raises:
        InputError: The source cannot be read, or an option disagrees with it.
    """
    if run is not None:
        return _as_begun(config, given, run), ()
    if config.init_from is None:
        return config, ()
    try:
        return _with_origin(config, given, open_origin(config.init_from))
    except InputError:
        if resume and not is_main_machine():  # The main one may have a run; see `gpt.beginning.agreed`.
            return config, ()
        raise


def _with_origin(config: GPTConfig, given: Collection[str], origin: Origin) -> tuple[GPTConfig, tuple[str, ...]]:
    """A configuration with which a run starts, with the shape and the tokenizer of its source."""
    model, changed = _shape(config, given, origin)
    notes = []
    if "config" in given and changed:
        notes.append(f"the shape is that of {config.init_from}: the configuration's {', '.join(changed)} gives way")
    if model.max_len < origin.model.max_len:
        notes.append(f"a context of {model.max_len:,} tokens, of {origin.model.max_len:,} in {config.init_from}")
    data = config.data
    if config.init_vocabulary == "same" and data.tokenizer != origin.tokenizer_name:
        if "data.tokenizer" in given and not _is_same(data.tokenizer, origin):
            raise InputError(
                f"data.tokenizer {data.tokenizer} is not that of {config.init_from} ({origin.tokenizer_name}): leave "
                f"it out, or add --init_vocabulary shared, which keeps the rows of the tokens that both have"
            )
        if "config" in given:
            notes.append(f"the tokenizer is that of {config.init_from}: data.tokenizer {data.tokenizer} gives way")
        data = replace(data, tokenizer=origin.tokenizer_name)
    return replace(config, model=model, data=data, init_from=str(origin.path)), tuple(notes)


def given_in_code(config: GPTConfig) -> set[str]:
    """The options of a configuration that is made in Python that were asked for: those that are not the default."""
    defaults = {option.name: option.default for option in options_of(GPTConfig)}
    return {name for name, default in defaults.items() if _value(config, name) != default}


def _value(config: GPTConfig, name: str) -> Any:
    section, _, leaf = name.rpartition(".")
    return getattr(getattr(config, section) if section else config, leaf)


def _as_begun(config: GPTConfig, given: Collection[str], run: RunFolder) -> GPTConfig:
    """A configuration with which a run goes on, with what its own says of how it began, unless asked for otherwise."""
    try:
        own = parse_config_text(GPTConfig, read_text(run.config_file))
    except MissingFileError:
        return config
    except InputError as error:
        raise FileError(run.config_file, str(error)) from error
    if own.init_from is None:
        if config.init_from is not None:
            raise InputError(f"init_from: {run.path} began without it: start another run, in another --output_dir")
        return config
    kept = {field.name for field in fields(ModelConfig) if f"model.{field.name}" not in given} - {"dropout"}
    model = replace(config.model, **{name: getattr(own.model, name) for name in kept})
    data = config.data if "data.tokenizer" in given else replace(config.data, tokenizer=own.data.tokenizer)
    began = {name: getattr(own, name) for name in BEGINNING if name not in given}
    if config.init_from and Path(own.init_from).is_relative_to(Path(config.init_from).expanduser().resolve()):
        began["init_from"] = own.init_from  # Which says it more exactly: the checkpoint of a run.
    return replace(config, model=model, data=data, **began)


def _shape(config: GPTConfig, given: Collection[str], origin: Origin) -> tuple[ModelConfig, list[str]]:
    """The shape of the source with what is free, and which fields were said otherwise."""
    asked, theirs = config.model, origin.model
    changed = []
    for name in (field.name for field in fields(ModelConfig)):
        value, wanted = getattr(asked, name), getattr(theirs, name)
        if name in FREE or value == wanted:
            continue
        if f"model.{name}" in given:
            raise InputError(
                f"model.{name} is {shown(wanted)} in {config.init_from}, got {shown(value)}: leave it out, the shape "
                f"is that of the weights"
            )
        if value != getattr(ModelConfig, name):  # Else nobody has said it.
            changed.append(f"model.{name}")
    context = min(theirs.max_len, DEFAULT_CONTEXT)
    if "model.max_len" in given and asked.max_len > theirs.max_len:
        raise InputError(
            f"model.max_len must be at most {theirs.max_len}, the context of {config.init_from}, got {asked.max_len}"
        )
    if {"model.max_len", "config"} & set(given):
        context = min(asked.max_len, theirs.max_len)
    return replace(theirs, dropout=asked.dropout, max_len=context), changed


def _is_same(name: str, origin: Origin) -> bool:
    """Whether a tokenizer.json holds the source's tokenizer."""
    path = Path(name).expanduser()
    return name.endswith(".json") and parse_json(read_text(path), path) == parse_json(
        origin.tokenizer_json, origin.tokenizer_file
    )
