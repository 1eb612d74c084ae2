"""What the README says can be typed, can be typed."""

import re
from pathlib import Path

import pytest
from helpers import ROOT, command, read_metrics

README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))}
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
EXAMPLES = [block for language, block in BLOCK.findall(README) if language == "python" and "GPTTask" in block]
SHELL = "\n".join(block for page in PAGES.values() for language, block in BLOCK.findall(page) if language == "")
COMMANDS = sorted(
    {
        line.replace("\\\n", " ").split("#")[0].strip()
        for line in re.findall(
            r"^.*(?:(?<!tests/)launch/\w+\.py|-m gpt\.data|-m seq2seq\.dates)(?:.*\\\n)*.*$", SHELL, re.MULTILINE
        )
    }
)


@pytest.mark.ci
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: re.findall(r"class (\w+)\(GPTTask", example)[0])
def test_an_example_runs_and_resumes(example: str, text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(example)
    text = [] if "load_source" in example else ["--data.source", text_file]
    options = [*text, "--output_dir", "run", "--training.batch_size", "4", "--resume", "--training.max_steps"]
    done = command("mine.py", *options, "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 3/3  validation loss" in done.stdout
    resumed = command("mine.py", *options, "5", cwd=tmp_path)
    assert "resuming    after step 3" in resumed.stdout
    assert [line["step"] for line in read_metrics(tmp_path / "run")][-1] == 5
    if "line_breaks" in example:
        assert 0 <= read_metrics(tmp_path / "run")[-1]["line_breaks"] <= 1
    if "Squared" in example:
        refused = command(ROOT / "launch/evaluate.py", "--checkpoint", "run", cwd=tmp_path)
        assert re.fullmatch(r"error: the weights of \S+ are not those of a GPT: load them .*\n", refused.stderr)


def test_the_sample_is_as_long_as_its_command_asks_for() -> None:
    options, sample = re.findall(r"`(--prompt \"ROMEO:\".*?)`\):\n\n```text\n(.*?)\n```", README, re.DOTALL)[0]
    length = re.findall(r"--max_new_tokens (\d+)", options)[0]
    assert len(sample) == len("ROMEO:") + int(length)
    assert any(line.endswith(options) for line in COMMANDS), "it stands among the commands"


def test_there_are_examples_of_a_layer_a_data_set_and_a_metric() -> None:
    assert len(EXAMPLES) == 3


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each command, as its help lists them."""
    helps = {f"launch/{path.name}": command(path, "--help", cwd=ROOT).stdout for path in (ROOT / "launch").glob("*.py")}
    for module in ("data.text", "data.dates"):
        helps[f"-m {module}"] = command("-m", module, "--help", cwd=ROOT).stdout
    # Those of the encoder-decoder.
    more = "from seq2seq.options import parse_evaluation; parse_evaluation(['--help'])"
    helps["launch/evaluate.py"] += command("-c", more, cwd=ROOT).stdout
    bench = "launch/bench_kv_cache.py"
    helps[bench] += command(ROOT / bench, "--config", "configs/seq2seq/copy.yaml", "--help", cwd=ROOT).stdout
    return {name: set(re.findall(r"--[\w.]+", text)) for name, text in helps.items()}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_names_scripts_files_and_options_that_exist(line: str, options: dict[str, set[str]]) -> None:
    script, arguments = re.findall(r"(launch/\w+\.py|-m gpt\.data|-m seq2seq\.dates)(.*)", line, re.DOTALL)[0]
    assert script in options
    given = {option.split("=")[0] for option in re.findall(r"(?<=\s)--[\w.]+", arguments)}
    assert given <= options[script] | {"--print_config"}
    for file in re.findall(r"configs/\S+\.yaml", arguments):
        assert (ROOT / file).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
    assert "@@" not in PAGES[page]


def test_every_file_of_the_packages_stands_in_the_tree() -> None:
    tree = README.split("## What is where")[1].split("```")[1]
    for package in ("layers", "training", "data", "decoding", "gpt", "seq2seq", "launch"):
        for path in (ROOT / package).glob("*.py"):
            if package != "layers" and path.name != "__init__.py":
                assert path.stem in tree, path
