"""A benchmark of a training as tables, and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.runtime.tables import print_table

MIB = 2**20


def show(figures: dict[str, Any]) -> None:
    """Print the tables, and what they depend on."""
    of_gpu = not figures["device"].startswith("cpu")
    processes = f"{figures['processes']} processes, " if figures["processes"] > 1 else ""
    print(f"\ndevice     {figures['device']}, {processes}{figures['threads']} threads")
    print(f"versions   torch {figures['torch']}, Python {figures['python']}")
    print(f"model      {figures['source']}: {figures['parameters']:,} parameters")
    batch, tokens, precision = (figures[name] for name in ("batch_size", "tokens_per_step", "precision"))
    print(f"step       {batch} sequences, {tokens:,.0f} tokens, {precision}")
    seconds = "" if figures["compile_seconds"] is None else f", in {figures['compile_seconds']:.1f} s before the rounds"
    print(f"compile    {figures['compile']}{seconds}")
    print(f"measured   medians of {len(figures['rounds'])} rounds\n")
    ours = figures | {"card_bytes": figures["reserved_bytes"]}
    print_table([_speed("ours", ours), *(_speed(baseline["name"], baseline) for baseline in figures["baselines"])])
    if figures["baselines"] and figures["reserved_bytes"]:
        print(
            "memory: what torch's allocator took of the card; of a baseline all that it took, with its CUDA context\n"
        )
    _show_shares(figures)
    if figures.get("parts"):
        print_table(_part_rows(figures["parts"]))
        if "host gap" in figures["parts"]["milliseconds"]:
            print("milliseconds in which kernels of a part run, under the profiler; in the host gap none runs\n")
    print_table(_memory_rows(figures, of_gpu=of_gpu))
    for each in figures.get("expensive", []) if figures["profile"] else []:
        print(f"{each['share']:6.1%}  {each['milliseconds']:9.2f} ms  {each['calls']:6} calls  {each['name']}")
    if figures["profile"]:
        print(f"{figures['profile']}: open it at https://ui.perfetto.dev")
    if "until" in figures:
        print(_until(figures["until"]))


def _rate(flops: float) -> str:
    return f"{flops / 1e12:,.1f} TFLOP/s" if flops >= 1e13 else f"{flops / 1e9:,.1f} GFLOP/s"


def _speed(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "": name,
        "tokens/s (slowest to fastest)": "{tokens_per_second:,.0f} ({slowest:,.0f} to {fastest:,.0f})".format_map(row),
        "ms a step": f"{row['milliseconds_per_step']:,.2f}" if "milliseconds_per_step" in row else "",
        "last loss": "" if row["loss"] is None else f"{row['loss']:.4f}",
        "MiB of the card": f"{row['card_bytes'] / MIB:,.0f}" if row["card_bytes"] else "",
        "ours to it": f"{row['ratio']:.2f}x" if "ratio" in row else "",
    }


def _show_shares(figures: Mapping[str, Any]) -> None:
    """How near the training comes to what the device can do."""
    ours, products = _rate(figures["flops_per_second"]), _rate(figures["products_per_second"])
    print(f"{ours} by the model's shape are {figures['share_of_products']:.1%} of the {products} at which the")
    print("device multiplied large matrices before and after the rounds")
    if "share_of_printed_peak" in figures:
        peak = _rate(figures["printed_peak_flops"])
        print(f"and {figures['share_of_printed_peak']:.1%} of the {peak} that its maker prints")
    print()


def _part_rows(parts: Mapping[str, Any]) -> list[dict[str, str]]:
    whole = parts["step_milliseconds"]
    rows = [*parts["milliseconds"].items(), ("a step, profiled", whole)]
    return [{"part": name, "ms": f"{value:,.2f}", "of the step": f"{value / whole:.1%}"} for name, value in rows]


def _memory_rows(figures: Mapping[str, Any], *, of_gpu: bool) -> list[dict[str, str]]:
    expected = figures["expected_bytes"]
    measured = "measured peak" if of_gpu else "measured growth of resident memory"
    rows = [*expected.items(), ("together, by formula", sum(expected.values())), (measured, figures["peak_bytes"])]
    return [{"memory": name, "MiB": "unknown" if size is None else f"{size / MIB:,.1f}"} for name, size in rows]


def _until(until: Mapping[str, Any]) -> str:
    curve, seconds = until["curve"], until["wall_seconds"]
    best = min(curve, key=lambda evaluated: evaluated["val_loss"])
    reached = f"{best['val_loss']:.4f} at step {best['step']:,.0f}, after {best['seconds']:.1f} s of training"
    if until["reached"]:
        return f"validation loss {reached} ({seconds:.1f} s with evaluations and compiling)"
    last = curve[-1]["val_loss"]
    return f"validation loss {until['loss']:g} was not reached: the best was {reached}; the last {last:.4f}"


def plot(figures: Mapping[str, Any], output: Path) -> None:
    """Draw the speed of each round and baseline, the parts of a step, and memory by formula beside the measured one."""
    from training.plots import new_figure

    figure = new_figure(11, 3.8)
    figure.suptitle(f"{figures['source']} on {figures['device']}, {figures['precision']}", fontsize=10)
    speed, parts, memory = figure.subplots(1, 3)
    names = ["ours", *(baseline["name"][:24] for baseline in figures["baselines"])]
    everyone = [figures["rounds"], *(baseline["turns"] for baseline in figures["baselines"])]
    medians = [figures["tokens_per_second"], *(baseline["tokens_per_second"] for baseline in figures["baselines"])]
    speed.bar(names, medians, color="C0", alpha=0.6)
    for index, rates in enumerate(everyone):
        speed.plot([index] * len(rates), rates, "k_", markersize=12)
    speed.set(title="tokens per second", ylim=(0, None))
    if figures.get("parts"):
        _bars(parts, figures["parts"]["milliseconds"], "milliseconds of a step")
    else:
        parts.set_axis_off()
    sizes = {name: size / MIB for name, size in figures["expected_bytes"].items()}
    _bars(memory, sizes, "memory, MiB: the formula")
    if figures["peak_bytes"] is not None:
        memory.barh("measured", figures["peak_bytes"] / MIB, color="0.5")
    figure.savefig(output)


def _bars(axes: Any, values: Mapping[str, float], title: str) -> None:
    """Bars that begin where the one above ends, so that the last ends at their sum."""
    reached = 0.0
    for number, (name, value) in enumerate(values.items()):
        axes.barh(name, value, left=reached, color=f"C{number}")
        reached += value
    axes.invert_yaxis()
    axes.set(title=title)
