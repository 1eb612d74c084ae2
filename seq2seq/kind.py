"""Whether a command is about an encoder-decoder."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from seq2seq.choices import VOCABULARY_FILE
from training.runtime.errors import InputError
from training.storage.reading import read_yaml
from training.storage.run_folder import find_checkpoint


def is_seq2seq(arguments: Sequence[str]) -> bool:
    """Whether the --checkpoint or the --config of a command line is an encoder-decoder's.

    What cannot be read is, if --source is asked for; whoever reads it then says why it cannot.
    """
    path = _value(arguments, "--checkpoint")
    if path is not None:
        return _checkpoint_is(Path(path)) or any(argument.split("=")[0] == "--source" for argument in arguments)
    path = _value(arguments, "--config")
    return path is not None and _config_is(Path(path))


def _value(arguments: Sequence[str], option: str) -> str | None:
    for argument, following in zip_longest(arguments, arguments[1:]):
        if argument == option:
            return following
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def _checkpoint_is(path: Path) -> bool:
    try:
        return (find_checkpoint(path) / VOCABULARY_FILE).exists()
    except (InputError, OSError):
        return False


def _config_is(path: Path) -> bool:
    try:
        values = read_yaml(path)
    except InputError:
        return False
    data = values.get("data") if isinstance(values, dict) else None
    return isinstance(data, dict) and "task" in data
