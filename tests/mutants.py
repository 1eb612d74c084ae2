"""One small change at a time in code that the contracts rest on: the tests of that part must notice each.

`python tests/mutants.py [NAME …]` makes the changes of `mutants.toml`, or some of them. Each is made in a copy of the
repository of its own, and its tests run there in a fork of this process, which has imported what takes long and
nothing of ours. Exit code 1 if a change goes unnoticed, 2 if that cannot be told.
"""

import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).parents[1]
LIST = "tests/mutants.toml"
PRELOADED = (
    *("accelerate", "datasets", "hypothesis", "safetensors.torch", "torch._dynamo"),
    *("torch.distributed.nn", "tqdm", "yaml"),
)
ARGUMENTS = (
    *("-x", "-q", "--tb=short", "-p", "no:cacheprovider"),
    *("-m", "not gpu"),
    *("-o", "addopts=--import-mode=importlib"),
)
AT_ONCE = 2
SECONDS = 120.0
"""Of one mutant; one whose tests take longer is noticed."""


class Mutant(NamedTuple):
    """A change of one place in a file, and the tests that must fail for it; without a change, they must pass."""

    name: str
    tests: Sequence[str]
    file: str = ""
    old: str = ""
    new: str = ""


class Outcome(NamedTuple):
    """How the tests of a mutant ended: pytest's exit code, or the negative number of a signal; None if out of time."""

    code: int | None
    failed: str
    seconds: float
    log: str

    @property
    def noticed_by(self) -> str | None:
        """What noticed the change; None where nothing did, or where that cannot be told."""
        if self.code is None:
            return f"more than {SECONDS:g} seconds"
        if self.code < 0:
            return signal.Signals(-self.code).name
        return self.failed if self.code == 1 and self.failed else None


def load_mutants(root: Path = ROOT) -> list[Mutant]:
    """The list."""
    entries = tomllib.loads((root / LIST).read_text())
    return [Mutant(name=name, **entry) for name, entry in entries.items()]


def faults(mutants: Sequence[Mutant], root: Path = ROOT) -> list[str]:
    """What of a list does not fit the code."""
    found = []
    for mutant in mutants:
        times = (root / mutant.file).read_text().count(mutant.old)
        if times != 1 or mutant.old == mutant.new:
            found.append(f"{mutant.name}: its old text must stand once in {mutant.file}, not {times} times")
        for test in mutant.tests:
            file, _, name = test.partition("::")
            text = (root / file).read_text() if (root / file).is_file() else ""
            if not text or (name and f"def {name.partition('[')[0]}(" not in text):
                found.append(f"{mutant.name}: there is no {test}")
    return found


def main(names: Sequence[str], root: Path = ROOT, preloaded: Sequence[str] = PRELOADED) -> int:
    """Run the mutants of these names, or all; print who was noticed by what, and return the exit code."""
    mutants = load_mutants(root)
    unknown = set(names) - {mutant.name for mutant in mutants}
    mutants = [mutant for mutant in mutants if not names or mutant.name in names]
    wrong = [f"there is no mutant {name}" for name in sorted(unknown)] or faults(mutants, root)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        _prepare(Path(scratch), preloaded)
        for unchanged, outcome in outcomes(_unchanged(mutants), root, Path(scratch)):
            if outcome.code != 0:
                print(f"{outcome.log}\n{unchanged.name} does not pass as it is", file=sys.stderr)
                return 2
        return _report(mutants, outcomes(mutants, root, Path(scratch)))


def _unchanged(mutants: Sequence[Mutant]) -> list[Mutant]:
    """All tests, by their files, each once."""
    by_file: dict[str, dict[str, None]] = {}
    for test in (test for mutant in mutants for test in mutant.tests):
        by_file.setdefault(test.partition("::")[0], {})[test] = None
    return [Mutant(file, [file] if file in tests else list(tests)) for file, tests in by_file.items()]


def _report(mutants: Sequence[Mutant], ended: Iterator[tuple[Mutant, Outcome]]) -> int:
    width, code, survivors = max(len(mutant.name) for mutant in mutants), 0, []
    for mutant, outcome in ended:
        verdict = f"noticed by {outcome.noticed_by}"
        if outcome.noticed_by is None:
            verdict = "SURVIVED"
            survivors.append(mutant)
            if outcome.code != 0:
                verdict, code = "NO RESULT: its tests did not run", 2
                print(outcome.log, file=sys.stderr)
        print(f"{mutant.name:<{width}}  {outcome.seconds:5.1f} s  {verdict}", flush=True)
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants were noticed")
    for mutant in survivors:
        print(f"\n{mutant.name} in {mutant.file}:\n- {mutant.old}\n+ {mutant.new}")
    return code or int(bool(survivors))


def _prepare(scratch: Path, preloaded: Sequence[str]) -> None:
    """Make this process one to fork from."""
    for name in [name for name in os.environ if name.startswith(("FORKING_", "PYTEST_"))]:
        del os.environ[name]
    # One thread each; nothing of a mutant is kept, neither what was compiled of its C++ nor of its Python: that is
    # known by size and second of a file, in which a change may not differ from another.
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000", "XDG_CACHE_HOME": str(scratch / "cache")}
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.dont_write_bytecode = True
    for name in ("pytest", *preloaded):
        importlib.import_module(name)
    gc.freeze()  # No fork looks through what it has from here.


def outcomes(mutants: Sequence[Mutant], root: Path, scratch: Path) -> Iterator[tuple[Mutant, Outcome]]:
    """Run mutants, a few at once, and give each as it ends."""
    waiting, running = deque(mutants), dict[int, tuple[Mutant, Path, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                mutant = waiting.popleft()
                folder = Path(tempfile.mkdtemp(dir=scratch))
                _copy(root, folder / "copy", mutant)
                running[_start(folder, mutant.tests)] = mutant, folder, time.monotonic()
            for pid, (mutant, folder, begun) in list(running.items()):
                seconds = time.monotonic() - begun
                late = seconds > SECONDS
                if late or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    del running[pid]
                    code = _end(pid)
                    failed, log = ((folder / name).read_text(errors="replace") for name in ("failed", "log"))
                    shutil.rmtree(folder)
                    yield mutant, Outcome(None if late else code, failed, seconds, log)
            time.sleep(0.02)
    finally:
        for pid in running:
            _end(pid)


def _end(pid: int) -> int:
    """Kill a fork and what it has started, if they have not ended, and return its exit code."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _copy(root: Path, place: Path, mutant: Mutant) -> None:
    """What git tracks or would track, with the change."""
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if (root / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, place / name)
    if mutant.file:
        changed = place / mutant.file
        changed.write_text(changed.read_text().replace(mutant.old, mutant.new))


def _start(folder: Path, tests: Sequence[str]) -> int:
    """Fork, and run tests in the copy of a folder; what they say is in its files `failed` and `log`."""
    (folder / "failed").touch()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _run(folder, tests)
    return pid


def _run(folder: Path, tests: Sequence[str]) -> NoReturn:
    code = 3
    try:
        os.setsid()
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        copy = str(folder / "copy")
        os.chdir(copy)
        sys.path[0] = os.environ["PYTHONPATH"] = copy

        import pytest

        code = int(pytest.main([*ARGUMENTS, f"--basetemp={folder / 'tmp'}", *tests], plugins=[FirstFailure(folder)]))
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class FirstFailure:
    """Writes down which test failed."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "failed"

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Pytest calls it after each part of a test."""
        if report.failed:
            self._file.write_text(report.nodeid)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
