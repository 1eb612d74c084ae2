"""What communication costs, measured: two processes over gloo, joined by cables that are slowed, each on one core.

`measure_links.py --json FILE` measures all of it and prints a table; it needs a Linux where it may make network
namespaces. Beside each step stands what a formula expects of it, from the step of one process and the cable alone.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed.link_worker import MODES, TINY, Plan
from distributed.machines import PORT, Cable, start, two_machines

from training.planning.links import ETHERNET, Link, Work, all_reduce_seconds, step_seconds

CABLES = {
    "not slowed": Cable(),
    "1 Gbit/s": Cable(megabits=1000),
    "1 Gbit/s, 1 ms": Cable(megabits=1000, milliseconds=1.0),
}
WORKER = Path(__file__).with_name("link_worker.py")


def measure_cables(plan: Plan, cables: Sequence[str]) -> dict[str, Any]:
    """Everything, over each of some cables; beside it one process alone."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("".join(f"{n} times {n % 97} is {n * (n % 97)}.\n" for n in range(30_000)))
        for name in cables:
            print(f"measuring   {name}", flush=True)
            report[name] = _on_machines(plan, CABLES[name], Path(folder), 2)
        report["alone"] = _on_machines(plan, Cable(), Path(folder), 1)
    return report


def _on_machines(plan: Plan, cable: Cable, folder: Path, machines: int) -> dict[str, Any]:
    """What `link_worker.py` finds, started by torchrun on one or two machines."""
    output = folder / "figures.json"
    output.unlink(missing_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan._asdict()))
    with two_machines(cable) as both:
        running = []
        for rank, machine in enumerate(both[:machines]):
            here = ["--nnodes", str(machines), "--node_rank", str(rank), "--nproc_per_node", "1"]
            there = ["--master_addr", both[0].address, "--master_port", PORT, WORKER, folder]
            log = folder / f"log{rank}"
            running.append(start(machine, ["-m", "torch.distributed.run", *here, *there], folder, log))
        codes = [process.wait(timeout=240) for process in running]
    if any(codes):
        raise SystemExit("\n".join((folder / f"log{rank}").read_text() for rank in range(machines)))
    figures: dict[str, Any] = json.loads(output.read_text())
    return figures


def held_against_the_formula(report: dict[str, Any]) -> list[list[Any]]:
    """Each way to train over each slowed cable: as measured, and as `training/planning/links.py` expects it."""
    names = ["cable", "way", "alone s", "step s", "expected s", "off by %", "sent s", "hidden s", "formula s"]
    rows: list[list[Any]] = [names]
    alone = report["alone"]["modes"]
    for cable, figures in report.items():
        if cable == "alone" or CABLES[cable].megabits is None:
            continue
        link = Link(cable, ETHERNET * CABLES[cable].megabits * 1e6 / 8, CABLES[cable].milliseconds / 1000)
        for name, mode in figures["modes"].items():
            size = mode["gradient_bytes"]
            computed = alone.get(name, alone["DDP"])["seconds"]
            parts = MODES[name].options.get("accumulation_steps", 1)
            work = Work(2 * computed, 0.0, 0.0, size, mode["gathered_bytes"], parts)
            expected, traced = step_seconds(work, 2, link), mode["traced"]
            off = 100 * (expected / mode["seconds"] - 1)
            row = [computed, mode["seconds"], expected, off, traced["sent_seconds"], traced["hidden_seconds"]]
            rows.append([cable, name, *row, all_reduce_seconds(size, 2, link)])
    return rows


def table(report: dict[str, Any]) -> str:
    """The figures as text."""
    first, cables = report["alone"], [name for name in report if name != "alone"]
    lines = [f"{first['device']}, {first['threads']} thread a process, torch {first['torch']}"]
    lines.append(f"{first['modes']['DDP']['gradient_bytes'] / 1e6:.1f} MB of gradients")
    sizes = list(report[cables[0]]["all_reduce"])
    head = ["all-reduce, ms", *(f"{int(size):,} bytes" for size in sizes)]
    reduced = [[name, *(1000 * report[name]["all_reduce"][size] for size in sizes)] for name in cables]
    others = [[name, report[name]["evaluation_seconds"], report[name]["save_seconds"]] for name in report]
    tables = [[head, *reduced], held_against_the_formula(report), [["", "evaluation s", "save s"], *others]]
    return "\n\n".join(["\n".join(lines), *(_aligned(rows) for rows in tables)])


def _aligned(rows: list[list[Any]]) -> str:
    texts = [[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in texts)


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--cables", nargs="+", choices=CABLES, default=list(CABLES), help="default: all")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few readings, to see that it works")
    options = parser.parse_args()
    report = measure_cables(TINY if options.tiny else Plan(), options.cables)
    print(table(report))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
