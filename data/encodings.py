"""Text files as people have them: bytes to text, whatever their encoding, or what to do about it.

UTF-8 is what text should be; a byte order mark says what it is, and is dropped. The encoding of anything else is
guessed, by charset-normalizer. A guess that no other one contradicts is taken, and said; any other is refused with the
command that converts the file.
"""

import codecs
import shlex
from collections import Counter
from contextlib import suppress
from itertools import islice
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
SAMPLE_LINES = 4000
SURE_BYTES, SURE_SHARE = 100, 0.9
"""Of fewer bytes beyond ASCII anything can be made, unless nearly all are letters of one alphabet."""
ASCII = bytes(range(128))
NEAR_CHAOS, NEAR_COHERENCE, NEAR_SHARE = 0.02, 0.1, 0.03
"""How near a guess must come to the best one to contradict it: charset-normalizer's measures, and the share of letters
that belong to one alphabet."""


class TextFile(NamedTuple):
    """The text of a file, and what was done to read it, if it was not plain UTF-8."""

    text: str
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
    mark = next((mark for mark in MARKS if content.startswith(mark)), b"")
    if len(content) == len(mark):
        raise NoText(name, "is empty", "expected text")
    if mark:
        return _marked(content[len(mark) :], MARKS[mark], name)
    kind = next((kind for start, kind in NO_TEXT.items() if content.startswith(start)), None)
    if kind is not None:
        raise NoText(name, f"is no text ({kind})")
    if b"\0" in content:
        return _guessed(content, content, WIDE, name)
    try:
        return TextFile(content.decode())
    except UnicodeDecodeError as error:
        _refuse_damaged(content, error, name)
    # A few lines in ten thousand are in no sample of the whole. No encoding here has a line break in a character.
    lines = islice((line for line in content.split(b"\n") if not line.isascii()), SAMPLE_LINES)
    return _guessed(content, b"\n".join(lines), NARROW, name)


def _marked(content: bytes, encoding: str, name: Path | str) -> TextFile:
    """The text behind a byte order mark."""
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        advice = f"the first wrong byte is at {error.start:,}; leave such out with "
        raise NoText(name, f"is damaged {encoding}", advice, _iconv(encoding, name, "-c ")) from error
    return TextFile(text, "without its byte order mark" if encoding == "UTF-8" else f"read as {encoding}")


def _refuse_damaged(content: bytes, error: UnicodeDecodeError, name: Path | str) -> None:
    """Raise a `NoText` where most of what is beyond ASCII is UTF-8: a guess would take all of it for something else."""
    text = content.decode(errors="replace")
    bad = text.count("\ufffd")
    good = len(text) - len(text.encode("ascii", "ignore")) - bad
    if good > 4 * bad:
        line = content.count(b"\n", 0, error.start) + 1
        first = f"the first in line {line:,} (0x{content[error.start]:02x})"
        advice = f"{bad:,} wrong bytes, {first}; leave them out with "
        raise NoText(name, "is damaged UTF-8", advice, _iconv("UTF-8", name, "-c ")) from error


def _guessed(content: bytes, sample: bytes, names: dict[str, str], name: Path | str) -> TextFile:
    """The text in the encoding that fits the sample best.

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
        with suppress(UnicodeDecodeError):
            content.decode(encoding)
            shares[encoding] = _share(sample.decode(encoding, errors="replace"))
    if not shares:
        raise NoText(name, "is no text" + " (it has NUL bytes)" * (names is WIDE))
    near = max(shares.values()) - NEAR_SHARE
    best, *rivals = (encoding for encoding in order if encoding in shares and shares[encoding] >= near)
    little = names is NARROW and shares[best] < SURE_SHARE and len(sample.translate(None, ASCII)) < SURE_BYTES
    if rivals or little:
        perhaps = " or ".join(names[encoding] for encoding in (best, *rivals))
        command = _iconv(names[best], name)
        raise NoText(name, f"is not UTF-8, perhaps {perhaps}", "convert it, for example: ", command)
    return TextFile(content.decode(best), f"read as {names[best]}, a guess")


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
