"""The commands around a trained model: evaluate, the benchmark, the plots."""

import json
import re
from pathlib import Path

import pytest
from helpers import ROOT, command, read_metrics

EVALUATE, BENCH, PLOT = (ROOT / f"launch/{name}.py" for name in ("evaluate", "bench_kv_cache", "plot_runs"))
WITHOUT = """
import runpy, sys
for name in ("datasets", "matplotlib", "tensorboard", "wandb", "gradio", "pandas", "pyarrow"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a small model: `plain`, and `average` with a moving average of the weights."""
    folder = tmp_path_factory.mktemp("workbench")
    (folder / "text.txt").write_text(TEXT)
    small = "--data.source text.txt --model.num_layers 1 --model.d_model 16 --model.num_heads 2 --model.max_len 32"
    loop = "--training.max_steps 40 --training.eval_interval 20 --training.log_interval 5 --tracking none"
    for run, more in (("plain", ""), ("average", "--training.ema_decay 0.9")):
        options = f"{small} {loop} {more} --output_dir {run}".split()
        done = command(ROOT / "launch/train_gpt.py", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("weights", "key"), [([], "val_loss"), (["--weights", "raw"], "raw_val_loss")])
def test_evaluate_measures_the_loss_of_training_again(folder: Path, weights: list[str], key: str) -> None:
    done = command(EVALUATE, "--checkpoint", "average/checkpoints/last", "--split", "val", *weights, cwd=folder)
    assert done.returncode == 0, done.stderr
    last = read_metrics(folder / "average")[-1]
    loss = last[key]
    assert f"loss                {loss:.4f} nats per character\n" in done.stdout
    assert f"weights             {'raw' if weights else 'ema'}\n" in done.stdout
    if not weights:
        assert f"perplexity          {last['perplexity']:.4f} per character\n" in done.stdout
        assert f"bits per character  {last['bits_per_character']:.4f}\n" in done.stdout
        targets = len(TEXT) - len(TEXT) * 9 // 10 - 1
        assert f"text                val split of text.txt, {targets:,} targets\n" in done.stdout


def test_evaluate_measures_the_training_split_and_refuses_a_changed_text(folder: Path, tmp_path: Path) -> None:
    measure = [EVALUATE, "--checkpoint", folder / "plain", "--split", "train"]
    done = command(*measure, cwd=folder)
    assert f"train split of text.txt, {len(TEXT) * 9 // 10 - 1:,} targets\n" in done.stdout
    (tmp_path / "text.txt").write_text(TEXT.replace("is", "si"))
    changed = command(*measure, cwd=tmp_path)
    assert changed.returncode == 2
    message = (
        "text.txt is not the text that the run was trained on (its SHA-256 differs): to measure on it all the same"
    )
    assert changed.stderr.startswith(f"error: {message}, name it again")
    done = command(*measure, "--data.source", "text.txt", cwd=tmp_path)
    assert done.returncode == 0
    assert "another text than the run's" in done.stdout


