"""The page with models whose tokens are no characters: what is counted, shown and held back."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

from data.config import TextConfig
from demo import rendering as show
from demo.curves import read_curves
from demo.session import Session
from gpt.config import GPTConfig, ModelConfig
from gpt.task import load_gpt, train_gpt
from training.config.sections import TrainingConfig
from training.storage.run_folder import RunFolder

PROMPT = "7 times 7 is forty-nine € ça va\N{SLIGHTLY SMILING FACE}\n"
Look = TypeVar("Look")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `bpe` and `bytes`, of one text, trained for a moment."""
    folder = tmp_path_factory.mktemp("subwords")
    text = folder / "text.txt"
    text.write_text("".join(f"{i} times {i % 7} is {i * (i % 7)} € ça\n" for i in range(300)))
    for name, tokenizer in (("bpe", "bpe:300"), ("bytes", "bytes")):
        config = GPTConfig(
            tracking="none",
            model=ModelConfig(num_layers=1, d_model=16, num_heads=2, d_ff=32, max_len=64),
            data=TextConfig(source=str(text), tokenizer=tokenizer),
            training=TrainingConfig(max_steps=20, batch_size=4, precision="fp32", eval_interval=10, log_interval=5),
        )
        train_gpt(config, output_dir=folder / "runs" / name)
    return folder / "runs"


@pytest.fixture
def session(runs: Path) -> Session:
    return Session(runs)


def last(looks: Iterator[Look]) -> Look:
    return list(looks)[-1]


def test_tokens_are_counted_and_the_same_ones_are_read_without_the_cache(session: Session, runs: Path) -> None:
    tokenizer = load_gpt(runs / "bpe").tokenizer
    writing = last(session.write("me", "bpe", PROMPT, max_new_tokens=30, compare=True, seed=2))
    prompt = tokenizer.encode_prompt(PROMPT)
    assert len(prompt) < len(PROMPT.encode())
    assert list(writing.prompt_tokens) == prompt
    assert "".join(writing.prompt_texts) == PROMPT
    assert len(writing.milliseconds) == len(writing.uncached) == len(writing.eager) == 30
    assert len(writing.text) > 30, "a token is more than a character"
    assert writing.context_used == len(prompt) + 29
    cached, *_ = show.token_times(writing)
    assert cached.points[0][0] == len(prompt) + 2, "positions are tokens"
    assert f"{len(prompt)} tokens of {len(PROMPT)} characters" in show.writing_figures(writing)
    assert "30 of 30: as long as asked" in show.writing_figures(writing)


def test_half_a_character_is_held_back_and_each_look_is_the_one_before_with_more(session: Session, runs: Path) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 300, "temperature": 10, "alternatives": True}
    looks = [
        (writing.text, show.text_html(writing, coloured=True)) for writing in session.write("me", "bpe", "é", **asked)
    ]
    assert all(after.startswith(before) for pair in pairwise(looks) for before, after in [*zip(*pair, strict=True)])
    writing = last(session.write("me", "bpe", "é", **asked))
    tokens = [piece.token for piece in writing.pieces if piece.token is not None]
    whole = load_gpt(runs / "bpe").tokenizer.decode(tokens)
    assert whole.startswith(writing.text)
    assert len(whole) - len(writing.text) <= 1, "no more than a last half"
    html = show.text_html(writing, coloured=True)
    shown = re.sub("<[^>]+>", "", html).removeprefix("é").replace("&lt;", "<").replace("&gt;", ">")
    assert shown.replace("&#x27;", "'").replace("&quot;", '"').replace("&amp;", "&") == writing.text
    named = [title.count("&#10;") + 1 for title in re.findall('title="([^"]*)"', html)]
    assert sum(named) <= 5 * len(tokens), "each token, with four others"
    assert max(named) > 5, "some are parts of one character"


def test_a_text_that_the_model_ends_says_so(session: Session) -> None:
    writing = last(session.write("me", "bytes", "7", max_new_tokens=2000, temperature=10))
    assert writing.why == "the model ended the text"
    assert len(writing.milliseconds) < 2000
    assert "�" not in last(session.write("me", "bytes", "7", max_new_tokens=20, temperature=0)).text


def test_runs_are_compared_and_drawn_in_bits_per_byte(session: Session, runs: Path) -> None:
    for entry in session.catalogue.entries():
        assert entry.label == f"{entry.name} ({entry.bits:.3f} bits per byte, {entry.megabytes:.1f} MB)"
    by_bits = sorted(session.catalogue.entries(), key=lambda entry: entry.bits or 0)
    assert session.catalogue.best("gpt") == by_bits[0].name
    charts = read_curves([RunFolder(runs / name) for name in ("bpe", "bytes")]).charts
    for line in charts["bits per byte"]:
        logged = RunFolder(runs / line.name).read_metrics()
        assert line.points == [(each["step"], each["bits_per_byte"]) for each in logged if "bits_per_byte" in each]
        assert [step for step, _ in line.points] == [10, 20]


@pytest.mark.parametrize("run", ["bpe", "bytes"])
def test_the_benchmark_measures_them(session: Session, runs: Path, run: str) -> None:
    result = last(session.benchmark("me", run, 100))
    assert [row["new_tokens"] for row in result.rows()] == [100]
    assert result.about["model"]["vocab_size"] == len(load_gpt(runs / run).tokenizer)
    json.dumps(result.figures())
