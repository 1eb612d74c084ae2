"""`launch/runs.py` as a person types it."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, command, read_metrics
from run_folders import make_run, spoil

import gpt
from launch.runs import main
from training.runtime.errors import exit_code

RUNS = ROOT / "launch/runs.py"
Said = Callable[..., tuple[int, str]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Said:
    """Run the command in a folder of runs, with an answer to its question: its exit code, and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, answer: str = "") -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["runs.py", *words])
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        code = exit_code(main)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_runs_are_listed_as_a_table_and_as_json(said: Said, tmp_path: Path) -> None:
    make_run(Path("runs/one"))
    spoil(make_run(Path("runs/two"), [2.5]).checkpoints / "step-00000010/tokenizer.json")
    code, text = said("list")
    assert code == 0
    assert [line.split()[:4] for line in sorted(text.splitlines()) if line.startswith("runs/")] == [
        ["runs/one", "done", "gpt", "20/20"],
        ["runs/two", "damaged", "10", "2.5000"],
    ]
    assert f"damaged     checkpoint {tmp_path}/runs/two/checkpoints/step-00000010 is damaged: tokenizer.json" in text
    assert said("list", "--state", "running") == (0, "there are no runs in runs that are running\n")
    _, text = said("list", "--state", "done", "--json", "-")
    [run] = json.loads(text)
    assert (run["path"], run["state"], run["best"], run["checkpoints"][1]["names"]) == (
        "runs/one",
        "done",
        1.0,
        ["best", "last"],
    )
    assert said("list", "--json", "all.json") == (0, "all.json\n")
    assert len(json.loads(Path("all.json").read_text())) == 2


def test_a_run_is_shown_and_verified(said: Said) -> None:
    run = make_run(Path("runs/one"), [2.0])
    code, text = said("show", "runs/one", "--verify")
    assert code == 0
    assert "state         stopped\n" in text
    assert "step          10 of 20, 320 tokens in 5 s\n" in text
    assert "launch/train_gpt.py --output_dir runs/one --resume\n" in text
    spoil(run.checkpoints / "step-00000010/model.safetensors")
    assert said("show", "runs/one")[0] == 0, "the sizes are right"
    code, text = said("show", "runs/one", "--verify")
    assert code == 1
    assert "step-00000010  best, last  2.0000" in text
    assert text.splitlines()[-1].endswith("is damaged: model.safetensors does not match its SHA-256")


def test_nothing_is_removed_without_a_yes(said: Said) -> None:
    make_run(Path("runs/one"))
    for answer in ("", "n\n", "yess\n"):
        code, text = said("prune", "runs/one", answer=answer)
        assert code == 0
        assert "remove this run, " in text
        assert text.endswith("nothing was removed\n")
    assert said("prune", "runs/one", "--yes", "--dry_run")[1].endswith("nothing was removed (--dry_run)\n")
    assert Path("runs/one/config.yaml").exists()
    assert said("prune", "runs/one", answer="y\n")[1].endswith("removed runs/one\n")
    assert os.listdir("runs") == []
    assert said("prune", "--keep", "1", "--yes") == (0, "nothing to remove\n")


def test_a_running_run_is_left_alone(said: Said) -> None:
    running = make_run(Path("runs/one"))
    make_run(Path("runs/two"))
    running.claim()
    code, text = said("prune", "--worse_than", "0.5", "--yes")
    assert code == 0
    assert "left alone runs/one: it is running\n" in text
    assert os.listdir("runs") == ["one"]
    assert "nothing to remove" in said("prune", "--checkpoints", "--yes")[1]
    running.release()


def test_checkpoints_are_removed_from_runs_wherever_they_are(said: Said) -> None:
    make_run(Path("elsewhere/one"), [3.0, 1.0, 2.0])
    code, text = said("prune", "elsewhere/one", "--checkpoints", "--yes")
    assert code == 0
    assert "elsewhere/one: remove step-00000010 (" in text
    assert "keep step-00000020, step-00000030\n" in text
    assert sorted(os.listdir("elsewhere/one/checkpoints")) == ["best", "last", "step-00000020", "step-00000030"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prune", "say what to remove: RUN, --older_than, --worse_than, --state, --keep, --keep_best"),
        ("prune --keep -1", "keep must be at least 0, got -1"),
        ("prune --checkpoints --keep 0", "keep must be at least 1, got 0"),
        ("prune none", "none holds no run: expected the folder of one"),
        ("list --runs none", "cannot look for runs in none: No such file or directory"),
        ("show .", ". holds no run: expected the folder of one"),
        ("remove", "expected one of 'list', 'show', 'prune', 'copy', got remove"),
        ("copy a b --whole --weights_only", "--whole is for a run that goes on, and --weights_only for one that"),
        ("copy a b", "a does not exist: expected a run's folder or a checkpoint's"),
        ("list --jsn x", "unknown option jsn: did you mean json?"),
    ],
)
def test_bad_input_is_one_line(words: str, message: str, said: Said) -> None:
    code, text = said(*words.split())
    assert (code, text.count("\n")) == (2, 1)
    assert message in text