def test_evaluate_measures_another_text_by_the_split_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("\u00e9" * 18 + "12")
    measure = [EVALUATE, "--checkpoint", folder / "plain", "--data.source", "other.txt", "--precision", "fp64"]
    done = command(*measure, "--split", "val", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "val split of other.txt, 1 targets, another text than the run's" in done.stdout
    assert "fp64" in done.stderr
    done = command(*measure, "--split", "train", cwd=tmp_path)
    assert (
        "error: unknown character '\u00e9' (U+00E9) at line 1, column 1 of the train split of other.txt" in done.stderr
    )


def test_evaluate_reads_its_prompt_from_a_file_or_from_standard_input(folder: Path) -> None:
    (folder / "prompt.txt").write_text("7 times\n")
    options = ["--checkpoint", "plain", "--max_new_tokens", "20", "--top_p", "0.9"]
    given = command(EVALUATE, *options, "--prompt", "7 times", cwd=folder)
    assert given.stdout.startswith("7 times")
    assert command(EVALUATE, *options, "--prompt_file", "prompt.txt", cwd=folder).stdout == given.stdout
    piped = command(EVALUATE, *options, "--prompt_file", "-", cwd=folder, stdin="7 times")
    assert piped.stdout == given.stdout
    empty = command(EVALUATE, *options, "--prompt_file", "-", cwd=folder, stdin="")
    assert (empty.returncode, empty.stderr.count("\n")) == (2, 1)
    assert empty.stderr == "error: standard input is empty: expected text\n"


def test_several_samples_count_up_their_seeds(folder: Path) -> None:
    options = ["--checkpoint", "plain", "--max_new_tokens", "30", "--prompt", "7 "]
    several = command(EVALUATE, *options, "--num_samples", "2", "--seed", "4", cwd=folder)
    singles = [command(EVALUATE, *options, "--seed", seed, cwd=folder).stdout for seed in ("4", "5")]
    assert several.stdout == f"--- 1 of 2, seed 4 ---\n{singles[0]}--- 2 of 2, seed 5 ---\n{singles[1]}"
    assert re.fullmatch(r"2 x 30 tokens, [\d,]+ tokens/s after the first, on cpu\n", several.stderr)
    assert singles[0] != singles[1]


def test_the_benchmark_runs_without_the_packages_that_it_does_not_need(folder: Path) -> None:
    options = ["--config", ROOT / "configs/gpt/quick.yaml", "--model.num_layers", "1", "--repeats", "1"]
    done = command("-c", WITHOUT, BENCH, *options, "--json", "bench.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "bench.json").read_text())
    assert [row["new_tokens"] for row in figures["rows"]] == [100, 200, 300, 500]
    for row in figures["rows"]:
        assert row["speedup"] == pytest.approx(row["no_cache_seconds"] / row["cache_seconds"])
        line = rf"{row['new_tokens']} +{row['no_cache_seconds']:.3f} s +{row['cache_seconds']:.3f} s"
        assert re.search(line + rf" +{row['speedup']:.2f}x", done.stdout)
    for text in (figures["device"], figures["torch"], f"{figures['threads']} threads", "fp32", "quick.yaml, random"):
        assert text in done.stdout
    assert figures["model"]["num_layers"] == 1
    assert re.search(r"pass 1 of 1 without cache: 500 tokens in \d+\.\d{3} s\npass 1 of 1 with cache: ", done.stdout)


def test_the_benchmark_takes_a_checkpoint_and_draws(folder: Path) -> None:
    done = command(BENCH, "--checkpoint", "average", "--repeats", "1", "--plot", "bench.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "model      average: " in done.stdout
    assert (folder / "bench.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("arguments", [[EVALUATE, "--checkpoint", "plain"], [BENCH, "--checkpoint", "plain"]])
def test_what_runs_in_one_process_refuses_a_launcher_of_several(folder: Path, arguments: list[str | Path]) -> None:
    done = command(*arguments, cwd=folder, WORLD_SIZE="2")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "error: this command runs in one process: start it with python, not with a launcher of several\n"
    )


def test_curves_of_several_runs_with_legend_units_and_reference_lines(folder: Path) -> None:
    options = ["--output", "curves.svg", "--x_axis", "tokens", "--reference", "1.5=somebody else", "2=chance"]
    done = command(PLOT, "plain", "average", *options, cwd=folder)
    assert (done.returncode, done.stdout) == (0, "curves.svg\n"), done.stderr
    drawn = (folder / "curves.svg").read_text()
    for text in (
        *(f"{run}, {split}" for run in ("plain", "average") for split in ("training", "validation")),
        "training tokens",
        "loss (nats per token)",
        "somebody else: 1.5",
        "chance: 2",
    ):
        assert f"<!-- {text} -->" in drawn, text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([EVALUATE, "--checkpoint", "plain", "--top_p", "0"], "top_p must be null, or above 0 and at most 1, got 0.0"),
        ([EVALUATE, "--checkpoint", "plain", "--num_samples", "0"], "num_samples must be at least 1, got 0"),
        ([EVALUATE, "--checkpoint", "plain", "--prompt", "a", "--prompt_file", "b"], "--prompt and --prompt_file both"),
        (
            [EVALUATE, "--checkpoint", "plain", "--prompt_file", "no.txt"],
            "cannot read no.txt: No such file or directory",
        ),
        (
            [EVALUATE, "--checkpoint", "plain", "--split", "val", "--prompt", "a"],
            "--split measures a loss and takes no",
        ),
        (
            [EVALUATE, "--checkpoint", "plain", "--data.source", "a"],
            "--precision and --data.[*] are for --split: to cont",
        ),
        (
            [EVALUATE, "--checkpoint", "plain", "--weights", "ema"],
            r".*plain/checkpoints/step-\d+ has no average of the",
        ),
        ([BENCH], "give either --config FILE or --checkpoint DIR"),
        ([BENCH, "--checkpoint", "plain", "--model.d_ff", "9"], "--checkpoint brings its own configuration: leave"),
        ([BENCH, "--checkpoint", "plain", "--repeats", "0"], "repeats must be at least 1, got 0"),
        (
            [BENCH, "--checkpoint", "plain", "--json", "x.txt"],
            r"cannot write x.txt: expected a name that ends in \.json",
        ),
        ([BENCH, "--checkpoint", "plain", "--plot", "no/x.png"], "cannot write no/x.png: there is no folder no"),
        ([EVALUATE, "--checkpoint", "plain", "--precision", "fp32"], "--precision and --data.[*] are for --split"),
        ([PLOT, "plain", "--output", "x.gif"], r"cannot write x.gif: expected a name that ends in \.png, \.svg, \.pdf"),
        ([PLOT, "nothing", "--output", "x.png"], "nothing does not exist: expected the folder of a run"),
        ([PLOT, ".", "--output", "x.png"], r"\. holds no metrics yet: expected the folder of a run"),
        ([PLOT, "plain", "--output", "x.png", "--reference", "abc"], "a reference line is LOSS=NAME, as in 1.47=nano"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder: Path, arguments: list[str | Path], line: str) -> None:
    done = command(*arguments, cwd=folder)
    assert done.returncode == 2
    assert re.match(f"error: {line}", done.stderr), done.stderr
    assert done.stderr.count("\n") == 1
