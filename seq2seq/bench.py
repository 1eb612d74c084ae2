"""What `launch/bench_kv_cache.py` does with an encoder-decoder."""

import json
from pathlib import Path
from typing import Any

import torch

from data.config import FRAME
from data.vocabulary import Vocabulary
from decoding.machine import describe_machine, describe_model, fill_zero_weights
from seq2seq.benchmark import bart_arm, measure, our_arms, random_sources, rows_of
from seq2seq.config import Seq2SeqConfig
from seq2seq.model import EncoderDecoder
from seq2seq.task import load_seq2seq
from training.config.command_line import Namespace
from training.runtime.device import inference_device
from training.runtime.errors import InputError
from training.runtime.threads import set_cpu_threads
from training.seeds import generator

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def build(options: Namespace, config: Seq2SeqConfig | None, device: torch.device) -> tuple[EncoderDecoder, str]:
    """The model, and where it comes from in words."""
    if config is None:
        return load_seq2seq(Path(options.checkpoint), device).model, str(options.checkpoint)
    symbols = ALPHABET if config.data.task == "pairs" else config.data.symbols
    model = EncoderDecoder(config.model, len(Vocabulary(symbols, "characters")))
    model.init_weights(generator(config.seed, "weights"))
    fill_zero_weights(model)
    return model.to(device).eval(), f"{options.config[0]}, random weights"


def bench(options: Namespace, config: Seq2SeqConfig | None) -> None:
    """Measure, print and write the figures.

    Raises:
        InputError: The sources are longer than the model's context.
    """
    set_cpu_threads()
    model, source = build(options, config, inference_device())
    room = model.config.max_len - FRAME
    if options.length > room:
        raise InputError(f"length must be at most model.max_len minus {FRAME} ({room}), got {options.length}")
    ours = our_arms(model)
    peers = [bart_arm(model)] if options.peer else []
    sources = random_sources(model.vocab_size, options.batch, options.length)
    new_tokens = options.length + 1
    measure([*ours, *peers], sources, new_tokens, options.repeats, print)
    rows, peer_rows = (rows_of(arms, options.batch, new_tokens) for arms in (ours, peers))
    uncached, cached = rows[0]["seconds"], rows[-1]["seconds"]
    figures = describe_machine(model.embedding.weight.device) | {
        "model": describe_model(model, source),
        "repeats": options.repeats,
        "rows": [
            {
                "new_tokens": new_tokens,
                "no_cache_seconds": uncached,
                "cache_seconds": cached,
                "speedup": uncached / cached,
            }
        ],
        "decode": rows,
        "peers": peer_rows,
    }
    show(figures, options)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
        print(options.json)


def show(figures: dict[str, Any], options: Namespace) -> None:
    """Print the table, and what it depends on."""
    model = figures["model"]
    print(f"\ndevice     {figures['device']}, {figures['threads']} threads")
    print(f"versions   torch {figures['torch']}, Python {figures['python']}")
    print(f"model      {model['source']}: {model['parameters']:,} parameters")
    print(
        f"measured   medians of {figures['repeats']}: {options.batch} sources of {options.length} symbols in a batch\n"
    )
    everyone = [*figures["decode"], *figures["peers"]]
    width = max(len(row["mode"]) for row in everyone)
    print(f"{'mode':{width}}  parameters  seconds (fastest to slowest)   tokens/s")
    for row in everyone:
        spread = f"({row['fastest']:.3f} to {row['slowest']:.3f})"
        print(
            f"{row['mode']:{width}}  {row['parameters']:>10,}  {row['seconds']:>7.3f} {spread:>20}"
            f"  {row['tokens_per_second']:>9,.0f}"
        )
    best = figures["decode"][-1]
    print()
    for other in [*figures["decode"][:-1], *figures["peers"]]:
        print(f"{best['mode']}: {other['seconds'] / best['seconds']:.1f} times as fast as {other['mode']}")