@pytest.mark.ci
def test_copies_are_evaluated_and_go_on_where_the_run_is_not(runs: Path, tmp_path: Path) -> None:
    copied = command(RUNS, "copy", runs / "small/checkpoints/best", "alone", cwd=tmp_path)
    assert copied.returncode == 0, copied.stderr
    loaded, source = gpt.load(tmp_path / "alone"), gpt.load(runs / "small")
    for name, value in source.model.state_dict().items():
        assert value.equal(loaded.model.state_dict()[name])
    whole = command(RUNS, "copy", runs / "small", "whole", "--whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    text = runs.parent / "text.txt"
    resume = ["--output_dir", "whole", "--resume", "--data.source", text, "--training.max_steps", "50"]
    done = command(ROOT / "launch/train_gpt.py", *resume, cwd=tmp_path)
    assert "resuming    after step 40" in done.stdout, done.stderr
    assert read_metrics(tmp_path / "whole")[-1]["step"] == 50


def test_a_link_that_is_named_is_left_alone_with_what_it_leads_to(said: Said) -> None:
    make_run(Path("runs/one"), [3.0, 1.0, 2.0])
    Path("runs/link").symlink_to("one")
    for more in ([], ["--checkpoints"]):
        code, text = said("prune", "runs/link", "--yes", *more)
        assert code == 0
        assert text.splitlines() == [
            "left alone runs/link: it is a link, and what it leads to lies elsewhere",
            "nothing to remove",
        ]
    assert len(os.listdir("runs/one/checkpoints")) == 5


@pytest.mark.parametrize("place", ["elsewhere/base", "runs/base"])
def test_an_adapter_is_seen_beside_its_base_and_behind_a_link(place: str, said: Said) -> None:
    base = make_run(Path(place).resolve())
    adapter = make_run(Path("elsewhere/adapter"), more={"init_from": str(base.path), "lora": {"rank": 4}})
    if place == "runs/base":
        Path("runs/link").symlink_to(adapter.path.resolve())
    code, text = said("prune", place, "--yes")
    assert (code, text.count(f"left alone {place}: ")) == (0, 1)
    assert text.endswith(" needs its weights\nnothing to remove\n")
    assert base.config_file.exists()


def test_a_run_is_left_alone_that_is_needed_by_the_time_of_the_answer(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_run(Path("runs/base"))

    def begin(*_: object) -> bool:
        make_run(Path("runs/adapter"), more={"init_from": str(base.path.resolve()), "lora": {"rank": 4}})
        return True

    monkeypatch.setattr("training.runs.commands._agreed", begin)
    assert said("prune", "runs/base")[1].endswith("left alone runs/base: runs/adapter needs its weights\n")
    assert base.config_file.exists()


def test_what_a_removal_has_left_that_was_interrupted_goes_with_the_next(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = make_run(Path("runs/group/one")), make_run(Path("runs/other"))

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        assert said("prune", str(run.path), "--yes")[0] == 130
    hidden = Path("runs/group/.pruned-one")
    line = f"{hidden}: left of a removal that was interrupted; it goes\n"
    assert said("prune", "--older_than", "1", "--dry_run") == (0, f"{line}nothing to remove\n")
    assert hidden.exists()
    assert said("prune", "--older_than", "1") == (0, f"{line}nothing to remove\n")
    assert not hidden.exists()
    assert other.config_file.exists()


def test_folders_of_others_are_no_runs_and_what_no_run_writes_is_never_removed(said: Said) -> None:
    site, lightning, run = Path("runs/site"), Path("runs/lightning"), make_run(Path("runs/one"))
    for folder in (site / ".git", lightning / "checkpoints"):
        folder.mkdir(parents=True)
    (site / "config.yaml").write_text("title: my site\n")
    (lightning / "checkpoints/epoch=1.ckpt").write_text("weights")
    (run.path / "thesis.tex").write_text("precious")
    assert "site" not in said("list")[1]
    assert "lightning" not in said("list")[1]
    left = (
        "left alone runs/one: 'thesis.tex' lies in it, which no run writes: take it out, or remove the folder yourself"
    )
    assert said("prune", "--keep_best", "0", "--state", "done", "--yes") == (0, f"{left}\nnothing to remove\n")
    assert said("prune", str(site), "--yes")[0] == 2
    (run.path / "thesis.tex").unlink()
    assert "removed runs/one" in said("prune", "--state", "done", "--yes")[1]
    assert (site / ".git").exists()


def test_a_run_that_is_named_twice_is_one(said: Said) -> None:
    make_run(Path("elsewhere/one"))
    code, text = said("prune", "elsewhere/one", "elsewhere/../elsewhere/one", "--yes")
    assert (code, text.count("removed elsewhere")) == (0, 1)


def test_checkpoints_whose_names_make_no_sense_keep_no_other_run_from_being_pruned(said: Said) -> None:
    odd, plain = make_run(Path("runs/odd")), make_run(Path("runs/plain"), [3.0, 1.0, 2.0])
    (odd.checkpoints / "best").unlink()
    (odd.checkpoints / "best").symlink_to("/")
    code, text = said("prune", "--checkpoints", "--yes")
    assert code == 0
    assert "left alone runs/odd: runs/odd/checkpoints/best names '/'" in text
    assert (len(os.listdir(odd.checkpoints)), len(os.listdir(plain.checkpoints))) == (4, 4)


def test_a_copy_of_a_run_without_checkpoints_is_a_copy(said: Said) -> None:
    make_run(Path("runs/one"), []).metrics_file.touch()
    assert said("copy", "runs/one", "copy", "--whole") == (0, "copied to   copy\n")


def test_a_name_that_looks_like_an_option_is_typed_as_a_path(said: Said) -> None:
    make_run(Path("runs/one"))
    assert said("copy", "runs/one", "./-copy")[1].endswith("evaluate.py --checkpoint ./-copy\n")
