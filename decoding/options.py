"""What `launch/evaluate.py` can be asked: one table, from which its parser, its help and its refusals follow; no torch.

A row is an option of one model or of both; a name has two rows where the models differ.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from decoding.choices import DEFAULT_TEMPERATURE, SAMPLE_LENGTH, WHEN_FULL, Mode, Precision, TargetMode, WhenFull
from decoding.model_type import A_MODEL, ModelType, asked_model_type
from training.config.command_line import Namespace, StrictParser
from training.plots import check_output
from training.runtime.errors import InputError


class Need(NamedTuple):
    """What an option goes with.

    Attributes:
        met: Whether the options have it.
        gpt, seq2seq: What is said where they have not, with {} for the option; None where the model has no such need.
    """

    met: Callable[[Namespace], bool]
    gpt: str | None
    seq2seq: str | None


TO_WRITE = Need(lambda o: o.split is None, "{} is for texts: leave out --split", "{} is for --source, to see a target")
TO_DRAW = Need(
    lambda o: not o.beams,
    "{} is for texts that are drawn: leave out --beams",
    "{} is for targets that are drawn: leave out --beams",
)
TO_DRAW_OR_0 = TO_DRAW._replace(met=lambda o: not o.beams or o.temperature == 0)  # Which is a search, in a way.
ABOVE_0 = Need(lambda o: o.temperature != 0, None, "{} is for targets that are drawn: give a --temperature above 0")
BEAMS = Need(lambda o: bool(o.beams), "{} is for --beams", "{} is for --beams")
NO_SPLIT = Need(lambda o: o.split is None, "--split measures a loss and takes no prompt: give one or the other", None)
NO_PROMPT = Need(lambda o: o.prompt is None, "--prompt and {} both say what to continue: choose one", None)
NO_FILE = Need(lambda o: o.prompt_file is None, "--prompt_file and {} both say what to continue: choose one", None)
TO_MEASURE = Need(
    lambda o: o.split is not None,
    "{} is for --split, to measure",
    "{} is for --split, to measure",
)
TO_MEASURE_OR_USUAL = Need(
    lambda o: o.split is not None or o.precision in get_args(Precision),
    "--precision auto and fp64 are for --split: a text is continued in fp32, bf16, fp16 or int8",
    "--precision auto and fp64 are for --split: a target is written in fp32, bf16, fp16 or int8",
)
OTHER_PAIRS = Need(lambda o: o.data.source is not None, None, "{} is for --data.source, other pairs than the run's")


@dataclass(frozen=True)
class Option:
    """A row of the table.

    Attributes:
        name: Without its dashes.
        models: Whose option it is: of the GPT, of the encoder-decoder, or of both.
        values: Its type, bool for a flag, or its choices.
        default: What it is unless given; `REQUIRED` where it must be.
        needs: What it goes with.
        help: What it is for.
        nargs: How many values it takes; None for one.
    """

    name: str
    models: Sequence[ModelType]
    values: Any
    default: Any
    needs: Sequence[Need]
    help: str
    nargs: str | int | None = None

    def add_to(self, parser: StrictParser) -> None:
        """Make a parser take it."""
        kind: dict[str, Any] = {"type": self.values} if isinstance(self.values, type) else {"choices": self.values}
        if self.values is bool:
            kind = {"action": "store_true"}
        elif self.nargs is not None:
            kind["nargs"] = self.nargs
        kind |= {"required": True} if self.default is REQUIRED else {"default": self.default}
        parser.add_argument(f"--{self.name}", help=self.help, **kind)

    def check(self, options: Namespace, model_type: ModelType) -> None:
        """Raise an `InputError` where it is given without what it goes with."""
        if options[self.name] == self.default:
            return
        for need in self.needs:
            refusal: str | None = getattr(need, model_type)
            if refusal is not None and not need.met(options):
                raise InputError(refusal.format(f"--{self.name}"))


REQUIRED = object()
BOTH: Sequence[ModelType] = get_args(ModelType)
GPT: Sequence[ModelType] = ("gpt",)
PAIRS: Sequence[ModelType] = ("seq2seq",)
WRITE, DRAW, MEASURE = (TO_WRITE,), (TO_WRITE, TO_DRAW), (TO_MEASURE,)
CHANCE, OTHER = (TO_WRITE, TO_DRAW, ABOVE_0), (TO_MEASURE, OTHER_PAIRS)
# fmt: off
TABLE = (
    Option("checkpoint", BOTH, str, REQUIRED, (), "A run (its best checkpoint) or one checkpoint."),
    Option("weights", BOTH, ("ema", "raw"), None, (),
           "The average of the weights, or themselves. Default: ema where there is one."),
    Option("trust_code", BOTH, bool, False, (),
           "Import the class that made the model, where the run names one of one's own: that runs its code."),
    Option("prompt", GPT, str, None, (NO_SPLIT,),
           "Text to continue, or several, which are written in one batch. Default: a line break.", "+"),
    Option("prompt_file", GPT, str, None, (NO_SPLIT, NO_PROMPT),
           "File with the text to continue, without the line break at its end; - for standard input."),
    Option("interactive", GPT, bool, False, (NO_SPLIT, NO_PROMPT, NO_FILE, TO_DRAW),
           "Ask for prompts until the input ends; Ctrl-C ends a text."),
    Option("source", PAIRS, str, None, (), "Text whose target to write, or several.", "+"),
    Option("max_new_tokens", GPT, int, SAMPLE_LENGTH, WRITE, "Tokens to write."),
    Option("max_new_tokens", PAIRS, int, None, WRITE, "Most tokens of a target. Default: as many as fit."),
    Option("when_full", GPT, get_args(WhenFull), WHEN_FULL, DRAW,
           "Where the context is full: slide (keep its newer half, read it anew and go on), or stop."),
    Option("num_samples", BOTH, int, 1, CHANCE, "Texts for each prompt or source, with seeds that count up."),
    Option("seed", BOTH, int, 0, CHANCE, "The same seed gives the same text."),
    Option("stop", GPT, str, None, DRAW, "Strings before which a text ends.", "+"),
    Option("temperature", GPT, float, DEFAULT_TEMPERATURE, (TO_WRITE, TO_DRAW_OR_0),
           "0 takes the likeliest token."),
    Option("temperature", PAIRS, float, 0.0, (TO_WRITE, TO_DRAW_OR_0),
           "Above 0: draw, rather than take the likeliest."),
    Option("top_k", BOTH, int, None, CHANCE, "Draw from so many likeliest tokens only. Default: all."),
    Option("top_p", BOTH, float, None, CHANCE,
           "Draw from the likeliest tokens of this probability together. Default: all."),
    Option("min_p", BOTH, float, None, CHANCE,
           "Draw from tokens with this part of the likeliest one's probability or more."),
    Option("repetition_penalty", BOTH, float, 1.0, DRAW, "Above 1: make tokens less likely that were written."),
    Option("alternatives", GPT, int, 0, DRAW, "Print each token with its probability, and so many likeliest."),
    Option("lookup", GPT, int, 0, DRAW, "With --temperature 0: propose so many tokens from the text so far."),
    Option("beams", BOTH, int, 0, WRITE,
           "Search for the likeliest texts or targets with so many beams, instead of drawing."),
    Option("length_penalty", BOTH, float, 1.0, (TO_WRITE, BEAMS),
           "With --beams: 0 ranks what was found by its probability, 1 by that per token."),
    Option("mode", GPT, get_args(Mode), "auto", WRITE,
           "How a decode step is computed: eager; compiled, by torch.compile, on a GPU as a CUDA graph; native, on a "
           "CPU by a kernel in C++ that is built once; auto for native where it can be had on a CPU, on a GPU for "
           "compiled from 5,000 tokens on, else eager."),
    Option("mode", PAIRS, get_args(TargetMode), "auto", WRITE,
           "How a decode step is computed: by the model as it stands (eager), or in C++ on a CPU (native); auto for "
           "the faster of them."),
    Option("precision", GPT, ("auto", "bf16", "fp16", "fp32", "fp64", "int8"), None, (TO_MEASURE_OR_USUAL,),
           "The dtype to compute in: fp32, bf16, fp16, or int8 for weights of one byte, the rest in bf16 (default: "
           "fp32); with --split also auto and fp64 (default: that of the run)."),
    Option("attention", PAIRS, str, None, WRITE,
           "Draw where the decoder looks in the source, per head, into this .png, .svg or .pdf."),
    Option("split", GPT, ("train", "val"), None, (),
           "Measure loss, perplexity and bits per byte on this split."),
    Option("split", PAIRS, ("train", "val", "test"), None, (),
           "Measure exact match of greedy decoding on this split, by length."),
    Option("count", PAIRS, int, 10_000, MEASURE, "With --split: most pairs to measure on."),
    Option("lengths", PAIRS, int, None, MEASURE,
           "With --split, of copy and reverse: the shortest and longest strings to try.", 2),
    Option("data.source", BOTH, str, None, MEASURE,
           "With --split: other data than the run's, as in training: val is what one would hold out, of a text without "
           "a validation split; a file of pairs is split by the same hash, which keeps out what was trained on."),
    Option("data.include", GPT, str, None, OTHER, "With --data.source: which files of its folders. Default: all text."),
    Option("data.column", GPT, str, None, MEASURE,
           "With --data.source of rows (hub:OWNER/NAME, .jsonl, .parquet): their column with the text. Default: text."),
    Option("data.source_column", PAIRS, str, None, OTHER,
           "With --data.source: its column with the source text. Default: the run's."),
    Option("data.target_column", PAIRS, str, None, OTHER,
           "With --data.source: its column with the target text. Default: the run's."),
    Option("data.revision", BOTH, str, None, OTHER,
           "With --data.source: its branch, tag or commit on the hub. Default: its main branch."),
    Option("data.subset", BOTH, str, None, OTHER,
           "With --data.source: its subset on the hub. Default: the data set's own."),
    Option("data.on_bad_row", PAIRS, ("stop", "skip"), None, OTHER,
           "With --data.source: stop at a row that is no pair or is too long, or skip such. Default: the run's."),
    Option("data.on_bad_row", GPT, ("stop", "skip"), None, OTHER,
           "With --data.source: stop at a row without text, or skip such. Default: stop."),
    Option("data.unknown", GPT, ("error", "skip"), None, MEASURE,
           "With --split: what to do with characters unknown to the model, error or skip. Default: the run's."),
    Option("data.unknown", PAIRS, ("error", "skip"), "error", (),
           "What symbols do that the vocabulary lacks: end with an error that names them all, or leave out (skip) such "
           "symbols of a --source, and the pairs of a --data.source that have some."),
)
# fmt: on


def rows_of(model_type: ModelType | None) -> list[Option]:
    """The options of a model; where it is not known which, those of the GPT, then what the other one has besides."""
    rows = [row for row in TABLE if (model_type or "gpt") in row.models]
    names = {row.name for row in rows}
    return rows if model_type else [*rows, *(row for row in TABLE if row.name not in names)]


def parse(arguments: Sequence[str]) -> Namespace:
    """The options of `launch/evaluate.py`, and the `model_type`.

    Raises:
        InputError: One is unknown, has a bad value, or does not go with another.
    """
    model_type = asked_model_type(arguments)
    rows = rows_of(model_type)
    parser = StrictParser(
        prog="evaluate.py",
        description="Continue a text with a trained GPT, or write the targets of sources with a trained "
        "encoder-decoder; with --split, measure it instead. For the options and defaults of one model: "
        "evaluate.py --checkpoint DIR --help.",
    )
    for row in rows:
        row.add_to(parser)
    _refuse_others(arguments, model_type, {row.name for row in rows})
    options = parser.parse_args(arguments)
    options.model_type = model_type or "gpt"
    _check(options, rows)
    return options


def _refuse_others(arguments: Sequence[str], model_type: ModelType | None, own: Collection[str]) -> None:
    """Name an option that is there, for the other model, instead of calling it unknown."""
    if model_type is None:
        return
    asked = {word.partition("=")[0].removeprefix("--") for word in arguments if word.startswith("--")}
    for row in TABLE:
        if row.name in asked and row.name not in own:
            (other,) = row.models
            raise InputError(f"--{row.name} is for {A_MODEL[other]}, and this is {A_MODEL[model_type]}: see --help")


def _check(options: Namespace, rows: Sequence[Option]) -> None:
    of_pairs = options.model_type == "seq2seq"
    if of_pairs and (options.source is None) == (options.split is None):
        raise InputError("give either --source TEXT, to see its target, or --split, to measure")
    if options.num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {options.num_samples}")
    for row in rows:
        row.check(options, options.model_type)
    if of_pairs and options.attention:
        if len(options.source) > 1:
            raise InputError(f"--attention draws one source, got {len(options.source)}")
        check_output(Path(options.attention))
