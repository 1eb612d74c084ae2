"""A benchmark's figures as tables, and its curves as a picture."""

from pathlib import Path
from typing import Any

from decoding.benchmark import Benchmark
from training.runtime.tables import print_table

COLUMNS = {
    "mode": "{mode}",
    "streams": "{batch}",
    "tokens/s (slowest to fastest)": "{tokens_per_second:,.1f} ({slowest:,.1f} to {fastest:,.1f})",
    "share of memory*": "{bandwidth_share:.0%}",
    "of arithmetic*": "{arithmetic_share:.0%}",
    "first token": "{first_token_seconds:.3f} s",
    "compile": "{compile_seconds:.1f} s",
    "a pass": "{seconds:.3f} s",
    "parameters": "{parameters:,}",
    "cache bytes*": "{cache_bytes:,}",
}


def show(figures: dict[str, Any]) -> None:
    """Print the tables, and what they depend on."""
    model = figures["model"]
    print(f"\ndevice     {figures['device']}, {figures['threads']} threads")
    print(f"versions   torch {figures['torch']}, Python {figures['python']}")
    print(f"model      {model['source']}: {model['parameters']:,} parameters, context {model['max_len']}")
    if "computed" in figures:
        print(f"memory     {figures['read_gigabytes_per_second']:.1f} GB/s read, median")
        print(f"arithmetic {figures['multiply_gigaflops']:,.0f} GFLOP/s in products of fp32 matrices by torch, median")
    print(f"measured   medians of {figures['repeats']}, up to {figures['new_tokens']} new tokens {figures['task']}\n")
    if "rows" in figures:
        print_table([_cache_cells(row) for row in figures["rows"]])
    everyone = [*figures["decode"], *figures["baselines"]]
    print_table([{name: _cell(form, row) for name, form in COLUMNS.items()} for row in everyone])
    if "computed" in figures:
        print("* computed from the model's shape, not measured; the shares with the measured rates and speeds")
    if "native_build_seconds" in figures:
        print(f"the native step was built in {figures['native_build_seconds']:.1f} s, once for this machine")
    for precision, share in figures.get("greedy_agreement", {}).items():
        print(f"{precision} chooses the token of fp32 at {share:.1%} of the positions of a greedy text")


def _cache_cells(row: dict[str, Any]) -> dict[str, str]:
    """Seconds of each variant, and how many times as fast those are that were timed without the cache, too."""
    cells = {"new tokens": str(row["new_tokens"])}
    for name, seconds in row["arms"].items():
        cells[name] = f"{seconds:.3f} s"
        if name in row["speedups"]:
            cells[f"speed-up, {name}"] = f"{row['speedups'][name]:.2f}x"
    return cells


def _cell(form: str, row: dict[str, Any]) -> str:
    try:
        return form.format(**row)
    except KeyError:
        return ""


def plot(benchmark: Benchmark, output: Path) -> None:
    """Draw the seconds until each new token, and those of each one, of the variants in the table."""
    from training.plots import new_figure

    about = benchmark.about
    figure = new_figure(10, 4.2)
    figure.suptitle(f"{about['model']['source']} on {about['device']}, {about['precision']}", fontsize=10)
    cumulative, single = figure.subplots(1, 2)
    for variant in benchmark.tabled():
        until, steps = variant.curves()
        (line,) = cumulative.plot(range(1, len(until) + 1), until, label=variant.name)
        cumulative.plot(benchmark.rows, [until[n - 1] for n in benchmark.rows], "o", color=line.get_color())
        single.plot(range(2, len(until) + 1), steps, linewidth=1, label=variant.name)
    cumulative.set(xlabel="new tokens", ylabel="seconds", title="time until a token", yscale="log")
    single.set(xlabel="new tokens", ylabel="milliseconds", title="time per token", yscale="log")
    for axes in (cumulative, single):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(output)
