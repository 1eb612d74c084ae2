"""What a run has written itself while it was trained, and what to begin with out of that: prompts and sources."""

from contextlib import suppress

from training.storage.reading import read_bytes
from training.storage.run_folder import RunFolder

MAX_EXAMPLES = 4
MAX_PROMPT = 30
"""Characters of a prompt."""


def prompts(run: RunFolder) -> list[str]:
    """First lines of the paragraphs of its samples, the newest sample's first; a line break where there are none."""
    found: dict[str, None] = {}
    for sample in read_samples(run, MAX_EXAMPLES).values():
        for paragraph in filter(str.strip, sample.split("\n\n")):
            first, newline, rest = paragraph.lstrip("\n").partition("\n")
            short = first if len(first) <= MAX_PROMPT else first[:MAX_PROMPT].rpartition(" ")[0] or first[:MAX_PROMPT]
            if rest or short != first:  # Else it may be cut short.
                found[short + newline if short == first else short] = None
    return list(found)[:MAX_EXAMPLES] or ["\n"]


def sources(run: RunFolder) -> list[str]:
    """The sources of its newest table of samples that are shown whole."""
    for sample in read_samples(run, MAX_EXAMPLES).values():
        head, *rows = sample.splitlines() or [""]
        width = head.find("prediction")
        found = [row[:width].rstrip() for row in rows if width > 0]
        if whole := [source for source in dict.fromkeys(found) if source and "…" not in source]:
            return whole[:MAX_EXAMPLES]
    return []


def read_samples(run: RunFolder, number: int) -> dict[int, str]:
    """Its newest samples by their steps, the newest first; what cannot be read is left out."""
    samples = {}
    for file in sorted((run.path / "samples").glob("step-*.txt"), reverse=True)[:number]:
        with suppress(OSError, ValueError):  # It may vanish.
            samples[int(file.stem.partition("-")[2])] = read_bytes(file).decode(errors="replace")
    return samples
