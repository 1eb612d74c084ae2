"""Every damage to a checkpoint is named, and none is loaded."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, command, with_training
from reliability.damage import DAMAGES, FILES, SEQ2SEQ_FILES, make_run
from safetensors.torch import load, save
from torch import Tensor

from demo.catalogue import Catalogue
from gpt.config import GPTConfig
from gpt.task import load_gpt, train_gpt
from seq2seq.config import Seq2SeqConfig
from seq2seq.task import load_seq2seq, train_seq2seq
from training.config.command_line import parse_config_text
from training.runtime.errors import InputError
from training.storage.checkpoint import Checkpoint, DamagedCheckpointError
from training.storage.finding import find_checkpoint
from training.storage.manifest import seal


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each model, a run of 12 steps with checkpoints of steps 10 and 12."""
    folders = {model: tmp_path_factory.mktemp(f"damage-{model}") for model in ("gpt", "seq2seq")}
    for model, folder in folders.items():
        make_run(folder, model)
    return folders


@pytest.fixture
def model() -> str:
    """What a test is about, unless its parameters say otherwise."""
    return "gpt"


@pytest.fixture
def run(pristine: dict[str, Path], tmp_path: Path, model: str) -> Path:
    """A copy of the model's run."""
    shutil.copytree(pristine[model], tmp_path / "copy", symlinks=True)
    return tmp_path / "copy/run"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("model", "name"), [("gpt", name) for name in FILES] + [("seq2seq", name) for name in SEQ2SEQ_FILES]
)
def test_a_damaged_checkpoint_is_refused_and_the_file_named(run: Path, name: str, damage: str) -> None:
    folder = run / "checkpoints/step-00000012"
    before = (folder / name).read_bytes()
    DAMAGES[damage](folder / name)
    if damage == "exchanged" and (folder / name).read_bytes() == before:
        Checkpoint(folder)  # Both steps have the same one.
        return
    named = "manifest" if name == "manifest.json" and damage != "exchanged" else name
    expected = f"step-00000012.*{named}" if (name, damage) != ("manifest.json", "exchanged") else "is damaged: "
    with pytest.raises(DamagedCheckpointError, match=expected) as error:
        Checkpoint(folder)
    assert "\n" not in str(error.value)


def test_a_checkpoint_in_the_place_of_another_is_named(run: Path) -> None:
    place = run / "checkpoints/step-00000012"
    shutil.rmtree(place)
    shutil.copytree(place.with_name("step-00000010"), place)
    with pytest.raises(DamagedCheckpointError, match="step-00000012 is damaged: state.json is of step 10"):
        Checkpoint(place)


@pytest.mark.parametrize(
    ("model", "name", "damage"),
    [
        ("gpt", "ema.safetensors", "a bit in the middle"),
        ("gpt", "state.json", "a pickle"),
        ("seq2seq", "model.safetensors", "cut in half"),
        ("seq2seq", "vocabulary.json", "a bit at the end"),
    ],
)
def test_the_commands_refuse_or_fall_back_and_say_so(run: Path, model: str, name: str, damage: str) -> None:
    DAMAGES[damage](run / "checkpoints/step-00000012" / name)
    evaluate = [ROOT / "launch/evaluate.py", "--checkpoint", "run/checkpoints/step-00000012"]
    evaluate += ["--source", "ab"] if model == "seq2seq" else []
    refused = command(*evaluate, cwd=run.parent)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert f"is damaged: {name}" in refused.stderr
    train = [ROOT / f"launch/train_{model}.py", "--config", "run/config.yaml", "--output_dir", "run", "--resume"]
    resumed = command(*train, cwd=run.parent)
    assert resumed.returncode == 0, resumed.stderr
    assert f"is damaged: {name}" in resumed.stdout
    assert "resuming    after step 10" in resumed.stdout
    assert not (run.parent / "unpickled").exists()


def test_only_what_a_model_is_loaded_from_is_compared(run: Path) -> None:
    """A fourth of the bytes, for those who evaluate; a resume compares all of them."""
    step = run / "checkpoints/step-00000012"
    for name in ("model.safetensors", "optimizer.safetensors"):
        DAMAGES["a bit in the middle"](step / name)
    assert load_gpt(step).weights == "ema"
    with pytest.raises(DamagedCheckpointError, match="step-00000012 is damaged: model.safetensors does not match"):
        load_gpt(step, weights="raw")
    with pytest.raises(DamagedCheckpointError, match="step-00000012 is damaged: model.safetensors does not match"):
        Checkpoint(step)


