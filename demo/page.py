"""The page: its tabs, and its time as a server."""

import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from decoding.decoder import COMPILED_STEPS, resolved
from demo.api import add_api
from demo.limits import Limits
from demo.quick_training import QuickTraining
from demo.rendering import message_html
from demo.serving import Page, listen, serve
from demo.session import Session
from demo.tabs.benchmark import benchmark_tab
from demo.tabs.common import UNSEEN, choices, owner_of
from demo.tabs.pairs import pairs_tab
from demo.tabs.training import NAME as TRAINING
from demo.tabs.training import training_tab
from demo.tabs.write import write_tab
from training.config.command_line import Namespace
from training.runtime.device import inference_device
from training.runtime.threads import set_cpu_threads

TITLE = "Transformers from scratch"


def build(session: Session, training: QuickTraining) -> gr.Blocks:
    """The whole page."""
    with Page(title=TITLE, analytics_enabled=False, fill_width=False) as page:
        gr.Markdown(f"# {TITLE}")
        left_out = gr.HTML("", elem_id="left-out", padding=False)
        with gr.Tabs(overflow_behavior="wrap") as tabs:
            with gr.Tab("Write"):
                write_pickers = write_tab(session, training)
            with gr.Tab("Benchmark"):
                bench_pickers = benchmark_tab(session)
            with gr.Tab("Sequence to sequence"):
                pair_pickers = pairs_tab(session)
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
        add_api(session)
    return page


def run(options: Namespace, auth: tuple[str, str] | None) -> None:
    """Serve the page until Ctrl-C or SIGTERM, with the options of `demo/app.py`.

    Raises:
        InputError: Nobody can listen there.
    """
    listener = listen(options.host, options.port)
    set_cpu_threads()
    limits = Limits(seconds=options.seconds, new_tokens=options.new_tokens)
    device = inference_device()
    # A server writes enough for compiling to pay, unless requests share the device: that step serves one at a time.
    mode = resolved(options.mode, device, COMPILED_STEPS if options.concurrency == 1 else 0)
    session = Session(Path(options.runs), device, limits, mode, trust_code=options.trust_code)
    session.compile_ahead()
    training = QuickTraining(Path(options.runs))
    page = build(session, training)
    names = ("host", "concurrency", "share", "allowed_hosts", "trusted_proxies", "waiting", "places")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # By way of the `finally` below.
    try:
        with serve(page, listener, auth=auth, **{name: options[name] for name in names}) as served:
            print(f"open {' or '.join(served.urls)}  (Ctrl-C ends it)", flush=True)
            with suppress(KeyboardInterrupt):
                served.thread.join()
    finally:
        training.stop()
