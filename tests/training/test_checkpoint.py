"""A checkpoint exists whole or not at all."""

import errno
import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from training import checkpoint as module
from training.checkpoint import Checkpoint, CheckpointError, CheckpointStore, checkpoint_name
from training.run_folder import open_checkpoint


def save(store: CheckpointStore, step: int, *, best: bool = False, value: float | None = None) -> Path:
    weights = {"w": torch.full((3, 2), float(step if value is None else value))}
    return store.save(
        step, tensors={"model": weights}, state={"step": step}, files={"config.yaml": "name: ü\n"}, best=best
    )


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_what_is_saved_is_read_back(store: CheckpointStore) -> None:
    place = save(store, 7, best=True)
    assert place.name == "step-00000007"
    for folder in (place, store.folder / "last", store.folder / "best"):
        found = Checkpoint(folder)
        assert torch.equal(found.tensors("model")["w"], torch.full((3, 2), 7.0))
        assert found.state == {"step": 7}
        assert found.text("config.yaml") == "name: ü\n"


def test_links_are_relative(store: CheckpointStore) -> None:
    save(store, 7, best=True)
    assert os.readlink(store.folder / "last") == os.readlink(store.folder / "best") == "step-00000007"


def test_the_newest_and_the_best_are_kept(store: CheckpointStore) -> None:
    for step in range(1, 7):
        save(store, step, best=step == 2)
    assert store.steps() == [2, 5, 6]
    assert Checkpoint(store.folder / "best").state["step"] == 2
    assert Checkpoint(store.folder / "last").state["step"] == 6


def test_fewer_than_two_are_never_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=0)
    for step in (1, 2, 3):
        save(store, step)
    assert store.steps() == [2, 3]


def test_a_step_keeps_the_checkpoint_it_has_and_can_become_the_best(store: CheckpointStore) -> None:
    save(store, 3)
    save(store, 3, value=9.0, best=True)
    assert Checkpoint(store.folder / "best").tensors("model")["w"][0, 0] == 3
    assert names(store) == ["best", "last", "step-00000003"]


FILES = ["model.safetensors", "state.json", "config.yaml", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_are_found(store: CheckpointStore, name: str) -> None:
    file = save(store, 5) / name
    content = file.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 50)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match="is damaged|no manifest"):
            Checkpoint(file.parent)
    file.write_bytes(content)
    assert Checkpoint(file.parent).state["step"] == 5


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_short_file_is_found_and_named(store: CheckpointStore, name: str) -> None:
    file = save(store, 5) / name
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=f"damaged: {name}"):
        Checkpoint(file.parent)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"damaged: {name}|no manifest"):
        Checkpoint(file.parent)


def test_a_file_size_is_told(store: CheckpointStore) -> None:
    file = save(store, 5) / "state.json"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=r"state.json: expected 14 bytes, found 15"):
        Checkpoint(file.parent)


def test_a_manifest_that_was_edited_does_not_match_its_seal(store: CheckpointStore) -> None:
    file = save(store, 5) / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"].pop("state.json")
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="does not match its own seal"):
        Checkpoint(file.parent)


def test_another_format_is_refused(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORMAT", 2)
    place = save(store, 5)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 2, this version reads 1 only"):
        Checkpoint(place)


def test_what_may_be_whole_is_not_passed_over(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1)
    monkeypatch.setattr(module, "FORMAT", 2)
    save(store, 2)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="step-00000002 has format 2"):
        store.newest_sound()
    file = save(store, 3) / "state.json"
    file.unlink()
    file.mkdir()
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*step-00000003: state.json: Is a directory"):
        store.newest_sound()


def test_the_newest_sound_one_is_found_behind_damage(store: CheckpointStore) -> None:
    for step in (1, 2):
        save(store, step)
    (store.folder / checkpoint_name(2) / "model.safetensors").write_bytes(b"")
    found, damage = store.newest_sound()
    assert found is not None
    assert found.state["step"] == 1
    assert len(damage) == 1
    assert "step-00000002 is damaged" in damage[0]


