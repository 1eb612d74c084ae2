"""Files of tensors are the library's, byte for byte; what is hashed is what was written."""

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from training.storage import hashing
from training.storage.hashing import write_hashed
from training.storage.tensor_file import DTYPES, write_tensors
from training.storage.whole import fill, whole, wholes


def tensors() -> dict[str, Tensor]:
    """Of every type and odd shapes, one of them not contiguous, under names that need care in JSON."""
    numbers = torch.randint(0, 100, (5, 3), generator=torch.Generator().manual_seed(1))
    named = {f"layer.{name}": numbers.to(getattr(torch, name)) for name in sorted(DTYPES)}
    named |= {'ü "quoted"\\/\n\x7f': numbers.float()[:2], "step": torch.tensor(3.0), "nothing": torch.empty(0, 7)}
    return named | {"turned": numbers.double().T}


@pytest.mark.parametrize("chunk", [7, hashing.CHUNK])
def test_a_file_is_byte_for_byte_the_librarys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(hashing, "CHUNK", chunk)
    monkeypatch.setattr(hashing, "FLUSH", 3 * chunk)
    group = tensors()
    size, sha256 = write_tensors(tmp_path / "file", group, wholes({"file": group}))
    content = (tmp_path / "file").read_bytes()
    assert content == save({name: tensor.contiguous() for name, tensor in group.items()})
    assert (size, sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {}, [])
    assert (tmp_path / "file").read_bytes() == save({})


def test_a_whole_tensor_on_the_cpu_is_no_copy() -> None:
    tensor = torch.nn.Parameter(torch.ones(4, 4))
    assert whole(tensor).data_ptr() == tensor.data_ptr()
    assert not whole(tensor).requires_grad
    fill(tensor, torch.full((4, 4), 7.0))
    assert tensor[0, 0] == 7


def test_a_disk_that_takes_less_than_it_is_given_gets_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may write a part of what it was given; so it does before the limit of a disk."""
    written: list[int] = []

    class Small:
        def write(self, chunk: memoryview) -> int:
            written.append(len(chunk))
            return min(3, len(chunk))

    hashing._write(Small(), memoryview(bytes(8)))  # type: ignore[arg-type]
    assert written == [8, 5, 2]


def test_an_early_flush_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of it once: the flush at the end would know nothing of it."""
    monkeypatch.setattr(hashing, "CHUNK", 10)
    monkeypatch.setattr(hashing, "FLUSH", 10)
    flush, flushes = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal flushes
        flushes += 1
        if flushes == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_hashed(tmp_path / "file", [memoryview(bytes(100))])
    assert caught.value.filename == str(tmp_path / "file")


def test_an_error_of_what_is_written_waits_for_no_thread(tmp_path: Path) -> None:
    def parts() -> Any:
        yield memoryview(bytes(100))
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_hashed(tmp_path / "file", parts())
