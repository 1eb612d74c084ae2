"""Runs of models of one's own: listed with a reason, or written with where their code is trusted."""

import shutil
from pathlib import Path

import pytest
from helpers import command

from demo.catalogue import Catalogue
from demo.session import Session
from demo.tabs.common import choices
from training.runtime.errors import InputError

SCRIPT = """
from gpt.model import GPT
from gpt.task import GPTTask
from launch.train_gpt import main

class OwnGPT(GPT):
    pass

class Task(GPTTask):
    model_class = OwnGPT

main(Task)
"""


@pytest.fixture(scope="module")
def folder(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the runs, and one of a class of its own, which has the lowest loss."""
    folder = tmp_path_factory.mktemp("own") / "runs"
    shutil.copytree(runs, folder, symlinks=True)
    (folder.parent / "mine.py").write_text(SCRIPT)
    (folder.parent / "text.txt").write_text("7 times 7 is 49.\n" * 40)
    small = "--model.num_layers 1 --model.d_model 16 --model.num_heads 2 --model.max_len 32 --training.max_steps 2"
    options = f"--data.source text.txt {small} --tracking none --output_dir runs/mine"
    done = command("mine.py", *options.split(), cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert "launch/evaluate.py --checkpoint runs/mine --trust_code\n" in done.stdout
    (folder / "mine/metrics.jsonl").write_text('{"step": 2, "val_loss": 0.1}\n')
    return folder


def test_a_run_of_ones_own_class_is_listed_with_the_reason_and_not_chosen(folder: Path) -> None:
    session = Session(folder)
    found = choices(session, "gpt", "best")
    assert found.value == "small"
    assert found.info is None
    label = next(label for label, name in found.choices if name == "mine")
    assert label.endswith("MB): made by 'mine:OwnGPT', which python demo/app.py --trust_code imports")
    with pytest.raises(InputError, match="one's own, mine:OwnGPT: --trust_code") as caught:
        session.catalogue.gpt("mine")
    assert str(folder) not in str(caught.value)


def test_where_none_can_be_loaded_none_is_chosen_and_the_page_says_why(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "mine", tmp_path / "mine", symlinks=True)
    found = choices(Session(tmp_path), "gpt", "best")
    assert found.value is None
    assert found.info == "mine cannot be loaded: made by 'mine:OwnGPT', which python demo/app.py --trust_code imports"
    state = tmp_path / "mine/checkpoints/step-00000002/model.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    found = choices(Session(tmp_path, trust_code=True), "gpt", "best")
    assert found.value is None
    assert "bytes, found" in str(found.info)


def test_a_class_that_is_trusted_is_imported_and_writes(folder: Path) -> None:
    session = Session(folder, trust_code=True)
    assert session.catalogue.best("gpt") == "mine"
    writing = list(session.write("me", "mine", "7", max_new_tokens=9))[-1]
    assert (len(writing.text), writing.mode) == (9, "eager")


def test_where_a_class_has_gone_a_visitor_learns_no_path(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = folder.parent / "mine.py"
    script.rename(folder.parent / "moved.py")
    try:
        catalogue = Catalogue(folder, trust_code=True)
        assert catalogue.best("gpt") == "small"
        (entry,) = [entry for entry in catalogue.entries("gpt") if entry.name == "mine"]
        assert catalogue.fault(entry) == "the class that made mine cannot be imported; the terminal says why"
        assert f"there is no {script}" in caplog.text
    finally:
        (folder.parent / "moved.py").rename(script)
