"""The page: `python demo/app.py`."""

import os
import signal
import socket
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python demo/app.py` finds the packages beside it.

from demo import limits as check  # Before Gradio: the package prepares the environment for it.

# isort: split
import gradio as gr

from demo.api import add_api
from demo.quick_training import QuickTraining
from demo.rendering import message_html
from demo.serving import Page, Served, listen, serve
from demo.session import Session
from demo.tabs.benchmark import benchmark_tab
from demo.tabs.common import UNSEEN, choices, owner_of
from demo.tabs.pairs import pairs_tab
from demo.tabs.training import NAME as TRAINING
from demo.tabs.training import training_tab
from demo.tabs.write import write_tab
from gpt.benchmark import ROWS
from gpt.decoding import Mode
from training.command_line import StrictParser
from training.device import inference_device
from training.errors import InputError, exit_code
from training.threads import set_cpu_threads

TITLE = "Transformers from scratch"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own machine: nothing is fetched from elsewhere. Colours that can be read on each other."""
    default = gr.themes.Default(
        primary_hue="blue", font=FONTS, font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"]
    )
    return default.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        color_accent="*primary_600",
        body_text_color_subdued="*neutral_500",
    )


def build(session: Session, training: QuickTraining, concurrency: int = 1) -> gr.Blocks:
    """The whole page."""
    with Page(title=TITLE, analytics_enabled=False, fill_width=False) as page:
        gr.Markdown(f"# {TITLE}")
        left_out = gr.HTML("", elem_id="left-out", padding=False)
        with gr.Tabs(overflow_behavior="wrap") as tabs:
            with gr.Tab("Write"):
                write_pickers = write_tab(session, training, concurrency)
            with gr.Tab("Benchmark"):
                bench_pickers = benchmark_tab(session, concurrency)
            with gr.Tab("Sequence to sequence"):
                pair_pickers = pairs_tab(session, concurrency)
            with gr.Tab(TRAINING):
                training_tab(session, tabs)
        runs, orders = zip(write_pickers, bench_pickers, pair_pickers, strict=True)

        def refresh(*chosen: Any) -> list[Any]:
            kinds = ("gpt", "gpt", "seq2seq")
            chosen = chosen or (None,) * 6  # The best run of a page that is opened, not that of the server's start.
            asked = zip(kinds, chosen[3:], chosen[:3], strict=True)
            return [choices(session, kind, order, run) for kind, order, run in asked]

        def tell() -> str:
            found = session.catalogue.left_out().items()
            return "".join(message_html(f"{name} is left out: {why}") for name, why in found)

        def leave(request: gr.Request) -> None:
            session.jobs.stop(owner_of(request))

        page.load(refresh, None, list(runs), queue=False, **UNSEEN)
        tabs.select(refresh, [*runs, *orders], list(runs), queue=False, **UNSEEN)
        gr.on([page.load, tabs.select], tell, None, left_out, queue=False, **UNSEEN)
        page.unload(leave)
        add_api(session, concurrency)
    return page


def launch(page: gr.Blocks, listener: socket.socket, **options: Any) -> AbstractContextManager[Served]:
    """Serve the page as it should look."""
    return serve(page, listener, theme=theme(), css_paths=Path(__file__).with_name("style.css"), **options)


def parse() -> Any:
    """The options of the command line."""
    parser = StrictParser(
        prog="app.py", description="A page on this machine: write with a trained model, and see what a token costs."
    )
    parser.add_argument("--runs", type=str, default="runs", help="Folder of the runs. Default: runs.")
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="Address to listen at. Default: this machine only."
    )
    parser.add_argument("--port", type=int, default=7860, help="Port to listen at.")
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
        help="How a token is read, as in evaluate.py: compiled waits for torch.compile once for each model. Default: "
        "native where it can be had, else eager.",
    )
    parser.add_argument("--concurrency", type=int, default=1, help="Requests that run a model at once.")
    parser.add_argument("--waiting", type=int, default=16, help="Requests that may wait for their turn.")
    parser.add_argument("--places", type=int, default=8, help="Of them, those of one visitor, the running included.")
    parser.add_argument("--seconds", type=float, default=120.0, help="Most seconds that a request may take.")
    parser.add_argument("--new_tokens", type=int, default=2000, help="Most tokens that a request may ask for.")
    return parser.parse_args()


def main() -> None:
    """Parse, build and serve."""
    options = parse()
    concurrency = check.integer("concurrency", options.concurrency, 1, 64)
    waiting = check.integer("waiting", options.waiting, 1, 10_000)
    limits = check.Limits(
        seconds=check.number("seconds", options.seconds, 1, 86_400),
        new_tokens=check.integer("new_tokens", options.new_tokens, ROWS[-1], 10**6),
    )
    if options.mode == "compiled" and concurrency > 1:
        raise InputError("mode compiled serves one request at a time: leave concurrency at 1")
    auth = _auth(options.auth if options.auth is not None else os.environ.get("DEMO_AUTH"))
    port = check.integer("port", options.port, 1, 65_535)
    places = check.integer("places", options.places, 1, 10_000)
    listener = listen(options.host, port)
    set_cpu_threads()
    session = Session(Path(options.runs), inference_device(), limits, options.mode)
    training = QuickTraining(Path(options.runs))
    page = build(session, training, concurrency)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # By way of the `finally` below.
    try:
        with launch(
            page,
            listener,
            host=options.host,
            auth=auth,
            share=options.share,
            allowed_hosts=options.allowed_hosts,
            trusted_proxies=options.trusted_proxies,
            concurrency=concurrency,
            waiting=waiting,
            places=places,
        ) as served:
            print(f"open {' or '.join(served.urls)}  (Ctrl-C ends it)", flush=True)
            with suppress(KeyboardInterrupt):
                served.thread.join()
    finally:
        training.stop()


def _auth(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise InputError("auth must be USER:PASSWORD, neither of them empty")
    return user, password


if __name__ == "__main__":
    sys.exit(exit_code(main))
