"""Imports go one way, heavy packages are imported where they are used, files and functions are short."""

import ast
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODELS = {"layers", "training", "data", "decoding"}
MAY_IMPORT = {
    "layers": set(),
    "training": set(),
    "data": {"training"},
    "decoding": {"layers", "training"},
    "gpt": MODELS,
    "seq2seq": MODELS,
    "demo": MODELS | {"gpt", "seq2seq"},
    "launch": MODELS | {"gpt", "seq2seq"},
}
HEAVY = {"gradio", "wandb", "datasets", "tensorboard", "matplotlib"}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imported(nodes: list[ast.stmt] | list[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    tree = ast.parse(path.read_text())
    package = path.relative_to(ROOT).parts[0]
    ours = imported(list(ast.walk(tree))) & set(MAY_IMPORT)
    assert ours <= MAY_IMPORT[package] | {package}
    files = "page.py", "api.py", "serving.py"
    of_page = path.is_relative_to(ROOT / "demo") and (path.name in files or path.parent.name == "tabs")
    heavy = HEAVY - {"gradio"} if of_page else HEAVY
    assert not imported(tree.body) & heavy, "import it inside the function that uses it"


def test_no_files_need_each_other() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    needs: dict[str, set[str]] = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text())
        for node in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
            if ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        found = {name for node in froms for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names))}
        needs[name] = found & modules.keys()
    assert list(TopologicalSorter(needs).static_order())  # A CycleError names them.


@pytest.mark.parametrize("path", sorted((ROOT / "layers").glob("*.py")), ids=lambda path: path.name)
def test_layers_import_torch_only(path: Path) -> None:
    allowed = {"torch", "layers", "collections", "dataclasses", "math", "os", "typing"}
    assert imported(list(ast.walk(ast.parse(path.read_text())))) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= (119 if path.parent.name == "launch" else 350)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, node.name


def test_every_package_is_installed() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES if path.name == "__init__.py"}
    assert set(stated) == found


def test_waiting_threads_are_told_to_sleep_before_torch_is_loaded() -> None:
    ours = set(MAY_IMPORT) - {"launch"}
    for path in [path for path in FILES if path.parts[-2] == "launch"] + [ROOT / "demo/app.py"]:
        modules = [name for node in ast.parse(path.read_text()).body for name in imported([node])]
        first = next(name for name in modules if name in ours | {"torch", "accelerate", "transformers"})
        assert first in ours, f"{path.name} loads torch before a package of ours has said how its threads wait"