def test_going_back_sets_newer_ones_aside_and_mends_the_links(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        save(store, step, best=True)
    store.go_back_to(2, best_step=2)
    assert names(store) == ["best", "damaged-step-00000003", "last", "step-00000002"]
    assert os.readlink(store.folder / "last") == os.readlink(store.folder / "best") == "step-00000002"
    store.go_back_to(2, best_step=1)
    assert not (store.folder / "best").is_symlink()


class Crash(BaseException):
    """The process dies here."""


CALLS = [
    "_write_sealed",
    "_write_tensors",
    "_file_digest",
    "write_synced",
    "os.rename",
    "sync",
    "replace_link",
    "shutil.rmtree",
    "Path.unlink",
]


@pytest.mark.parametrize("call", CALLS)
def test_a_crash_at_any_point_leaves_a_sound_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    crashes = 0
    while crash(CheckpointStore(tmp_path / str(crashes)), monkeypatch, call, when=crashes):
        crashes += 1
    assert crashes > 0


def crash(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, call: str, when: int) -> bool:
    """Die in the fourth or fifth save before a call, after `when` others; False if there are not so many."""
    for step in (1, 2, 3):
        save(store, step)
    *holder, name = call.split(".")
    target = getattr(module, holder[0]) if holder else module
    original, calls, crashed = getattr(target, name), 0, False

    def crashing(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls > when:
            raise Crash
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, crashing)
        try:
            for step in (4, 4):
                save(store, step, best=True)
        except Crash:
            crashed = True
    found, _ = store.newest_sound()
    assert found is not None
    assert found.state["step"] in (3, 4)
    assert torch.equal(found.tensors("model")["w"], torch.full((3, 2), float(found.state["step"])))
    save(store, 5)
    assert len(store.steps()) >= 2
    assert not list(store.folder.glob(".*"))
    assert Checkpoint(store.folder / "last").state["step"] == 5
    return crashed


def test_whoever_may_read_the_folder_may_read_the_files(store: CheckpointStore) -> None:
    save(store, 1)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (store.folder / "last").iterdir()}
    assert modes == {stat.S_IMODE((store.folder / "last").stat().st_mode) & 0o666}


def test_a_full_disk_is_one_line_and_spares_what_stands(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_for_tensors(*arguments: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for name, refusing in (("write_synced", full), ("save_file", full_for_tensors)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refusing)
            message = "cannot write checkpoint .*step-00000002: No space left on device"
            with pytest.raises(CheckpointError, match=message):
                save(store, 2)
    assert store.steps() == [1]
    assert Checkpoint(store.folder / "last").state["step"] == 1


def test_space_is_told_and_too_little_of_it_is_an_error(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free(size: int) -> None:
        monkeypatch.setattr(module.shutil, "disk_usage", lambda place: SimpleNamespace(free=size))

    free(4_000_000)
    assert store.check_space(1_000_000) == ("1.0 MB each, 4.0 MB free", None)
    free(3_999_999)
    assert store.check_space(1_000_000)[1] == "up to 4 checkpoints of 1.0 MB will not fit into 4.0 MB"
    save(store, 1)
    assert store.check_space(1_000_000)[1] is None, "one is there already"
    free(1_359_000_000)
    message = "no space for a checkpoint in .*: 1.36 GB each, 1.36 GB free; free some, or choose another --output_dir"
    with pytest.raises(CheckpointError, match=message):
        store.check_space(1_360_000_000)


def test_a_run_opens_as_its_best_then_its_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run/checkpoints")
    save(store, 1)
    assert open_checkpoint(tmp_path / "run").state["step"] == 1
    save(store, 2, best=True)
    save(store, 3)
    assert open_checkpoint(tmp_path / "run").state["step"] == 2
    assert open_checkpoint(tmp_path / "run/checkpoints/last").state["step"] == 3


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing does not exist: expected a run's folder or a checkpoint's"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no manifest, so it is not a complete checkpoint"):
        open_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        open_checkpoint(tmp_path)
