"""Files of tensors in the format of safetensors (github.com/huggingface/safetensors), one tensor at a time.

    8 bytes     how long the header is
    header      JSON: each tensor's type, shape, and where its bytes begin and end; spaces fill it up to 8 bytes
    the rest    the bytes of the tensors, in the order of the header

The library wants all tensors or all bytes of a file in memory at once.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config.sections import shown
from training.storage.hashing import HashedReading, write_hashed
from training.storage.reading import Count, MalformedFileError, built, decoded, parse_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SUFFIX = ".safetensors"
DTYPES = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""What the format calls the types of torch, in the order in which they come in a file, so that none is misaligned."""
METADATA = "__metadata__"
"""What a header may say of a file besides its tensors."""
_RANKS = {name: rank for rank, name in enumerate(DTYPES)}
_TYPES = {code: name for name, code in DTYPES.items()}
_MAX_HEADER = 100_000_000
"""Bytes; the library takes no longer one."""


@dataclass
class Stored:
    """What a header says of a tensor: its type, by the format's word, its shape, and its place behind the header."""

    dtype: str
    shape: list[Count]
    data_offsets: list[Count]

    @property
    def torch_dtype(self) -> "torch.dtype":
        """Its type, by torch's."""
        import torch

        dtype: torch.dtype = getattr(torch, _TYPES[self.dtype])
        return dtype


def _type_name(tensor: "Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


def file_order(tensors: "Mapping[str, Tensor]") -> list[str]:
    """The names of tensors in the order in which a file has them: by type, then by name."""
    return sorted(tensors, key=lambda name: (_RANKS[_type_name(tensors[name])], name))


def header(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> bytes:
    """What a file of these tensors begins with; it is the same whatever device they are on."""
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in file_order(tensors):
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entry = {"dtype": DTYPES[_type_name(tensor)], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        entries[name] = entry
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    path: Path,
    tensors: "Mapping[str, Tensor]",
    values: "Iterable[Tensor]",
    metadata: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Write tensors from the memory that they are in, and flush them to the disk.

    Args:
        path: The file; it must not exist.
        tensors: What the header is made of.
        values: Their values, each contiguous on the CPU, in the order of `file_order`.
        metadata: What other readers want to know; a checkpoint has none.

    Returns:
        The size and SHA-256 of the file.

    Raises:
        OSError: The disk refused; the error names the file.
    """
    return write_hashed(path, chain([memoryview(header(tensors, metadata))], map(tensor_bytes, values)))


def tensor_bytes(tensor: "Tensor") -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_header(reading: HashedReading) -> dict[str, Stored]:
    """What a file holds, in the order of its bytes; the file is read up to the first tensor.

    Raises:
        MalformedFileError: It is no such file, or of types that are not in `DTYPES`.
    """
    import torch

    path, length = reading.path, int.from_bytes(reading.read(8), "little")
    if length > min(_MAX_HEADER, reading.left):
        raise MalformedFileError(path, f"a header of {length:,} bytes in a file of {reading.size:,}")
    saved = parse_json(decoded(reading.read(length), path), path)
    if isinstance(saved, dict):
        saved.pop(METADATA, None)
    listed: dict[str, Stored] = built(dict[str, Stored], saved, path)
    # Some writers list tensors in another order than that of their bytes.
    tensors = dict(sorted(listed.items(), key=lambda item: item[1].data_offsets))
    end = 0
    for name, stored in tensors.items():
        if stored.dtype not in _TYPES:
            raise MalformedFileError(path, f"{shown(name)} is of the type {shown(stored.dtype)}")
        size = prod(stored.shape) * getattr(torch, _TYPES[stored.dtype]).itemsize
        if stored.data_offsets != [end, end + size]:
            raise MalformedFileError(path, f"{shown(name)} does not take its bytes, or does not follow the one before")
        end += size
    if end != reading.left:
        raise MalformedFileError(path, f"{end:,} bytes of tensors, expected {reading.left:,}")
    return tensors


def read_tensors(reading: HashedReading) -> Iterator[tuple[str, "Tensor"]]:
    """The tensors of a file, with their names and in its order, each read when it is asked for.

    Raises:
        MalformedFileError: As `read_header`.
    """
    import torch

    for name, stored in read_header(reading).items():
        value = torch.empty(stored.shape, dtype=stored.torch_dtype)
        reading.fill(tensor_bytes(value))
        yield name, value
