"""A checkpoint exists whole or not at all."""

import errno
import gc
import hashlib
import json
import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.runtime.errors import InputError
from training.storage import checkpoint as module
from training.storage import files, hashing
from training.storage import manifest as sealing
from training.storage.checkpoint import Checkpoint, CheckpointError, CheckpointStore, checkpoint_name
from training.storage.finding import open_checkpoint
from training.storage.manifest import seal
from training.storage.run_folder import RunFolder
from training.storage.whole import wholes


def save(
    store: CheckpointStore, step: int, *, best: bool = False, value: float | None = None, best_step: int | None = None
) -> Path:
    weights = {"w": torch.full((3, 2), float(step if value is None else value))}
    state = {"step": step} | ({} if best_step is None else {"counters": {"best_step": best_step}})
    return store.save(step, tensors={"model": weights}, state=state, files={"config.yaml": "name: ü\n"}, best=best)


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_said", set())


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


def test_counters_of_a_step_that_was_saved_are_replaced_in_one_move(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(**counters: int) -> None:
        state = {"step": 3, "counters": counters, "setup": counters}
        store.save(3, tensors={"model": {"w": torch.ones(1)}}, state=state, files={})

    def state() -> Any:
        return Checkpoint(store.folder / "last").state

    def killed(*path: Any) -> None:
        raise KeyboardInterrupt

    save(best_step=1)
    first = {"manifest.json", "model.safetensors", "state.json"}
    save(best_step=1)
    assert set(os.listdir(store.folder / "step-00000003")) == first, "nothing has changed"
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(best_step=2)
    assert state()["counters"] == {"best_step": 1}
    for best_step in (2, 3):
        save(best_step=best_step)
        assert state() == {"step": 3, "counters": {"best_step": best_step}, "setup": {"best_step": 1}}
    files = Checkpoint(store.folder / "last").files | {"manifest.json"}
    assert set(os.listdir(store.folder / "step-00000003")) - {".manifest.json.new"} == files == first | {"state-2.json"}


@pytest.fixture
def two_files(store: CheckpointStore) -> Path:
    """A checkpoint with two files of tensors."""
    groups = {name: {"w": torch.full((3, 2), value)} for name, value in (("model", 1.0), ("optimizer", 2.0))}
    return store.save(4, tensors=groups, state={"step": 4}, files={})


@pytest.mark.parametrize("in_shards", [False, True])
def test_files_are_written_at_once_unless_other_ranks_have_a_part_in_them(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, in_shards: bool
) -> None:
    """Hashing may take longer than the disk; what ranks do together has one order, in the thread of the device."""
    groups = {name: {"w": torch.full((3, 2), value)} for name, value in (("model", 1.0), ("ema", 2.0))}
    write, meeting, threads = sealing.write_tensors, threading.Barrier(2), list[str]()

    def writing(path: Path, *content: Any) -> tuple[int, str]:
        threads.append(threading.current_thread().name)
        _ = in_shards or meeting.wait(60)
        return write(path, *content)

    monkeypatch.setattr(sealing, "write_tensors", writing)
    place = store.save(4, tensors=groups, values=wholes(groups) if in_shards else None, state={"step": 4}, files={})
    assert [Checkpoint(place).tensors(name)["w"][0, 0] for name in groups] == [1, 2]
    assert (set(threads) == {"MainThread"}) == in_shards


def flip(file: Path, place: int) -> None:
    """Change a bit of a file where it is."""
    with file.open("r+b") as opened:
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ 1]))


def test_who_reads_a_part_compares_that_part_and_the_sizes_of_all(two_files: Path) -> None:
    flip(two_files / "optimizer.safetensors", 90)
    with pytest.raises(CheckpointError, match="damaged: optimizer.safetensors does not match its SHA-256"):
        Checkpoint(two_files)
    found = Checkpoint(two_files, in_part=True)
    assert found.tensors("model")["w"][0, 0] == 1
    with pytest.raises(CheckpointError, match="damaged: optimizer.safetensors does not match its SHA-256"):
        found.tensors("optimizer")
    os.truncate(two_files / "optimizer.safetensors", 90)
    with pytest.raises(CheckpointError, match="damaged: optimizer.safetensors: expected 96 bytes, found 90"):
        Checkpoint(two_files, in_part=True)
    (two_files / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="damaged: optimizer.safetensors is missing"):
        Checkpoint(two_files, in_part=True)


