"""Configuration is strict, and its errors are one line."""

from pathlib import Path

import pytest

from gpt.config import GPTConfig
from seq2seq.config import Seq2SeqConfig
from training.config.command_line import StrictParser, config_to_yaml, parse_config_text
from training.runtime.errors import InputError

ENOUGH = "training: {max_steps: 5}\n"


def parse(*arguments: str) -> GPTConfig:
    parser = StrictParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(GPTConfig)
    return parser.build(GPTConfig, parser.parse_args(list(arguments)))


def test_options_stand_above_the_file_and_the_file_above_defaults(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text("model: {num_layers: 2, d_model: 64}\ntraining: {max_steps: 5}\noptimizer: {learning_rate: 3e-4}\n")
    config = parse("--config", str(file), "--model.num_layers", "3", "--model.num_kv_heads", "null")
    assert (config.model.num_layers, config.model.d_model, config.model.num_heads) == (3, 64, 4)
    assert config.optimizer.learning_rate == 3e-4
    assert config.model.num_kv_heads is None


def test_what_is_typed_later_counts(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("seed: 3\ntraining: {max_steps: 5}\nmodel: {d_ff: 8}\n")
    (tmp_path / "two.yaml").write_text("model: {d_ff: 9}\n")
    files = ["--config", str(tmp_path / "one.yaml"), f"--config={tmp_path / 'two.yaml'}"]
    config = parse("--seed", "7", "--name=x", *files, "--model.num_layers=3", "--model.num_layers", "2")
    assert (config.seed, config.name) == (3, "x")
    assert (config.model.d_ff, config.model.num_layers, config.training.max_steps) == (9, 2, 5)


def test_only_the_command_line_takes_a_quoted_null_for_null() -> None:
    hub = ["--training.max_steps", "5", "--data.source", "hub:a/b", "--data.revision"]
    assert parse(*hub, "null").data.revision is None
    assert parse(*hub, "nil").data.revision == "nil"
    config = parse_config_text(GPTConfig, ENOUGH + 'data: {source: "hub:a/b", revision: "null"}\n')
    assert config.data.revision == "null"
    assert parse_config_text(GPTConfig, config_to_yaml(config)) == config


def command() -> StrictParser:
    parser = StrictParser(prog="command", description="What 100 % of it does.")
    parser.add_argument("--source", type=str, required=True, help="At 10 % or more.")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="How many at once.")
    parser.add_argument("--uncached", choices=["yes", "no"], default="yes", help="Whether to.")
    parser.add_argument("--top_k", type=int, help="Default: all.")
    parser.add_argument("--flag", action="store_true", help="Do it.")
    parser.add_argument("--data.unknown", choices=["error", "skip"], help="Default: the run's.")
    return parser


def test_options_of_a_command_have_types_choices_and_sections() -> None:
    values = command().parse_args(["--batch", "2", "3", "--source", "null", "--uncached", "no", "--data.unknown=skip"])
    assert (values.batch, values.source, values.uncached, values.top_k) == ([2, 3], "null", "no", None)
    assert values.data.unknown == values["data.unknown"] == "skip"
    assert (values.flag, values["batch"]) == (False, [2, 3])
    defaults = command().get_defaults()
    assert (defaults.batch, defaults["data"].unknown, defaults.flag) == ([1, 16], None, False)
    assert values.data != defaults.data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --source"),
        (["--source"], "source: expected one argument"),
        (["--source=--"], "source: expected one argument"),
        (["--source", "x", "--batch", "2", "b"], "batch: expected int, got b"),
        (["--source", "x", "--batch", "null"], "batch: expected int, got null"),
        (["--source", "x", "--uncached", "maybe"], "uncached: expected one of 'yes', 'no', got maybe"),
        (["--source", "x", "--top_k", "1.5"], "top_k: expected int, got 1.5"),
        (["--source", "x", "--flag=3"], "flag: ignored explicit argument '3'"),
        (["--source", "x", "--data", "3"], "data is a section: give its options one by one, --data.NAME VALUE"),
        (["--source", "x", "--topk", "3"], "unknown option topk: did you mean top_k?"),
        (["--sour", "x"], "unknown option sour: did you mean source?"),
        (
            ["--source", "a", "b"],
            "unrecognized arguments: b: put a value with spaces, or a pattern such as '*.txt', in quotes",
        ),
    ],
)
def test_bad_options_of_a_command_are_one_clear_line(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        command().parse_args(arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("arguments", [["--help"], ["--flag", "-h", "--top_k", "3"]])
def test_help_needs_no_required_option(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command().parse_args(arguments)
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("usage: command [-h] --source SOURCE [--batch BATCH [BATCH ...]] [--uncached {yes,no}]")
    for said in (
        "What 100 % of it does.",
        "--source SOURCE At 10 % or more. (type: str)",
        "How many at once. (type: int, default: [1, 16])",
        "Whether to. (default: 'yes')",
        "--data.unknown {error,skip} Default: the run's.",
    ):
        assert said in printed


def test_a_configuration_survives_being_written() -> None:
    config = parse_config_text(GPTConfig, ENOUGH + "model: {num_kv_heads: 2}\noptimizer: {eps: 1.0e-12}\n")
    assert parse_config_text(GPTConfig, config_to_yaml(config)) == config


def test_a_file_may_call_a_field_by_its_older_name() -> None:
    older = f"{ENOUGH}data:\n  task: pairs\n  source: a.csv\n  tokens: words\n"
    assert parse_config_text(Seq2SeqConfig, older).data.tokenizer == "words"
    with pytest.raises(InputError, match=r"unknown option data.tokens: did you mean data.tokenizer\?"):
        parse_config_text(Seq2SeqConfig, f"{older}  tokenizer: bytes\n")
    with pytest.raises(InputError, match=r"^data.tokenizer must be words, characters, bytes, .* got 'letters'$"):
        parse_config_text(Seq2SeqConfig, older.replace("words", "letters"))


def test_text_that_looks_like_a_comment_stays_text() -> None:
    data = 'data: {source: "hub:a/b", revision: "#", subset: "#1"}\n'
    config = parse_config_text(GPTConfig, ENOUGH + data)
    assert (config.data.revision, config.data.subset) == ("#", "#1")
    assert parse_config_text(GPTConfig, config_to_yaml(config)) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.num_layer", "3"], "unknown option model.num_layer: did you mean model.num_layers?"),
        (
            ["--optimiser.learning_rate=1"],
            "unknown option optimiser.learning_rate: did you mean optimizer.learning_rate?",
        ),
        (["--qqqq", "1"], "unknown option qqqq: see --help"),
        (["--model.num_layers", "x"], "model.num_layers: expected int, got x"),
        (["--model.num_layers", "2.5"], "model.num_layers: expected int, got 2.5"),
        (["--model.num_layers", "0"], "model.num_layers must be at least 1, got 0"),
        (
            ["--training.precision", "fp17"],
            "training.precision: expected one of 'auto', 'bf16', 'fp16', 'fp32', 'fp64', got fp17",
        ),
        (["--training.batch_size", "0"], "training.batch_size must be at least 1, got 0"),
        (["--training.epochs", ".inf"], "training.epochs must be null or above 0, and at most 1000000, got inf"),
        (["--optimizer.learning_rate", ".nan"], "optimizer.learning_rate must be above 0, and finite, got nan"),
        (["--training.keep_checkpoints", "1"], "training.keep_checkpoints must be at least 2, got 1"),
        (["--optimizer.beta1", "1"], "optimizer.beta1 must be at least 0 and below 1, got 1.0"),
        (["--schedule.final_ratio", "2"], "schedule.final_ratio must be between 0 and 1, got 2.0"),
        (
            ["--training.max_steps", "null"],
            "training.max_steps, training.epochs or training.max_tokens must say when to end, got null for all",
        ),
        (["--training.max_tokens", "0"], "training.max_tokens must be null or at least 1, and at most 10^15, got 0"),
        (["--name", "a/b"], "name must be a plain folder name, got 'a/b'"),
    ],
)
def test_bad_options_are_one_clear_line(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse("--training.max_steps", "5", *arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {num_layer: 3}", "unknown option model.num_layer: did you mean model.num_layers?"),
        ("trainnig: {max_steps: 3}", "unknown option trainnig.max_steps: did you mean training.max_steps?"),
        ("model: [", "did not find expected node content"),
        (
            "model: {positions: rotory}",
            "model.positions: expected one of 'sinusoidal', 'learned', 'rotary', got rotory",
        ),
        ("output_dir: x", "bad.yaml: unknown option output_dir: see --help"),
        ("training: {max_steps: -3}", "training.max_steps must be null or at least 1, got -3"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        parse("--config", str(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(InputError, match=r"bad.yaml: not UTF-8 \(byte 9 is 0xe9\)"):
        parse("--config", str(tmp_path / "bad.yaml"))


def test_a_file_may_hold_what_is_printed_of_other_options(tmp_path: Path) -> None:
    parser = StrictParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--output_dir", type=str)
    parser.add_argument("--resume", action="store_true")
    parser.add_class_arguments(GPTConfig)
    (tmp_path / "printed.yaml").write_text("output_dir: null\nresume: false\n")
    values = parser.parse_args(["--config", str(tmp_path / "printed.yaml"), "--resume", "--name", "x"])
    assert (values.output_dir, values.resume, values.name) == (None, True, "x")
    (tmp_path / "bad.yaml").write_text("resume: 3\n")
    with pytest.raises(InputError, match="resume: expected bool, got 3"):
        parser.parse_args(["--config", str(tmp_path / "bad.yaml")])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("nowhere.yaml", "nowhere.yaml: there is no such file"),
        ("no\nwhere\udce9.yaml", "no where\\udce9.yaml: there is no such file"),
        ("/dev/zero", "/dev/zero: not a regular file, but a FIFO or a device"),
    ],
)
def test_a_missing_file_is_named(name: str, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        parse("--config", name)
    assert str(caught.value) == fault
