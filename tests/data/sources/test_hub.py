"""Text from a hub on loopback: what is loaded, what each error says, and how long a slow or dead hub is waited for."""

import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow
import pytest
from helpers import ROOT, command, torchrun
from reliability.text_memory import read_through
from small_hub import SmallHub, parquet, serving

from data import text as data
from data.answers.tokens import answer_tokens
from data.config import TextConfig
from data.sources.arrow_rows import ArrowRows
from data.sources.documents import joined
from data.sources.plays import SHA256, build_text
from data.text import Source, load_source
from training.runtime.errors import InputError

TROUBLE = ("silent", "listing", "stall", "drip")
CARD = b"---\nconfigs:\n- config_name: en\n  data_files: en.parquet\n- config_name: de\n  data_files: de.parquet\n---\n"


def _tiny_shakespeare() -> dict[str, bytes]:
    text = build_text()
    cuts = {"train": (0, 1_003_854), "validation": (1_003_854, 1_059_624), "test": (1_059_624, None)}
    return {f"default/{split}/0000.parquet": parquet(text=[text[slice(*cut)]]) for split, cut in cuts.items()}


@pytest.fixture(scope="module")
def served() -> Iterator[SmallHub]:
    with serving() as hub:
        binary = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary())
        no_utf8 = pyarrow.Array.from_buffers(pyarrow.string(), 2, binary.buffers())
        rows = {"train": ["one", None, "two\n", "", "three"], "validation": ["toe"], "test": ["five"]}
        splits = {
            split: parquet(text=row, body=[f"<{r}>" for r in row], n=[*range(len(row))]) for split, row in rows.items()
        }
        hub.datasets = {
            "karpathy/tiny_shakespeare": {
                "main": {"tiny_shakespeare.py": b""},
                "refs/convert/parquet": _tiny_shakespeare(),
            },
            "us/three": {
                "main": {f"{split}.parquet": file for split, file in splits.items()},
                "v1": {f"{split}.parquet": splits[split] for split in ("train", "test")},
                "v0": {"train.parquet": splits["train"]},
                "bare": {"test.parquet": splits["test"]},
            },
            "us/answers": {
                "main": {
                    f"{split}.parquet": parquet(
                        prompt=[f"{n} is " for n in range(count)],
                        answer=[str(n) for n in range(count)],
                        messages=[[{"role": "user", "content": str(n)}] for n in range(count)],
                    )
                    for split, count in (("train", 5), ("validation", 2))
                }
            },
            "us/bytes": {"main": {"train.parquet": parquet(text=no_utf8)}},
            "us/subsets": {
                "main": {"README.md": CARD, "en.parquet": parquet(text=["yes"]), "de.parquet": parquet(text=["ja"])},
                "refs/convert/parquet": {f"{name}/train/0000.parquet": parquet(text=[name]) for name in ("en", "de")},
            },
            "us/gated": {"main": {"train.parquet": b""}},
            "us/empty": {"main": {"README.md": b"nothing\n"}},
            "us/private": {"main": {}},
            "us/broken": {"main": {}},
        } | {f"us/{trouble}": {"main": {"train.parquet": parquet(text=[build_text()])}} for trouble in TROUBLE}
        hub.trouble = {f"us/{trouble}": trouble for trouble in TROUBLE}
        hub.refused = {"us/gated": (401, "GatedRepo"), "us/private": (401, "RepoNotFound"), "us/broken": (503, "")}
        yield hub


