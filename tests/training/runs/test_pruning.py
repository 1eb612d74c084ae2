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
from training.storage.files import replace_link
from training.storage.manifest import verified_manifest
from training.storage.run_folder import RunFolder


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


def test_what_is_called_the_best_stays_where_the_counters_name_another(tmp_path: Path) -> None:
    """As where a run goes on by another part of the validation split, and chooses its best anew."""
    run = make_run(tmp_path / "run", [3.0, 2.0, 1.0, 1.5])
    replace_link(run.checkpoints / "best", "step-00000010")
    steps = ["step-00000010", "step-00000030", "step-00000040"]
    assert [path.name for path in slimming(read_run(run.path), 1).kept] == steps


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


def test_a_link_is_no_name_of_the_run_that_it_leads_to(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    runs = [*find_runs(tmp_path), read_run(tmp_path / "link")]
    assert Choice(names=[tmp_path / "link"]).of(runs) == []
    assert [run.path.name for run in Choice(names=[tmp_path / "link", tmp_path / "run"]).of(runs)] == ["run"]
    assert Choice(keep=1).of(runs[::-1]) == [], "a link is none of the newest"


def test_the_best_runs_are_those_of_losses_that_compare(tmp_path: Path) -> None:
    for name, loss, text in (("coarse", 3.0, "few tokens"), ("fine", 1.0, "many tokens"), ("worse", 3.5, "few tokens")):
        run = make_run(tmp_path / name, [loss], text=text)
        # The newest bits per byte are not those of the best loss.
        run.append_metrics({"step": 20, "val_loss": 4.0, "bits_per_byte": 9.0 - loss})
    assert [run.path.name for run in Choice(keep_best=1).of(find_runs(tmp_path))] == ["worse"]


def test_a_damaged_run_is_not_kept_for_the_best_sound_one(tmp_path: Path) -> None:
    damaged, other = make_run(tmp_path / "damaged", [1.0, 2.0]), make_run(tmp_path / "unknown", [0.5])
    spoil(damaged.checkpoints / "step-00000010/state.json")
    spoil(other.checkpoints / "step-00000010/state.json")
    make_run(tmp_path / "sound", [1.5])
    make_run(tmp_path / "worse", [1.6])
    make_run(tmp_path / "not-evaluated", [])
    chosen = Choice(keep_best=1).of(find_runs(tmp_path))
    assert {run.path.name for run in chosen} == {"worse", "not-evaluated"}


@pytest.mark.parametrize("names", ["absolute", "relative", "moved"])
def test_a_base_is_found_however_its_adapter_names_it(names: str, tmp_path: Path) -> None:
    base = make_run(tmp_path / "project/runs/base")
    sha256 = verified_manifest(base.checkpoints / "step-00000010")["model.safetensors"].sha256
    source = {"absolute": f"{base.path}", "relative": "runs/base/checkpoints/best", "moved": "/gone/base"}[names]
    more = {"init_from": source, "init_sha256": sha256, "lora": {"rank": 4}}
    adapter = make_run(tmp_path / "project/runs/adapter", more=more)
    adapter.config_file.write_text("a: [")  # Its checkpoint says it too.
    runs = find_runs(tmp_path)
    reasons = {run.path.name: obstacle(run, runs) for run in runs}
    assert reasons == {"base": f"{adapter.path} needs its weights", "adapter": None}


def test_a_run_whose_checkpoints_are_all_damaged_needs_what_it_began_with(tmp_path: Path) -> None:
    base = make_run(tmp_path / "base")
    begun = make_run(tmp_path / "begun", [1.0], more={"init_from": str(base.path)})
    spoil(begun.checkpoints / "step-00000010/state.json")
    runs = find_runs(tmp_path)
    assert {run.path.name: obstacle(run, runs) for run in runs}["base"] == f"{begun.path} needs its weights"


def test_a_run_with_another_one_in_it_is_not_removed(tmp_path: Path) -> None:
    inner = make_run(make_run(tmp_path / "run").path / "tuned/again")
    [run] = [run for run in find_runs(tmp_path) if run.path.name == "run"]
    assert obstacle(run, []) == f"the run {inner.path} lies in it"
    assert obstacle(run, [], whole=False) is None


def test_a_run_of_a_sweep_that_is_running_is_not_removed(tmp_path: Path) -> None:
    run, sweep = read_run(make_run(tmp_path / "sweep/run").path), RunFolder(tmp_path / "sweep")
    (tmp_path / "sweep/sweep.json").write_text("{}")
    sweep.claim()
    assert obstacle(run, []) == "its sweep is running"
    sweep.release()
    assert obstacle(run, []) is None


def test_what_has_changed_since_it_was_shown_is_not_removed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [3.0, 2.0, 1.0])
    shown = read_run(run.path)
    plan = slimming(shown, 1)
    run.append_metrics({"step": 40})
    with pytest.raises(InputError, match="run has changed since it was looked at: nothing of it was removed"):
        remove_run(run.path, shown.size)
    with pytest.raises(InputError, match="run has changed since it was looked at: nothing of it was removed"):
        remove_checkpoints(plan)
    assert [saved.step for saved in read_run(run.path).checkpoints] == [10, 20, 30]
    with pytest.raises(InputError, match="none is gone"):
        remove_run(tmp_path / "none", 1)
    assert not (tmp_path / "none").exists()


def test_the_folder_that_one_is_in_is_removed_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_run(tmp_path / "run").path)
    remove_run(Path())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("best", ["missing", "dangling", "text"])
def test_the_best_checkpoint_stays_where_its_name_is_lost(best: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [3.0, 1.0, 2.0, 2.5])
    name = run.checkpoints / "best"
    name.unlink()
    if best == "dangling":
        name.symlink_to("step-00000005")
    elif best == "text":
        name.write_text("step-00000005\n")
    plan = slimming(read_run(run.path), 1)
    assert [path.name for path in plan.kept] == ["step-00000020", "step-00000040"]
    assert [path.name for path in plan.removed] == ["step-00000010", "step-00000030"]


def test_where_the_best_checkpoint_is_damaged_the_best_sound_one_stays_as_well(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [3.0, 1.5, 1.0, 2.0, 2.5])
    spoil(run.checkpoints / "step-00000030/model.safetensors")
    plan = slimming(read_run(run.path), 1)
    assert [path.name for path in plan.kept] == ["step-00000020", "step-00000030", "step-00000050"]
    (run.checkpoints / "step-00000030/manifest.json").unlink()
    plan = slimming(read_run(run.path), 1)
    remove_checkpoints(plan)
    assert [saved.step for saved in read_run(run.path).checkpoints] == [20, 30, 50]
