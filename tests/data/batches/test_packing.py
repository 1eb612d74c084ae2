"""Rows in windows, and the positions of documents side by side."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.batches.mixed import MixedData
from data.batches.packing import packed, positions_of_documents
from data.batches.windows import TextData, UncutWindows
from data.config import TextConfig
from data.sources.documents import InMemory
from data.text import Source, load_source
from training.runtime.errors import InputError

END = 256
"""Of a tokenizer of bytes."""


def of_documents(*texts: str) -> Source:
    return Source(InMemory(texts), "documents")


def test_each_row_is_in_one_window_and_none_is_too_full() -> None:
    lengths = np.random.default_rng(0).integers(1, 51, 2000)
    windows = packed(lengths, 100)
    assert sorted(row for window in windows for row in window) == list(range(2000))
    filled = [sum(lengths[row] for row in window) for window in windows]
    assert max(filled) <= 100
    assert sum(filled) / len(filled) > 99, "nearly all of the room is used"
    assert windows == packed(lengths, 100)


def test_a_row_goes_where_it_leaves_the_least_room() -> None:
    assert packed(np.array([3, 6, 7, 4, 10]), 10) == [[4], [2, 0], [1, 3]]
    assert packed(np.array([10, 10]), 10) == [[0], [1]]


def test_positions_begin_anew_behind_each_end_of_a_document() -> None:
    tokens_BT = torch.tensor([[5, 6, END, 7, END, END, 8], [END, 1, 2, 3, 4, 5, END]])
    expected = [[0, 1, 2, 0, 1, 0, 0], [0, 0, 1, 2, 3, 4, 5]]
    assert positions_of_documents(tokens_BT, END).tolist() == expected


def test_windows_of_documents_have_the_tokens_and_targets_of_joined_ones() -> None:
    source = of_documents(*(f"{number} times" for number in range(60)))
    joined, documents = (
        TextData(source, 16, 1, TextConfig(tokenizer="bytes", packing=packing)) for packing in ("joined", "documents")
    )
    pairs = [(data.training_batch(3, 4), next(data.validation_batches(9))) for data in (documents, joined)]
    for ours, theirs in zip(*pairs, strict=True):
        assert torch.equal(ours.inputs[0], theirs.inputs[0])
        assert torch.equal(ours.targets_BT, theirs.targets_BT)
        assert torch.equal(ours.inputs[1], positions_of_documents(ours.inputs[0], END))
        assert len(theirs.inputs) == 1
    assert documents.validation_targets == joined.validation_targets


def test_windows_that_are_cut_on_a_device_have_positions_too() -> None:
    tokens_N = torch.tensor([1, 2, END, 3, 4, 5])
    batch = UncutWindows(tokens_N, torch.tensor([1]), 4, END).to(torch.device("cpu"))
    assert [tensor.tolist() for tensor in batch.inputs] == [[[2, END, 3, 4]], [[0, 1, 0, 1]]]


def test_a_mix_hands_on_the_positions_of_its_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("".join(f'{{"text": "{name} {number}"}}\n' for number in range(40)))
    data = TextConfig(mix="a.jsonl=1,b.jsonl=1", tokenizer="bytes", packing="documents")
    batch = MixedData(load_source(data), 12, 1, data).training_batch(0, 8)
    assert torch.equal(batch.inputs[1], positions_of_documents(batch.inputs[0], END))


def test_documents_need_a_token_that_ends_them() -> None:
    with pytest.raises(InputError, match=r"^data\.packing documents needs a tokenizer with a token that ends a text: "):
        TextData(of_documents("some text " * 30), 8, 1, TextConfig(packing="documents"))
