"""What a page shows of results, and what it begins with."""

import json
import re
import shutil
from dataclasses import replace
from math import log
from pathlib import Path
from string import printable
from typing import Any

import pytest

from data.pairs.files import Pair
from data.tokenizers.byte_tokenizer import ByteTokenizer
from data.tokenizers.characters import CharTokenizer
from data.tokenizers.symbols import Symbols
from data.tokenizers.vocabulary import Vocabulary
from decoding.writing import Piece
from demo import rendering as show
from demo.catalogue import Catalogue
from demo.examples import prompts, sources
from demo.line_chart import Axis, Line, line_chart, value_range
from demo.results import Writing
from demo.session import Session
from demo.tabs.common import choices
from seq2seq.task import load_seq2seq, sample_table
from training.runtime.errors import InputError
from training.storage.run_folder import RunFolder


def written(**values: Any) -> Writing:
    about: dict[str, Any] = {"prompt": "ab", "prompt_tokens": [0, 1], "tokenizer": CharTokenizer("ab")}
    about |= {"mode": "native", "context": 9, "when_full": "stop"}
    return Writing(**about | {"limit": 9, "cache_bytes": 1} | values)


def test_each_shade_is_half_as_likely_as_the_one_before_and_a_likely_text_has_none() -> None:
    probabilities = [1.0, 0.51, 0.49, 0.26, 0.24, 0.12, 0.06, 0.03, 0.015, 1e-9]
    assert [show.shade(log(p)) for p in probabilities] == [0, 0, 1, 1, 2, 3, 4, 5, 6, 6]
    assert show.shade(1e-7) == 0, "rounding"
    named = re.findall(r'<span class="p(\d)">([\d.]+|less)', show.legend_html())
    assert [int(number) for number, _ in named] == list(range(len(show.SHADES)))
    for number, name in named[:-1]:  # The legend names what a shade begins with.
        assert show.shade(log(float(name) / 100 + 0.005)) == int(number), name


def test_what_the_cache_saves_says_what_is_divided_by_what() -> None:
    writing = written(milliseconds=[50.0, 0.5, 0.5, 0.2], eager=[50.0, 0.5, 0.5, 1.0], uncached=[90.0, 6.0, 8.0, 10.0])
    assert writing.compared == (8.0, pytest.approx(2 / 3), pytest.approx(0.4))
    assert writing.speedup == pytest.approx(12)
    said = (
        "12.0 times as fast: a token took 8 ms without the cache, 0.667 ms with it (eager both), means of the 3 after "
        "the first"
    )
    assert f"{said}; native, with it: 0.4 ms<" in show.writing_figures(writing)
    assert f"{said}<" in show.writing_figures(replace(writing, mode="eager")), "no other figure beside it"
    lines = show.token_times(writing)
    assert [line.value for line in lines] == ["mean 0.4", "mean 0.667", "mean 8"]
    assert len({line.colour for line in lines}) == len({line.name for line in lines}) == 3
    nothing = written(milliseconds=[50.0], uncached=[90.0])
    assert nothing.speedup is None
    assert "(tick Compare)" in show.writing_figures(nothing)


def test_several_texts_stand_side_by_side_each_with_its_seed() -> None:
    pieces = [Piece(0, "c", -0.1), Piece(1, "<", -9.0), Piece(0, "d", -0.1), Piece(1, "", 0.0, end="stop")]
    writing = written(pieces=pieces, seeds=range(4, 6), milliseconds=[9.0, 2.0])
    assert writing.texts == ["cd", "<"]
    assert writing.text == "cd"
    assert writing.tokens_per_second == 1000
    html = show.text_html(writing, coloured=True)
    assert re.findall(r"<small>([^<]+)", html) == ["seed 4", "seed 5"]
    assert html.count('<span class="prompt">ab</span>') == 2
    assert re.findall(r'class="p(\d)" title="[^"]*">([^<]+)', html) == [("0", "c"), ("0", "d"), ("6", "&lt;")]
    assert html.count("<div") == html.count("</div>")


