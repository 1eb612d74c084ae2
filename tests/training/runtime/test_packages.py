"""A package that is missing is one line where it is asked for, and nothing where it is not."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import read_metrics, with_training

from data.config import PairConfig, TextConfig
from data.pairs.files import FilePairs
from data.text import load_source
from demo import app
from gpt.config import GPTConfig
from gpt.task import train_gpt
from training.plots import check_output
from training.runtime.errors import InputError

ASKED: list[tuple[str, str, Callable[[GPTConfig], object]]] = [
    ("wandb", "--tracking wandb", lambda config: train_gpt(replace(config, tracking="wandb"), output_dir=Path("run"))),
    (
        "tensorboard",
        "--tracking tensorboard",
        lambda config: train_gpt(replace(config, tracking="tensorboard"), output_dir=Path("run")),
    ),
    ("datasets", "reading text", lambda config: load_source(TextConfig())),
    ("datasets", "reading pairs", lambda config: FilePairs(PairConfig(task="pairs", source="pairs.tsv"), 1)),
    ("datasets", "hub:us/text", lambda config: load_source(TextConfig(source="hub:us/text"))),
    ("matplotlib", "drawing x.png", lambda config: check_output(Path("x.png"))),
    ("gradio", "the page", lambda config: app.main()),
]


@pytest.mark.parametrize(("package", "asked", "ask"), ASKED, ids=[asked for _, asked, _ in ASKED])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    config: GPTConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    asked: str,
    ask: Callable[[GPTConfig], Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.tsv").write_text("source\ttarget\n" + "".join(f"{n}\t{n + 1}\n" for n in range(100)))
    monkeypatch.setattr(sys, "argv", ["program"])
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as caught:
        ask(config)
    assert str(caught.value).startswith(f"{asked} needs the package {package}: pip install {package}")


def test_a_run_without_curves_needs_no_package_for_them(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("wandb", "tensorboard", "matplotlib", "gradio"):
        monkeypatch.setitem(sys.modules, package, None)
    train_gpt(with_training(config, max_steps=1), output_dir=tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == 1
