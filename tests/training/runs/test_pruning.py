"""What is pruned, and what never is."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import PLAIN, make_run, spoil

from training.runs.listing import find_runs, read_run
from training.runs.pruning import Choice, obstacle, remove_checkpoints, remove_run, slimming
from training.runtime.errors import InputError
from training.storage.checkpoint import Checkpoint, CheckpointStore


def aged(path: Path, days: float) -> None:
    for file in (path, *path.rglob("*")):
        os.utime(file, (file.lstat().st_mtime - days * 86_400,) * 2, follow_symlinks=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Runs of 0, 1, 2 and 3 days with best losses of 1, 4, 2 and 3, the last one of another text."""
    for days, loss in enumerate((1.0, 4.0, 2.0, 3.0)):
        run = make_run(tmp_path / f"day-{days}", [loss + 1, loss], text="other" if days == 3 else "text")
        aged(run.path, days)
    return tmp_path


@pytest.mark.parametrize(
    ("choice", "days"),
    [
        (Choice(older_than=1.5), {2, 3}),
        (Choice(worse_than=2.0), {1, 3}),
        (Choice(worse_than=2.0, older_than=1.5), {3}),
        (Choice(keep=3), {3}),
        (Choice(keep_best=1), {1, 2}),
        (Choice(keep_best=2), {1}),
        (Choice(keep=1, keep_best=1), {1, 2}),
        (Choice(state="done"), {0, 1, 2, 3}),
        (Choice(state="stopped"), set()),
    ],
    ids=str,
)
def test_all_that_is_asked_for_holds_of_what_is_chosen(choice: Choice, days: set[int], folder: Path) -> None:
    assert {run.path.name for run in choice.of(find_runs(folder))} == {f"day-{day}" for day in days}


def test_a_run_is_chosen_by_its_name_however_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    chosen = Choice(names=[Path("day-1/"), folder / "day-2"], worse_than=3.0).of(find_runs(Path()))
    assert [str(run.path) for run in chosen] == ["day-1"]


def test_a_run_that_is_running_or_a_link_or_needed_is_never_removed(tmp_path: Path) -> None:
    running, free = make_run(tmp_path / "running"), make_run(tmp_path / "free")
    base = make_run(tmp_path / "base")
    adapter = {"init_from": f"{base.checkpoints}/step-00000020", "lora": {"rank": 4}}
    make_run(tmp_path / "adapter", more=adapter)
    make_run(tmp_path / "tuned", more={"init_from": str(free.path)})
    source = make_run(tmp_path / "source")
    begun = make_run(tmp_path / "begun", [], more={"init_from": str(source.path)})
    begun.metrics_file.touch()
    (tmp_path / "link").symlink_to(free.path)
    running.claim()
    runs = [*find_runs(tmp_path), read_run(tmp_path / "link")]
    reasons = {run.path.name: obstacle(run, runs) for run in runs}
    assert reasons == {
        "running": "it is running",
        "base": f"{tmp_path / 'adapter'} needs its weights",
        "source": f"{tmp_path / 'begun'} needs its weights",
        "begun": None,
        "link": "it is a link, and what it leads to lies elsewhere",
        "free": None,
        "adapter": None,
        "tuned": None,
    }
    with pytest.raises(InputError, match="another process is writing to .*running"):
        remove_run(running.path)
    with pytest.raises(InputError, match="another process is writing to .*running"):
        remove_checkpoints(slimming(read_run(running.path), 1))
    with pytest.raises(InputError, match="link is a link"):
        remove_run(tmp_path / "link")
    assert read_run(running.path).state == "running"
    assert [saved.step for saved in read_run(running.path).checkpoints] == [10, 20]
    running.release()


def test_what_links_in_a_run_lead_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("kept")
    run = make_run(tmp_path / "run")
    (run.path / "samples/folder").symlink_to(tmp_path / "kept")
    (run.checkpoints / "file").symlink_to(tmp_path / "kept/file")
    remove_run(run.path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept/file").read_text() == "kept"


def test_a_removal_that_was_cut_short_leaves_no_half_of_a_run_and_is_ended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")

    def refusing(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refusing)
        with pytest.raises(InputError, match=r"cannot remove .*run: .*\.pruned-run: Permission denied"):
            remove_run(run.path)
    assert find_runs(tmp_path) == []
    make_run(tmp_path / "run")
    remove_run(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_best_and_the_newest_sound_checkpoint_stay(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [3.0, 1.0, 2.0, 2.5, 2.6], replace(PLAIN))
    spoil(run.checkpoints / "step-00000050/optimizer.safetensors")
    (run.checkpoints / "damaged-step-00000060").mkdir()
    (run.checkpoints / "damaged-step-00000060/model.safetensors").write_text("123")
    plan = slimming(read_run(run.path), 1)
    assert [path.name for path in plan.kept] == ["step-00000020", "step-00000040"]
    assert plan.size == sum(file.stat().st_size for path in plan.removed for file in path.iterdir()), (
        "what is removed is what was said"
    )
    remove_checkpoints(plan)
    names = ["best", "last", "step-00000020", "step-00000040"]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == names
    store = CheckpointStore(run.checkpoints)
    assert [Checkpoint(store.named(name) or Path()).step for name in ("best", "last")] == [20, 40]


def test_checkpoints_without_a_sound_one_stay(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for step in (10, 20):
        spoil(run.checkpoints / f"step-{step:08d}/model.safetensors")
    assert slimming(read_run(run.path), 1).removed == []


def test_nothing_is_removed_where_what_was_to_stay_has_gone_meanwhile(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [3.0, 2.0, 1.0])
    plan = slimming(read_run(run.path), 1)
    remove_checkpoints(slimming(read_run(run.path), 2))
    (run.checkpoints / "step-00000030/manifest.json").unlink()
    with pytest.raises(InputError, match="step-00000030 was to stay, and is gone: nothing was removed"):
        remove_checkpoints(plan)
    assert (run.checkpoints / "step-00000020/manifest.json").exists()
