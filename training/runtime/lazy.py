"""Names of a package that load their module when they are asked for, so that the package alone loads no torch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: Its name.
        modules: The module of each name, with `.NAME` where it is called otherwise there.
    """

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, own_name = modules[name].partition(".")
        return getattr(import_module(f"{package}.{module}"), own_name or name)

    return find
