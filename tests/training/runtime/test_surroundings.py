"""Streams that fail, and a user without a home."""

import io
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import ROOT

from training.runtime.errors import InputError, exit_code
from training.runtime.surroundings import mend_home, outlive_output

COMMAND = """
import sys
from training.runtime.errors import exit_code
from training.runtime.surroundings import outlive_output

def command():
    if "lasts" in sys.argv:
        outlive_output()
    for _ in range(3):
        print("ünd …", flush=True)
        print("ünd …", file=sys.stderr)
    with open("left", "w") as file:
        file.write("came to its end")
        print("not in a file", flush=True)

sys.exit(exit_code(command))
"""


def shell(line: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line in which $COMMAND stands for a command that prints, and at its end writes a file."""
    (folder / "command.py").write_text(COMMAND)
    return subprocess.run(
        ["bash", "-c", line.replace("$COMMAND", f"{sys.executable} command.py")],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    "line",
    [
        "$COMMAND lasts >&- 2>&-",
        "$COMMAND lasts <&- >&- 2>&-",
        "$COMMAND lasts >/dev/full 2>/dev/full",
        "$COMMAND lasts 2>&1 | true; exit ${PIPESTATUS[0]}",
    ],
)
def test_a_run_outlives_its_output(tmp_path: Path, line: str) -> None:
    done = shell(line, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "left").read_text() == "came to its end"


@pytest.mark.parametrize("how", ["", "lasts"])
def test_what_an_encoding_cannot_show_is_replaced(tmp_path: Path, how: str) -> None:
    done = shell(f"$COMMAND {how}", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"?nd ?\n" * 3 + b"not in a file\n"
    assert done.stderr == b"\\xfcnd \\u2026\n" * 3


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$COMMAND 2>/dev/null | true; exit ${PIPESTATUS[0]}", 141, b""),
        ("$COMMAND 2>&1 | true; exit ${PIPESTATUS[0]}", 141, b""),
        ("$COMMAND >/dev/full 2>/dev/full", 2, b""),
        ("$COMMAND >&- 2>&-", 0, b""),
    ],
)
def test_another_command_ends_with_its_reader_and_without_a_traceback(
    tmp_path: Path, line: str, code: int, said: bytes
) -> None:
    done = shell(line, tmp_path)
    assert (done.returncode, done.stderr) == (code, said)


def test_output_comes_back_where_there_is_space_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, writer = os.pipe()
    stream = open(writer, "w", encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    outlive_output()
    for end in (sys.stdout.fileno(), pipe):
        os.set_blocking(end, False)
    for _ in range(20):
        print("x" * 10_000, flush=True)  # More than a pipe takes.
    with suppress(BlockingIOError):
        while os.read(pipe, 2**20):
            pass
    print("after", flush=True)
    assert os.read(pipe, 100).endswith(b"after\n")
    os.close(pipe)
    print("gone", flush=True)
    stream.close()


def test_what_a_notebook_or_a_test_has_put_in_place_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    outlive_output()
    assert sys.stdout is shown


def homeless(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))


def test_a_user_without_a_home_gets_one_that_nobody_else_may_write_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    homeless(monkeypatch, tmp_path)
    mend_home()
    home = Path(os.environ["HOME"])
    assert home.parent == tmp_path
    assert home.stat().st_mode & 0o077 == 0
    monkeypatch.delenv("HOME")
    mend_home()
    assert Path(os.environ["HOME"]) == home, "the same again, with what libraries keep there"
    home.chmod(0o777)
    mend_home()
    assert Path(os.environ["HOME"]) != home, "anybody could have put something there"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "error: out of memory: less at once"),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. Er"
            ),
            "error: out of memory at 64 bytes more: less at once",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"),
            "error: out of memory at 2.00 GiB more:",
        ),
    ],
)
def test_memory_that_is_not_there_is_one_line(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    assert exit_code(command) == InputError.exit_code
    assert capsys.readouterr().err.startswith(said)
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        exit_code(command)
