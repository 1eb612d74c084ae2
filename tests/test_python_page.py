"""What docs/python.md says can be called, runs as it stands, one block after the other in one session."""

import re
from pathlib import Path

import pytest
from helpers import ROOT, command, read_metrics

BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.ci
def test_the_page_trains_samples_goes_on_and_writes_targets(tmp_path: Path) -> None:
    lines = (f"The number {i} times {i % 7} is {i * (i % 7)}, as it always was.\n" for i in range(300))
    (tmp_path / "input.txt").write_text("".join(lines))
    shown = 'print("=== block ===")\n'
    (tmp_path / "page.py").write_text(shown.join(BLOCKS))
    done = command("page.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, threads, targets = done.stdout.split("=== block ===\n")
    assert "resuming    after step 50" in first
    assert [line["step"] for line in read_metrics(tmp_path / "runs/mine")][-1] == 100
    written = re.findall(r"step 50/50  loss [^\n]*\n(.*)device  ", first, re.DOTALL)[0]
    assert len(written) == 200
    texts = threads.removesuffix("\n").split("\n---\n")
    assert [len(text) for text in texts] == [50] * 4
    assert len(set(texts)) == 4, "each has its seed"
    rows = [line.split() for line in targets.splitlines()[-2:]]
    assert all(ended in ("True", "False") and float(likely) < 0 for _, ended, likely in rows)
