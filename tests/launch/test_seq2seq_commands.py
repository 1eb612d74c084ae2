"""The commands of the encoder-decoder as a person types them."""

import json
import re
from pathlib import Path
from shutil import copytree

import pytest
from helpers import ROOT, command, read_metrics

from training.config.plain_yaml import load_yaml

TRAIN, EVALUATE, BENCH = (ROOT / f"launch/{name}.py" for name in ("train_seq2seq", "evaluate", "bench_kv_cache"))
SHAPE = "--model.num_layers 1 --model.d_model 32 --model.d_ff 48 --model.max_len 16"
SMALL = [*SHAPE.split(), "--data.max_length", "3"]
QUICK = ["--data.symbols", "abcdefgh", "--data.val_samples", "40", "--training.batch_size", "16"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a small model has learnt to copy, as runs/seq2seq-copy-1."""
    folder = tmp_path_factory.mktemp("trained")
    done = command(TRAIN, *SMALL, *QUICK, "--training.max_steps", "200", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def test_training_says_what_it_is_and_what_came_out(trained: Path) -> None:
    printed = (trained / "printed.txt").read_text()
    for pattern in (
        r"data        copy strings of 1 to 3 of 8 symbols, only 8 of length 1, 64 of length 2, 512 of length 3, \d",
        r"folder      runs/seq2seq-copy-1",
        r"source  prediction  target",
        r"step 200/200  validation loss \d\.\d{4}  \(",
        r"trained 200 steps on [\d,]+ tokens in \d+ s",
        r"exact match      \d\.\d{4} of the validation pairs, decoded greedily",
        r"python[0-9.]* \S*launch/evaluate.py --checkpoint runs/seq2seq-copy-1 --source abc",
        r"python[0-9.]* \S*launch/evaluate.py --checkpoint runs/seq2seq-copy-1 --split test",
        r"python[0-9.]* -m tensorboard.main --logdir runs",
        r"--output_dir runs/seq2seq-copy-1 --resume --training.max_steps 400 --schedule.restart_step 200\n",
    ):
        assert re.search(pattern, printed), pattern
    assert read_metrics(trained / "runs/seq2seq-copy-1")[-1]["exact_match"] > 0.9


def test_the_proposed_command_trains_on_with_the_runs_own_options_and_a_learning_rate_that_rises(
    trained: Path, tmp_path: Path
) -> None:
    copytree(trained / "runs", tmp_path / "runs", symlinks=True)
    resume = re.search(r"train on:    \S+ (.*)\n", (trained / "printed.txt").read_text())
    assert resume is not None
    done = command(*resume[1].replace("max_steps 400", "max_steps 215").split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "schedule.restart_step was 0, is now 200" in done.stdout
    assert "of its peak to" not in done.stdout
    assert load_yaml((tmp_path / "runs/seq2seq-copy-1/config.yaml").read_text())["data"]["symbols"] == "abcdefgh"
    jumping = command(TRAIN, "--resume", "--training.max_steps", "1000", "--print_config", cwd=tmp_path)
    assert load_yaml(jumping.stdout)["schedule"]["restart_step"] == 200, "the newest run's own, without its name"


def test_evaluate_prints_targets(trained: Path) -> None:
    evaluate = [EVALUATE, "--checkpoint", "runs/seq2seq-copy-1", "--source"]
    done = command(*evaluate, "abc", "ca", "h", cwd=trained)
    assert (done.returncode, done.stdout) == (0, "abc\nca\nh\n"), done.stderr
    assert command(*evaluate, "abc", "ca", "h", "--mode", "eager", cwd=trained).stdout == done.stdout
    drawn = command(*evaluate, "abc", "--temperature", "9", "--num_samples", "4", cwd=trained)
    assert drawn.returncode == 0, drawn.stderr
    assert len(set(drawn.stdout.splitlines())) > 1
    assert command(*evaluate, "abc", "--temperature", "9", "--num_samples", "4", cwd=trained).stdout == drawn.stdout
    beams = command(*evaluate, "abc", "--beams", "3", cwd=trained).stdout.splitlines()
    assert re.fullmatch(r"abc  \(log-probability -0\.\d{3}\)", beams[0])
    assert len(beams) == 3


def test_evaluate_measures_by_length(trained: Path) -> None:
    done = command(EVALUATE, "--checkpoint", "runs/seq2seq-copy-1", "--split", "test", "--count", "30", cwd=trained)
    assert done.returncode == 0, done.stderr
    first, _, loss, bits, head, *rows = done.stdout.splitlines()
    assert re.fullmatch(r"pairs         30 different ones of the test split of copy strings of 1 to 3 .*", first)
    assert re.fullmatch(r"loss          \d\.\d{4} nats per token", loss)
    assert re.fullmatch(r"bits per byte \d\.\d{4}", bits)
    assert head.split()[:4] == ["length", "pairs", "exact", "match"]
    assert [row.split()[0] for row in rows][-2:] == ["3", "all"]
    assert sum(int(row.split()[1]) for row in rows[:-1]) == int(rows[-1].split()[1]) == 30
    assert rows[-2].split()[3] == "512"
    longer = ["--split", "test", "--lengths", "4", "5", "--count", "20"]
    done = command(EVALUATE, "--checkpoint", "runs/seq2seq-copy-1", *longer, cwd=trained)
    assert [row.split()[0] for row in done.stdout.splitlines()[5:]] == ["4", "5", "all"]


def test_attention_is_drawn(trained: Path) -> None:
    draw = ["--source", "abc", "--attention", "attention.png"]
    done = command(EVALUATE, "--checkpoint", "runs/seq2seq-copy-1", *draw, cwd=trained)
    assert done.stdout == "abc\n"
    assert (trained / "attention.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "error: give either --source TEXT, to see its target, or --split, to measure"),
        (["--source", "abz"], "error: unknown character 'z' at position 3 of --source: it is not in the vocabulary"),
        (["--source", ""], "error: --source is empty: give at least one symbol"),
        (["--source", "a", "a" * 20], "error: source 2 has 20 tokens, at most 14 fit into the model's context of 16"),
        (["--source", "a", "--lengths", "1", "2"], "error: --lengths is for --split, to measure"),
        (["--split", "test", "--data.subset", "x"], "error: --data.subset is for --data.source, other pairs than"),
        (["--split", "test", "--beams", "2"], "error: --beams is for --source, to see a target"),
        (["--source", "a", "--beams", "2", "--top_k", "3"], "error: --top_k is for targets that are drawn: leave out"),
        (
            ["--split", "test", "--data.source", "x.csv"],
            "error: data.source is for data.task pairs only, got data.task",
        ),
        (["--source", "a" * 20], "error: --source has 20 tokens, at most 14 fit into the model's context of 16"),
        (["--source", "a", "--temperature", "-1"], "error: temperature must be at least 0, got -1.0"),
        (["--source", "a", "--beams", "-1"], "error: beams must be at least 1 and at most 1024, got -1"),
        (["--source", "a", "--num_samples", "0"], "error: num_samples must be at least 1, got 0"),
        (["--source", "a", "--top_k", "3"], "error: --top_k is for targets that are drawn: give a --temperature above"),
        (["--source", "a", "--num_samples", "3"], "error: --num_samples is for targets that are drawn: give a"),
        (["--source", "a", "--length_penalty", "3"], "error: --length_penalty is for --beams"),
        (["--source", "a", "b", "--attention", "x.png"], "error: --attention draws one source, got 2"),
        (["--source", "a", "--attention", "x.txt"], "error: cannot write x.txt: expected a name that ends in .png"),
        (["--split", "test", "--lengths", "3", "15"], "error: lengths must rise from 1 at least to 14 at most"),
        (["--split", "test", "--count", "0"], "error: count must be at least 1, got 0"),
        (["--prompt", "a"], "error: --prompt is for a GPT, and this is an encoder-decoder: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(trained: Path, options: list[str], line: str) -> None:
    done = command(EVALUATE, "--checkpoint", "runs/seq2seq-copy-1", *options, cwd=trained)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_training_refuses_bad_data_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"source": "a", "target": "b"}\n{"source": "a"}\n')
    for options, line in (
        (["--data.task", "pairs", "--data.source", "bad.jsonl"], "error: bad.jsonl, line 2: no column target: choose "),
        (["--data.task", "translate"], "error: data.task: expected one of 'copy', 'reverse', 'pairs', got translate"),
        (
            ["--data.max_length", "63"],
            "error: data.max_length must be at most model.max_len (64) minus 2 for start and end, got",
        ),
        (
            ["--model.positions", "learned", "--model.cross_positions", "start"],
            "error: model.cross_positions must be null or content, without rotary positions, ",
        ),
    ):
        done = command(TRAIN, *options, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(line), done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_persons_own_pairs_are_learnt_and_measured(tmp_path: Path) -> None:
    rows = ["en,de", *(f"number {n},Zahl {n}" for n in range(120))]
    (tmp_path / "words.csv").write_text("".join(f"{row}\n" for row in rows))
    data = {"task": "pairs", "source": "words.csv", "source_column": "en", "target_column": "de", "tokenizer": "words"}
    pairs = " ".join(f"--data.{name} {value}" for name, value in data.items())
    shape = "--model.d_model 32 --model.num_layers 1 --model.max_len 8 --training.max_steps 20 --tracking none"
    done = command(TRAIN, *pairs.split(), *shape.split(), "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    measured = command(EVALUATE, "--checkpoint", "run", "--split", "test", cwd=tmp_path)
    assert measured.stdout.startswith("pairs         "), measured.stderr
    (tmp_path / "words.csv").write_text("".join(f"{row}\n" for row in rows[:-1]))
    refused = command(EVALUATE, "--checkpoint", "run", "--split", "test", cwd=tmp_path)
    assert refused.stderr.startswith(
        "error: words.csv does not hold the pairs that the run was trained on (their SHA-256"
    )
    again = command(EVALUATE, "--checkpoint", "run", "--split", "test", "--data.source", "words.csv", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    (tmp_path / "other.csv").write_text("".join(f"{row}\n" for row in ["english,german", *rows[1:]]))
    other = ["--data.source", "other.csv", "--data.source_column", "english"]
    missing = command(EVALUATE, "--checkpoint", "run", "--split", "test", *other, cwd=tmp_path)
    assert missing.stderr.startswith("error: other.csv, line 1: no column de: choose data.source_column and")
    found = command(
        EVALUATE, "--checkpoint", "run", "--split", "test", *other, "--data.target_column", "german", cwd=tmp_path
    )
    assert found.stdout == measured.stdout.replace("words.csv", "other.csv"), found.stderr


def test_the_benchmark_times_both_ways_and_the_baseline(trained: Path) -> None:
    options = ["--batch", "8", "--length", "5", "--repeats", "2", "--peer", "transformers", "--json", "bench.json"]
    done = command(BENCH, "--checkpoint", "runs/seq2seq-copy-1", *options, cwd=trained)
    assert done.returncode == 0, done.stderr
    figures = json.loads((trained / "bench.json").read_text())
    modes = [row["mode"] for row in figures["decode"]]
    assert modes[:2] == ["fp32 eager, without cache", "fp32 eager"]
    assert modes[2:] in ([], ["fp32 native"]), "native where there is a compiler"
    assert figures["baselines"][0]["mode"].endswith(", BART")
    (row,) = figures["rows"]
    assert row["new_tokens"] == 6
    assert row["speedup"] == pytest.approx(row["arms"]["fp32 eager, without cache"] / row["arms"]["fp32 eager"])
    assert f" {row['speedup']:.2f}x" in done.stdout
    fresh = [BENCH, "--config", ROOT / "configs/seq2seq/copy.yaml", "--model.d_model", "32", "--batch", "2"]
    done = command(*fresh, "--repeats", "1", "--length", "63", cwd=trained)
    assert done.stderr == "error: length must be at most model.max_len minus 2 (62), got 63\n"
    assert command(*fresh, "--repeats", "1", "--length", "4", cwd=trained).returncode == 0


def test_help_knows_the_model_of_the_checkpoint(trained: Path) -> None:
    own = command(EVALUATE, "--checkpoint", "runs/seq2seq-copy-1", "--help", cwd=trained).stdout
    assert "--source" in own
    assert "--prompt" not in own
    assert "evaluate.py --checkpoint DIR --help" in " ".join(command(EVALUATE, "--help", cwd=trained).stdout.split())


@pytest.mark.nightly
@pytest.mark.parametrize("task", ["copy", "reverse"])
def test_the_shipped_configuration_learns_all_strings(tmp_path: Path, task: str) -> None:
    done = command(TRAIN, "--config", ROOT / f"configs/seq2seq/{task}.yaml", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    measured = command(EVALUATE, "--checkpoint", f"runs/seq2seq-{task}-1", "--split", "test", cwd=tmp_path)
    assert measured.stdout.splitlines()[-1].split() == ["all", "10,000", "1.0000"]
    longer = ["--split", "test", "--lengths", "40", "40", "--count", "500"]
    measured = command(EVALUATE, "--checkpoint", f"runs/seq2seq-{task}-1", *longer, cwd=tmp_path)
    assert float(measured.stdout.splitlines()[-1].split()[2]) >= 0.95
