"""The class of one's own that made a model: recorded by its run, and imported where the user trusts its code; no torch.

A class is recorded as `module:Class`, with the file of its module. What was a script is a module of its file's name.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from training.runtime.errors import InputError

SCRIPT = "__main__"
ROOT = str(Path(__file__).resolve().parents[2])
_added: set[str] = set()
"""The folder that is searched for the sake of the class that was imported last."""
_importing: ContextVar[bool] = ContextVar("importing", default=False)


class OwnClassError(InputError):
    """A class cannot be imported from where its run says that it is."""


def class_record(made_by: type, model_type: str) -> dict[str, str | None]:
    """What a run says of the class of its model; nothing where it is that of the package which `model_type` names.

    Returns:
        `model_class`, as `module:Class`, and `model_file`: the file of the module, or None where there is none. The
        module is `__main__` for a class of a notebook or of Python's prompt, which nobody can import.
    """
    name, module = made_by.__module__, sys.modules.get(made_by.__module__)
    if name.split(".")[0] == model_type:
        return {}
    file = getattr(module, "__file__", None)
    path = os.path.realpath(file) if file and os.path.isfile(file) else None
    if name == SCRIPT and path:
        spec = getattr(module, "__spec__", None)
        name = spec.name if spec else Path(path).stem
    return {"model_class": f"{name}:{made_by.__qualname__}", "model_file": path}


def own_class(identity: Mapping[str, Any]) -> str | None:
    """The class of one's own that the identity of a run names; None where it has none, or is older than such names."""
    name = identity.get("model_class")
    return name if isinstance(name, str) and name.rpartition(":")[2] else None


def cannot_be_imported(name: str) -> str | None:
    """Why a class that is recorded so can be imported by nobody; None where it can, as far as its name says it."""
    module, _, path = name.rpartition(":")
    if "<locals>" in path:
        return f"{name} was defined within a function"
    return f"{path} was defined in a notebook, or at Python's prompt" if module == SCRIPT else None


def import_own_class(identity: Mapping[str, Any]) -> Any:
    """Import the class that the identity of a run names, which runs the code of its module.

    Raises:
        OwnClassError: It cannot be imported, or its module has no such class.
    """
    name = own_class(identity) or ""
    module_name, _, path = name.rpartition(":")
    if reason := cannot_be_imported(name):
        raise OwnClassError(f"{reason}, from where it cannot be imported: load it there, with model_class=…")
    recorded = identity.get("model_file")
    try:
        module = _imported(module_name, recorded if isinstance(recorded, str) else "")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise OwnClassError(
            f"{name}, which made this model, cannot be imported ({reason}); it was in {recorded}, and is also found "
            f"in the folder of the command and in those of PYTHONPATH"
        ) from error
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        raise OwnClassError(f"{module.__file__} has no class {path} any more, which made this model")
    return found


def end_if_imported() -> None:
    """End the code of a module here if `import_own_class` runs it: a script that would train defines its class first.

    So a script need not ask for its `__name__`.
    """
    if _importing.get():
        raise SystemExit


@contextmanager
def _as_import() -> Iterator[None]:
    token = _importing.set(True)
    try:
        yield
    except SystemExit:  # Also where a script ends so: what it defines stands by then.
        pass
    finally:
        _importing.reset(token)


def _imported(name: str, file: str) -> ModuleType:
    """A module, from its file where that still is, else from the folder of the command or Python's path."""
    is_there = os.path.isfile(file)
    for known in (sys.modules.get(name), sys.modules.get(SCRIPT)):
        if known is not None and is_there and os.path.realpath(getattr(known, "__file__", None) or "") == file:
            return known
    _search(_place(name, file) if is_there else os.getcwd())
    if "." in name or not is_there:
        found = find_spec(name)
        if found is None or found.origin is None:
            raise ModuleNotFoundError(f"there is no {file or name}")
        file = found.origin
    # Scripts of several runs may be called alike, or like a module of another's: theirs are names of their own.
    own = name if "." in name else f"{name} {hashlib.sha256(file.encode()).hexdigest()[:8]}"
    spec = spec_from_file_location(own, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = sys.modules[own] = module_from_spec(spec)
    try:
        with _as_import():
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(own, None)  # Else the next import would find what there is of it.
        raise
    return module


def _place(name: str, file: str) -> str:
    """The folder in which a module is found by its name."""
    return str(Path(file).parents[name.count(".") + (Path(file).name == "__init__.py")])


def _search(folder: str) -> None:
    """Let the modules beside one be found, as they were in training, and none of those beside the one before it."""
    others = _added - {folder}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if " " not in name and file.startswith(tuple(others)) and _place(name, file) in others:
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if path not in others]
    _added.difference_update(others)
    if folder not in sys.path:
        sys.path.insert(0, folder)
        _added.update({folder} - {ROOT})
