"""Sweep files of Weights & Biases, without its service."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT, command

from training.runtime.errors import InputError
from training.sweep.wandb_file import read_words

FILES = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
GRID = {"optimizer.learning_rate": {"values": [0.001, 0.003]}, "model.tie_embeddings": {"value": True}}
PLAIN = {
    "program": "launch/train_gpt.py",
    "command": ["${env}", "${interpreter}", "${program}", "--config", "a.yaml", "--tracking", "none", "${args}"],
    "method": "grid",
    "parameters": GRID,
}


def written(folder: Path, **changes: Any) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**PLAIN, **changes}, sort_keys=False))
    return file


def test_a_file_is_the_command_line_of_a_sweep(tmp_path: Path) -> None:
    base = ["--config", "a.yaml", "--tracking", "none"]
    grid = ["--grid", "optimizer.learning_rate=0.001,0.003", "--grid", "model.tie_embeddings=true"]
    assert read_words(written(tmp_path, name="x", project="y")) == [*base, *grid]
    metric = {"name": "bits_per_byte", "goal": "minimize"}
    parameters = {"seed": {"values": [4, 5, 6]}, "a.b": {"values": ["query,value", "all"]}}
    assert read_words(written(tmp_path, metric=metric, parameters=parameters)) == [
        *base,
        *("--metric", "bits_per_byte", "--seed", "4", "--seeds", "3", "--grid", 'a.b="query,value",all'),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bayes"}, "method must be grid, which needs no service, got 'bayes'"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate is done by the service"),
        ({"command": ["${program}", "${args}"]}, "command must be a list with"),
        ({"metric": {"name": "accuracy", "goal": "maximize"}}, "the goal minimize"),
        ({"parameters": {"a": {"min": 0, "max": 1}}}, r"parameters\.a: expected values"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, r"parameters\.a: expected values"),
        ({"parameters": {"a": {"values": [None]}}}, r"parameters\.a: expected numbers, texts, true or false"),
        ({"parameters": {"seed": {"values": [1, 3]}}}, r"parameters\.seed: expected whole numbers in a row"),
        ({"parameters": {"seed": {"values": []}}}, r"parameters\.seed: expected values"),
        ({"parameters": []}, "expected a sweep of Weights & Biases"),
    ],
    ids=str,
)
def test_what_only_the_service_does_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path}/sweep\.yaml: .*{message}"):
        read_words(written(tmp_path, **changes))


@pytest.mark.ci
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_an_agent_of_wandb_would_type_is_a_training_of_ours(file: Path, tmp_path: Path) -> None:
    """The agent itself needs the service; this is how it makes its command of what the service sends it."""
    sweeps = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    content = sweeps.load_sweep_config(str(file))
    for place in (0, -1):
        chosen = {name: {"value": values["values"][place]} for name, values in content["parameters"].items()}
        made = sweeps.create_sweep_command_args({"args": chosen})
        words: list[str] = []
        for word in sweeps.create_sweep_command(list(content["command"])):
            known = {"${env}": [], "${interpreter}": [], "${program}": [content["program"]], "${args}": made["args"]}
            words += known.get(word, [word])
        done = command(*words, "--print_config", cwd=ROOT)
        assert done.returncode == 0, done.stderr
        printed = yaml.safe_load(done.stdout)
        for name, value in chosen.items():
            section, _, leaf = name.rpartition(".")
            assert (printed[section] if section else printed)[leaf] == value["value"]


def test_there_are_sweep_files_to_try() -> None:
    assert FILES
