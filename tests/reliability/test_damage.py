"""Every damage to a checkpoint is named, and none is loaded."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT, command, with_training
from reliability.damage import DAMAGES, FILES, SEQ2SEQ_FILES, make_run

from gpt.config import GPTConfig
from gpt.trainer import train_gpt
from training.checkpoint import Checkpoint, DamagedCheckpointError

pytestmark = pytest.mark.reliability


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


def test_a_run_without_a_sound_checkpoint_starts_over_and_says_so(
    config: GPTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(with_training(config, max_steps=3))
    train_gpt(config, output_dir=tmp_path / "run")
    for folder in (tmp_path / "run/checkpoints").glob("step-*"):
        (folder / "manifest.json").unlink()
    train_gpt(config, output_dir=tmp_path / "run", resume=True)
    printed = capsys.readouterr().out
    assert "step-00000003 has no manifest, so it is not a complete checkpoint; it is set aside" in printed
    assert "no sound checkpoint is left: the run starts over" in printed
