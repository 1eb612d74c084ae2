"""What the page does, without a page."""

import gc
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from threading import Event, Thread, get_ident
from typing import Any, TypeVar

import pytest
import torch
from helpers import python_file

import decoding.compiled
import demo.jobs
from data.tokenizers.byte_tokenizer import ByteTokenizer
from data.tokenizers.symbols import Symbols
from data.tokenizers.vocabulary import END, Vocabulary
from decoding.decoder import Decoder
from decoding.sampling import Sampler, Sampling
from decoding.targets import decode, search
from decoding.writing import write
from demo import rendering as show
from demo.catalogue import Catalogue
from demo.curves import read_curves, stamp
from demo.jobs import Job, Jobs
from demo.limits import Limits
from demo.line_chart import Line, axis_top, line_chart, round_up, short, value_range
from demo.quick_training import QuickTraining
from demo.results import WITH, WITHOUT, Growing, Writing
from demo.session import Session
from gpt.task import load_gpt
from layers import KVCache
from seq2seq.task import load_seq2seq
from training.runtime.errors import InputError
from training.storage.run_folder import RunFolder

Look = TypeVar("Look")


@pytest.fixture
def session(runs: Path) -> Session:
    return Session(runs)


def last(looks: Iterator[Look]) -> Look:
    return list(looks)[-1]


@pytest.mark.parametrize("when_full", ["stop", "slide"])
def test_the_text_is_what_the_sampler_writes(session: Session, runs: Path, when_full: Any) -> None:
    loaded = load_gpt(runs / "small")
    pieces = write(
        Decoder(loaded.model), loaded.tokenizer, "7 times", max_new_tokens=60, sampling=Sampling(temperature=0.8),
        seed=3, when_full=when_full,
    )  # fmt: skip
    expected = "".join(piece.text for piece in pieces)
    looks = list(session.write("me", "small", "7 times", max_new_tokens=60, seed=3, when_full=when_full))
    writing = looks[-1]
    assert (writing.text, writing.phase) == (expected, "done")
    assert len(writing.milliseconds) == len(expected) == (60 if when_full == "slide" else 26)
    assert writing.why == ("as long as asked" if when_full == "slide" else "the context is full")
    # Of 32 tokens, 16 stay when all are taken and a 33rd is to be read: 66 read tokens are 32, 16 to 32, 16 to 32.
    assert writing.context_used == 32
    assert writing.cache_bytes == loaded.model.new_cache(1, 32).bytes
    assert not session.jobs.is_busy("me")


