"""`launch/export.py`: folders of both models, and one clear line for each thing that does not go."""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from helpers import ROOT, command
from small_hub import serving

from launch.export import main

SCRIPT = ROOT / "launch/export.py"
CARD_AND_WEIGHTS = {"README.md", "config.json", "model.safetensors"}
OF_TRANSFORMERS = CARD_AND_WEIGHTS | {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_gpt_becomes_a_folder_of_transformers(runs: Path, tmp_path: Path) -> None:
    given = ["--format", "transformers", "--output", tmp_path / "out", "--dtype", "bf16", "--license", "mit"]
    done = command(SCRIPT, "--checkpoint", runs / "small", *given, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'out'}\n", "")
    assert files_of(tmp_path / "out") == OF_TRANSFORMERS
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "out/README.md").read_text().startswith("---\nlicense: mit\nlibrary_name: transformers\n")
    assert files_of(tmp_path) == {"out"}


def test_an_encoder_decoder_becomes_a_folder_that_needs_torch(runs: Path, tmp_path: Path) -> None:
    given = ["--format", "safetensors", "--output", tmp_path / "out"]
    done = command(SCRIPT, "--checkpoint", runs / "copy", *given, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'out'}\n", "")
    assert files_of(tmp_path / "out") == CARD_AND_WEIGHTS | {"load.py"}
    card = (tmp_path / "out/README.md").read_text()
    assert "library_name: pytorch" in card
    assert "print(translate('abc'))" in card
    assert "| exact match | " in card


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            "--format safetensors",
            "small is a GPT, which --format safetensors is not for: expected transformers or gguf",
        ),
        ("--format transformers --gguf_type F16", "--gguf_type is for --format gguf"),
        ("--format gguf --dtype bf16", "--dtype is for --format transformers; --format gguf has --gguf_type"),
        ("--format transformers --private", "--private is for --push_to_hub"),
        ("--format transformers --license M.I.T", "license must be the hub's word for one, such as mit or apache-2.0"),
        ("--format transformers --weights ema", "has no average of the weights (--training.ema_decay): use raw"),
        ("--format transformers --checkpoint none", "none does not exist"),
        ("--format onnx", "format: expected one of 'transformers', 'gguf', 'safetensors', got onnx"),
        ("", "the following arguments are required: --format"),
    ],
)
def test_what_does_not_go_is_one_line_and_leaves_nothing(options: str, fault: str, runs: Path, tmp_path: Path) -> None:
    given = ["--checkpoint", runs / "small", "--output", "out", *options.split()]
    done = command(SCRIPT, *given, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert fault in done.stderr
    assert not files_of(tmp_path)


def test_an_existing_folder_is_not_touched(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    given = ["--format", "transformers", "--output", "out"]
    done = command(SCRIPT, "--checkpoint", runs / "small", *given, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "error: out exists, and nothing is overwritten: choose another --output\n",
    )
    assert not files_of(tmp_path / "out")


def test_a_checkpoint_without_its_run_has_the_loss_that_it_knows(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "small/checkpoints/best", tmp_path / "mine")
    given = ["--format", "transformers", "--output", "out"]
    done = command(SCRIPT, "--checkpoint", "mine", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out/README.md").read_text()
    assert "| validation loss, nats per token | " in card
    assert "## Losses" not in card


def test_a_folder_goes_to_the_hub(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    given = ["--format", "transformers", "--output", "out", "--push_to_hub", "me/mine"]
    monkeypatch.setattr("sys.argv", ["export.py", "--checkpoint", os.fspath(runs / "small"), *given])
    with serving() as hub:
        hub.tokens = {"hf_mine": "me"}
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        main()
    assert hub.models["me/mine"] == {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert b"# me/mine\n" in hub.models["me/mine"]["README.md"]
