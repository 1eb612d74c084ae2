"""Fields say what they mean, and what a change of them does to a run that goes on."""

from argparse import ArgumentTypeError
from dataclasses import dataclass, field, fields
from typing import Literal

import pytest
from options_page import PAGE, page

from gpt.config import GPTConfig, ModelConfig
from seq2seq.config import Seq2SeqConfig
from training.config.fields import options_of
from training.config.sections import RunConfig, TrainingConfig, setting

CONFIGS = pytest.mark.parametrize("config", [GPTConfig, Seq2SeqConfig])


@dataclass(frozen=True, kw_only=True)
class NewModelConfig(ModelConfig):
    """A section of a model, with an option more."""

    new: int = 1


@dataclass(frozen=True, kw_only=True)
class NewTrainingConfig(TrainingConfig):
    """A section with options more.

    Attributes:
        new: One that says nothing
            of a resume.
        number_or: A number, or a word.
        quiet: One that does.
    """

    new: Literal["a", "b"] | None = None
    number_or: int | Literal["auto"] = "auto"
    quiet: float = setting(0.5, on_resume="same")


@dataclass(frozen=True, kw_only=True)
class NewConfig(GPTConfig):
    """A configuration with those."""

    new: bool = False
    model: NewModelConfig = field(default_factory=NewModelConfig)
    training: NewTrainingConfig = field(default_factory=NewTrainingConfig)


def test_a_new_option_is_reported_or_refused_unless_it_says_otherwise() -> None:
    said = {option.name: option.on_resume for option in options_of(NewConfig)}
    assert said["new"] == said["training.new"] == "differs"
    assert said["model.new"] == "refused"
    assert said["training.quiet"] == "same"


def test_an_option_has_the_type_default_and_meaning_of_its_field() -> None:
    options = {option.name: option for option in options_of(NewConfig)}
    assert str(options["training.new"].kind) == "one of 'a', 'b' or null"
    assert (options["training.new"].default, options["training.quiet"].default) == (None, 0.5)
    assert options["training.new"].meaning == "One that says nothing of a resume."
    assert options["training.quiet"].meaning == "One that does."
    assert options["training.max_steps"].meaning.startswith("Optimizer steps; null for")


def test_a_number_or_a_word_is_what_it_looks_like() -> None:
    kind = next(option.kind for option in options_of(NewConfig) if option.name == "training.number_or")
    assert str(kind) == "one of 'auto' or int"
    assert [kind("auto"), kind("8"), kind(" 8 ")] == ["auto", 8, 8]
    for wrong in ("all", "null", "8.0", "", "true"):
        with pytest.raises(ArgumentTypeError, match="expected one of 'auto' or int, got "):
            kind(wrong)


@CONFIGS
def test_every_option_has_a_meaning_and_a_default_of_its_type(config: type[RunConfig]) -> None:
    for option in options_of(config):
        assert option.meaning, option.name
        assert option.kind.checked(option.default) == option.default
        assert option.on_resume in ("same", "differs", "refused")


@CONFIGS
def test_what_makes_a_run_another_one_is_refused(config: type[RunConfig]) -> None:
    refused = {option.name for option in options_of(config) if option.on_resume == "refused"}
    of_model = {f"model.{field.name}" for field in fields(config(training=TrainingConfig(max_steps=5)).model)}
    of_text = {"data.tokenizer", "data.validation_share", "data.packing"}
    of_data = of_text & {option.name for option in options_of(config)}
    of_origin = {"init_sha256", "init_vocabulary"} & {option.name for option in options_of(config)}
    of_run = {"seed", "training.batch_size", "training.ema_decay", "optimizer.name"}
    of_lora = {option.name for option in options_of(config) if option.name.startswith("lora.")}
    assert refused == of_model | of_data | of_origin | of_lora | of_run


@CONFIGS
def test_a_section_has_the_name_under_which_it_stands(config: type[RunConfig]) -> None:
    for option in options_of(config):
        assert option.owner.section == option.name.rpartition(".")[0]


def test_the_page_of_options_says_what_the_classes_say() -> None:
    assert PAGE.read_text() == page(), "python tests/options_page.py writes it"
