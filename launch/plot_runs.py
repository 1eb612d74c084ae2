"""Draw the losses of runs: `python launch/plot_runs.py RUN [RUN …] --output FILE`."""

import sys
from pathlib import Path

from training.config.command_line import StrictParser
from training.plots import X_LABELS, ReferenceLine, plot_runs
from training.runtime.errors import exit_code


def main() -> None:
    """Parse, draw, and say where the picture is."""
    parser = StrictParser(prog="plot_runs.py", description="Draw training and validation losses of runs.")
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN", help="Folder of a run.")
    parser.add_argument("--output", type=str, required=True, help="The picture: a .png, .svg or .pdf file.")
    parser.add_argument("--x_axis", choices=list(X_LABELS), default="step", help="What to draw the losses against.")
    parser.add_argument(
        "--reference",
        nargs="+",
        type=str,
        default=[],
        metavar="LOSS=NAME",
        help="Horizontal lines to compare with, as in 1.47=nanoGPT.",
    )
    options = parser.parse_args()
    references = [ReferenceLine.parse(text) for text in options.reference]
    output = Path(options.output)
    plot_runs([Path(run) for run in options.runs], output, x_axis=options.x_axis, references=references)
    print(output)


if __name__ == "__main__":
    sys.exit(exit_code(main))