@pytest.mark.parametrize("in_part", [False, True])
@pytest.mark.parametrize("place", [0, 12, 90])
def test_what_is_changed_after_it_was_compared_is_not_used(two_files: Path, in_part: bool, place: int) -> None:
    """In its length, its header and its last tensor."""
    found = Checkpoint(two_files, in_part=in_part)
    flip(two_files / "model.safetensors", place)
    with pytest.raises(CheckpointError, match="damaged: model.safetensors does not match its SHA-256"):
        found.tensors("model")


def test_what_is_changed_between_its_header_and_its_tensors_is_not_used(store: CheckpointStore) -> None:
    place = store.save(4, tensors={"model": {"w": torch.ones(9999)}}, state={"step": 4}, files={})
    found = Checkpoint(place, in_part=True)
    assert found.header("model")["w"].shape == [9999]
    values = found.read("model")
    flip(place / "model.safetensors", 30_000)
    with pytest.raises(CheckpointError, match="damaged: model.safetensors does not match its SHA-256"):
        dict(values)


def test_what_is_cut_short_after_it_was_compared_is_not_used(two_files: Path) -> None:
    found = Checkpoint(two_files)
    os.truncate(two_files / "model.safetensors", 90)
    with pytest.raises(CheckpointError, match="damaged: model.safetensors does not match its SHA-256"):
        found.tensors("model")


def test_a_checkpoint_that_is_pruned_while_it_is_read_is_read_to_the_end(two_files: Path) -> None:
    found = Checkpoint(two_files, in_part=True)
    shutil.rmtree(two_files)
    assert found.tensors("optimizer")["w"][0, 0] == 2


