"""What to begin with: prompts and sources out of what a run has written itself while it was trained."""

from contextlib import suppress

from training.runtime.errors import InputError
from training.storage.reading import open_file
from training.storage.run_folder import RunFolder

MAX_EXAMPLES = 4
MAX_PROMPT = 30
"""Characters of a prompt."""
READ = 10_000
"""Bytes of a sample that are looked at."""


def prompts(run: RunFolder) -> list[str]:
    """First lines of the paragraphs of its samples, the newest sample's first; a line break where there are none."""
    found: dict[str, None] = {}
    for sample in _samples(run):
        for paragraph in filter(str.strip, sample.split("\n\n")):
            first, newline, rest = paragraph.lstrip("\n").partition("\n")
            short = first if len(first) <= MAX_PROMPT else first[:MAX_PROMPT].rpartition(" ")[0] or first[:MAX_PROMPT]
            if rest or short != first:  # Else it may be cut short.
                found[short + newline if short == first else short] = None
    return list(found)[:MAX_EXAMPLES] or ["\n"]


def sources(run: RunFolder) -> list[str]:
    """The sources of its newest table of samples that are shown whole."""
    for sample in _samples(run):
        head, *rows = sample.splitlines()
        width = head.find("prediction")
        found = [row[:width].rstrip() for row in rows if width > 0]
        if whole := [source for source in dict.fromkeys(found) if source and "…" not in source]:
            return whole[:MAX_EXAMPLES]
    return []


def _samples(run: RunFolder) -> list[str]:
    """Its samples, the newest first; what cannot be read is left out."""
    samples = []
    for file in sorted((run.path / "samples").glob("step-*.txt"), reverse=True)[:MAX_EXAMPLES]:
        with suppress(OSError, InputError), open_file(file) as stream:
            samples.append(stream.read(READ).decode(errors="replace"))
    return [sample for sample in samples if sample.strip()]
