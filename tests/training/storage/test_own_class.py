"""Classes of one's own: what a run says of them, and what is imported for it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import with_training

from gpt.config import GPTConfig
from gpt.initial_weights import open_origin
from gpt.model import GPT
from gpt.task import GPTTask, load_gpt, train_gpt
from training.runtime.errors import InputError
from training.storage.own_class import OwnClassError, class_record, import_own_class
from training.storage.reading import read_json

LAYER = """
from torch import nn
from gpt.model import GPT

class Squared(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.up, self.down = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x_BTM):
        return self.down(self.up(x_BTM).relu().square())

class SquaredGPT(GPT):
    def __init__(self, config, vocab_size):
        super().__init__(config, vocab_size)
        for block in self.blocks:
            block.feed_forward = Squared(config.d_model, config.d_ff)
"""

SCRIPT = f"""
import sys
from beside import NUMBER
from gpt.task import GPTTask
from launch.train_gpt import main
{LAYER}
class Task(GPTTask):
    model_class = SquaredGPT

SquaredGPT.number = NUMBER
main(Task)
raise AssertionError("it has trained")
"""


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path) -> Iterator[None]:
    """What a test imports of its folder, and where it looks for that, is forgotten after it."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in [name for name, module in sys.modules.items() if _is_in(module, tmp_path)]:
        del sys.modules[name]


def _is_in(module: ModuleType, folder: Path) -> bool:
    return (getattr(module, "__file__", None) or "").startswith(str(folder))


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def imported(name: str, file: Path | None) -> Any:
    return import_own_class({"model_class": name, "model_file": None if file is None else str(file)})


