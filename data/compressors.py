"""What compressors make of a text, in bits per byte, to hold a model's loss against.

By arithmetic coding a loss of so many bits per byte is a file of that size (Shannon 1948). A compressor starts from
nothing, where a model has read the training text; a model sees no further back than its context, where a compressor of
a whole archive sees all files before.
"""

import lzma
from collections.abc import Callable, Iterable

XZ_PRESET, ZSTD_LEVEL = 9, 19


def bits_per_byte(documents: Iterable[str]) -> dict[str, dict[str, float]]:
    """Bits that `xz -9` and `zstd -19` take for each byte of some documents in UTF-8.

    Returns:
        For each compressor `each`, every document in a file of its own, and `joined`, all of them in one.
    """
    contents = [text.encode() for text in documents]
    total, joined = sum(map(len, contents)), b"".join(contents)
    return {
        name: {
            "each": 8 * sum(len(compress(content)) for content in contents) / total,
            "joined": 8 * len(compress(joined)) / total,
        }
        for name, compress in _compressors().items()
    }


def _compressors() -> dict[str, Callable[[bytes], bytes]]:
    import pyarrow

    zstd = pyarrow.Codec("zstd", compression_level=ZSTD_LEVEL)
    return {
        f"xz -{XZ_PRESET}": lambda content: lzma.compress(content, preset=XZ_PRESET),
        f"zstd -{ZSTD_LEVEL}": lambda content: zstd.compress(content, asbytes=True),
    }
