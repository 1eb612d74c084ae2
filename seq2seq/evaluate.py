"""What `launch/evaluate.py` does with an encoder-decoder: targets of sources, and accuracy by length."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.config import FRAME
from data.listing import describe
from data.pairs.batches import by_length, check_source, load_pairs
from data.pairs.files import FilePairs
from data.pairs.strings import GeneratedPairs, Pair
from data.tokenizers.vocabulary import END, Vocabulary
from decoding.merging import merge_products
from decoding.sampling import Sampling
from decoding.targets import decode, search
from seq2seq.accuracy import LengthAccuracy, accuracy_by_length, losses
from seq2seq.attention_map import cross_attention, plot_attention
from seq2seq.task import LoadedSeq2Seq, load_seq2seq
from training.config.command_line import Namespace
from training.runtime.device import inference_device
from training.runtime.errors import InputError
from training.runtime.progress import Progress
from training.runtime.threads import set_cpu_threads

BATCH = 250


def evaluate(options: Namespace) -> None:
    """Print targets or accuracies, as the options of `decoding.options.parse` ask for it."""
    sampling = Sampling.of(options)
    set_cpu_threads()
    loaded = load_seq2seq(
        options.checkpoint, inference_device(), weights=options.weights, trust_code=options.trust_code
    )
    merge_products(loaded.model)
    if options.split is None:
        write(options, loaded, sampling)
    else:
        measure(options, loaded)


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
        text = vocabulary.without_unknown(text)
    try:
        return vocabulary.encode(text, name)
    except InputError as error:
        hint = " (--data.unknown skip goes on without)" if strange and unknown != "skip" else ""
        raise InputError(f"{error}{hint}") from error


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
    """Print the loss, and exact match by length."""
    pairs, origin = held_out_pairs(options, loaded)
    start, progress = time.perf_counter(), Progress(0, len(pairs), visible=True, unit="pair")
    try:
        rows = accuracy_by_length(loaded.model, loaded.vocabulary, pairs, BATCH, progress.advance)
    finally:
        progress.close()
    seconds = time.perf_counter() - start
    loss = losses(loaded.model, loaded.vocabulary, pairs, BATCH)
    possible = origin.possible if isinstance(origin, GeneratedPairs) else None
    print(f"pairs         {len(pairs):,} different ones of the {options.split} split of {origin.origin}")
    print(f"weights       {loaded.weights}")
    print(f"loss          {loss.nats_per_token:.4f} nats per token")
    print(f"bits per byte {loss.bits_per_byte:.4f}")
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
    other = {name: value for name, value in vars(options.data).items() if name != "unknown" and value is not None}
    if other:
        data = replace(data, **{"revision": None, "subset": None, **other})
    pairs = load_pairs(data, config.seed, loaded.vocabulary)
    if isinstance(pairs, FilePairs):
        pairs.check_lengths(config.model.max_len)
    if options.lengths is None and not other and pairs.sha256 != loaded.data_sha256:
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
        f"{strange[0].location}: {describe(symbols)}"
    )
    if unknown == "error" or len(strange) == len(pairs):
        raise InputError(said + (" (--data.unknown skip leaves them out)" if len(strange) < len(pairs) else ""))
    print(f"left out     {said}", file=sys.stderr)
    out = set(strange)
    return [pair for pair in pairs if pair not in out]