def test_a_checkpoint_leaves_no_file_open(two_files: Path) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    found = Checkpoint(two_files)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del found
    (two_files / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        Checkpoint(two_files)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_whole_content_that_is_no_file_of_tensors_is_no_damage(two_files: Path) -> None:
    resealed(two_files, "model.safetensors", b"x" * 40)
    message = "^.*step-00000004/model.safetensors cannot be read: a header of [0-9,]+ bytes in a file of 40$"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(two_files).tensors("model")


def test_a_disk_that_fails_while_it_is_read_is_no_damage(two_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(reading: hashing.HashedReading, memory: memoryview) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashing.HashedReading, "fill", failing)
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*-00000004: model.safetensors: Input/output"):
        Checkpoint(two_files).tensors("model")


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


def test_a_format_that_was_edited_does_not_match_the_seal(store: CheckpointStore) -> None:
    file = save(store, 5) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(CheckpointError, match="does not match its own seal"):
        Checkpoint(file.parent)


def test_another_format_is_refused(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "FORMAT", 2)
    place = save(store, 5)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 2, this version reads 1 only"):
        Checkpoint(place)


def test_what_may_be_whole_is_not_passed_over(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1)
    monkeypatch.setattr(sealing, "FORMAT", 2)
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


HOLDERS = {"": module, "sealing": sealing, "hashing": hashing, "os": os, "shutil": shutil, "Path": Path}
CALLS = [
    "write_sealed",
    "sealing.write_tensors",
    "hashing._write",
    "sealing.write_synced",
    "sealing.sync",
    "os.fsync",
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
    monkeypatch.setattr(hashing, "CHUNK", 40)
    monkeypatch.setattr(hashing, "FLUSH", 80)
    crashes = 0
    while crash(CheckpointStore(tmp_path / str(crashes)), monkeypatch, call, when=crashes):
        crashes += 1
    assert crashes > 0


def crash(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, call: str, when: int) -> bool:
    """Die in the fourth or fifth save before a call, after `when` others; False if there are not so many."""
    for step in (1, 2, 3):
        save(store, step)
    holder, _, name = call.rpartition(".")
    target = HOLDERS[holder]
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


def test_all_is_flushed_before_the_manifest_and_the_manifest_before_its_name(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename, replace, write = os.fsync, os.rename, os.replace, sealing.write_synced

    def flushed(descriptor: int) -> None:
        events.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def renamed(place: Path, new: Path) -> None:
        events.append(f"rename to {new.name}")
        rename(place, new)

    def replaced(place: Path, new: Path) -> None:
        events.append(f"replace {new.name}")
        replace(place, new)

    def written(path: Path, content: bytes) -> None:
        events.append(f"write {path.name}")
        write(path, content)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(sealing, "write_synced", written)
    save(store, 5)
    folder = ".step-00000005.new"
    of_files = {f"flush {name}" for name in ("model.safetensors", "state.json", "config.yaml")}
    manifest, name = events.index("write manifest.json"), events.index("rename to step-00000005")
    assert of_files < set(events[:manifest])
    assert events[manifest - 1] == f"flush {folder}"
    assert events[manifest + 1 : name] == ["flush manifest.json", f"flush {folder}"]
    assert events[name + 1 :] == ["flush checkpoints", "replace last", "flush checkpoints"]


def test_whoever_may_read_the_folder_may_read_the_files(store: CheckpointStore) -> None:
    save(store, 1)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (store.folder / "last").iterdir()}
    assert modes == {stat.S_IMODE((store.folder / "last").stat().st_mode) & 0o666}


def test_a_full_disk_is_one_line_and_spares_what_stands(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 1)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in (f"{sealing.__name__}.write_synced", f"{hashing.__name__}._write"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
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


@pytest.mark.parametrize("lost", [["best"], ["best", "last"], []])
def test_where_the_name_is_lost_the_newest_one_says_which_was_best(tmp_path: Path, lost: list[str]) -> None:
    store = CheckpointStore(tmp_path / "run/checkpoints")
    for step in (1, 2):
        state = {"step": step, "counters": {"best_step": 1}}
        store.save(step, tensors={"model": {"w": torch.ones(1)}}, state=state, files={}, best=step == 1)
    for name in lost:
        (store.folder / name).unlink()
    assert open_checkpoint(tmp_path / "run").step == 1
    shutil.rmtree(store.folder / "step-00000001")
    assert open_checkpoint(tmp_path / "run").step == 2


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing does not exist: expected a run's folder or a checkpoint's"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no manifest, so it is not a complete checkpoint"):
        open_checkpoint(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is a file: expected a run's folder or a checkpoint's"):
        open_checkpoint(tmp_path / "file")
    RunFolder(tmp_path / "run").create("training: {}\n")
    with pytest.raises(CheckpointError, match="run holds no checkpoint yet"):
        open_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is no run, but holds some: name one of them, such as .*run$"):
        open_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        open_checkpoint(tmp_path)


def as_texts(store: CheckpointStore) -> None:
    for name in ("best", "last"):
        target = os.readlink(store.folder / name)
        (store.folder / name).unlink()
        (store.folder / name).write_text(f"{target}\n")


def as_copies(store: CheckpointStore) -> None:
    """As `cp -rL`, `scp -r`, `rsync -L` and zip leave it."""
    copy = store.folder.with_name("copy")
    subprocess.run(["cp", "-rL", store.folder, copy], check=True)
    shutil.rmtree(store.folder)
    copy.rename(store.folder)


def dropped(store: CheckpointStore) -> None:
    for name in ("best", "last"):
        (store.folder / name).unlink()


COPIES = {"links": lambda store: None, "texts": as_texts, "copies": as_copies, "dropped": dropped}


@pytest.fixture
def run(tmp_path: Path) -> CheckpointStore:
    """Four checkpoints were saved, and the second is the best."""
    store = CheckpointStore(tmp_path / "run/checkpoints", keep=3)
    for step in (1, 2, 3, 4):
        save(store, step, best=step == 2, best_step=min(step, 2))
    return store


@pytest.mark.parametrize("how", COPIES)
def test_a_run_is_sampled_and_goes_on_however_it_was_copied(
    run: CheckpointStore, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    COPIES[how](run)
    assert open_checkpoint(run.folder.parent).state["step"] == 2
    assert open_checkpoint(run.folder).state["step"] == 2
    if how != "dropped":
        assert open_checkpoint(run.folder / "last").state["step"] == 4
    run.adopt_copies()
    found, damage = run.newest_sound()
    assert found is not None
    assert (found.state["step"], damage) == (4, [])
    run.go_back_to(4, best_step=2)
    save(run, 5)
    assert names(run) == ["best", "last", *map(checkpoint_name, (2, 3, 4, 5))]
    assert [os.readlink(run.folder / name) for name in ("best", "last")] == [checkpoint_name(2), checkpoint_name(5)]


def test_a_copy_is_what_is_left_of_a_checkpoint_that_is_gone_or_damaged(run: CheckpointStore) -> None:
    as_copies(run)
    shutil.rmtree(run.folder / checkpoint_name(2))
    (run.folder / checkpoint_name(4) / "model.safetensors").write_bytes(b"")
    run.adopt_copies()
    assert run.steps() == [2, 3, 4]
    found, damage = run.newest_sound()
    assert found is not None
    assert (found.state["step"], damage) == (4, [])
    assert open_checkpoint(run.folder.parent).state["step"] == 2


def test_a_damaged_copy_is_quarantined(run: CheckpointStore) -> None:
    as_copies(run)
    (run.folder / "best/state.json").write_bytes(b"")
    run.adopt_copies()
    assert names(run) == ["damaged-best", "last", *map(checkpoint_name, (2, 3, 4))]
    assert open_checkpoint(run.folder.parent).state["step"] == 2


def test_without_names_a_checkpoint_that_was_half_copied_is_passed_over(run: CheckpointStore) -> None:
    dropped(run)
    (run.folder / checkpoint_name(4) / "model.safetensors").write_bytes(b"half")
    (run.folder / checkpoint_name(3) / "manifest.json").unlink()
    shutil.rmtree(run.folder / checkpoint_name(1), ignore_errors=True)
    assert open_checkpoint(run.folder.parent).state["step"] == 2


@pytest.mark.parametrize("how", ["link", "text"])
@pytest.mark.parametrize("target", ["../../other/checkpoints/step-00000001", "/", "best", "step-1", "."])
def test_names_that_lead_outside_the_run_are_refused(run: CheckpointStore, how: str, target: str) -> None:
    save(CheckpointStore(run.folder.parents[1] / "other/checkpoints"), 1)
    best = run.folder / "best"
    best.unlink()
    if how == "link":
        best.symlink_to(target)
    else:
        best.write_text(target)
    for refused in (lambda: open_checkpoint(run.folder.parent), lambda: open_checkpoint(best), run.adopt_copies):
        with pytest.raises(
            CheckpointError, match="checkpoints/best names '.*', which is no checkpoint beside it: remove"
        ):
            refused()
    best.unlink()
    assert open_checkpoint(run.folder.parent).state["step"] == 2


def test_a_step_that_leads_outside_is_refused_as_the_best(run: CheckpointStore) -> None:
    outside = run.folder.parents[1] / checkpoint_name(2)
    (run.folder / checkpoint_name(2)).rename(outside)
    (run.folder / checkpoint_name(2)).symlink_to(outside)
    with pytest.raises(
        CheckpointError, match="checkpoints/best names 'step-00000002', which is no checkpoint beside it"
    ):
        open_checkpoint(run.folder.parent)


@pytest.mark.parametrize("how", ["links", "texts"])
@pytest.mark.parametrize("into", ["elsewhere", "made/best"])
def test_a_name_that_was_copied_alone_says_what_to_type(run: CheckpointStore, how: str, into: str) -> None:
    COPIES[how](run)
    elsewhere = run.folder.parents[1]
    (elsewhere / "made").mkdir()
    subprocess.run(["cp", "-r", run.folder / "best", elsewhere / into], check=True)
    asked = [into, "made"] if "/" in into else [into] * (how == "links")
    for path in asked:
        with pytest.raises(CheckpointError, match="only the name of step-00000002, which is not beside it") as caught:
            open_checkpoint(elsewhere / path)
    if asked:
        line = str(caught.value).partition("type: ")[2].replace("RUN", str(run.folder.parent))
        subprocess.run(line, shell=True, check=True)
        assert open_checkpoint(elsewhere / into).state["step"] == 2


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("last")])
def test_a_name_that_is_no_file_is_refused_at_once(run: CheckpointStore, make: Any) -> None:
    (run.folder / "last").unlink()
    make(run.folder / "last")
    with pytest.raises(InputError, match="checkpoints/last: not a regular file|checkpoints/last names 'last'"):
        run.adopt_copies()


REFUSALS = [errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EIO]


def refusing(number: int, path: Any = None) -> Any:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", REFUSALS)
def test_without_links_the_names_are_text_files_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.setattr(os, "symlink", refusing(number))
    store = CheckpointStore(tmp_path / "run/checkpoints")
    for step in (1, 2, 3, 4):
        save(store, step, best=step == 2)
    assert not (store.folder / "best").is_symlink()
    assert (store.folder / "best").read_text() == "step-00000002\n"
    assert store.steps() == [2, 3, 4], "the best is kept"
    for path, step in (("run", 2), ("run/checkpoints/best", 2), ("run/checkpoints/last", 4)):
        assert open_checkpoint(tmp_path / path).state["step"] == step
    assert capsys.readouterr().out == (
        f"warning     the file system of {store.folder} has no symbolic links: best and last are small text files with "
        f"the name of a checkpoint ({os.strerror(number)})\n"
    )
    monkeypatch.undo()
    save(store, 5)
    assert os.readlink(store.folder / "last") == "step-00000005", "a run may move to a better file system"
    assert store.named("best") == store.folder / "step-00000002"


@pytest.mark.parametrize("number", REFUSALS)
def test_without_flushed_folders_and_modes_a_checkpoint_is_saved_and_the_first_is_said_once(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    flush = os.fsync

    def flush_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", flush_files)
    monkeypatch.setattr(os, "chmod", refusing(number))
    for step in (1, 2):
        save(store, step)
    assert Checkpoint(store.folder / "last").state["step"] == 2
    (said,) = capsys.readouterr().out.splitlines()
    assert "flushes no folders (fsync): a killed run loses nothing, but after a power failure its newest" in said


def test_a_disk_that_does_not_flush_a_file_is_an_error(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1)
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(CheckpointError, match="cannot write checkpoint .*step-00000002: Input/output error"):
        save(store, 2)
    assert store.steps() == [1]


def test_links_that_a_full_disk_refuses_are_an_error(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "symlink", refusing(errno.ENOSPC))
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(store, 1)


def resealed(folder: Path, name: str, content: bytes) -> None:
    """Put something else into a checkpoint, as if it had been written so."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["seal"] = seal(manifest["format"], manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"step": 1e999}', "the number '1e999', which is too large"),
        (f'{{"step": {"1" * 400}}}', "a number of 400 digits"),
        ("[" * 100_000, "nested too deep"),
        ('{"step": "3"}', r"step: expected a whole number from 0 to 1e\+15, got '3'"),
        ("{}", "step is missing"),
        ("[3]", r"expected an object, got \[3\]"),
        ("\xff", "not JSON"),
    ],
)
def test_a_state_that_makes_no_sense_is_named(store: CheckpointStore, content: str, fault: str) -> None:
    place = save(store, 3)
    resealed(place, "state.json", content.encode())
    with pytest.raises(InputError, match=f"step-00000003/state.json: {fault}"):
        store.newest_sound()
    assert store.steps() == [3], "nothing is renamed"


@pytest.mark.parametrize(
    "manifest",
    ["[" * 100_000, '{"format": 1e999}', f'{{"format": {"1" * 400}, "files": {{}}, "seal": ""}}', "\xff\xfe", "[]"],
)
def test_a_manifest_that_makes_no_sense_is_named(store: CheckpointStore, manifest: str) -> None:
    place = save(store, 3)
    (place / "manifest.json").write_text(manifest, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"step-00000003 is damaged: manifest.json makes no sense \("):
        Checkpoint(place)


@pytest.mark.parametrize(
    "entries", [{"state.json": {}}, {"state.json": 3}, {"../state.json": {"size": 1, "sha256": ""}}]
)
def test_entries_of_a_manifest_that_make_no_sense_are_named(store: CheckpointStore, entries: Any) -> None:
    place = save(store, 3)
    manifest = {"format": 1, "files": entries, "seal": seal(1, entries)}
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"manifest.json makes no sense \((files|'../state.json')"):
        Checkpoint(place)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["a FIFO", "a loop", "a folder"])
def test_what_is_no_file_in_a_files_place_is_named_at_once(store: CheckpointStore, name: str, kind: str) -> None:
    file = save(store, 3) / name
    file.unlink()
    make, fault = {
        "a FIFO": (os.mkfifo, "not a regular file"),
        "a loop": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        "a folder": (os.mkdir, "Is a directory"),
    }[kind]
    make(file)
    with pytest.raises(CheckpointError, match=f"cannot read checkpoint .*step-00000003: {name}: {fault}"):
        store.newest_sound()
