"""The table of what can be asked of a checkpoint: whose it is, what goes with what, and what help says."""

import json
from pathlib import Path
from typing import get_args

import pytest

from data.config import OnBadRow, Unknown
from data.pairs.strings import Split
from decoding.model_type import asked_model_type, check_model_type, checkpoint_model_type, config_model_type
from decoding.options import BOTH, REQUIRED, TABLE, parse, rows_of
from training.runtime.errors import InputError

VOCABULARY = {"gpt": "tokenizer.json", "seq2seq": "vocabulary.json"}


def checkpoint(folder: Path, files: dict[str, object]) -> Path:
    """A folder with what tells the model of a checkpoint."""
    folder.mkdir()
    for name, content in ({"manifest.json": {}} | files).items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("model_type", ["gpt", "seq2seq"])
def test_a_checkpoint_says_its_model_and_an_older_one_shows_it(model_type: str, tmp_path: Path) -> None:
    (other,) = set(VOCABULARY) - {model_type}
    says = {"state.json": {"identity": {"model_type": model_type}}, VOCABULARY[other]: {}}
    assert checkpoint_model_type(checkpoint(tmp_path / "says", says)) == model_type
    for number, state in enumerate(({"identity": {}}, {}, [], {"identity": 3})):
        older = {"state.json": state, VOCABULARY[model_type]: {}}
        assert checkpoint_model_type(checkpoint(tmp_path / f"older-{number}", older)) == model_type


@pytest.mark.parametrize("state", [{"identity": {"model_type": "another"}}, {"identity": {"model_type": ["gpt"]}}])
def test_what_cannot_be_read_or_is_of_no_model_here_is_of_none(state: object, tmp_path: Path) -> None:
    assert checkpoint_model_type(checkpoint(tmp_path / "other", {"state.json": state, "tokenizer.json": {}})) is None
    assert checkpoint_model_type(checkpoint(tmp_path / "empty", {})) is None
    assert checkpoint_model_type(tmp_path / "nowhere") is None
    (tmp_path / "no.yaml").write_text("a: [")
    assert config_model_type(tmp_path / "no.yaml") is None
    assert asked_model_type(["--seed", "1"]) is asked_model_type(["--checkpoint"]) is None


def test_a_configuration_is_known_by_its_data(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data:\n  task: copy\n")
    (tmp_path / "b.yaml").write_text("data:\n  source: auto\n")
    assert asked_model_type(["--config", str(tmp_path / "a.yaml")]) == "seq2seq"
    assert asked_model_type([f"--config={tmp_path}/b.yaml"]) == "gpt"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("data:\n  source: auto\n")
    resume = ["--output_dir", str(tmp_path / "run"), "--resume"]
    for own, given, other in (
        ("gpt", ["--config", str(tmp_path / "a.yaml")], "a.yaml is of an encoder-decoder: use launch/train_seq2seq.py"),
        ("seq2seq", resume, "run/config.yaml is of a GPT: use launch/train_gpt.py"),
    ):
        with pytest.raises(InputError, match=other):
            check_model_type(given, own)
    check_model_type(["--config", str(tmp_path / "b.yaml")], "seq2seq")
    check_model_type(resume, "gpt")
    check_model_type([*resume[:2]], "seq2seq")


@pytest.mark.parametrize("model_type", BOTH)
def test_the_table_has_each_name_once_for_a_model_and_the_choices_of_the_data(model_type: str) -> None:
    rows = {row.name: row for row in TABLE if model_type in row.models}
    assert len(rows) == len([row for row in TABLE if model_type in row.models])
    assert rows["data.unknown"].values == get_args(Unknown)
    assert rows["data.on_bad_row"].values == get_args(OnBadRow)
    if model_type == "seq2seq":
        assert rows["split"].values == get_args(Split)
    for row in rows.values():
        assert row.help.endswith(".") or row.help.endswith(")."), row.name
        assert row.default is REQUIRED or row.default in (None, False) or row.values is not None


def test_options_that_are_not_given_have_the_defaults_of_the_checkpoints_model(tmp_path: Path) -> None:
    for model_type, name in VOCABULARY.items():
        folder = checkpoint(tmp_path / model_type, {name: {}})
        options = parse(["--checkpoint", str(folder), *(["--source", "a"] if model_type == "seq2seq" else [])])
        assert options.model_type == model_type
        assert (options.temperature, options.data.unknown) == ((0.8, None) if model_type == "gpt" else (0.0, "error"))
        assert set(vars(options)) - {"help", "model_type", "data"} == {
            row.name for row in rows_of(options.model_type) if "." not in row.name
        }


def test_of_a_checkpoint_that_cannot_be_read_anything_can_be_asked() -> None:
    for asked in (["--source", "a"], ["--prompt", "a"], ["--split", "val", "--count", "3"]):
        assert parse(["--checkpoint", "nowhere", *asked]).model_type == "gpt", "whose loading says what is wrong"
    with pytest.raises(InputError, match="--seed is for texts that are drawn: leave out --beams"):
        parse(["--checkpoint", "nowhere", "--beams", "2", "--seed", "3"])


@pytest.mark.parametrize(
    ("model_type", "given", "refusal"),
    [
        ("gpt", "--prompt_file a --interactive", "--prompt_file and --interactive both say what to continue"),
        ("gpt", "--split val --interactive", "--split measures a loss and takes no prompt"),
        ("gpt", "--split val --temperature 0", "--temperature is for texts: leave out --split"),
        ("gpt", "--beams 2 --temperature 1", "--temperature is for texts that are drawn: leave out --beams"),
        ("gpt", "--beams 2 --temperature 0", None),
        ("gpt", "--precision int8", None),
        ("gpt", "--precision auto", "--precision auto and fp64 are for --split: a text is continued in fp32"),
        ("gpt", "--split val --precision auto --data.subset a", None),
        ("gpt", "--data.revision a", "--data.revision is for --split, to measure"),
        ("gpt", "--temperature 0 --top_k 3 --seed 2", None),
        ("gpt", "--source a", "--source is for an encoder-decoder, and this is a GPT: see --help"),
        ("seq2seq", "--prompt=a", "--prompt is for a GPT, and this is an encoder-decoder: see --help"),
        ("seq2seq", "--source a --split test", "give either --source TEXT, to see its target, or --split"),
        ("seq2seq", "--source a --beams 2 --temperature 1", "--temperature is for targets that are drawn: leave out"),
        (
            "seq2seq",
            "--source a --temperature 0 --seed 2",
            "--seed is for targets that are drawn: give a --temperature",
        ),
        ("seq2seq", "--source a --temperature 1 --seed 2 --data.unknown skip", None),
        ("seq2seq", "--split test --attention a.png", "--attention is for --source, to see a target"),
        ("seq2seq", "--source a --data.source b", "--data.source is for --split, to measure"),
        ("seq2seq", "--split test --data.on_bad_row skip", "--data.on_bad_row is for --data.source, other pairs than"),
        ("seq2seq", "--split test --data.source b --data.on_bad_row skip", None),
    ],
)
def test_what_does_not_go_together_is_refused(model_type: str, given: str, refusal: str | None, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(checkpoint(tmp_path / "run", {VOCABULARY[model_type]: {}})), *given.split()]
    if refusal is None:
        parse(arguments)
        return
    with pytest.raises(InputError, match=f"^{refusal}"):
        parse(arguments)