def test_tokens_have_borders_and_parts_of_a_character_stand_together() -> None:
    tokenizer = ByteTokenizer()
    alternatives = (("e ", log(0.25)), (r"\xc3", log(0.125)))
    first, second = tokenizer.encode_prompt("é")
    pieces = [
        Piece(0, "\n", log(0.5), alternatives, token=10),
        Piece(0, "", log(0.5), token=first),
        Piece(0, "é", log(0.25), token=second),
        Piece(0, "", log(0.5), token=first),  # What ends in the middle of a character is not shown.
    ]
    writing = written(prompt="ñ<", prompt_tokens=tokenizer.encode_prompt("ñ<"), tokenizer=tokenizer, pieces=pieces)
    assert writing.text == "\né"
    html = show.text_html(writing, coloured=True)
    assert html.startswith('<div class="written tokens"><span class="prompt"><span>ñ</span><span>&lt;</span></span>')
    assert re.findall(r'class="p(\d)" title="([^"]*)">([^<]+)', html) == [
        ("1", r"line break 50.0%&#10;e␣ 25.0%&#10;\xc3 12.5%", "\n"),
        ("3", r"\xc3 50.0%&#10;\xa9 25.0%", "é"),
    ]
    assert show.text_html(writing, coloured=False) == '<div class="written"><span class="prompt">ñ&lt;</span>\né'
    assert writing.context_used == 3
    assert "3 tokens of 2 characters" in show.writing_figures(writing)
    assert "of 2 characters" not in show.writing_figures(written()), "where tokens are characters"
    assert writing.figures()["prompt_tokens"] == 3


def test_one_point_is_a_dot_and_a_line_has_none() -> None:
    chart = line_chart(
        [Line("one", "red", [(5, 1.0)], faint=True), Line("two", "blue", [(0, 0.0), (10, 2.0)], value="mean 1")],
        "step", "loss", x_range=(0, 10), y_range=(0, 2),
    )  # fmt: skip
    one, two = re.findall(r"<polyline [^>]*>", chart)
    assert 'class="line faint dot"' in one
    assert 'points="50.00,50.00 50.00,50.00"' in one
    assert 'class="line"' in two
    assert re.findall("<b>([^<]+)", chart) == ["1", "mean 1"]


def test_a_logarithmic_axis_has_equal_factors_and_round_numbers() -> None:
    axis = Axis(1, 100, True)
    assert [axis.share(x) for x in (0, 1, 10, 100, 1000)] == [0, 0, 50, 100, 100]
    assert axis.ticks == [1, 2, 5, 10, 20, 50, 100]
    assert Axis(1e-4, 3, True).ticks == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1])
    assert len(Axis(1e-30, 1, True).ticks) <= 11
    assert Axis(1.4, 1.9, True).ticks == pytest.approx([1.4, 1.5, 1.6, 1.7, 1.8, 1.9])
    falling = [Line("a", "red", [(1, 0.0), (2, 1.0), (3, 100.0)])]
    assert value_range(falling, log=True) == pytest.approx((1 / 1.05, 105)), "0 has no place on it"
    assert value_range([], log=True)[0] > 0


def test_prompts_come_out_of_the_samples_of_a_run(tmp_path: Path, runs: Path) -> None:
    run = RunFolder(tmp_path)
    assert prompts(run) == ["\n"]
    (tmp_path / "samples").mkdir()
    run.write_sample(100, "JULIET:\nO wh\n\nCUT OF")
    run.write_sample(200, f"\nROMEO:\nBut\n\nROMEO:\nsoft\n\n{'word ' * 30}")
    assert prompts(run) == ["ROMEO:\n", "word word word word word word", "JULIET:\n"]
    own = prompts(RunFolder(runs / "small"))
    assert own
    for prompt in own:
        assert list(Session(runs).write("me", "small", prompt, max_new_tokens=1))[-1].text


