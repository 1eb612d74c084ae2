"""Models that diverged: one clear error, whatever is asked of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import seq2seq.evaluate
from data.pairs.strings import Pair
from decoding.decoder import Decoder
from decoding.native import NativeError, library
from demo.session import Session
from gpt import baselines as of_text
from gpt import evaluate as evaluate_gpt
from gpt.task import LoadedGPT, load_gpt
from launch.evaluate import main
from seq2seq import baselines as of_pairs
from seq2seq.accuracy import token_accuracy
from seq2seq.task import LoadedSeq2Seq, load_seq2seq
from training.runtime.errors import NonFiniteError, exit_code

try:
    library()
    NATIVE = pytest.param(["--mode", "native", "--num_samples", "2"])
except NativeError as error:
    NATIVE = pytest.param([], marks=pytest.mark.skip(reason=str(error)))
WORDS = "is not a finite number: the training of this model diverged, or its numbers are too large for the precision"


def poison(model: torch.nn.Module, value: float) -> None:
    """Put a number into a weight that every token comes by."""
    norms = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    with torch.no_grad():
        norms[-1][3] = value


@pytest.fixture(params=[float("nan"), float("inf")])
def gpt(request: pytest.FixtureRequest, runs: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedGPT:
    """A GPT that diverged, which the command loads too."""
    loaded = load_gpt(runs / "small")
    poison(loaded.model, request.param)
    monkeypatch.setattr(evaluate_gpt, "load_gpt", lambda path, device="cpu", **_: loaded)
    monkeypatch.chdir(runs.parent)
    return loaded


@pytest.fixture(params=[float("nan"), float("inf")])
def pairs(request: pytest.FixtureRequest, runs: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedSeq2Seq:
    """An encoder-decoder that diverged, which the command loads too."""
    loaded = load_seq2seq(runs / "copy")
    poison(loaded.model, request.param)
    monkeypatch.setattr(seq2seq.evaluate, "load_seq2seq", lambda path, device="cpu", **_: loaded)
    return loaded


def check_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--checkpoint", *arguments])
    assert exit_code(main) == NonFiniteError.exit_code == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert WORDS in said.err
    assert said.err.count("\n") == 1, "one line"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--temperature", "0"],
        ["--top_k", "5", "--top_p", "0.9", "--min_p", "0.1", "--repetition_penalty", "1.2"],
        ["--alternatives", "2"],
        ["--beams", "3"],
        ["--temperature", "0", "--lookup", "4"],
        ["--mode", "eager", "--stop", "x", "--prompt", "7", "8 times"],
        NATIVE,
        ["--precision", "fp16"],
        ["--precision", "int8"],
        ["--split", "val"],
        ["--split", "val", "--precision", "bf16"],
    ],
    ids=" ".join,
)
def test_a_gpt(
    gpt: LoadedGPT, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    check_command(monkeypatch, capsys, str(runs / "small"), *options)


@pytest.mark.parametrize(
    "options",
    [
        ["--source", "ab", "ba"],
        ["--source", "ab", "--temperature", "0.8", "--top_k", "3", "--num_samples", "3"],
        ["--source", "ab", "--beams", "3"],
        ["--source", "ab", "--mode", "eager"],
        ["--source", "ab", "--attention", "map.png"],
        ["--split", "test", "--count", "10"],
    ],
    ids=" ".join,
)
def test_an_encoder_decoder(
    pairs: LoadedSeq2Seq,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runs: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    check_command(monkeypatch, capsys, str(runs / "copy"), *options)
    assert not Path("map.png").exists()


def test_benchmarks(gpt: LoadedGPT, pairs: LoadedSeq2Seq) -> None:
    texts = of_text.variants([("fp32", Decoder(gpt.model, "eager"))], [2], ["eager"])
    targets = of_pairs.variants(pairs.model, ["eager"], [1], uncached=True)
    measures: list[Callable[[], Any]] = [
        *(lambda v=variant: list(v.write([[1, 2], [3, 4]], 8)) for variant in texts),
        *(lambda v=variant: list(v.write([[3, 4]], 3)) for variant in targets),
        lambda: of_text.agreement(gpt.model, {"bf16": gpt.model}, 8),
        lambda: token_accuracy(pairs.model, pairs.vocabulary, [Pair("ab", "ab")], 1),
    ]
    assert len(measures) == 6
    for measured in measures:
        with pytest.raises(NonFiniteError, match=WORDS):
            measured()


def test_the_page(gpt: LoadedGPT, pairs: LoadedSeq2Seq, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(runs)
    monkeypatch.setattr(session.catalogue, "gpt", lambda run, precision: gpt)
    monkeypatch.setattr(session.catalogue, "seq2seq", lambda run: pairs)
    for asked in (
        session.write("me", "small", "7"),
        session.write("me", "small", "7", temperature=0, alternatives=True),
        session.benchmark("me", "small"),
        session.transduce("me", "copy", "ab"),
        session.transduce("me", "copy", "ab", beams=2),
    ):
        with pytest.raises(ValueError, match=WORDS):
            list(asked)


def test_a_text_that_diverges_on_its_way_shows_what_came_before(
    gpt: LoadedGPT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    sound = load_gpt(runs / "small")
    decode_step, steps = Decoder.decode_step, []

    def diverging(self: Decoder, *arguments: Any) -> torch.Tensor:
        steps.append(1)
        return decode_step(self, *arguments) * (float("nan") if len(steps) > 4 else 1.0)

    monkeypatch.setattr(evaluate_gpt, "load_gpt", lambda path, device, **_: sound)
    monkeypatch.setattr(Decoder, "decode_step", diverging)
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--checkpoint", "x", "--prompt", "7"])
    assert exit_code(main) == 4
    assert len(capsys.readouterr().out) == len("7") + 5
