"""Text files as people have them: bytes to text, whatever their encoding, or what to do about it.

UTF-8 is what text should be; a byte order mark says what it is, and is dropped. The encoding of anything else is
guessed, by charset-normalizer. A guess that no other one contradicts is taken, and said; any other is refused with the
command that converts the file.
"""

import codecs
import io
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from training.runtime.errors import InputError

MARKS = {
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF32_LE: "UTF-32LE",  # before UTF-16, with whose mark it begins
    codecs.BOM_UTF32_BE: "UTF-32BE",
    codecs.BOM_UTF16_LE: "UTF-16LE",
    codecs.BOM_UTF16_BE: "UTF-16BE",
}
WIDE = {"utf_16_le": "UTF-16LE", "utf_16_be": "UTF-16BE", "utf_32_le": "UTF-32LE", "utf_32_be": "UTF-32BE"}
NARROW = {
    **{f"cp{number}": f"WINDOWS-{number}" for number in (1252, 1250, 1251, 1253, 1254, 1255, 1256, 1257, 1258)},
    **{"gb18030": "GB18030", "big5": "BIG5", "cp932": "CP932", "euc_jp": "EUC-JP", "cp949": "CP949"},
    **{f"iso8859_{number}": f"ISO-8859-{number}" for number in (2, 5, 6, 7, 9)},
    **{"koi8_r": "KOI8-R", "koi8_u": "KOI8-U", "cp866": "CP866", "cp850": "CP850", "cp852": "CP852"},
    **{"mac_roman": "MACINTOSH", "cp874": "CP874"},
}
"""The encodings that are guessed, by their names in Python and for iconv; of some that fit alike the first is named."""

ALPHABETS = (
    *("àâæçéèêëîïôœùûüÿ", "äöüß", "áéíñóúü", "àáâãçéêíóôõúü", "àèéìíîòóùú", "åäöé", "æøåé", "éèëïóöü", "áðéíóúýþæö"),
    *("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţșț", "čćđšž", "çğıöşüâîi̇"),  # noqa: RUF001
    *("āčēģīķļņšūž", "ąčęėįšųūž", "äõöüšž"),
)
"""Letters beyond ASCII of languages in Latin script, whose encodings share their bytes."""
SIGNS = "«»‹›„“”‚‘’–—…·•°§¿¡£€\xa0\xad"  # noqa: RUF001

