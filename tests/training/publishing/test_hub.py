"""The way to the hub, against the small one of the tests: one commit, and one clear line for each thing in the way."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from small_hub import SmallHub, serving

from training.publishing.hub import check_push, push
from training.runtime.errors import InputError

FILES = {"README.md": b"---\nlicense: mit\n---\n", "config.json": b"{}\n", "model.safetensors": bytes(range(256)) * 50}


@pytest.fixture(scope="module")
def served() -> Iterator[SmallHub]:
    with serving() as hub:
        hub.tokens = {"hf_mine": "me"}
        hub.models = {"you/yours": {}}
        yield hub


@pytest.fixture
def hub(served: SmallHub, monkeypatch: pytest.MonkeyPatch) -> SmallHub:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    return served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for name, content in FILES.items():
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path / "model"


def fault_of(folder: Path, repository: str) -> str:
    with pytest.raises(InputError) as caught:
        push(folder, repository, private=False)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"; {folder} is written: hf upload {repository} {folder} tries again")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    return str(caught.value).partition(";")[0]


def test_all_files_come_in_one_commit_and_once_more_in_another(
    hub: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_push("me/mine")
    assert push(folder, "me/mine", private=True) == f"{hub.url}/me/mine"
    assert hub.models["me/mine"] == FILES
    assert hub.commits == ["Upload model"]
    monkeypatch.setitem(FILES, "config.json", b"[]\n")
    (folder / "config.json").write_bytes(FILES["config.json"])
    push(folder, "me/mine", private=True)
    assert hub.models["me/mine"] == FILES


def test_a_repository_of_another_is_refused(hub: SmallHub, folder: Path) -> None:
    expected = "the token may not write to you/yours: take one with that right, or another OWNER/NAME"
    assert fault_of(folder, "you/yours") == expected
    assert fault_of(folder, "you/new") == expected.replace("yours", "new")


def test_a_token_that_the_hub_does_not_know_is_told(
    hub: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    fault = f"{hub.url} does not know the token: log in with hf auth login, or set HF_TOKEN"
    assert fault_of(folder, "me/other") == fault


def test_a_card_that_the_hub_refuses_is_told(hub: SmallHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, "README.md", b"---\nlicense: none-such\n---\n")
    (folder / "README.md").write_bytes(FILES["README.md"])
    assert fault_of(folder, "me/refused").endswith("to me/refused (- no such license)")


def test_no_network_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    fault = fault_of(folder, "me/mine")
    assert fault.startswith("cannot upload to me/mine at http://127.0.0.1:9 (")
    assert fault.endswith("): check the network")


def test_a_private_model_is_private_when_it_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    spaced = folder.rename(folder.with_name("my model"))
    with pytest.raises(InputError, match=r"is written: hf upload me/mine '/\S+/my model' --private tries again$"):
        push(spaced, "me/mine", private=True)


def test_what_cannot_begin_is_told_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"^--push_to_hub me/mine needs a token of the hub that may write: log in"):
        check_push("me/mine")
    with pytest.raises(InputError, match=r"^--push_to_hub takes OWNER/NAME, got mine$"):
        check_push("mine")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"offline mode \(HF_HUB_OFFLINE\) is on$"):
        check_push("me/mine")
