"""The benchmark of tokenisation: what it compares gives the same tokens, and its figures are told."""

import json
import sys
from pathlib import Path

import datasets
import pytest
import tokenizers

from data.cache.tokens import tokenized
from data.config import TextConfig
from data.sources.documents import InMemory
from data.text import load_source
from data.tokenisation_speed import map_documents
from launch.bench_tokenisation import main
from training.runtime.errors import InputError


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of some files."""
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / f"texts/{number:02}.txt").write_text(f"{number} green bottles hanging on the wall\n" * 50)
    return tmp_path / "texts"


def test_figures_of_all_ways_are_told(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--source", str(texts), "--tokenizer", "bpe:300", "--repeats", "1", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["bench_tokenisation.py", *options])
    home = Path(datasets.config.HF_DATASETS_CACHE)
    main()
    figures = json.loads((tmp_path / "out.json").read_text())
    size = sum(file.stat().st_size for file in texts.iterdir())
    assert (figures["documents"], figures["num_bytes"], figures["tokenizer"]) == (20, size, "bpe:300")
    names = list(figures["ways"])
    assert names[:2] == ["ours", "datasets.map, threads"]
    for name in names:
        way = figures["ways"][name]
        assert way["seconds_per_gb"] == pytest.approx(way["seconds"][0] * 1e9 / size)
        assert way["tokens_per_second"] == pytest.approx(figures["num_tokens"] / way["seconds"][0])
        assert name in capsys.readouterr().out or name != "ours"
    assert Path(datasets.config.HF_DATASETS_CACHE) == home


def test_the_ways_give_the_same_tokens(texts: Path, tmp_path: Path) -> None:
    data = TextConfig(source=str(texts), tokenizer="bpe:300")
    source = load_source(data)._replace(validation=InMemory(["no cut, then, in the middle of a token"]))
    found = tokenized(source, data)
    library = tokenizers.Tokenizer.from_str(found.tokenizer.to_json())
    theirs = map_documents(source, library, datasets, tmp_path / "arrow", None)["ids"]
    assert [
        token for row in theirs for token in [*row, found.tokenizer.end_of_text]
    ] == found.training.tokens_N.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--tokenizer", "bytes"], "the library tokenizers has no bytes: give bpe:N or a tokenizer.json"),
    ],
)
def test_what_cannot_be_timed_is_refused(options: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_tokenisation.py", *options])
    with pytest.raises(InputError, match=message):
        main()