NO_TEXT = {b"%PDF-": "PDF", b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG"}
MARK_DROPPED = "without its byte order mark"
SAMPLE_LINES, SAMPLE_BYTES = 4000, 2**19
LONG_LINE, LINE_PART = 10_000, re.compile(rb"[^\n]{1,500}[^ ]* ?")
BLOCK = 2**20
"""So much of a file is looked at at a time, and the rest of the line where that is not longer."""
SURE_BYTES, SURE_SHARE = 100, 0.9
"""Of fewer bytes beyond ASCII anything can be made, unless nearly all are letters of one alphabet."""
ASCII = bytes(range(128))
NEAR_CHAOS, NEAR_COHERENCE, NEAR_SHARE = 0.02, 0.1, 0.03
"""How near a guess must come to the best one to contradict it: charset-normalizer's measures, and the share of letters
that belong to one alphabet."""

Blocks = Callable[[], Iterable[bytes]]
"""The bytes of a file in blocks that are not empty, from the first on each time that it is called."""


class TextFile(NamedTuple):
    """The text of a file, and what was done to read it, if it was not plain UTF-8."""

    text: str
    note: str | None = None


class Encoding(NamedTuple):
    """How to read a file: Python's codec, the bytes of the mark before the text, and what to say of it."""

    codec: str = "utf-8"
    mark: int = 0
    note: str | None = None


class NoText(InputError):
    """What a file holds is no text, or cannot be read for sure.

    Args:
        name: The file.
        reason: What is wrong with it, in a few words that go on from its name.
        advice: What more to say.
        command: What makes a text of it.
    """

    def __init__(self, name: Path | str, reason: str, advice: str = "", command: str = "") -> None:
        super().__init__(f"{name} {reason}" + (f": {advice}" if advice else "") + command)
        self.reason, self.command = reason, command


def read_text(path: Path) -> TextFile:
    """Read a file to its last byte, line ends included.

    Raises:
        NoText: It cannot be read, or holds no text; see `decode_text`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NoText(f"cannot read {path}:", error.strerror or str(error)) from error
    return decode_text(content, path)


def decode_text(content: bytes, name: Path | str) -> TextFile:
    """The text of some bytes; `name` is their file, or what an error calls them.

    Raises:
        NoText: They are empty or no text, or their encoding is not sure; the message has the command that converts it.
    """
    encoding = _find_encoding(lambda: [content], name)
    return TextFile(content[encoding.mark :].decode(encoding.codec), encoding.note)


def find_encoding(path: Path) -> Encoding:
    """The encoding of a file of any size, which is read to its last byte, a block at a time.

    Raises:
        NoText: As `read_text` does.
    """

    def blocks() -> Iterator[bytes]:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block + file.readline(BLOCK)

    try:
        return _find_encoding(blocks, path)
    except OSError as error:
        raise NoText(f"cannot read {path}:", error.strerror or str(error)) from error


@contextmanager
def opened(path: Path, encoding: Encoding) -> Iterator[io.TextIOWrapper]:
    """A file to be read as text, line ends as they are.

    Raises:
        InputError: It cannot be read, or not in this encoding any more.
    """
    try:
        with path.open("rb") as file:
            file.seek(encoding.mark)
            yield io.TextIOWrapper(file, encoding.codec, newline="")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} has changed while it was read: leave it alone, and start again") from error


def _find_encoding(blocks: Blocks, name: Path | str) -> Encoding:
    head = next(iter(blocks()), b"")
    mark = next((mark for mark in MARKS if head.startswith(mark)), b"")
    if len(head) == len(mark):
        raise NoText(name, "is empty", "expected text")
    if mark:
        return _marked(blocks, mark, name)
    kind = next((kind for start, kind in NO_TEXT.items() if head.startswith(start)), None)
    if kind is not None:
        raise NoText(name, f"is no text ({kind})")
    wrong = _first_wrong(blocks(), "utf-8", without=b"\0")
    if wrong is None:
        return Encoding()
    if any(b"\0" in block for block in blocks()):
        return _guessed(blocks, head[:SAMPLE_BYTES], WIDE, name)
    _refuse_damaged(blocks, *wrong, name)
    return _guessed(blocks, _sample(blocks()), NARROW, name)


def _first_wrong(blocks: Iterable[bytes], codec: str, without: bytes | None = None) -> tuple[int, int] | None:
    """Where the first byte stands that cannot be decoded, and which it is; `without`: a byte that counts as such."""
    decoder, before = codecs.getincrementaldecoder(codec)(), 0
    for block in chain(blocks, [b""]):
        if without is not None and without in block:
            return before + block.index(without), without[0]
        try:
            decoder.decode(block, not block)
        except UnicodeDecodeError as error:
            return before + len(block) - len(error.object) + error.start, error.object[error.start]
        before += len(block)
    return None


def _marked(blocks: Blocks, mark: bytes, name: Path | str) -> Encoding:
    """The encoding that a byte order mark names, if all that follows is in it."""
    encoding = MARKS[mark]
    rest = (block[len(mark) * (number == 0) :] for number, block in enumerate(blocks()))
    if wrong := _first_wrong(filter(None, rest), encoding):
        advice = f"the first wrong byte is at {wrong[0]:,}; leave such out with "
        raise NoText(name, f"is damaged {encoding}", advice, _iconv(encoding, name, "-c "))
    return Encoding(encoding, len(mark), MARK_DROPPED if encoding == "UTF-8" else f"read as {encoding}")


def _refuse_damaged(blocks: Blocks, offset: int, byte: int, name: Path | str) -> None:
    """Raise a `NoText` where most of what is beyond ASCII is UTF-8: a guess would take all of it for something else."""
    decoder, bad, beyond = codecs.getincrementaldecoder("utf-8")("replace"), 0, 0
    for block in chain(blocks(), [b""]):
        text = decoder.decode(block, not block)
        bad += text.count("\ufffd")
        beyond += len(text) - len(text.encode("ascii", "ignore"))
    if beyond > 5 * bad:
        line, before = 1, 0
        for block in blocks():
            line += block.count(b"\n", 0, max(offset - before, 0))
            before += len(block)
        advice = f"{bad:,} wrong bytes, the first in line {line:,} (0x{byte:02x}); leave them out with "
        raise NoText(name, "is damaged UTF-8", advice, _iconv("UTF-8", name, "-c "))


def _sample(blocks: Iterable[bytes]) -> bytes:
    """Lines with bytes beyond ASCII, or parts of long ones, each once: one that comes again makes a guess no surer.

    A few in ten thousand are in no sample of the whole. No encoding here has a line break or a space in a character.
    """
    found, room, seen = list[bytes](), SAMPLE_BYTES, set[bytes]()
    lines = (line for block in blocks for line in block.split(b"\n") if not line.isascii())
    parts = (part for line in lines for part in ([line] if len(line) < LONG_LINE else LINE_PART.findall(line)))
    for part in (part for part in parts if not part.isascii()):
        if part in seen:
            continue
        seen.add(part)
        found.append(part[:room])
        room -= len(found[-1])
        if len(found) == SAMPLE_LINES or not room:
            break
    return b"\n".join(found)


def _guessed(blocks: Blocks, sample: bytes, names: dict[str, str], name: Path | str) -> Encoding:
    """The encoding that fits the sample best."""
    # A long sample may end in the middle of a character.
    ends = range(len(sample), len(sample) - (4 if len(sample) >= SAMPLE_BYTES else 1), -1)
    shares = next(filter(None, (_near_best(blocks, sample[:end], names) for end in ends)), {})
    order = list(names)
    if not shares:
        raise NoText(name, "is no text" + " (it has NUL bytes)" * (names is WIDE))
    near = max(shares.values()) - NEAR_SHARE
    best, *rivals = (encoding for encoding in order if encoding in shares and shares[encoding] >= near)
    little = names is NARROW and shares[best] < SURE_SHARE and len(sample.translate(None, ASCII)) < SURE_BYTES
    if rivals or little:
        perhaps = " or ".join(names[encoding] for encoding in (best, *rivals))
        command = _iconv(names[best], name)
        raise NoText(name, f"is not UTF-8, perhaps {perhaps}", "convert it, for example: ", command)
    return Encoding(best, note=f"read as {names[best]}, a guess")


def _near_best(blocks: Blocks, sample: bytes, names: dict[str, str]) -> dict[str, float]:
    """The encodings that fit a sample about as well as the best one does, with the share of letters of one alphabet.

    charset-normalizer does not tell the encodings of Latin script apart by their letters: of guesses that are near its
    best one, the one whose letters belong together in some alphabet is taken.
    """
    from charset_normalizer import from_bytes

    order = list(names)
    shares: dict[str, float] = {}
    matches = [match for match in from_bytes(sample, cp_isolation=order) if match.encoding in names]
    for match in matches:
        chaos, coherence = match.chaos - matches[0].chaos, matches[0].coherence - match.coherence
        if chaos > NEAR_CHAOS or coherence > NEAR_COHERENCE:
            continue
        # Of encodings that give the same text, the usual one.
        encoding = min((other for other in match.could_be_from_charset if other in names), key=order.index)
        if _first_wrong(blocks(), encoding) is None:
            shares[encoding] = _share(sample.decode(encoding, errors="replace"))
    return shares


def _share(text: str) -> float:
    """The share of the characters beyond ASCII that one alphabet and the usual signs cover."""
    counts = Counter(character for character in text.lower() if not character.isascii())
    covered = (sum(counts[character] for character in {*alphabet, *SIGNS}) for alphabet in ALPHABETS)
    return max(covered) / max(counts.total(), 1)


def _iconv(encoding: str, name: Path | str, options: str = "") -> str:
    """The command that writes a file anew, as UTF-8."""
    command = f"iconv {options}-f {encoding} -t UTF-8"
    if isinstance(name, str):
        return command
    return f"{command} {shlex.quote(str(name))} > {shlex.quote(str(name.with_stem(f'{name.stem}.utf-8')))}"
