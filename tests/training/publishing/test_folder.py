"""A folder that leaves exists whole or not at all."""

from pathlib import Path

import pytest

from training.publishing.folder import new_folder
from training.runtime.errors import InputError


def test_a_folder_appears_when_all_of_it_is_there(tmp_path: Path) -> None:
    place = tmp_path / "above/model"
    with new_folder(place) as folder:
        (folder / "one").write_text("1")
        assert not place.exists()
    assert [path.name for path in place.iterdir()] == ["one"]
    assert [path.name for path in place.parent.iterdir()] == ["model"]


def test_nothing_is_left_of_one_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "model") as folder:
        (folder / "one").write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()
    with pytest.raises(InputError, match=r"model exists, and nothing is overwritten: choose another --output$"):
        new_folder(place).__enter__()
    place.rmdir()
    with pytest.raises(InputError, match="exists"), new_folder(place):
        place.mkdir()  # By another process meanwhile.
    assert not list(place.iterdir())


def test_a_disk_that_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: No such file or directory$"), new_folder(tmp_path / "model") as folder:
        (folder / "above/none").write_text("1")
    assert not list(tmp_path.iterdir())
