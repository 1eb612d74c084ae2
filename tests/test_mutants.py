"""The tests are tested: small changes of the code that the contracts rest on make them fail."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from mutants import faults, load_mutants


def test_every_mutant_is_a_change_of_one_place_and_its_tests_are_there() -> None:
    mutants = load_mutants()
    assert len(mutants) >= 40
    assert faults(mutants) == []
    for mutant in mutants:
        if mutant.file.endswith(".py"):
            ast.parse((ROOT / mutant.file).read_text().replace(mutant.old, mutant.new), mutant.name)


PROJECT = {
    "money.py": "def total(prices):\n    return sum(prices)\n\n\ndef twice(n):\n    return n * 2\n",
    "tests/test_money.py": """
import money, time

def test_totals():
    assert money.total([1, 2]) == 3
def test_twice():
    assert money.twice(2) == 4
""",
    "tests/mutants.toml": """
[a-price-is-lost]
file = "money.py"
old = "sum(prices)"
new = "sum(prices[1:])"
tests = ["tests/test_money.py::test_totals"]
[squared]
file = "money.py"
old = "n * 2"
new = "n ** 2"
tests = ["tests/test_money.py"]
[broken]
file = "money.py"
old = "def twice(n):"
new = "def twice(n:"
tests = ["tests/test_money.py"]
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def run(project: Path, *names: str) -> "subprocess.CompletedProcess[str]":
    code = f"import mutants, pathlib, sys; sys.exit(mutants.main({names}, pathlib.Path({str(project)!r}), ()))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, timeout=60, check=False
    )


def test_the_runner_names_who_survives_and_what_noticed_the_others(project: Path) -> None:
    done = run(project, "a-price-is-lost", "squared")
    assert done.returncode == 1, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()[:2]}
    assert lines["a-price-is-lost"].endswith("noticed by tests/test_money.py::test_totals")
    assert lines["squared"].endswith("SURVIVED")
    assert done.stdout.endswith("1 of 2 mutants were noticed\n\nsquared in money.py:\n- n * 2\n+ n ** 2\n")
    assert "sum(prices)" in (project / "money.py").read_text(), "changes are made in copies"


@pytest.mark.nightly
def test_the_runner_says_where_it_cannot_tell(project: Path) -> None:
    assert "there is no mutant nobody" in run(project, "nobody").stderr
    done = run(project, "broken")
    assert (done.returncode, "NO RESULT" in done.stdout, "SyntaxError" in done.stderr) == (2, True, True)
    money = project / "money.py"
    money.write_text(money.read_text().replace("sum(", "min("))
    done = run(project)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a-price-is-lost: its old text must stand once in money.py, not 0 times" in done.stderr
    done = run(project, "squared")
    assert done.returncode == 2
    assert "tests/test_money.py does not pass as it is" in done.stderr


@pytest.mark.nightly
def test_no_mutant_survives() -> None:
    done = subprocess.run(
        [sys.executable, "tests/mutants.py"], cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