def test_a_run_without_a_sound_checkpoint_starts_over_and_says_so(
    config: GPTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(with_training(config, max_steps=3))
    train_gpt(config, output_dir=tmp_path / "run")
    for folder in (tmp_path / "run/checkpoints").glob("step-*"):
        (folder / "manifest.json").unlink()
    train_gpt(config, output_dir=tmp_path / "run", resume=True)
    printed = capsys.readouterr().out
    assert "step-00000003 has no manifest, so it is not a complete checkpoint; it is quarantined" in printed
    assert "no sound checkpoint is left: the run starts over" in printed


def change(folder: Path, name: str, edit: Callable[[Any], Any]) -> None:
    """Put something else into a checkpoint, with a manifest that matches."""
    content = (folder / name).read_bytes()
    if name.endswith(".safetensors"):
        tensors = load(content)
        content = save(edit(tensors) or tensors)
    elif name.endswith(".json"):
        values = json.loads(content)
        content = json.dumps(edit(values) or values).encode()
    else:
        content = edit(content.decode()).encode()
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["seal"] = seal(manifest["format"], manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edited(key: str, edit: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({key: edit(tensors[key])})


def renamed(key: str, other: str) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.update({other: values.pop(key)})


def counter(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["counters"].update({name: value})


MATRIX = "blocks.0.attention.out.weight"
NONSENSE: dict[str, tuple[str, Callable[[Any], Any], str, bool]] = {
    "a tensor is missing": ("ema", lambda tensors: {MATRIX: tensors[MATRIX]}, "is missing, and", True),
    "a tensor is misnamed": ("ema", renamed(MATRIX, "other"), f"{MATRIX} is missing, and 1 more", True),
    "a tensor of one number": ("ema", edited(MATRIX, lambda t: t[0, 0].clone()), f"{MATRIX} has the shape ()", True),
    "a row for all": ("ema", edited(MATRIX, lambda t: t[:1].clone()), rf"{MATRIX} has the shape \(1, 16\), exp", True),
    "whole numbers": ("ema", edited(MATRIX, lambda t: t.long()), f"{MATRIX} is of int64, expected float32", True),
    "half precision": ("ema", edited(MATRIX, lambda t: t.half()), f"{MATRIX} is of float16, expected float32", True),
    "double precision": ("ema", edited(MATRIX, lambda t: t.double()), "is of float64, expected float32", True),
    "a row too many": (
        "ema",
        edited("embedding.weight", lambda t: torch.cat((t, t[:1]))),
        r"embedding.weight has the shape \((\d+), 16\), expected \(\d+, 16\) for the \d+ symbols of \S+",
        True,
    ),
    "weights of another shape": ("model", edited(MATRIX, lambda t: t[:, :1].clone()), f"{MATRIX} has the", False),
    "a moment of one number": (
        "optimizer",
        edited("embedding.weight/exp_avg", lambda t: t[0, 0].clone()),
        r"embedding.weight/exp_avg has the shape \(\), expected \(\d+, 16\)",
        False,
    ),
    "a moment is missing": ("optimizer", renamed("embedding.weight/exp_avg", "odd"), "is missing, and 1 more", False),
    "a step of whole numbers": (
        "optimizer",
        edited("embedding.weight/step", lambda t: t.long()),
        "embedding.weight/step is of int64, expected float32",
        False,
    ),
    "another step inside": ("state.json", counter("step", 11), "step is 12, counters.step is 11", True),
    "a counter in quotes": ("state.json", counter("tokens", "7"), "counters.tokens: expected a whole number", True),
    "a negative counter": (
        "state.json",
        counter("samples", -1),
        "counters.samples: expected a whole number",
        True,
    ),
    "no counters": ("state.json", renamed("counters", "odd"), "counters is missing", True),
    "no identity": ("state.json", renamed("identity", "odd"), "identity is missing", True),
    "a symbol twice": ("vocabulary", lambda values: twice(values), "a (character|symbol) comes twice", True),
    "numbers for symbols": ("vocabulary", lambda values: {"characters": 7}, "characters: expected text, got 7", True),
    "no vocabulary": ("vocabulary", lambda values: [7], r"expected an object, got \[7\]", True),
    "odd configuration": ("config.yaml", lambda text: text.replace("num_heads: 2", "num_heads: many"), "many", True),
    "no configuration": ("config.yaml", lambda text: "[" * 100, "is not plain YAML", True),
}
"""A file, what is done to it, what is said, and whether sampling reads it at all; resuming does."""


def twice(values: dict[str, Any]) -> None:
    (name,) = values.keys() & {"characters", "symbols"}
    values[name] = values[name][:-1] + values[name][:1]


def go_on(model: str) -> None:
    text = Path("run/config.yaml").read_text()
    if model == "gpt":
        train_gpt(parse_config_text(GPTConfig, text), output_dir=Path("run"), resume=True)
    else:
        train_seq2seq(parse_config_text(Seq2SeqConfig, text), output_dir=Path("run"), resume=True)


@pytest.mark.parametrize(
    ("model", "what"),
    [("gpt", what) for what in NONSENSE] + [("seq2seq", "a symbol twice"), ("seq2seq", "a row too many")],
)
def test_content_that_makes_no_sense_is_refused_by_name(
    run: Path, model: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, edit, said, sampled = NONSENSE[what]
    vocabulary = {"gpt": "tokenizer.json", "seq2seq": "vocabulary.json"}[model]
    file = {"vocabulary": vocabulary}.get(name, name if "." in name else f"{name}.safetensors")
    step = run / "checkpoints/step-00000012"
    change(step, file, edit)
    monkeypatch.chdir(run.parent)
    if sampled:
        with pytest.raises(InputError, match=f"step-00000012/{file}: .*{said}"):
            {"gpt": load_gpt, "seq2seq": load_seq2seq}[model](step)
    if what == "odd configuration":
        return  # To resume it is compared with the run's own.
    with pytest.raises(InputError, match=f"step-00000012/{file}.*{'' if sampled else said}") as caught:
        go_on(model)
    assert "\n" not in str(caught.value)
    assert step.is_dir(), "nothing is renamed"


def test_the_page_refuses_it_too(run: Path) -> None:
    change(run / "checkpoints/step-00000012", "ema.safetensors", edited(MATRIX, lambda t: t[:1].clone()))
    (run / "checkpoints/best").unlink()
    (run / "checkpoints/best").symlink_to("step-00000012")
    with pytest.raises(InputError, match=f"step-00000012/ema.safetensors: {MATRIX} has the shape"):
        Catalogue(run.parent).gpt("run")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"step": 1e999}', "the number '1e999', which is too large"),
        (f'{{"step": {"7" * 400}}}', "a number of 400 digits"),
        ("[" * 100_000, "longer than 65,536 bytes"),
        ('{"step": "7"}', "step: expected a number, got '7'"),
    ],
)
def test_a_run_does_not_go_on_with_metrics_that_make_no_sense(
    run: Path, monkeypatch: pytest.MonkeyPatch, line: str, fault: str
) -> None:
    monkeypatch.chdir(run.parent)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    before = (run / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match=rf"^run/metrics.jsonl: line \d+: {fault}"):
        go_on("gpt")
    assert (run / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("how", ["followed", "dropped"])
def test_a_run_that_was_copied_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.chdir(run.parent)
    copy = run.parent / "copied/run"
    shutil.copytree(run, copy, symlinks=False)
    if how == "dropped":
        for name in ("best", "last"):
            shutil.rmtree(copy / "checkpoints" / name)
    best = Checkpoint(run / "checkpoints/best").state["step"]
    assert load_gpt(copy).weights == "ema"
    assert find_checkpoint(copy).resolve().name in (f"step-{best:08d}", "best")
    monkeypatch.chdir(copy.parent)
    Path("text.txt").write_text((run.parent / "text.txt").read_text())
    config = with_training(parse_config_text(GPTConfig, Path("run/config.yaml").read_text()), max_steps=14)
    train_gpt(config, output_dir=Path("run"), resume=True)
    assert Checkpoint(copy / "checkpoints/last").folder.name == "step-00000014"
    assert {name for name in ("best", "last") if (copy / "checkpoints" / name).is_symlink()} == {"best", "last"}