def test_the_context_in_use_is_the_length_of_the_cache(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    caches: list[KVCache] = []
    choose, take = Sampler.choose, Decoder.take_cache

    def noted(self: Sampler, logits_BV: torch.Tensor) -> Any:
        lengths.append(caches[-1].lengths[0])
        return choose(self, logits_BV)

    def taken(self: Decoder, *arguments: Any) -> KVCache:
        caches.append(take(self, *arguments))
        return caches[-1]

    monkeypatch.setattr(Sampler, "choose", noted)
    monkeypatch.setattr(Decoder, "take_cache", taken)
    for prompt in ("7 times", "7 times " * 5):
        lengths.clear()
        writing = last(session.write("me", "small", prompt, max_new_tokens=60, when_full="slide"))
        milliseconds = writing.milliseconds
        used = []
        for count in range(1, 61):
            writing.milliseconds = milliseconds[:count]
            used.append(writing.context_used)
        assert used == lengths


def test_times_are_those_of_each_token_even_if_some_are_held_back(session: Session) -> None:
    writing = last(session.write("me", "small", "7 times", max_new_tokens=20, temperature=0, stop="zzzz"))
    assert len(writing.milliseconds) == 20
    assert min(writing.milliseconds) > 0.01, "in milliseconds, of every one"


def test_comparing_reads_the_same_tokens_without_the_cache(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    writing = last(session.write("me", "small", "7 times", max_new_tokens=20, compare=True))
    assert len(writing.uncached) == len(writing.milliseconds) == 20
    assert len(writing.eager) == 20
    assert writing.speedup == pytest.approx(sum(writing.uncached[1:]) / sum(writing.eager[1:])), "of one mode"
    cached, *_, uncached = lines = show.token_times(writing)
    assert (cached.name, uncached.name) == (WITH, WITHOUT)
    assert len(lines) == (2 if writing.mode == "eager" else 3)
    assert cached.points[0] == (len("7 times") + 2, writing.milliseconds[1]), "the first token is told apart"


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> None:
    """Every token takes so long."""
    read = Decoder.decode_step

    def slowly(self: Decoder, *arguments: Any) -> torch.Tensor:
        time.sleep(seconds)
        return read(self, *arguments)

    monkeypatch.setattr(Decoder, "decode_step", slowly)


def caches() -> int:
    gc.collect()
    return sum(isinstance(thing, KVCache) for thing in gc.get_objects())


def test_what_is_compiled_is_compiled_once_and_its_memory_used_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    read = Decoder.decode_step

    def compiled(function: Any, **options: Any) -> Any:
        made.append(function)
        return function

    def slow_at_first(self: Decoder, *arguments: Any) -> torch.Tensor:
        if not first.is_set():
            first.set()
            time.sleep(2 * demo.jobs.INTERVAL)
        return read(self, *arguments)

    first = Event()
    asked: dict[str, Any] = {"max_new_tokens": 12, "seed": 3}
    expected = last(Session(runs).write("me", "small", "7 times", **asked)).text
    monkeypatch.setattr(decoding.compiled.torch, "compile", compiled)
    monkeypatch.setattr(Decoder, "decode_step", slow_at_first)
    session = Session(runs, mode="compiled")
    looks = session.write("me", "small", "7 times", **asked)
    assert next(looks).phase == "compiling"
    writing = last(looks)
    assert (writing.mode, writing.text, writing.phase) == ("compiled", expected, "done")
    assert max(writing.milliseconds) < 1000 * demo.jobs.INTERVAL, "compiling is no token's time"
    assert writing.cache_bytes == load_gpt(runs / "small").model.new_cache(1).bytes, "of the whole context"
    parts, held = len(made), caches()
    last(session.benchmark("me", "small", 100))
    for _ in range(3):
        assert last(session.write("me", "small", "7 times", **asked)).text == expected
    assert (len(made), caches()) == (parts, held)


def test_what_is_compiled_is_used_by_one_request_at_a_time(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[int] = []
    met: list[bool] = []
    read = Decoder.decode_step

    def slowly(self: Decoder, *arguments: Any) -> torch.Tensor:
        here = get_ident()
        inside.append(here)
        time.sleep(3 * demo.jobs.INTERVAL if len(inside) == 1 else 0)
        met.append(inside[-1] != here)
        return read(self, *arguments)

    monkeypatch.setattr(decoding.compiled.torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(Decoder, "decode_step", slowly)
    session = Session(runs, mode="compiled")
    ended = session.write("me", "small", "7 times", max_new_tokens=5)
    assert next(ended).phase == "compiling"
    ended.close()
    assert last(session.write("you", "small", "7 times", max_new_tokens=5)).why == "as long as asked"
    assert len(inside) == len(met) == 1 + 4, "the first one ended when it had compiled"
    assert not any(met), "a request began while another one read"


def test_the_best_run_is_compiled_ahead_and_requests_are_eager_meanwhile(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling, go_on = Event(), Event()
    read = Decoder.decode_step

    def held(self: Decoder, *arguments: Any) -> torch.Tensor:
        if self.mode == "compiled" and not go_on.is_set():
            compiling.set()
            assert go_on.wait(20)
        return read(self, *arguments)

    monkeypatch.setattr(decoding.compiled.torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(Decoder, "decode_step", held)
    session = Session(runs, mode="compiled")
    session.compile_ahead()
    assert compiling.wait(20)
    best = session.catalogue.best("gpt")
    asked: dict[str, Any] = {"max_new_tokens": 12, "seed": 3}
    meanwhile = last(session.write("me", best, "7 times", **asked))
    go_on.set()
    assert session._ahead is not None
    session._ahead.join(20)
    looks = list(session.write("me", best, "7 times", **asked))
    assert (meanwhile.mode, looks[-1].mode) == ("eager", "compiled")
    assert "compiling" not in [look.phase for look in looks]
    assert looks[-1].text == meanwhile.text
    assert len(session._compiled._free[1]) == 1, "the cache that it was compiled with"


@pytest.mark.parametrize("message", ["no room\nat all", ""])
def test_what_cannot_be_compiled_ahead_is_one_line_and_read_eagerly(
    message: str, runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(function: Any, **options: Any) -> Any:
        raise RuntimeError(message)

    monkeypatch.setattr(decoding.compiled.torch, "compile", fails)
    session = Session(runs, mode="compiled")
    session.compile_ahead()
    assert session._ahead is not None
    session._ahead.join(20)
    reason = "no room" if message else "RuntimeError"
    assert [record.getMessage() for record in caplog.records] == [
        f"the model cannot be compiled, so that texts are written eagerly: {reason}"
    ]
    assert last(session.write("me", "small", "7 times", max_new_tokens=5)).mode == "eager"


def test_nothing_is_compiled_ahead_where_there_is_nothing_or_another_mode(runs: Path, tmp_path: Path) -> None:
    other = Session(runs)
    other.compile_ahead()
    assert other._ahead is None
    empty = Session(tmp_path / "none", mode="compiled")
    empty.compile_ahead()
    assert empty._ahead is not None
    empty._ahead.join(20)
    assert (empty._compiled, empty._mode) == (None, "compiled")


LONG: dict[str, Any] = {"max_new_tokens": 2000, "when_full": "slide"}


def test_closing_the_iterator_ends_the_work_and_frees_its_memory(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch)
    before = caches()
    looks = session.write("me", "small", "7 times", **LONG)
    writing = next(islice(looks, 2, None))
    looks.close()
    time.sleep(0.2)
    written = len(writing.milliseconds)
    assert 0 < written < 100
    time.sleep(0.2)
    assert len(writing.milliseconds) == written
    assert caches() == before


def test_stop_ends_it_at_the_next_token_and_says_so(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    monkeypatch.setattr(demo.jobs, "STOPPING", 0.1)
    looks = session.write("me", "small", "7 times", **LONG)
    next(looks)
    assert not session.jobs.stop("somebody else")
    assert session.jobs.stop("me")
    writing = last(looks)
    assert (writing.phase, writing.why) == ("done", "stopped")
    assert len(writing.milliseconds) < 50


def test_another_request_of_the_same_visitor_takes_its_place(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    monkeypatch.setattr(demo.jobs, "STOPPING", 0.1)
    first, other = (session.write(owner, "small", "7 times", **LONG) for owner in ("me", "you"))
    next(first)
    next(other)
    second = session.write("me", "small", "8 times", max_new_tokens=3)
    assert last(second).why == "as long as asked"
    assert last(first).why == "a new request took its place"
    assert len(next(other).milliseconds) > 0, "nobody else's ends"
    other.close()


def test_a_request_that_waits_begins_only_if_it_is_the_newest_and_was_not_stopped(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch)
    jobs = session.jobs
    first, second = jobs.ask("me"), jobs.ask("me")
    other = jobs.ask("you")
    assert not jobs.begin("me", first)
    assert jobs.begin("me", second)
    assert not jobs.begin("me", second), "once"
    assert not jobs.begin("me", None)
    jobs.stop("you")
    assert not jobs.begin("you", other)
    looks = session.write("me", "small", "7 times", **LONG)
    next(looks)
    jobs.ask("me")
    assert last(looks).why == "a new request took its place"


def test_a_request_can_be_ended_while_its_model_is_loaded(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    loading, load, begun = Event(), Event(), []
    gpt = Catalogue.gpt

    def slowly(self: Catalogue, name: Any, precision: Any) -> Any:
        loading.set()
        assert load.wait(10)
        return gpt(self, name, precision)

    monkeypatch.setattr(Catalogue, "gpt", slowly)
    monkeypatch.setattr(Decoder, "decode_step", lambda *_: begun.append(1))
    monkeypatch.setattr(demo.jobs, "STOPPING", 0.0)
    for end in (session.jobs.stop, session.jobs.ask):
        loading.clear(), load.clear()
        looks: list[Writing] = []
        visit = Thread(target=lambda: looks.extend(session.write("me", "small", "7 times", **LONG)))  # noqa: B023
        visit.start()
        assert loading.wait(10)
        assert end("me")
        load.set()
        visit.join(10)
        assert (looks, begun, len(session.jobs._running)) == ([], [], 0)


def test_text_that_is_held_back_can_be_stopped(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    monkeypatch.setattr(demo.jobs, "STOPPING", 0.0)
    text = last(session.write("me", "small", "7 times", max_new_tokens=90, when_full="slide", temperature=0)).text
    looks = session.write("me", "small", "7 times", **LONG, temperature=0, stop=f"{text}!")
    writing = next(looks)
    session.jobs.stop("me")
    assert last(looks).why == "stopped"
    assert len(writing.milliseconds) < 50
    assert writing.text == ""


def test_time_is_limited_and_what_was_written_stays(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    session = Session(runs, limits=Limits(seconds=0.5))
    writing = last(session.write("me", "small", "7 times", **LONG))
    assert writing.why == "ended after 0.5 seconds, the most that a request may take"
    assert 5 < len(writing.milliseconds) < 40
    assert len(writing.text) == len(writing.milliseconds)


def test_work_that_nobody_looks_at_ends(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    monkeypatch.setattr(demo.jobs, "FORSAKEN", 0.5)
    looks = session.write("me", "small", "7 times", **LONG)
    writing = next(looks)
    time.sleep(1.0)
    written = len(writing.milliseconds)
    time.sleep(0.3)
    assert len(writing.milliseconds) == written
    assert last(looks).why == "nobody waits for it any more"


def test_a_job_that_fails_says_no_more_than_that(caplog: pytest.LogCaptureFixture) -> None:
    def work(job: Job[Growing]) -> None:
        raise RuntimeError("secret")

    with pytest.raises(InputError, match="^this failed on the server; its terminal says why$"):
        list(Jobs().run("me", Job(work, 1.0)))
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": "../small"}, "there is no trained run '../small': choose one of the list, which may have changed"),
        ({"run": None}, "there is no trained run None"),
        ({"run": "copy"}, "copy is an encoder-decoder, expected a GPT"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "9" * 9000}, "the prompt has 9,000 characters, at most 8,000 are allowed"),
        ({"prompt": "9" * 40, "when_full": "stop"}, "the prompt has 40 tokens, and the model's context 32"),
        ({"prompt": "é"}, "unknown character 'é' (U+00E9) at line 1, column 1 of the prompt"),
        ({"max_new_tokens": 2001}, "max_new_tokens must be at least 1 and at most 2,000, got 2001"),
        ({"temperature": float("nan")}, "temperature must be a number from 0 to 10, got nan"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_k": False}, "top_k must be a whole number from 0 to 1,000,000, got False"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"min_p": 2}, "min_p must be a number from 0 to 1, got 2"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"when_full": "grow"}, "when_full must be one of stop, slide, got 'grow'"),
        ({"compare": "yes"}, "compare must be true or false, got 'yes'"),
    ],
)
def test_bad_requests_are_named(session: Session, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        list(session.write("me", **{"run": "small", "prompt": "7 times"} | options))
    assert not session.jobs.is_busy("me")


def test_the_benchmark_times_every_variant_and_grows(session: Session) -> None:
    looks = session.benchmark("me", "small", 200)
    assert len(next(looks).rows()) <= 1, "it can be looked at from the beginning on"
    result = list(looks)[-1]
    assert [variant.name for variant in result.variants[:2]] == ["fp32 eager, without cache", "fp32 eager"]
    for variant in result.variants:
        (seconds,) = variant.passes
        assert len(seconds) == 200
        assert seconds == sorted(seconds)
    assert [row["new_tokens"] for row in result.rows()] == [100, 200]
    for row in result.rows():
        assert row["speedup"] == pytest.approx(row["no_cache_seconds"] / row["cache_seconds"])
    figures = result.figures()
    assert {"device", "torch", "model", "precision", "rows", "seconds"} <= set(figures)
    table = show.reference_table(result)
    assert table.count("<tr>") == 6
    assert "5.14 s" in table
    with pytest.raises(InputError, match="new_tokens must be at least 100 and at most 2,000, got 99"):
        next(session.benchmark("me", "small", 99))


def test_targets_are_those_of_the_decoder(session: Session, runs: Path) -> None:
    loaded = load_seq2seq(runs / "copy")
    source = loaded.vocabulary.encode("abca")
    (greedy,) = decode(loaded.model, [source])
    found = last(session.transduce("me", "copy", "abca"))
    assert found.target == loaded.vocabulary.decode(greedy.tokens)
    assert len(found.probabilities) == len(greedy.tokens) + greedy.ended
    heads, rows, columns = found.attention[0].shape
    assert (heads, columns) == (2, 6)
    assert rows in (len(greedy.tokens) + 1, len(greedy.tokens))
    beams = search(loaded.model, source, width=3)
    searched = last(session.transduce("me", "copy", "abca", 3))
    texts = [loaded.vocabulary.decode([t for t in beam.tokens if t != END]) for beam in beams]
    assert [text for text, _ in searched.beams] == texts
    assert searched.target == texts[0]
    words = Vocabulary(Symbols(["one", "two"], "words"))
    in_words = replace(found, loaded=loaded._replace(vocabulary=words), tokens=list(words.encode("one two", "it")))
    assert re.sub("<.*?>", "", show.target_html(in_words)).endswith("one two")


@pytest.mark.parametrize(
    ("run", "source", "beams", "message"),
    [
        ("small", "a", 1, "small is a GPT, expected an encoder-decoder"),
        ("copy", "", 1, "the source is empty"),
        ("copy", "a" * 63, 1, "the source has 63 tokens, at most 62 fit"),
        ("copy", "A", 1, "unknown character 'A' at position 1 of the source"),
        ("copy", "a", 17, "beams must be at least 1 and at most 16, got 17"),
    ],
)
def test_bad_sources_are_named(session: Session, run: str, source: str, beams: int, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        list(session.transduce("me", run, source, beams))


def test_the_list_names_loss_and_size(runs: Path) -> None:
    entries = Catalogue(runs).entries()
    assert {(entry.name, entry.kind, entry.task) for entry in entries} == {
        ("small", "gpt", None),
        ("copy", "seq2seq", "copy"),
    }
    label = next(entry.label for entry in entries if entry.kind == "gpt")
    assert re.fullmatch(r"small \(\d\.\d{3} bits per byte, 0.1 MB\)", label)
    assert Catalogue(runs / "nowhere").entries() == []


def test_a_checkpoint_that_is_damaged_or_vanishes_is_a_message_without_a_path(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs", symlinks=True)
    session = Session(tmp_path / "runs")
    last(session.write("me", "small", "7 times", max_new_tokens=1))
    weights = next((tmp_path / "runs/small/checkpoints/best").glob("model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    fresh = Session(tmp_path / "runs")
    with pytest.raises(InputError, match=r"^checkpoint small/checkpoints/step-\d+ is damaged: model\.safetensors"):
        list(fresh.write("me", "small", "7 times"))
    last(session.write("me", "small", "7 times", max_new_tokens=1))  # In memory it is whole.
    for entry in (tmp_path / "runs/copy/checkpoints").iterdir():
        if not entry.is_symlink():
            (entry / "vocabulary.json").write_text("[]")
    with pytest.raises(InputError, match=r"^checkpoint copy/checkpoints/step-\d+ is damaged: vocabulary"):
        list(session.transduce("me", "copy", "a"))
    shutil.rmtree(tmp_path / "runs/small")
    with pytest.raises(InputError, match="there is no trained run 'small'"):
        list(session.write("me", "small", "7 times"))


def test_text_is_never_html(session: Session) -> None:
    bad = "<script>alert(1)</script>"
    about: Any = {"prompt_tokens": [0], "tokenizer": ByteTokenizer(), "context": 9, "when_full": "stop"}
    writing = Writing(prompt=bad, mode=bad, limit=9, cache_bytes=1, **about)
    real = last(session.write("me", "small", "<b>", max_new_tokens=20, alternatives=True, temperature=3))
    for html in (
        show.text_html(writing, coloured=True), show.text_html(real, coloured=True), show.writing_figures(writing),
        show.message_html(bad), show.progress_html(1, 2, bad),
    ):  # fmt: skip
        tags = set(re.findall(r"</?([a-z]+)[ >]", html))
        assert tags <= {"div", "span", "dl", "dt", "dd", "p"}, tags
    assert "&lt;b&gt;" in show.text_html(real, coloured=False)
    coloured = show.text_html(real, coloured=True)
    assert coloured.count("<span") == 21
    assert re.search(r'title="[^"]+ \d+\.\d%&#10;', coloured), "the alternatives, on hovering"


@pytest.mark.parametrize("coloured", [False, True])
def test_an_update_of_the_text_is_the_one_before_with_more_behind_it(session: Session, coloured: bool) -> None:
    looks = session.write("me", "small", "7 times", alternatives=coloured, **LONG)
    shown = [show.text_html(writing, coloured=coloured) for writing in looks]
    assert len(shown) > 1
    assert all(after.startswith(before) for before, after in pairwise(shown))


def test_long_lines_are_thinned_and_axes_seldom_change() -> None:
    about: Any = {"prompt_tokens": [0, 1], "tokenizer": ByteTokenizer(), "context": 9, "when_full": "stop"}
    writing = Writing(prompt="ab", mode="eager", limit=9, cache_bytes=1, **about)
    assert show.token_times(writing) == []
    writing.milliseconds = [50.0] + [1.0] * 2000
    (line,) = show.token_times(writing)
    assert len(line.points) <= show.MAX_POINTS
    assert {y for _, y in line.points} == {1.0}
    assert line.points[-1][0] <= 2 + 2001
    assert axis_top([line]) == 2.0


def test_a_chart_is_drawn_to_scale() -> None:
    line = Line("<b>", "#123456", [(0, 0.0), (5, 30.0), (10, 99.0)])
    chart = line_chart([line], "step", "loss", x_range=(0, 10), y_range=(0, 40))
    assert 'points="0.00,100.00 50.00,25.00 100.00,0.00"' in chart, "what is above the axis is at its end"
    assert re.findall(r'class="y" style="bottom:([\d.]+)%">([^<]+)', chart) == [
        ("0.00", "0"), ("25.00", "10"), ("50.00", "20"), ("75.00", "30"), ("100.00", "40"),
    ]  # fmt: skip
    assert re.findall(r'class="x" style="left:[\d.]+%">([^<]+)', chart) == ["0", "2", "4", "6", "8", "10"]
    assert "&lt;b&gt; <b>99</b>" in chart
    assert [round_up(v) for v in (0.0, 0.3, 1.0, 1.1, 4.9, 51, 999)] == [1.0, 0.5, 1.0, 2.0, 5.0, 100.0, 1000.0]
    assert axis_top([]) == 1.0
    assert axis_top([Line("a", "red", [(n, 1.0) for n in range(100)] + [(100, 500.0)])]) == 2.0
    assert value_range([]) == (0.0, 1.0)
    assert value_range([Line("a", "red", [(0, 1.0), (1, 3.0)])]) == pytest.approx((0.9, 3.1))
    assert value_range([Line("a", "red", [(0, 2.0)])]) == pytest.approx((1.9, 2.1))
    assert [short(v) for v in (0, 0.0003, 0.25, 12, 999, 12_345, 3e6)] == [
        "0", "3e-04", "0.25", "12", "999", "12.3k", "3M",
    ]  # fmt: skip


def test_curves_follow_a_run_that_is_in_progress(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "small", tmp_path / "small", symlinks=True)
    run = RunFolder(tmp_path / "small")
    before, curves = stamp([run]), read_curves([run])
    train, val = curves.charts["loss"]
    assert (train.name, val.name) == ("small, train", "small, val")
    assert train.points[-1][0] == val.points[-1][0] == 40
    assert curves.samples_of == "small"
    assert curves.samples.startswith("step 40\n")
    assert (train.colour, train.faint, val.faint) == (val.colour, True, False)
    with run.metrics_file.open("a") as file:
        file.write('{"step": 45, "train_loss": 1.5}\n{"step": 50, "trai')
    assert stamp([run]) != before
    assert read_curves([run]).charts["loss"][0].points[-1] == (45, 1.5), "a line cut short is not read"
    begun = RunFolder(tmp_path / "begun")
    assert read_curves([run, begun]).samples_of == curves.samples_of, "a run without a metric hides no sample"
    now = stamp([run])
    run.write_sample(50, "new")
    assert stamp([run]) != now
    assert read_curves([run, begun]).samples.startswith("step 50\nnew\n\nstep 40\n")
    assert stamp([RunFolder(tmp_path / "nowhere")]) == (("nowhere", (0, 0), (0, 0)),)
    assert read_curves([]).samples == ""


def test_the_quick_model_trains_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(python_file(tmp_path)))
    (tmp_path / "text.txt").write_text("to be or not to be " * 200)
    options = ("--training.max_steps", "6", "--training.log_interval", "1", "--data.source", str(tmp_path / "text.txt"))
    training = QuickTraining(tmp_path / "runs", options)
    assert training.progress() == (0, 0, "")
    training.start()
    training.start()
    words = []
    while training.running:
        words.append(training.progress()[2])
        time.sleep(0.2)
    assert training.progress() == (6, 6, "gpt-quick-1 is trained: press Generate")
    assert words[0] == "training the quick model: starting: the first steps take some seconds"
    assert [entry.name for entry in Catalogue(tmp_path / "runs").entries()] == ["gpt-quick-1"]


@pytest.mark.nightly
def test_a_quick_training_that_fails_says_why_and_one_that_is_stopped_keeps_its_checkpoint(tmp_path: Path) -> None:
    training = QuickTraining(tmp_path / "runs", ("--data.source", "nowhere.txt"))
    training.start()
    while training.running:
        time.sleep(0.1)
    assert training.progress()[2].startswith("the training ended early (exit code 2): error: ")
    (tmp_path / "text.txt").write_text("to be or not to be " * 200)
    options = ("--training.log_interval", "1", "--data.source", str(tmp_path / "text.txt"))
    training = QuickTraining(tmp_path / "runs", options)
    training.start()
    while training.progress()[0] < 2:
        time.sleep(0.1)
    training.stop()
    assert not training.running
    assert "exit code 3" in training.progress()[2]
    assert len(Catalogue(tmp_path / "runs").entries()) == 1
