"""What `launch/evaluate.py` does with an encoder-decoder: targets of sources, and accuracy by length."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from jsonargparse import Namespace

from layers import Sampling
from seq2seq.accuracy import LengthAccuracy, accuracy_by_length
from seq2seq.attention_map import cross_attention, plot_attention
from seq2seq.config import FRAME, OnBadRow
from seq2seq.data import by_length, check_source, load_pairs
from seq2seq.decoding import Mode, decode, search
from seq2seq.pairs import SPLIT_NAMES, FilePairs
from seq2seq.tasks import GeneratedPairs, Pair
from seq2seq.trainer import LoadedSeq2Seq, load_seq2seq
from seq2seq.vocabulary import END, Vocabulary, describe, split
from training.command_line import StrictParser, refuse
from training.device import inference_device
from training.errors import InputError
from training.plots import check_output
from training.progress import Progress
from training.threads import set_cpu_threads

COUNT = 10_000
BATCH = 250
SAMPLING = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")
OTHER_PAIRS = {
    "data.source": "With --split: another file or data set of pairs than the run's; a file is split by the same hash, "
    "which keeps out what was trained on.",
    "data.source_column": "With --data.source: its column with the source text. Default: the run's.",
    "data.target_column": "With --data.source: its column with the target text. Default: the run's.",
    "data.revision": "With --data.source: its branch, tag or commit on the hub. Default: its main branch.",
    "data.subset": "With --data.source: its subset on the hub. Default: the data set's own.",
    "data.on_bad_row": "With --data.source: stop at a row that is no pair or is too long, or skip such. Default: the "
    "run's.",
}


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """The options of the command line."""
    return _parser().parse_args(arguments)


def _parser() -> StrictParser:
    parser = StrictParser(
        prog="evaluate.py",
        description="Write the targets of sources with a trained encoder-decoder; with --split, measure how many it "
        "gets right, by length.",
    )
    parser.add_argument("--checkpoint", type=str, required=True, help="A run (its best checkpoint) or one checkpoint.")
    parser.add_argument(
        "--weights", choices=["ema", "raw"], help="The weights' average or themselves. Default: ema where there is one."
    )
    parser.add_argument("--source", type=str, nargs="+", help="Text whose target to write, or several.")
    parser.add_argument("--max_new_tokens", type=int, help="Most tokens of a target. Default: as many as fit.")
    parser.add_argument("--temperature", type=float, default=0.0, help="Above 0: draw, rather than take the likeliest.")
    parser.add_argument("--top_k", type=int, help="Draw from so many likeliest tokens only. Default: all.")
    parser.add_argument("--top_p", type=float, help="Draw from the likeliest tokens of this probability together.")
    parser.add_argument(
        "--min_p", type=float, help="Draw from tokens with this part of the likeliest one's probability."
    )
    parser.add_argument(
        "--repetition_penalty", type=float, default=1.0, help="Above 1: make tokens less likely that were written."
    )
    parser.add_argument("--seed", type=int, default=0, help="The same seed draws the same targets.")
    parser.add_argument("--num_samples", type=int, default=1, help="Targets for each source, with seeds that count up.")
    parser.add_argument("--beams", type=int, default=0, help="Search for the likeliest targets with so many beams.")
    parser.add_argument(
        "--length_penalty",
        type=float,
        default=1.0,
        help="With --beams: 0 ranks targets by their probability, 1 by that per token.",
    )
    parser.add_argument(
        "--mode",
        choices=list(get_args(Mode)),
        default="auto",
        help="How a token is read: by the model as it stands (eager), or in C++ on a CPU (native). Default: the faster "
        "of them.",
    )
    parser.add_argument(
        "--attention",
        type=str,
        help="Draw where the decoder looks in the source, per head, into this .png, .svg or .pdf.",
    )
    parser.add_argument(
        "--split", choices=list(SPLIT_NAMES), help="Measure exact match of greedy decoding on this split, by length."
    )
    parser.add_argument("--count", type=int, default=COUNT, help="With --split: most pairs to measure on.")
    parser.add_argument(
        "--lengths",
        type=int,
        nargs=2,
        help="With --split, of copy and reverse: the shortest and longest strings to try.",
    )
    for name, what in OTHER_PAIRS.items():
        kind = {"choices": get_args(OnBadRow)} if name == "data.on_bad_row" else {"type": str}
        parser.add_argument(f"--{name}", help=what, **kind)
    parser.add_argument(
        "--data.unknown",
        choices=["error", "skip"],
        default="error",
        help="What symbols do that the vocabulary lacks: end with an error that names them all, or leave out (skip) "
        "such symbols of a --source, and the pairs of a --data.source that have some.",
    )
    return parser


FOR_SOURCE = ("max_new_tokens", *SAMPLING, "seed", "num_samples", "beams", "length_penalty", "mode", "attention")
FOR_SPLIT = ("count", "lengths", *OTHER_PAIRS)
FOR_CHANCE = ("top_k", "top_p", "min_p", "seed", "num_samples")
FOR_DRAWING = (*SAMPLING, "seed", "num_samples")


def main() -> None:
    """Parse, load, and print targets or accuracies."""
    options = parse()
    if (options.source is None) == (options.split is None):
        raise InputError("give either --source TEXT, to see its target, or --split, to measure")
    if options.split is None:
        refuse(options, _parser(), FOR_SPLIT, "--split, to measure")
    else:
        refuse(options, _parser(), FOR_SOURCE, "--source, to see a target")
    if options.beams:
        refuse(options, _parser(), FOR_DRAWING, "targets that are drawn: leave out --beams")
    else:
        refuse(options, _parser(), ("length_penalty",), "--beams")
    if options.data.source is None:
        refuse(options, _parser(), tuple(OTHER_PAIRS), "--data.source, other pairs than the run's")
    if options.attention:
        if len(options.source) > 1:
            raise InputError(f"--attention draws one source, got {len(options.source)}")
        check_output(Path(options.attention))
    sampling = _sampling_of(options)
    if options.temperature == 0:
        refuse(options, _parser(), FOR_CHANCE, "targets that are drawn: give a --temperature above 0")
    set_cpu_threads()
    loaded = load_seq2seq(Path(options.checkpoint), inference_device(), weights=options.weights)
    if options.split is None:
        write(options, loaded, sampling)
    else:
        measure(options, loaded)


def _sampling_of(options: Namespace) -> Sampling:
    if options.num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {options.num_samples}")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"seed must be at least 0 and below 2^63, got {options.seed}")
    try:
        return Sampling(**{name: options[name] for name in SAMPLING})
    except ValueError as error:
        raise InputError(str(error)) from error


def write(options: Namespace, loaded: LoadedSeq2Seq, sampling: Sampling) -> None:
    """Print the targets of the sources, a line each."""
    sources = []
    for number, text in enumerate(options.source, start=1):
        name = "--source" if len(options.source) == 1 else f"source {number}"
        sources.append(_tokens(text, name, loaded.vocabulary, options.data.unknown))
        check_source(sources[-1], loaded.config.model.max_len, name)
    written: list[tuple[int, ...]] = []
    for number, source in enumerate(sources, start=1):
        if options.beams:
            written.append(_show_beams(options, loaded, source, number)[0])
            continue
        seeds = range(options.seed, options.seed + options.num_samples)
        for found in decode(
            loaded.model,
            [source] * options.num_samples,
            max_new_tokens=options.max_new_tokens,
            sampling=sampling,
            seeds=seeds,
            mode=options.mode,
        ):
            print(loaded.vocabulary.decode(found.tokens))
            if not found.ended:
                print(f"the target of source {number} has no end within its limit", file=sys.stderr)
            written.append(found.tokens)
    if options.attention:
        target = written[0][: loaded.config.model.max_len - 1]  # The decoder reads its start as well.
        weights = cross_attention(loaded.model, sources[0], target)
        plot_attention(weights, sources[0], target, loaded.vocabulary, Path(options.attention))
        print(options.attention, file=sys.stderr)


def _tokens(text: str, name: str, vocabulary: Vocabulary, unknown: str) -> list[int]:
    """A source as numbers; what the vocabulary lacks is named, and left out where that is wanted."""
    strange = vocabulary.unknown([text])
    if strange and unknown == "skip":
        print(f"left out of {name}: {describe(strange)}", file=sys.stderr)
        text = vocabulary.separator.join(symbol for symbol in split(text, vocabulary.unit) if symbol not in strange)
    try:
        return vocabulary.encode(text, name)
    except InputError as error:
        raise InputError(f"{error} (--data.unknown skip goes on without)") from error


def _show_beams(options: Namespace, loaded: LoadedSeq2Seq, source: Sequence[int], number: int) -> list[tuple[int, ...]]:
    beams = search(
        loaded.model,
        source,
        width=options.beams,
        max_new_tokens=options.max_new_tokens,
        length_penalty=options.length_penalty,
        mode=options.mode,
    )
    found = [tuple(token for token in beam.tokens if token != END) for beam in beams]
    for tokens, beam in zip(found, beams, strict=True):
        print(f"{loaded.vocabulary.decode(tokens)}  (log-probability {beam.log_probability:.3f})")
    if any(END not in beam.tokens for beam in beams):
        print(f"a target of source {number} has no end within its limit", file=sys.stderr)
    return found


def measure(options: Namespace, loaded: LoadedSeq2Seq) -> None:
    """Print exact match by length."""
    pairs, origin = held_out_pairs(options, loaded)
    start, progress = time.perf_counter(), Progress(0, len(pairs), visible=True, unit="pair")
    try:
        rows = accuracy_by_length(loaded.model, loaded.vocabulary, pairs, BATCH, progress.advance)
    finally:
        progress.close()
    seconds = time.perf_counter() - start
    possible = origin.possible if isinstance(origin, GeneratedPairs) else None
    print(f"pairs        {len(pairs):,} different ones of the {options.split} split of {origin.origin}")
    print(f"weights      {loaded.weights}")
    print_table(rows, possible)
    print(f"{len(pairs) / seconds:,.0f} pairs/s, on {loaded.model.embedding.weight.device.type}", file=sys.stderr)


def print_table(rows: Sequence[LengthAccuracy], possible: Any) -> None:
    """A line for each length, and one for all; `possible(length)` is the number of strings that there are."""
    head = f"{'length':>6}  {'pairs':>7}  {'exact match':>11}"
    print(head + ("  strings of this length, in all splits" if possible else ""))
    for row in rows:
        in_all = f"  {possible(row.length):,}" if possible and possible(row.length) < 10**9 else ""
        print(f"{row.length:>6}  {row.pairs:>7,}  {row.exact_match:>11.4f}{in_all}")
    pairs, correct = sum(row.pairs for row in rows), sum(row.correct for row in rows)
    print(f"{'all':>6}  {pairs:>7,}  {correct / pairs:>11.4f}")


def held_out_pairs(options: Namespace, loaded: LoadedSeq2Seq) -> tuple[list[Pair], Any]:
    """The pairs to measure on, in the order of their lengths, and where they come from.

    Raises:
        InputError: An option does not fit the task, or the pairs are not those of the run.
    """
    config, data = loaded.config, loaded.config.data
    if options.count < 1:
        raise InputError(f"count must be at least 1, got {options.count}")
    if options.lengths is not None:
        if data.task == "pairs":
            raise InputError("--lengths is for copy and reverse: pairs have the lengths that they have")
        room = config.model.max_len - FRAME
        low, high = options.lengths
        if not 1 <= low <= high <= room:
            raise InputError(
                f"lengths must rise from 1 at least to {room} at most (model.max_len), got {low} and {high}"
            )
        data = replace(data, min_length=low, max_length=high)
    if options.data.source is not None:
        data = replace(
            data,
            source=options.data.source,
            source_column=options.data.source_column or data.source_column,
            target_column=options.data.target_column or data.target_column,
            revision=options.data.revision,
            subset=options.data.subset,
            on_bad_row=options.data.on_bad_row or data.on_bad_row,
        )
    pairs = load_pairs(data, config.seed)
    if isinstance(pairs, FilePairs):
        pairs.check_lengths(config.model.max_len)
    if options.lengths is None and options.data.source is None and pairs.sha256 != loaded.data_sha256:
        raise InputError(
            f"{pairs.origin} does not hold the pairs that the run was trained on (their SHA-256 differs): "
            f"to measure on it all the same, name it again with --data.source"
        )
    for note in pairs.notes if isinstance(pairs, FilePairs) else ():
        print(f"note         {note}", file=sys.stderr)
    found = _known(pairs.distinct(options.split, options.count), loaded.vocabulary, options.data.unknown)
    return by_length(found, loaded.vocabulary), pairs


def _known(pairs: list[Pair], vocabulary: Vocabulary, unknown: str) -> list[Pair]:
    """The pairs whose symbols the vocabulary has; those of the others are named, as an error where that is wanted."""
    strange = [pair for pair in pairs if vocabulary.unknown(pair[:2])]
    if not strange:
        return pairs
    symbols = vocabulary.unknown(text for pair in strange for text in pair[:2])
    said = (
        f"{len(strange):,} of {len(pairs):,} pairs have {vocabulary.unit} that are not in the vocabulary, the first is "
        f"{strange[0].place}: {describe(symbols)}"
    )
    if unknown == "error" or len(strange) == len(pairs):
        raise InputError(said + (" (--data.unknown skip leaves them out)" if len(strange) < len(pairs) else ""))
    print(f"left out     {said}", file=sys.stderr)
    out = set(strange)
    return [pair for pair in pairs if pair not in out]
