"""What the commands can be asked about a trained encoder-decoder, and what of it does not go together; no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from data.config import OnBadRow
from data.strings import Split
from decoding.choices import TargetMode
from training.config.command_line import Namespace, StrictParser, add_checkpoint_options, refuse
from training.plots import check_output
from training.runtime.errors import InputError

COUNT = 10_000
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
FOR_SOURCE = ("max_new_tokens", *SAMPLING, "seed", "num_samples", "beams", "length_penalty", "mode", "attention")
FOR_SPLIT = ("count", "lengths", *OTHER_PAIRS)
FOR_CHANCE = ("top_k", "top_p", "min_p", "seed", "num_samples")
FOR_DRAWING = (*SAMPLING, "seed", "num_samples")


def parse_evaluation(arguments: Sequence[str] | None = None) -> Namespace:
    """The options of `launch/evaluate.py`.

    Raises:
        InputError: Some of them do not go together.
    """
    parser = _evaluation_parser()
    options = parser.parse_args(arguments)
    if (options.source is None) == (options.split is None):
        raise InputError("give either --source TEXT, to see its target, or --split, to measure")
    if options.split is None:
        refuse(options, parser, FOR_SPLIT, "--split, to measure")
    else:
        refuse(options, parser, FOR_SOURCE, "--source, to see a target")
    if options.beams:
        refuse(options, parser, FOR_DRAWING, "targets that are drawn: leave out --beams")
    else:
        refuse(options, parser, ("length_penalty",), "--beams")
    if options.data.source is None:
        refuse(options, parser, tuple(OTHER_PAIRS), "--data.source, other pairs than the run's")
    if options.attention:
        if len(options.source) > 1:
            raise InputError(f"--attention draws one source, got {len(options.source)}")
        check_output(Path(options.attention))
    if options.num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {options.num_samples}")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"seed must be at least 0 and below 2^63, got {options.seed}")
    if options.temperature == 0:
        refuse(options, parser, FOR_CHANCE, "targets that are drawn: give a --temperature above 0")
    return options


def _evaluation_parser() -> StrictParser:
    parser = StrictParser(
        prog="evaluate.py",
        description="Write the targets of sources with a trained encoder-decoder; with --split, measure how many it "
        "gets right, by length.",
    )
    add_checkpoint_options(parser)
    _add_writing(parser)
    _add_measuring(parser)
    parser.add_argument(
        "--data.unknown",
        choices=["error", "skip"],
        default="error",
        help="What symbols do that the vocabulary lacks: end with an error that names them all, or leave out (skip) "
        "such symbols of a --source, and the pairs of a --data.source that have some.",
    )
    return parser


def _add_writing(parser: StrictParser) -> None:
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
        choices=get_args(TargetMode),
        default="auto",
        help="How a token is read: by the model as it stands (eager), or in C++ on a CPU (native). Default: the faster "
        "of them.",
    )
    parser.add_argument(
        "--attention",
        type=str,
        help="Draw where the decoder looks in the source, per head, into this .png, .svg or .pdf.",
    )


def _add_measuring(parser: StrictParser) -> None:
    parser.add_argument(
        "--split", choices=get_args(Split), help="Measure exact match of greedy decoding on this split, by length."
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
