"""Text in the encodings that people have, and what is no text."""

# ruff: noqa: RUF001
import gzip
import subprocess
import tracemalloc
from pathlib import Path

import pytest
from helpers import ROOT

from data.sources import encodings
from data.sources.encodings import NARROW, WIDE, NoText, TextFile, decode_text, find_encoding, opened, read_text
from training.runtime.errors import InputError

FRENCH = (
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et"
    " de conscience et doivent agir les uns envers les autres dans un esprit de fraternité. Chacun peut s"
    "e prévaloir de tous les droits et de toutes les libertés proclamés dans la présente Déclaration, san"
    "s distinction aucune, notamment de race, de couleur, de sexe, de langue, de religion, d'opinion poli"
    "tique ou de toute autre opinion, d'origine nationale ou sociale, de fortune, de naissance.\n"
)
CZECH = (
    "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Jsou nadáni rozumem a svědomím "
    "a mají spolu jednat v duchu bratrství. Každý má všechna práva a všechny svobody, stanovené touto dek"
    "larací, bez jakéhokoli rozlišování, zejména podle rasy, barvy, pohlaví, jazyka, náboženství.\n"
)
RUSSIAN = (
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совесть"
    "ю и должны поступать в отношении друг друга в духе братства. Каждый человек должен обладать всеми пр"
    "авами и всеми свободами, провозглашенными настоящей Декларацией.\n"
)
CHINESE = (
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。\n白日依山尽，黄河入海流。欲穷千里目，更上一层楼。\n"
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n红豆生南国，春来发几枝。愿君多采撷，此物最相思。\n"
)
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所でニャーニャ"
    "ー泣いていた事だけは記憶している。吾輩はここで始めて人間というものを見た。\n"
)
ENGLISH = "It was the best of times, it was the worst of times.\n"


@pytest.mark.parametrize(
    ("text", "encoding", "note"),
    [
        (ENGLISH, "utf-8", None),
        (ENGLISH, "utf-8-sig", "without its byte order mark"),
        (FRENCH, "utf-16", "read as UTF-16LE"),
        (FRENCH, "utf-32", "read as UTF-32LE"),
        (ENGLISH, "utf-16-le", "read as UTF-16LE, a guess"),
        (ENGLISH, "utf-16-be", "read as UTF-16BE, a guess"),
        (ENGLISH, "utf-32-le", "read as UTF-32LE, a guess"),
        (CHINESE, "utf-16-le", "read as UTF-16LE, a guess"),
        (FRENCH, "latin-1", "read as WINDOWS-1252, a guess"),
        (FRENCH.replace("d'", "d’"), "cp1252", "read as WINDOWS-1252, a guess"),
        (FRENCH, "cp850", "read as CP850, a guess"),
        (CZECH, "cp1250", "read as WINDOWS-1250, a guess"),
        (RUSSIAN, "cp1251", "read as WINDOWS-1251, a guess"),
        (RUSSIAN, "koi8-r", "read as KOI8-R, a guess"),
        (CHINESE, "gbk", "read as GB18030, a guess"),
        (CHINESE * 500, "gbk", "read as GB18030, a guess"),
        (JAPANESE, "shift_jis", "read as CP932, a guess"),
        (JAPANESE, "euc_jp", "read as EUC-JP, a guess"),
        (ENGLISH * 2000 + FRENCH + ENGLISH * 2000, "latin-1", "read as WINDOWS-1252, a guess"),
    ],
)
def test_text_is_read_and_what_was_done_is_said(text: str, encoding: str, note: str | None) -> None:
    assert decode_text(text.encode(encoding), "a") == TextFile(text, note)


@pytest.mark.parametrize(
    ("text", "encoding", "note"),
    [
        (ENGLISH, "utf-8", None),
        (FRENCH, "utf-8-sig", "without its byte order mark"),
        (FRENCH, "utf-16", "read as UTF-16LE"),
        (ENGLISH, "utf-16-be", "read as UTF-16BE, a guess"),
        (ENGLISH * 200 + FRENCH, "latin-1", "read as WINDOWS-1252, a guess"),
        (CHINESE, "gbk", "read as GB18030, a guess"),
        ("a" + CHINESE.replace("\n", "") * 30, "gbk", "read as GB18030, a guess"),
    ],
)
def test_a_file_is_looked_at_a_block_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, encoding: str, note: str | None
) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes((text * 20).encode(encoding))
    monkeypatch.setattr(encodings, "BLOCK", 4001)
    monkeypatch.setattr(encodings, "SAMPLE_BYTES", 3000)
    found = find_encoding(file)
    assert found.note == note
    with opened(file, found) as content:
        assert content.read() == text * 20


