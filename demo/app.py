"""The page: `python demo/app.py`."""

import os
import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python demo/app.py` finds the packages beside it.

from decoding.choices import ROWS, Mode
from demo import limits as check
from training.config.command_line import Namespace, StrictParser
from training.runtime.errors import InputError, exit_code
from training.runtime.packages import needed_package

WHOLE_NUMBERS = {
    "port": (7860, 1, 65_535, "Port to listen at."),
    "concurrency": (1, 1, 64, "Requests that run a model at once."),
    "waiting": (16, 1, 10_000, "Requests that may wait in the queue."),
    "places": (8, 1, 10_000, "Requests of one visitor, waiting and running."),
    "new_tokens": (2000, ROWS[-1], 10**6, "Tokens that a request may ask for."),
}
"""Options: their defaults, what they may be, and what they mean."""


def parse() -> Namespace:
    """The options of the command line."""
    parser = StrictParser(
        prog="app.py", description="A page on this machine: write with a trained model, and see what a token costs."
    )
    parser.add_argument("--runs", type=str, default="runs", help="Folder of the runs. Default: runs.")
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="Address to listen at. Default: this machine only."
    )
    for name, (default, _, _, meaning) in WHOLE_NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=meaning)
    parser.add_argument(
        "--allowed_hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="Names under which the page may be asked for besides this machine's own: a proxy's, one of the local "
        "network. * allows any.",
    )
    parser.add_argument(
        "--trusted_proxies",
        nargs="+",
        default=[],
        metavar="ADDRESS",
        help="Addresses or networks of proxies whose X-Forwarded-For names the visitor. Default: none is believed.",
    )
    parser.add_argument("--share", action="store_true", help="Also make a public link through Gradio's servers.")
    parser.add_argument(
        "--auth",
        type=str,
        help="USER:PASSWORD that visitors must give. Default: DEMO_AUTH of the environment.",
    )
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        default="auto",
        help="How a step is computed, as in evaluate.py; compiled waits for torch.compile once for each model, but "
        "begins with that of the best run at the start. Default: native where it can be had on a CPU; on a GPU "
        "compiled, with a concurrency of 1; else eager.",
    )
    parser.add_argument(
        "--trust_code",
        action="store_true",
        help="Import the classes of one's own that made models, as their runs name them: that runs their code. "
        "Default: such runs are listed, and not loaded.",
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="Longest time of a request, in seconds.")
    return parser.parse_args()


def main() -> None:
    """Parse, and only then load torch and Gradio, and serve."""
    options = parse()
    for name, (_, low, high, _) in WHOLE_NUMBERS.items():
        check.integer(name, options[name], low, high)
    check.number("seconds", options.seconds, 1, 86_400)
    if options.mode == "compiled" and options.concurrency > 1:
        raise InputError("mode compiled serves one request at a time: leave concurrency at 1")
    auth = _auth(os.environ.get("DEMO_AUTH") if options.auth is None else options.auth)
    needed_package("gradio", "the page")
    from demo.page import run

    run(options, auth)


def _auth(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise InputError("auth must be USER:PASSWORD, neither of them empty")
    return user, password


if __name__ == "__main__":
    sys.exit(exit_code(main))
