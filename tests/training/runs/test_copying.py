"""What is handed over serves elsewhere, whole or not at all."""

import os
from pathlib import Path

import pytest
from run_folders import make_run, spoil

from training.runs.copying import copy_checkpoint, copy_run, needs
from training.runs.listing import read_run
from training.runtime.errors import InputError
from training.storage.checkpoint import Checkpoint, CheckpointError
from training.storage.finding import find_checkpoint


@pytest.mark.parametrize(
    ("place", "step"), [("", 10), ("checkpoints/best", 10), ("checkpoints/last", 20), ("checkpoints/step-00000020", 20)]
)
def test_a_checkpoint_is_copied_by_any_of_its_names(place: str, step: int, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1.0, 2.0])
    copy_checkpoint(run.path / place, tmp_path / "there/copy")
    copied, source = (
        Checkpoint(tmp_path / "there/copy"),
        Checkpoint(run.checkpoints / f"step-{step:08d}"),
    )
    assert (copied.step, copied.files) == (step, source.files)
    for name in os.listdir(source.folder):
        assert (copied.folder / name).read_bytes() == (source.folder / name).read_bytes()
    assert os.listdir(tmp_path / "there") == ["copy"]
    assert find_checkpoint(tmp_path / "there/copy") == tmp_path / "there/copy"


def test_a_copy_of_the_weights_leaves_the_optimizer_out_and_is_sealed_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    copy_checkpoint(run.path, tmp_path / "copy", weights_only=True)
    copied = Checkpoint(tmp_path / "copy")
    assert copied.files == {"model.safetensors", "state.json", "config.yaml", "tokenizer.json"}
    assert copied.tensors("model")["weight"].tolist() == [20.0] * 4
    with pytest.raises(CheckpointError, match=r"holds no optimizer\.safetensors"):
        copied.header("optimizer")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "tokenizer.json", "manifest.json"])
def test_damage_is_named_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    spoil(run.checkpoints / "step-00000020" / name)
    with pytest.raises(CheckpointError, match=f"is damaged: {name}"):
        copy_checkpoint(run.path, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for place in ("folder", "link", "run"):
        for copy in (copy_checkpoint, copy_run):
            with pytest.raises(InputError, match=f"{place} is there already: name a folder to be made"):
                copy(run.path, tmp_path / place)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*file/copy: .*file: File exists"):
        copy_checkpoint(run.path, tmp_path / "file/copy")


def test_a_whole_run_is_copied_with_its_names_and_without_damage_and_links(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1.0, 2.0, 3.0])
    run.write_sample(10, "a sample")
    (tmp_path / "secret").write_text("secret")
    (run.path / "samples/link").symlink_to(tmp_path / "secret")
    (run.path / "samples/folder").symlink_to(tmp_path)
    spoil(run.checkpoints / "step-00000020/model.safetensors")
    run.claim()
    run.release()
    left_out = copy_run(run.path, tmp_path / "copy")
    there = read_run(tmp_path / "copy")
    assert (there.state, there.faults, there.best, there.val_loss) == ("done", [], 1.0, 3.0)
    assert [(saved.step, saved.names) for saved in there.checkpoints] == [(10, ["best"]), (30, ["last"])]
    assert os.readlink(tmp_path / "copy/checkpoints/best") == "step-00000010"
    assert (tmp_path / "copy/samples/step-00000010.txt").read_text() == "a sample"
    assert sorted(os.listdir(tmp_path / "copy/samples")) == ["step-00000010.txt"]
    assert not (tmp_path / "copy/.lock").exists()
    assert [line.partition(": ")[2][:6] for line in sorted(left_out)[:2]] == ["a link", "a link"]
    assert "step-00000020 is damaged" in " ".join(left_out)


def test_a_run_that_is_running_or_has_no_sound_checkpoint_is_not_copied_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1.0])
    run.claim()
    with pytest.raises(InputError, match="is running: wait for its end, or copy a checkpoint of it"):
        copy_run(run.path, tmp_path / "copy")
    copy_checkpoint(run.path, tmp_path / "of_it")
    run.release()
    spoil(run.checkpoints / "step-00000010/model.safetensors")
    with pytest.raises(CheckpointError, match="holds no sound checkpoint: .*is damaged"):
        copy_run(run.path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_what_a_copy_needs_is_said(tmp_path: Path) -> None:
    source = {"init_from": "runs/base", "init_sha256": "abc"}
    for name, more in (("tuned", source), ("adapter", {**source, "lora": {"rank": 4}})):
        copy_checkpoint(make_run(tmp_path / name, more=more).path, tmp_path / f"{name}-copy")
    assert needs(tmp_path / "tuned-copy") is None
    assert needs(tmp_path / "adapter-copy") == (
        "it holds an adapter alone: hand over its base runs/base too (SHA-256 abc), to lie at the same place, or "
        "export both as one model (launch/export.py)"
    )


def test_nothing_is_copied_into_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="copy lies in .*run, which is to be copied: name a folder outside of it"):
        copy_run(run.path, run.path / "copy")
    with pytest.raises(InputError, match="copy lies in .*step-00000020, which is to be copied"):
        copy_checkpoint(run.path, run.checkpoints / "best/copy")
    assert sorted(tmp_path.rglob("*")) == before
    copy_checkpoint(run.path, run.path / "copy")


def test_a_run_that_goes_on_meanwhile_is_not_copied_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(
        "training.runs.copying._copy_checkpoints", lambda *_: run.append_metrics({"step": 30, "tokens": 1})
    )
    with pytest.raises(InputError, match="run went on while it was copied: wait for its end"):
        copy_run(run.path, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_damaged_copies_in_the_place_of_names_and_leftovers_are_left_out_and_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("best", "last"):
        (run.checkpoints / name).unlink()
        copy_checkpoint(run.checkpoints / "step-00000020", run.checkpoints / name)
    spoil(run.checkpoints / "best/model.safetensors")
    (run.checkpoints / "damaged-step-00000005").mkdir()
    left_out = copy_run(run.path, tmp_path / "copy")
    assert sorted(os.listdir(tmp_path / "copy/checkpoints")) == ["last", "step-00000010", "step-00000020"]
    assert [line.rpartition("/")[2] for line in left_out] == [
        "best is damaged: model.safetensors does not match its SHA-256",
        "damaged-step-00000005: no checkpoint",
    ]