@pytest.mark.parametrize(
    ("line", "clear"),
    [
        ("La forêt brûlait où nous étions déjà\n", True),
        ("Fichier créé: forêt.txt où brûlé\n", True),
        ("Échec à la connexion (déjà fermé)\n", False),
        ("2024-01-01 Échec à la connexion du côté serveur (déjà fermé)\n", False),
    ],
)
def test_a_line_that_comes_again_is_no_more_to_go_by_than_the_line(line: str, clear: bool) -> None:
    for count in (1, 20):
        if clear:
            assert decode_text(line.encode("cp1252") * count, "a").text == line * count
            continue
        with pytest.raises(NoText, match="a is not UTF-8, perhaps WINDOWS-1252 or WINDOWS-1250: convert it"):
            decode_text(line.encode("cp1252") * count, "a")


def test_a_wrong_byte_far_behind_is_found_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "BLOCK", 1000)
    file, text = tmp_path / "a.txt", RUSSIAN.encode() * 60
    for content, message in {
        text + b"\xff" + text: r"a.txt is damaged UTF-8: 1 wrong bytes, the first in line 61 \(0xff\)",
        text + b"\xd0\xff" + text + b"\xd0": r"a.txt is damaged UTF-8: 3 wrong bytes, the first in line 61 \(0xd0\)",
        text + b"\xd0": r"a.txt is damaged UTF-8: 1 wrong bytes, the first in line 61 \(0xd0\)",
        (RUSSIAN * 60).encode("utf-16") + b"x": f"the first wrong byte is at {len(RUSSIAN) * 120:,}; leave",
        text + b"\0" + text: r"a.txt is no text \(it has NUL bytes\)",
    }.items():
        file.write_bytes(content)
        with pytest.raises(NoText, match=message):
            find_encoding(file)
        with pytest.raises(NoText, match=message):
            decode_text(content, file)


def test_a_large_file_of_one_line_is_not_held(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(ENGLISH.replace("\n", " ").encode() * 600_000 + FRENCH.encode("latin-1"))
    tracemalloc.start()
    try:
        found = find_encoding(file)
        assert found.note == "read as WINDOWS-1252, a guess"
        with opened(file, found) as content:
            while content.read(2**20):
                pass
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert file.stat().st_size > 30e6
    assert most < 16e6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'it s.txt' is empty: expected text"),
        (b"\xff\xfe", "'it s.txt' is empty"),
        (b"%PDF-1.4 all in ASCII", "'it s.txt' is no text (PDF)"),
        (gzip.compress(b"text", mtime=0), "'it s.txt' is no text (gzip)"),
        ((ROOT / "docs/pictures/write.png").read_bytes(), "'it s.txt' is no text (PNG)"),
        (ENGLISH.encode() + b"\0" + ENGLISH.encode(), "'it s.txt' is no text (it has NUL bytes)"),
        (bytes(range(1, 256)) * 20, "'it s.txt' is no text"),
    ],
)
def test_no_text_is_said_to_be_none(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "it s.txt"
    file.write_bytes(content)
    with pytest.raises(NoText) as caught:
        read_text(file)
    assert str(caught.value).startswith(message.replace("'it s.txt'", str(file)))


@pytest.mark.parametrize(
    ("text", "content", "message"),
    [
        ("naïve\n", "naïve\n".encode("latin-1"), "is not UTF-8, perhaps WINDOWS-1252 or WINDOWS-1250 or "),
        ("床前明月光\n", "床前明月光\n".encode("gbk"), "is not UTF-8, perhaps GB18030"),
        (RUSSIAN * 2, RUSSIAN.encode() + b"\xff\xd0" + RUSSIAN.encode(), "2 wrong bytes, the first in line 2 (0xff)"),
        (RUSSIAN, RUSSIAN.encode("utf-16") + b"\0", "is damaged UTF-16LE: the first wrong byte is at "),
    ],
)
def test_the_command_of_an_error_makes_a_text_of_the_file(
    tmp_path: Path, text: str, content: bytes, message: str
) -> None:
    file = tmp_path / "it's a $text.txt"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_text(file)
    assert message in str(caught.value)
    subprocess.run(["sh", "-c", "iconv " + str(caught.value).split("iconv ")[1]], check=False)
    assert read_text(tmp_path / "it's a $text.utf-8.txt").text == text


def test_iconv_knows_every_name() -> None:
    known = subprocess.run(["iconv", "-l"], capture_output=True, text=True, check=True).stdout.replace("//", "").split()
    assert {*NARROW.values(), *WIDE.values()} <= {name.rstrip(",") for name in known}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for name, why in {"gone": "No such file or directory", ".": "Is a directory"}.items():
        with pytest.raises(NoText, match=f"cannot read .*: {why}") as caught:
            read_text(tmp_path / name)
        assert caught.value.reason == why
