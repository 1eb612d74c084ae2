"""Compressors, to hold a model's loss against."""

import lzma

import pytest

from data.compressors import bits_per_byte


def test_documents_are_compressed_each_by_itself_and_all_in_one() -> None:
    documents = ["for name in names:\n    print(name)\n" * 20, "naïve é\n" * 300]
    found = bits_per_byte(documents)
    contents = [text.encode() for text in documents]
    each = sum(len(lzma.compress(content, preset=9)) for content in contents)
    assert found["xz -9"]["each"] == pytest.approx(8 * each / sum(map(len, contents)))
    assert set(found) == {"xz -9", "zstd -19"}
    for bits in found.values():
        assert 0 < bits["joined"] < bits["each"] < 8


def test_what_cannot_be_compressed_takes_about_its_size() -> None:
    import random

    dice = random.Random(0)
    text = "".join(chr(dice.randrange(128)) for _ in range(20_000))
    for bits in bits_per_byte([text]).values():
        assert 6.9 < bits["joined"] < 7.2
