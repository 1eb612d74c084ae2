"""The script behind `make gpu`, on a CPU: as a whole with models of seconds, and how it keeps to its time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpu import run as script
from helpers import ROOT


def part(name: str, code: str, limit: float = 60, least: float = 0) -> script.Part:
    return script.Part(name=name, words=["-c", code, "{json}"], limit=limit, least=least)


WRITES = "import json, sys; json.dump({'device': 'a card'}, open(sys.argv[1], 'w')); print('done')"


def test_each_part_has_its_time_and_a_cut_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        part("first", WRITES),
        part("hangs", f"{WRITES}; import time; time.sleep(60)", limit=1.5),
        part("fails", "print('what is wrong'); raise SystemExit(3)"),
        part("too_long", WRITES, least=1000),
        part("last", WRITES),
    ]
    monkeypatch.setattr(script, "parts", lambda options: found)
    options: Any = SimpleNamespace(budget=100, device="cpu", tiny=True, only=None)
    results = script.run_all(options, tmp_path)
    assert [result["outcome"].partition(",")[0] for result in results] == [
        "ok",
        "cut after 2 s",
        "failed with code 3",
        "left out",
        "ok",
    ]
    assert results[1]["seconds"] < 6, "it is cut in time"
    assert results[2]["last_line"] == "what is wrong"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["parts"] == results
    assert summary["device"] == "a card"
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["first", "hangs", "last", "summary"]


@pytest.mark.ci
def test_a_check_that_takes_the_process_with_it_has_failed_and_the_others_go_on(tmp_path: Path) -> None:
    file = tmp_path / "checks.json"
    done = [{"check": name, "outcome": "ok", "seconds": 1} for name in ("precisions_learn_alike",)]
    file.write_text(json.dumps({"checks": done, "under_way": "deterministic_gives_the_same_bits"}))
    kept = {"precisions_learn_alike", "deterministic_gives_the_same_bits", "too_much_memory_is_one_line"}
    code = "import runpy, sys; sys.argv = sys.argv[1:]; scope = runpy.run_path(sys.argv[0]); "
    code += f"[scope['CHECKS'].pop(name) for name in set(scope['CHECKS']) - {kept}]; sys.exit(scope['main']())"
    words = [ROOT / "tests/gpu/checks.py", "--json", file, "--device", "cpu", "--tiny"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, check=False)
    assert ended.returncode == 1, ended.stderr
    found = json.loads(file.read_text())
    outcomes = {result["check"]: result["outcome"] for result in found["checks"]}
    assert outcomes["precisions_learn_alike"] == "ok"
    assert outcomes["deterministic_gives_the_same_bits"] == "failed"
    assert outcomes["too_much_memory_is_one_line"] == "left out"
    assert found["device"].startswith("cpu: ")
    assert "under_way" not in found


@pytest.mark.nightly
def test_all_of_it_runs_on_a_cpu_with_models_of_seconds(tmp_path: Path) -> None:
    words = [sys.executable, ROOT / "tests/gpu/run.py", "--device", "cpu", "--tiny", "--output", tmp_path / "gpu"]
    done = subprocess.run([*words, "--budget", "1500"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "gpu/summary.json").read_text())
    assert {result["outcome"] for result in summary["parts"]} == {"ok"}
    for result in summary["parts"]:
        found = json.loads((tmp_path / f"gpu/{result['part']}.json").read_text())
        assert found["device"].startswith("cpu: "), result["part"]
    checks = json.loads((tmp_path / "gpu/checks.json").read_text())["checks"]
    assert {check["outcome"] for check in checks} <= {"ok", "left out"}
