"""Packages that only some of what can be asked for needs."""

from importlib import import_module
from types import ModuleType

from training.runtime.errors import InputError


def needed_package(name: str, asked: str) -> ModuleType:
    """Import a package for what was asked.

    Raises:
        InputError: It is not installed; the message names the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"{asked} needs the package {name}: pip install {name}") from error