@pytest.fixture
def hub(served: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallHub:
    """The hub, for this test's process and the one that it starts, with an empty cache."""
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return served


def load(name: str, **options: str) -> Source:
    return load_source(TextConfig(source=f"hub:{name}", **options))


def texts(source: Source) -> tuple[str, str | None]:
    return joined(source.documents), None if source.validation is None else joined(source.validation)


def error_of(name: str, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tiny_shakespeare_from_the_hub_is_the_text_as_published(hub: SmallHub, tmp_path: Path) -> None:
    write = ["-m", "data.text", "--output", "input.txt", "--source"]
    done = command(*write, "hub", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "source      Tiny Shakespeare, from the hub (karpathy/tiny_shakespeare)"
    assert done.stdout.splitlines()[-1] == f"sha256      {SHA256}"
    assert (tmp_path / "input.txt").read_text() == build_text()
    again = command(*write, "hub:karpathy/tiny_shakespeare", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout, again.stderr


@pytest.mark.ci
def test_a_training_run_trains_on_the_whole_of_one_split_and_validates_on_the_other(
    hub: SmallHub, tmp_path: Path
) -> None:
    options = ["--data.source", "hub:us/three", "--training.max_steps", "1", "--model.max_len", "1"]
    done = command(ROOT / "launch/train_gpt.py", *options, cwd=tmp_path)
    assert re.search(r"data        us/three, from the hub \(commit \w{7}\), 15 tokens per epoch", done.stdout), (
        done.stderr
    )
    assert re.search(r"step 1/1  validation loss \d", done.stdout)


@pytest.mark.ci
def test_of_several_processes_one_asks_the_hub_and_all_have_its_rows(hub: SmallHub, tmp_path: Path) -> None:
    options = ["--training.max_steps", "1", "--model.max_len", "1", "--data.source"]
    train = [*torchrun(2), ROOT / "launch/train_gpt.py", *options]
    on_cpu = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    hub.asked.clear()
    done = command(*train, "hub:us/three", cwd=tmp_path, **on_cpu)
    assert re.search(r"data        us/three, from the hub \(commit \w{7}\), 15 tokens per epoch", done.stdout), (
        done.stderr
    )
    assert re.search(r"step 1/1  validation loss \d", done.stdout)
    assert hub.asked == ["us/three"]
    failed = command(*train, "hub:us/none", cwd=tmp_path, **on_cpu)
    assert failed.stderr.count(f"error: {hub.url} has no data set us/none") == 1, failed.stderr


def test_rows_become_lines_and_splits_are_used(hub: SmallHub) -> None:
    source = load("us/three")
    assert texts(source) == ("one\ntwo\n\nthree\n", "toe\n")
    assert source.origin.startswith("us/three, from the hub (commit ")
    assert texts(load("us/three", revision="v1"))[1] == "five\n"
    source = load("us/three", revision="v0", column="body")
    assert texts(source) == ("<one>\n<None>\n<two\n>\n<>\n<three>\n", None)


def test_each_row_is_a_document_known_by_its_commit(hub: SmallHub) -> None:
    documents = load("us/three").documents
    assert [chunk.text for chunk in documents] == ["one\n", "two\n", "\n", "three\n"]
    # Where a token ends each document, its text stands as it is, and one without any is none.
    by_bytes = load("us/three", tokenizer="bytes").documents
    assert [chunk.text for chunk in by_bytes] == ["one", "two\n", "three"]
    others = load("us/three", column="body").documents, load("us/three", revision="v1").documents
    assert len({found.fingerprint() for found in (documents, by_bytes, *others)}) == 4


def test_bytes_that_are_no_text_are_a_bad_row(hub: SmallHub) -> None:
    message = "hub:us/bytes, split train, row 1: column text must hold text, got bytes (--data.on_bad_row skip leaves"
    with pytest.raises(InputError, match=re.escape(message)):
        joined(load("us/bytes").documents)
    source = load("us/bytes", on_bad_row="skip")
    assert texts(source) == ("fine\n", None)
    assert source.notes == ("1 row left out: hub:us/bytes, split train, row 1 (column text must hold text, got bytes)",)


def test_rows_are_mapped_and_not_held(tmp_path: Path) -> None:
    rows = [f"{number} " + "lorem ipsum " * 2700 for number in range(2000)]
    datasets.Dataset.from_dict({"text": rows, "other": rows}).save_to_disk(tmp_path / "rows")
    (file,) = (tmp_path / "rows").glob("*.arrow")
    del rows
    whole = (len(text or "") > 30_000 for (text,) in ArrowRows((str(file),), ("text",)))
    count, most = read_through(row for row in whole if row)
    assert count == 2000
    assert most < 5e6


def test_a_subset_is_chosen_by_name_in_the_copy_in_parquet_too(hub: SmallHub) -> None:
    assert texts(load("us/subsets", subset="de"))[0] == "ja\n"
    assert texts(load("us/subsets", subset="de", revision="refs/convert/parquet"))[0] == "de\n"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("us/none", {}, "{url} has no data set us/none, or a private one: check the name, or log in"),
        ("us/private", {}, "{url} has no data set us/private, or a private one: check the name, or log in"),
        (
            "us/gated",
            {},
            "hub:us/gated is gated: ask for access at {url}/datasets/us/gated, then log in (hf auth login",
        ),
        ("us/broken", {}, "{url} answers 503 to the request for us/broken: try again later"),
        ("us/a--b", {}, "hub:us/a--b is no name of a data set: "),
        ("us/empty", {}, "cannot load hub:us/empty (The directory at hf://datasets/us/empty"),
        ("us/three", {"revision": "v9"}, "hub:us/three has no revision v9: give --data.revision a branch, a tag or a"),
        ("us/three", {"revision": "bare"}, "hub:us/three has no split train, only test: choose another data set"),
        ("us/three", {"column": "x"}, "hub:us/three has no column x: choose one with --data.column (text, body, n)"),
        ("us/three", {"column": "n"}, "column n of hub:us/three holds no text but int64: choose a column of text with"),
        ("us/subsets", {}, "hub:us/subsets has several subsets: choose one with --data.subset (en, de)"),
        ("us/subsets", {"subset": "fr"}, "hub:us/subsets has no subset fr: choose one with --data.subset (en, de)"),
        (
            "us/subsets",
            {"revision": "refs/convert/parquet"},
            "hub:us/subsets has several subsets: choose one with --data.subset (de, en)",
        ),
        (
            "karpathy/tiny_shakespeare",
            {"revision": "main"},
            "hub:karpathy/tiny_shakespeare is made by a script, which is not run: take the hub's own copy of its text "
            "with --data.revision refs/convert/parquet",
        ),
    ],
)
def test_errors_name_the_cause_and_what_to_do(hub: SmallHub, name: str, options: dict[str, str], message: str) -> None:
    assert error_of(name, **options).startswith(message.format(url=hub.url))


def test_another_text_under_the_name_of_tiny_shakespeare_is_refused(
    hub: SmallHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{split}.parquet": parquet(text=["x"]) for split in ("train", "validation", "test")}
    monkeypatch.setitem(hub.datasets["karpathy/tiny_shakespeare"], "mine", files)
    message = error_of("karpathy/tiny_shakespeare", revision="mine")
    assert f"expected {SHA256}; use --data.source auto" in message


@pytest.mark.ci
def test_offline_mode_takes_what_is_in_the_cache(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    source = load("us/three")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load("us/three") == source
    assert error_of("us/three", revision="v1").startswith("data.revision v1 cannot be looked up in offline mode")
    assert error_of("us/subsets").startswith(
        "hub:us/subsets is not in the cache, and offline mode (HF_HUB_OFFLINE) is on"
    )


def test_a_local_folder_of_the_same_name_is_not_taken_for_the_data_set(hub: SmallHub, tmp_path: Path) -> None:
    (tmp_path / "us/three").mkdir(parents=True)
    assert error_of("us/three") == "us/three exists in this folder: load hub:us/three from another one"


def test_auto_names_both_failures_and_ends_soon(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_plays() -> str:
        raise data.PlaysError("plays are missing")

    monkeypatch.setattr(data, "build_text", no_plays)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(InputError, match=r"plays are missing \(nor from the hub: cannot reach .*127.0.0.1:9 .*refused"):
        load_source(TextConfig())
    assert time.monotonic() - start < 20


@pytest.mark.nightly
def test_a_slow_or_dead_hub_ends_in_bounded_time(hub: SmallHub, tmp_path: Path) -> None:
    def train(trouble: str) -> "subprocess.CompletedProcess[str]":
        options = ["--data.source", f"hub:us/{trouble}"]
        return command(ROOT / "launch/train_gpt.py", *options, cwd=tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1")

    start = time.monotonic()
    with ThreadPoolExecutor() as pool:
        ended = dict(zip(TROUBLE, pool.map(train, TROUBLE), strict=True))
    assert time.monotonic() - start < 60
    for trouble, done in ended.items():
        stalled = (
            f"nothing more of hub:us/{trouble} has come from {hub.url} for 7 s: try again, on a slow line with a higher"
        )
        silent = f"cannot reach the hub at {hub.url} (timed out): check the network"
        assert done.returncode == 2
        assert done.stderr.startswith("error: " + (silent if trouble == "silent" else stalled))
        assert done.stderr.count("\n") == 1


@pytest.mark.ci
def test_answers_of_the_hub_are_validated_on_its_own_rows(hub: SmallHub) -> None:
    columns = {"prompt_column": "prompt", "answer_column": "answer"}
    data = TextConfig(source="hub:us/answers", **columns)
    source = load_source(data)
    assert source.rows is not None
    found = answer_tokens(source.rows, data, 16)
    assert [len(part) for part in found[:2]] == [5, 2]
    assert found.prompt == "0 is "
    assert found.notes[0] == "5 rows, and 2 to validate on; the loss is that of the answers"
    lists = load_source(TextConfig(source="hub:us/answers", messages_column="messages")).rows
    assert lists is not None
    place, row = next(iter(lists.training))
    assert place == "hub:us/answers, split train, row 0"
    assert row == {"messages": [{"content": "0", "role": "user"}]}
    with pytest.raises(InputError, match=r"hub:us/answers has no column reply: choose one with --data\.answer_column"):
        load_source(TextConfig(source="hub:us/answers", **columns | {"answer_column": "reply"}))