@pytest.fixture
def trained(config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a class in mine.py, which nobody has imported any more."""
    written(tmp_path, LAYER)
    monkeypatch.syspath_prepend(tmp_path)
    from mine import SquaredGPT  # type: ignore[import-not-found]

    class Task(GPTTask):
        model_class = SquaredGPT

    train_gpt(with_training(config, max_steps=1), task=Task, output_dir=tmp_path / "run")
    monkeypatch.undo()
    del sys.modules["mine"]
    return tmp_path / "run"


def test_a_run_names_the_class_of_its_model_which_is_imported_where_its_code_is_trusted(trained: Path) -> None:
    identity = read_json(trained / "checkpoints/last/state.json")["identity"]
    assert identity["model_class"] == "mine:SquaredGPT"
    assert identity["model_file"] == str(trained.parent / "mine.py")
    before = set(sys.modules)
    with pytest.raises(InputError, match=r"of one's own, mine:SquaredGPT: --trust_code \(in Python trust_code=True\)"):
        load_gpt(trained)
    assert not [name for name in set(sys.modules) - before if "mine" in name], "nothing was imported"
    model = load_gpt(trained, trust_code=True).model
    assert type(model).__name__ == "SquaredGPT"
    assert load_gpt(trained, model_class=type(model)).model.state_dict().keys() == model.state_dict().keys()
    assert open_origin(str(trained)).description.endswith("step-00000001, made by the class mine:SquaredGPT")
    (trained.parent / "mine.py").unlink()
    with pytest.raises(OwnClassError, match=r"mine:SquaredGPT, which made .* \(ModuleNotFoundError: there is no /.*\)"):
        load_gpt(trained, trust_code=True)


def test_a_run_goes_on_with_a_class_of_that_name_only(
    trained: Path, config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="made by the class SquaredGPT, is now by the usual one. Undo that"):
        train_gpt(with_training(config, max_steps=2), output_dir=trained, resume=True)
    (tmp_path / "mine.py").rename(tmp_path / "moved.py")
    monkeypatch.syspath_prepend(tmp_path)
    from moved import SquaredGPT  # type: ignore[import-not-found]

    class Task(GPTTask):
        model_class = SquaredGPT

    train_gpt(with_training(config, max_steps=2), task=Task, output_dir=trained, resume=True)
    assert read_json(trained / "checkpoints/last/state.json")["identity"]["model_class"] == "moved:SquaredGPT"


def test_the_models_of_this_project_are_not_named() -> None:
    assert class_record(GPT, "gpt") == {}
    assert class_record(GPT, "another")["model_class"] == "gpt.model:GPT"


def test_a_script_is_named_by_its_file_and_stops_where_it_would_train(tmp_path: Path) -> None:
    file = written(tmp_path, SCRIPT, "a script.py")
    written(tmp_path, "NUMBER = 7", "beside.py")
    found = imported("a script:SquaredGPT", file)
    assert (found.number, issubclass(found, GPT)) == (7, True)


def test_scripts_of_one_name_are_told_apart_and_read_anew(tmp_path: Path) -> None:
    files = [written(tmp_path / folder, f"class A:\n    n = {len(folder)}") for folder in ("a", "bb")]
    assert [imported("mine:A", file).n for file in files] == [1, 2]
    files[0].write_text("class A:\n    n = 'changed'")
    assert imported("mine:A", files[0]).n == "changed"


def test_modules_beside_scripts_are_those_of_their_own_folder(tmp_path: Path) -> None:
    files = []
    for folder in ("a", "bb"):
        written(tmp_path, f"N = {len(folder)}", f"{folder}/beside.py")
        files.append(written(tmp_path, "from beside import N\n\nclass A:\n    n = N", f"{folder}/mine.py"))
    assert [imported("mine:A", file).n for file in (*files, *files)] == [1, 2, 1, 2]


def test_a_class_of_a_package_is_imported_with_it(tmp_path: Path) -> None:
    written(tmp_path, "", "of_mine/__init__.py")
    written(tmp_path, "NUMBER = 5", "of_mine/beside.py")
    layers = "from .beside import NUMBER\n\nclass Outer:\n    class A:\n        n = NUMBER"
    assert imported("of_mine.layers:Outer.A", written(tmp_path, layers, "of_mine/layers.py")).n == 5
    assert imported("of_mine.layers:Outer.A", tmp_path / "of_mine/layers.py") is sys.modules["of_mine.layers"].Outer.A


def test_a_file_that_has_gone_is_looked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "class A:\n    n = 3", "moved_here.py")
    monkeypatch.chdir(tmp_path)
    assert imported("moved_here:A", tmp_path / "gone/moved_here.py").n == 3


def in_a_function() -> type:
    class Local:
        pass

    return Local


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mine:A", "import nothing_of_that_name", r"mine:A, .* \(ModuleNotFoundError: No module named .*it was in /"),
        ("mine:A", "def", r"cannot be imported \(SyntaxError: invalid syntax \(mine.py, line 1\)\)"),
        ("mine:A", "raise SystemExit", "mine.py has no class A any more"),
        ("mine:A", "A = 3", "mine.py has no class A any more"),
        (
            class_record(in_a_function(), "gpt")["model_class"],
            "",
            r"<locals>.Local was defined within a function, from",
        ),
        (
            "__main__:A",
            "",
            "A was defined in a notebook, or at Python's prompt, from where it cannot be imported: load",
        ),
    ],
)
def test_what_cannot_be_imported_is_one_line(name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(OwnClassError, match=said) as caught:
        imported(name, written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_class_that_is_no_model_is_refused(trained: Path) -> None:
    written(trained.parent, "class SquaredGPT: pass")
    with pytest.raises(OwnClassError, match=r"mine:SquaredGPT, which made the model of .*, is no GPT"):
        load_gpt(trained, trust_code=True)


def test_a_module_of_a_package_that_failed_is_read_anew(tmp_path: Path) -> None:
    file = written(tmp_path, "import nothing_of_that_name", "package/mine.py")
    with pytest.raises(OwnClassError, match="No module named 'nothing_of_that_name'"):
        imported("package.mine:A", file)
    file.write_text("class A:\n    n = 1")
    assert imported("package.mine:A", file).n == 1