def test_sources_come_out_of_the_table_of_samples_of_a_run(tmp_path: Path, runs: Path) -> None:
    vocabulary = load_seq2seq(runs / "copy").vocabulary
    pairs = [Pair(source, "1984-03-07") for source in ("7 March 1984", "March  7, 1984", "l" * 50)]
    (tmp_path / "samples").mkdir()
    RunFolder(tmp_path).write_sample(1, sample_table(pairs, [None] * 3, Vocabulary(Symbols(printable, "characters"))))
    assert sources(RunFolder(tmp_path)) == ["7 March 1984", "March  7, 1984"]
    own = sources(RunFolder(runs / "copy"))
    assert own
    assert not vocabulary.unknown(own)
    assert sources(RunFolder(tmp_path / "nowhere")) == []


def test_the_best_run_that_can_be_loaded_is_chosen_and_runs_have_an_order(runs: Path, tmp_path: Path) -> None:
    for name, loss in (("run-2", 3.0), ("run-10", 1.0), ("run-1", 2.0)):
        shutil.copytree(runs / "small", tmp_path / name, symlinks=True)
        run = RunFolder(tmp_path / name)
        own = {"val_loss": 4 - loss, "bits_per_byte": loss}  # Of a token of more bytes the loss is higher.
        lines = [json.dumps(line | (own if "val_loss" in line else {})) for line in run.read_metrics()]
        run.metrics_file.write_text("".join(f"{line}\n" for line in lines))
    weights = next((tmp_path / "run-10/checkpoints/best").glob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[::-1])
    session = Session(tmp_path)

    def offered(order: Any, chosen: Any = None) -> tuple[Any, list[Any]]:
        found = choices(session, "gpt", order, chosen)
        return found.value, [value for _, value in found.choices]

    assert offered("best") == ("run-1", ["run-10", "run-1", "run-2"]), "that of run-10 is damaged"
    assert offered("name", "run-2") == ("run-2", ["run-1", "run-2", "run-10"])
    assert offered("nonsense", "gone") == ("run-1", ["run-10", "run-1", "run-2"])
    assert Catalogue(tmp_path / "nowhere").best("gpt") is None
    entry = next(entry for entry in session.catalogue.entries() if entry.name == "run-1")
    assert entry.label.startswith("run-1 (2.000 bits per byte, ")
    older = replace(entry, bits_per_byte=None)
    assert older.label.startswith("run-1 (val. loss 2.000, ")
    assert older.bits == pytest.approx(2 / log(2))


def test_several_texts_are_those_of_their_seeds_in_the_precision_that_is_asked_for(runs: Path) -> None:
    session = Session(runs)
    asked: dict[str, Any] = {"run": "small", "prompt": "7 times", "max_new_tokens": 12, "precision": "int8"}
    several = list(session.write("me", **asked, seed=3, num_samples=2))[-1]
    alone = [list(session.write("me", **asked, seed=seed))[-1] for seed in (3, 4)]
    assert several.texts == [each.text for each in alone]
    assert several.cache_bytes > 1.9 * alone[0].cache_bytes
    assert several.figures()["precision"] == "int8"
    whole = list(session.write("me", **asked | {"precision": "fp32"}))[-1]
    assert whole.cache_bytes > 1.9 * alone[0].cache_bytes, "int8 computes in bf16"
    figures = list(session.benchmark("me", "small", 100, "bf16"))[-1].figures()
    assert figures["precision"] == "bf16"
    for wrong, message in (
        ({"num_samples": 9}, "num_samples must be at least 1 and at most 8, got 9"),
        ({"num_samples": 2, "compare": True}, "compare reads one text a second time: write one, or leave out the"),
        ({"precision": "fp64"}, "precision must be one of fp32, bf16, fp16, int8, got 'fp64'"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            list(session.write("me", **asked | wrong))
