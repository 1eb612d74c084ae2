"""Files of tensors are the library's, byte for byte; what is hashed is what was written."""

import errno
import hashlib
import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from training.storage import hashing
from training.storage.hashing import HashedReading, write_hashed
from training.storage.reading import MalformedFileError
from training.storage.tensor_file import DTYPES, file_order, read_tensors, write_tensors
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


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    with path.open("rb") as file:
        reading = HashedReading(file, path)
        return dict(read_tensors(reading)), reading.sha256


@pytest.mark.parametrize("chunk", [7, hashing.CHUNK])
def test_a_file_of_the_library_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(hashing, "CHUNK", chunk)
    group = {name: tensor.contiguous() for name, tensor in tensors().items()}
    content = save(group)
    (tmp_path / "file").write_bytes(content)
    found, sha256 = read(tmp_path / "file")
    assert list(found) == file_order(group)
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (group[name].dtype, group[name].shape)
        assert torch.equal(tensor, group[name])
    assert sha256 == hashlib.sha256(content).hexdigest()


def test_no_more_than_two_tensors_are_held_while_a_file_is_written(tmp_path: Path) -> None:
    """One is written, and one may still be hashed; on a GPU each is a copy."""
    group = {f"layer.{number}": torch.ones(1000) for number in range(10)}
    alive: set[int] = set()
    most = 0

    def values() -> Iterator[Tensor]:
        nonlocal most
        for number, name in enumerate(group):
            value = group[name].clone()
            alive.add(number)
            weakref.finalize(value, alive.discard, number)
            most = max(most, len(alive))
            yield value
            del value

    write_tensors(tmp_path / "file", group, values())
    assert most <= 3  # The one that is made counts here as well.


def with_header(header: Any, content: bytes = bytes(24)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]} | changes}


NO_FILES = {
    "nothing": (b"", "it ends after 0 bytes"),
    "a header without an end": (b"\xff" * 40, "a header of 18,446,744,073,709,551,615 bytes in a file of 40"),
    "a header that is longer than the file": ((99).to_bytes(8, "little") + bytes(98), "a header of 99 bytes in a file"),
    "no JSON": (with_header(b"{"), "not JSON"),
    "no text": (with_header(b"\xff"), "not UTF-8"),
    "a list": (with_header([]), "expected an object"),
    "a name that is given twice": (with_header(b'{"w": 1, "w": 2}'), "a name that is given twice"),
    "no place": (with_header({"w": {"dtype": "F32", "shape": [3, 2]}}), "w.data_offsets is missing"),
    "an unknown type": (with_header(entry(dtype="F4")), "'w' is of the type 'F4'"),
    "a negative size": (with_header(entry(shape=[-3, -2])), r"w.shape\[0\]: expected a whole number from 0"),
    "more numbers than bytes": (with_header(entry(shape=[3, 3])), "'w' does not take its bytes"),
    "a gap": (with_header(entry(data_offsets=[4, 28]), bytes(28)), "'w' does not take its bytes, or does not follow"),
    "three offsets": (with_header(entry(data_offsets=[0, 24, 24])), "'w' does not take its bytes"),
    "bytes of nobody": (with_header(entry(), bytes(25)), "24 bytes of tensors, expected 25"),
}


@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_no_file_of_tensors_is_named(tmp_path: Path, what: str) -> None:
    content, fault = NO_FILES[what]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(MalformedFileError, match=f"^{tmp_path}/file: .*{fault}"):
        read(tmp_path / "file")
