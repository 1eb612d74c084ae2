"""The commands around a trained model: evaluate, the benchmark, the plots."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from forking import python
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
    for run, more in (("plain", ""), ("average", "--training.ema_decay 0.9 --training.eval_raw_weights true")):
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
        assert f"bits per byte       {last['bits_per_byte']:.4f}\n" in done.stdout
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
    assert "error: unknown character '\u00e9' (U+00E9) at line 1, column 1 of the training text" in done.stderr


def test_evaluate_reads_its_prompt_from_a_file_or_from_standard_input(folder: Path) -> None:
    (folder / "prompt.txt").write_bytes(b"7 times\r\n")
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
    options = ["--checkpoint", "plain", "--max_new_tokens", "30", "--prompt", "7 ", "--mode", "eager"]
    several = command(EVALUATE, *options, "--num_samples", "2", "--seed", "4", cwd=folder)
    singles = [command(EVALUATE, *options, "--seed", seed, cwd=folder).stdout for seed in ("4", "5")]
    assert several.stdout == f"--- 1 of 2, seed 4 ---\n{singles[0]}--- 2 of 2, seed 5 ---\n{singles[1]}"
    assert re.match(r"2 texts, 60 tokens, [\d,]+ tokens/s after the first, on cpu, fp32, eager\n", several.stderr)
    assert singles[0] != singles[1]


def test_evaluate_offers_what_the_sampler_can(folder: Path) -> None:
    options = [
        "--checkpoint",
        "plain",
        "--temperature",
        "0",
        "--mode",
        "eager",
        "--prompt",
        "7 times",
        "--max_new_tokens",
    ]
    plain = command(EVALUATE, *options, "20", cwd=folder)
    assert len(plain.stdout) == len("7 times") + 20 + 1
    assert command(EVALUATE, *options, "20", "--lookup", "4", cwd=folder).stdout == plain.stdout
    assert command(EVALUATE, *options, "20", "--beams", "1", cwd=folder).stdout.endswith(plain.stdout)
    stop = plain.stdout[12:15]
    stopped = command(EVALUATE, *options, "20", "--stop", stop, cwd=folder)
    assert stopped.stdout == plain.stdout[: plain.stdout.index(stop, len("7 times"))] + "\n"
    full = command(EVALUATE, *options, "300", "--when_full", "stop", cwd=folder)
    assert len(full.stdout) == 32 + 1 + 1, "the last character is never read"
    assert full.stderr.endswith("\nthe context of 32 tokens is full: --when_full slide goes on\n")
    slid = "the context of 32 tokens was full: its newer half was kept (--when_full stop ends)"
    for count, said in (("26", False), ("27", True), ("300", True)):
        longer = command(EVALUATE, *options, count, cwd=folder)
        assert len(longer.stdout) == len("7 times") + int(count) + 1
        assert (slid in longer.stderr) == said
    told = command(EVALUATE, *options, "5", "--alternatives", "2", cwd=folder).stdout.splitlines()
    assert told[0] == "7 times"
    for line, character in zip(told[1:6], plain.stdout[len("7 times") :], strict=False):
        shown = re.escape(repr(character))
        assert re.fullmatch(rf"{shown} +(0\.\d{{3}})   likeliest: {shown} \1  '.+' 0\.\d{{3}}", line), line


def test_several_prompts_are_written_in_one_batch(folder: Path) -> None:
    options = ["--checkpoint", "plain", "--max_new_tokens", "12", "--top_k", "3", "--mode", "eager", "--prompt"]
    both = command(EVALUATE, *options, "7 times", "1", cwd=folder)
    first, second = (command(EVALUATE, *options, prompt, cwd=folder).stdout for prompt in ("7 times", "1"))
    assert both.stdout == f"--- 1 of 2, seed 0 ---\n{first}--- 2 of 2, seed 0 ---\n{second}"


def test_interactive_goes_on_after_an_error_and_ends_with_its_input(folder: Path) -> None:
    options = ["--checkpoint", "plain", "--max_new_tokens", "5", "--interactive"]
    done = command(EVALUATE, *options, cwd=folder, stdin="7 times\n\u00e9\n8\n")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"> 7 times.{5}\n> > 8.{5}\n> \n", done.stdout, re.DOTALL)
    assert "\nerror: unknown character '\u00e9'" in done.stderr


def test_ctrl_c_ends_a_text_and_asks_for_the_next(folder: Path) -> None:
    arguments = ["--checkpoint", "plain", "--max_new_tokens", "10000000", "--when_full", "slide", "--interactive"]
    process = subprocess.Popen(
        [*python(), str(EVALUATE), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"7 times\n")
    process.stdin.flush()
    assert process.stdout.read(200).startswith(b"> 7 times")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(b"", timeout=60)
    assert output.endswith(b"\n> \n")
    assert process.returncode == 0


def test_int8_weights_keep_the_loss(folder: Path) -> None:
    measure = [EVALUATE, "--checkpoint", "plain", "--split", "val", "--precision"]
    losses = [
        float(re.findall(r"loss +([\d.]+) nats", command(*measure, precision, cwd=folder).stdout)[0])
        for precision in ("fp32", "int8")
    ]
    assert abs(losses[1] - losses[0]) < 0.01


@pytest.mark.ci
def test_the_benchmark_runs_without_the_packages_that_it_does_not_need(folder: Path) -> None:
    model = ["--model.num_layers", "1", "--model.d_model", "32", "--model.d_ff", "64"]
    options = ["--config", ROOT / "configs/gpt/quick.yaml", *model, "--repeats", "1", "--batch", "1", "3"]
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
    assert re.search(r"pass 1 of 1 fp32 eager, without cache, 1 streams: [\d,.]+ tokens/s\npass 1 of 1 fp", done.stdout)
    assert [(row["mode"], row["batch"]) for row in figures["decode"][:3]] == [
        ("fp32 eager, without cache", 1),
        ("fp32 eager", 1),
        ("fp32 eager", 3),
    ]
    for row in figures["decode"][1:]:
        read = row["tokens_per_second"] / row["batch"] * row["bytes_per_step"]
        assert row["bandwidth_share"] == pytest.approx(read / figures["read_gigabytes_per_second"] / 1e9)
        assert row["arithmetic_share"] > 0
        assert row["slowest"] <= row["tokens_per_second"] <= row["fastest"]
        assert re.search(rf"{row['mode']} +{row['batch']} +{row['tokens_per_second']:,.1f} +\(", done.stdout)
    assert figures["first_token_seconds"] == min(row["first_token_seconds"] for row in figures["decode"])
    assert figures["baselines"] == []


@pytest.mark.ci
def test_the_benchmark_times_transformers_with_the_same_weights(folder: Path) -> None:
    pytest.importorskip("transformers")
    model = ["--model.num_layers", "1", "--model.d_model", "16", "--model.num_heads", "2", "--model.d_ff", "16"]
    context = ["--model.max_len", "512", "--uncached", "no", "--repeats", "1", "--batch", "2", "--precision", "fp32"]
    config = ["--config", ROOT / "configs/gpt/quick.yaml", *model, *context, "--mode", "eager"]
    done = command(BENCH, *config, "--peer", "transformers", "--json", "baselines.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "baselines.json").read_text())
    assert "rows" not in figures
    assert "without cache" not in done.stdout
    assert [row["mode"].rsplit(" ", 1)[0] for row in figures["baselines"]] == ["fp32 transformers", "bf16 transformers"]
    assert all(row["tokens_per_second"] > 0 and row["batch"] == 2 for row in figures["baselines"])
    refused = command(BENCH, *config, "--model.positions", "learned", "--peer", "transformers", cwd=folder)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "expected --model.norm layer" in refused.stderr


def test_the_benchmark_takes_a_checkpoint_and_draws(folder: Path) -> None:
    options = ["--repeats", "1", "--mode", "eager", "--batch", "1", "--plot", "bench.png"]
    done = command(BENCH, "--checkpoint", "average", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "model      average: " in done.stdout
    assert (folder / "bench.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.ci
@pytest.mark.parametrize("tokenizer", [pytest.param("bytes", marks=pytest.mark.nightly), "bpe:300"])
def test_the_benchmark_takes_a_checkpoint_of_other_tokens(folder: Path, tmp_path: Path, tokenizer: str) -> None:
    small = "--model.num_layers 1 --model.d_model 16 --model.num_heads 2 --model.max_len 32 --training.max_steps 1"
    text = ["--data.source", folder / "text.txt", "--data.tokenizer", tokenizer]
    options = [*text, *small.split(), "--tracking", "none", "--output_dir", "run"]
    done = command(ROOT / "launch/train_gpt.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    options = ["--repeats", "1", "--mode", "eager", "--batch", "1", "--uncached", "no", "--json", "bench.json"]
    done = command(BENCH, "--checkpoint", "run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["model"]["vocab_size"] == (257 if tokenizer == "bytes" else 300)
    assert figures["decode"][0]["tokens_per_second"] > 0


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
            "--data.source is for --split, to measure",
        ),
        (
            [EVALUATE, "--checkpoint", "plain", "--weights", "ema"],
            r".*plain/checkpoints/step-\d+ has no average of the",
        ),
        ([BENCH], "give either --config FILE or --checkpoint DIR"),
        ([BENCH, "--checkpoint", "plain", "--model.d_ff", "9"], "--checkpoint brings its own configuration: leave"),
        ([BENCH, "--checkpoint", "plain", "--repeats", "0"], "repeats must be at least 1, got 0"),
        ([BENCH, "--checkpoint", "plain", "--batch", "1", "0"], "batch must be at least 1, got 0"),
        ([BENCH, "--checkpoint", "plain", "--uncached", "no", "--plot", "x.png"], "--plot draws the table: leave"),
        ([EVALUATE, "--checkpoint", "plain", "--min_p", "2"], "min_p must be null, or at least 0 and at most 1, got 2"),
        ([EVALUATE, "--checkpoint", "plain", "--repetition_penalty", "0"], "repetition_penalty must be above 0, got 0"),
        ([EVALUATE, "--checkpoint", "plain", "--alternatives", "-1"], "alternatives must be at least 0, got -1"),
        ([EVALUATE, "--checkpoint", "plain", "--stop", "a", ""], "a stop string is empty: give at least one character"),
        ([EVALUATE, "--checkpoint", "plain", "--lookup", "4"], "lookup writes the greedy text: it wants temperature 0"),
        ([EVALUATE, "--checkpoint", "plain", "--beams", "2000"], "beams must be at least 1 and at most 1024, got 2000"),
        (
            [EVALUATE, "--checkpoint", "plain", "--beams", "2", "--stop", "a"],
            "--stop is for texts that are drawn: leave out --beams",
        ),
        (
            [EVALUATE, "--checkpoint", "plain", "--beams", "2", "--interactive"],
            "--interactive is for texts that are drawn: leave out --beams",
        ),
        ([EVALUATE, "--checkpoint", "plain", "--length_penalty", "2"], "--length_penalty is for --beams"),
        (
            [EVALUATE, "--checkpoint", "plain", "--split", "val", "--beams", "2"],
            "--beams is for texts: leave out --split",
        ),
        (
            [EVALUATE, "--checkpoint", "plain", "--prompt", "7" * 33, "--when_full", "stop"],
            "the prompt has 33 tokens, and the",
        ),
        (
            [EVALUATE, "--checkpoint", "plain", "--mode", "native", "--precision", "fp16"],
            "there is no native step here: it computes on the CPU, from weights in fp32, bf16 or int8",
        ),
        (
            [EVALUATE, "--checkpoint", "plain", "--interactive", "--prompt", "a"],
            "--prompt and --interactive both say what to continue: choose one",
        ),
        (
            [BENCH, "--checkpoint", "plain", "--json", "x.txt"],
            r"cannot write x.txt: expected a name that ends in \.json",
        ),
        ([BENCH, "--checkpoint", "plain", "--plot", "no/x.png"], "cannot write no/x.png: there is no folder no"),
        (
            [EVALUATE, "--checkpoint", "plain", "--precision", "fp64"],
            "--precision auto and fp64 are for --split: a text",
        ),
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
