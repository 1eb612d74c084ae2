"""What `launch/bench_kv_cache.py` does with a GPT."""

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from decoding.benchmark import (
    COMPUTED,
    Contender,
    Machine,
    agreement,
    contenders,
    decode_rows,
    measure_decoding,
    native_build_seconds,
)
from decoding.cache_benchmark import Arms, describe, measure_arms, plot
from decoding.choices import ROWS, Mode, Precision
from decoding.decoder import Decoder, convert
from decoding.machine import fill_zero_weights
from gpt.baselines import transformers_contenders
from gpt.config import GPTConfig
from gpt.model import GPT
from gpt.task import load_gpt
from training.config.command_line import Namespace
from training.runtime.device import inference_device
from training.runtime.progress import Progress
from training.runtime.threads import set_cpu_threads
from training.seeds import generator

VOCAB_SIZE = 65


def bench(options: Namespace, config: GPTConfig | None) -> None:
    """Measure, and print, write and draw the figures."""
    set_cpu_threads()
    model, source = build(options, config)
    modes, precisions = ways_of(options, model)
    ours = contenders(model, precisions, modes, options.batch)
    peers: list[Contender] = []
    if options.peer:
        compiled = "compiled" in modes and model.embedding.weight.device.type == "cuda"
        peers = transformers_contenders(model, options.batch, compiled=compiled, uncached=options.peer_uncached)
    figures = describe(model, source=source, repeats=options.repeats) | {"precision": precisions[0]}
    if "native" in modes:
        figures["native_build_seconds"] = native_build_seconds()
    arms = None
    if options.uncached == "yes":
        tabled = convert(deepcopy(model), precisions[0])
        arms = time_arms(options, tabled, [mode for mode in modes if mode != "eager"])
        figures["rows"] = [asdict(row) for row in arms.rows()]
        figures["seconds"] = {
            name: [[round(seconds[length - 1], 6) for length in ROWS] for seconds in repeats]
            for name, repeats in arms.seconds.items()
        }
    machine = time_decoding(options, model, [*ours, *peers])
    figures["read_gigabytes_per_second"] = machine.gigabytes_per_second
    figures["multiply_gigaflops"] = machine.gigaflops
    figures["new_tokens"], figures["computed"] = ROWS[-1], COMPUTED
    figures["decode"] = decode_rows(ours, ROWS[-1], model.config.max_len, machine)
    figures["peers"] = decode_rows(peers, ROWS[-1], model.config.max_len, machine)
    figures["first_token_seconds"] = min(row["first_token_seconds"] for row in figures["decode"])
    figures["greedy_agreement"] = {
        precision: agreement(model, precision, ROWS[-1]) for precision in precisions if precision != "fp32"
    }
    print()
    show(figures)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
        print(options.json)
    if options.plot and arms is not None:
        plot(arms, Path(options.plot), f"{source} on {figures['device']}, {figures['precision']}")
        print(options.plot)


def build(options: Namespace, config: GPTConfig | None) -> tuple[GPT, str]:
    """The model, and where it comes from in words."""
    device = inference_device()
    if config is None:
        return load_gpt(Path(options.checkpoint), device).model, str(options.checkpoint)
    model = GPT(config.model, VOCAB_SIZE)
    model.init_weights(generator(config.seed, "weights"))
    fill_zero_weights(model)
    return model.to(device).eval(), f"{options.config[0]}, random weights"


def ways_of(options: Namespace, model: GPT) -> tuple[list[Mode], list[Precision]]:
    """Modes and precisions to measure."""
    if options.mode is not None:
        modes: list[Mode] = options.mode
    elif model.embedding.weight.device.type == "cuda":
        modes = ["eager", "compiled"]
    else:
        modes = list(dict.fromkeys(("eager", Decoder(model).mode)))
    fast = any(mode != "eager" for mode in modes)
    return modes, options.precision or ["fp32", *(("bf16", "int8") if fast else ())]


def time_arms(options: Namespace, model: GPT, modes: list[Mode]) -> Arms:
    """The table, with a progress bar."""
    arms = 2 + len(modes) + ("compiled" in modes)
    progress = Progress(0, arms * options.repeats * ROWS[-1], visible=True, unit="token")
    try:
        return measure_arms(model, modes, repeats=options.repeats, advance=progress.advance, say=progress.say)
    finally:
        progress.close()


def time_decoding(options: Namespace, model: GPT, everyone: list[Contender]) -> Machine:
    """All contenders, with a progress bar; returns how fast the machine was meanwhile."""
    passes = options.repeats * sum(len(contender.batches) for contender in everyone)
    progress = Progress(0, passes, visible=True, unit="pass")
    try:
        return measure_decoding(
            everyone,
            model.vocab_size,
            model.config.max_len,
            repeats=options.repeats,
            device=model.embedding.weight.device,
            advance=progress.advance,
            say=progress.say,
        )
    finally:
        progress.close()


def show(figures: dict[str, Any]) -> None:
    """Print the tables, and what they depend on."""
    model = figures["model"]
    print(f"device     {figures['device']}, {figures['threads']} threads")
    print(f"versions   torch {figures['torch']}, Python {figures['python']}")
    print(f"model      {model['source']}: {model['parameters']:,} parameters, context {model['max_len']}")
    print(f"memory     {figures['read_gigabytes_per_second']:.1f} GB/s read, median")
    print(f"arithmetic {figures['multiply_gigaflops']:,.0f} GFLOP/s in products of fp32 matrices by torch, median")
    print(f"measured   medians of {figures['repeats']}, after a prompt of {figures['prompt_tokens']} tokens\n")
    if "rows" in figures:
        print(f"new tokens in {figures['precision']}, eager:")
        others = [name for name in figures["rows"][0]["arms"] if not name.endswith("eager")]
        print("    tokens   without cache   with cache   speed-up" + "".join(f"   {name}" for name in others))
        for row in figures["rows"]:
            print(
                f"{row['new_tokens']:>10}   {row['no_cache_seconds']:>11.3f} s   {row['cache_seconds']:>8.3f} s"
                f"   {row['speedup']:>7.2f}x"
                + "".join(f"   {row['arms'][name]:>{len(name) - 2}.3f} s" for name in others)
            )
        print()
    width = max(len(row["mode"]) for row in [*figures["decode"], *figures["peers"]])
    print(
        f"{'mode':{width}}  streams  tokens/s (slowest to fastest)  share of memory*  of arithmetic*  first token"
        "  compile    cache*"
    )
    for row in [*figures["decode"], *figures["peers"]]:
        spread = f"({row['slowest']:,.1f} to {row['fastest']:,.1f})"
        print(
            f"{row['mode']:{width}}  {row['batch']:>7}  {row['tokens_per_second']:>8,.1f} {spread:>20}"
            f"  {row['bandwidth_share']:>16.0%}  {row['arithmetic_share']:>14.0%}  {row['first_token_seconds']:>9.3f} s"
            f"  {row['compile_seconds']:>5.1f} s  {row['cache_bytes'] / 1e6:>6.1f} MB"
        )
    print("* computed from the model's shape, not measured; the shares with the measured rates and speeds")
    if "native_build_seconds" in figures:
        print(f"the native step was built in {figures['native_build_seconds']:.1f} s, once for this machine")
    for precision, share in figures["greedy_agreement"].items():
        print(f"{precision} chooses the token of fp32 at {share:.1%} of the places of a greedy text")
