"""Every damage to a checkpoint is named, and none is loaded."""

import os
import pickle  # noqa: TID251 to put one where it must not be read
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT, command, with_training

from gpt.config import GPTConfig
from gpt.trainer import train_gpt
from training.checkpoint import Checkpoint, DamagedCheckpointError

pytestmark = pytest.mark.reliability

FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "state.json",
    "config.yaml",
    "tokenizer.json",
    "manifest.json",
]


def cut(share: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return damage


def flip(share: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int((len(content) - 1) * share)] ^= 0x10
        file.write_bytes(content)

    return damage


def exchange(file: Path) -> None:
    shutil.copy(file.parent.with_name("step-00000010") / file.name, file)


class Mine:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch unpickled",)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": cut(0.0),
    "cut in half": cut(0.5),
    "cut at 99 %": cut(0.99),
    "a bit at the start": flip(0.0),
    "a bit in the middle": flip(0.5),
    "a bit at the end": flip(1.0),
    "deleted": Path.unlink,
    "exchanged": exchange,
    "nonsense": lambda file: file.write_text('{"format": [], "files": 7, "seal": null}'),
    "a pickle": lambda file: file.write_bytes(pickle.dumps(Mine())),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with checkpoints of steps 10 and 12."""
    folder = tmp_path_factory.mktemp("damage")
    (folder / "text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300)))
    options = "--model.num_layers 1 --model.d_model 16 --model.num_heads 2 --model.max_len 16 --tracking none"
    loop = "--training.max_steps 12 --training.checkpoint_interval 10 --training.eval_interval 10"
    average = "--training.ema_decay 0.9 --data.source text.txt --output_dir run"
    done = command(ROOT / "launch/train_gpt.py", *f"{options} {loop} {average}".split(), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy/run"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
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


@pytest.mark.parametrize(("name", "damage"), [("ema.safetensors", "a bit in the middle"), ("state.json", "a pickle")])
def test_the_commands_refuse_or_fall_back_and_say_so(run: Path, name: str, damage: str) -> None:
    DAMAGES[damage](run / "checkpoints/step-00000012" / name)
    evaluate = [ROOT / "launch/evaluate.py", "--checkpoint", "run/checkpoints/step-00000012"]
    refused = command(*evaluate, cwd=run.parent)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert f"is damaged: {name}" in refused.stderr
    train = [ROOT / "launch/train_gpt.py", "--config", "run/config.yaml", "--output_dir", "run", "--resume"]
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
