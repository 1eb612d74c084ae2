"""The page: `python demo/app.py`. Widgets and what they are wired to; the work is in `demo/session.py`."""

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python demo/app.py` finds the packages beside it.

import gradio as gr
import pandas as pd
from gradio.events import api

from demo import limits as check
from demo import rendering as show
from demo.curves import CURVES, read_curves, stamp
from demo.quick_training import QuickTraining
from demo.session import MOST_SEED, WITH, WITHOUT, Session
from gpt.benchmark import ROWS
from gpt.generation import WhenFull
from seq2seq.attention_map import attention_figure
from training.command_line import StrictParser
from training.device import inference_device, set_cpu_threads
from training.errors import InputError, exit_code

TITLE = "Transformers from scratch"
EXAMPLES = ["ROMEO:\n", "JULIET:\nO ", "First Citizen:\nBefore we proceed", "KING RICHARD III:\nNow is the winter"]
SOURCES = ["stressed", "transformer", "abcdefghijklmnopqrst"]
COLOURS = {WITH: "#2563eb", WITHOUT: "#ea580c", f"{WITH}, native": "#059669", f"{WITH}, compiled": "#059669"}
PALETTE = ["#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#db2777"]
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MODEL = "model"
"""Who runs a model waits in one queue."""
UNSEEN: Any = {"api_visibility": "private", "show_progress": "hidden"}

Updates = Generator[Any, None, None]


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own machine: nothing is fetched from elsewhere."""
    return gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"])


def build(session: Session, training: QuickTraining, concurrency: int = 1) -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=False) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Tabs():
            with gr.Tab("Write"):
                write_pickers = _write_tab(session, training, concurrency)
            with gr.Tab("Benchmark"):
                bench_pickers = _benchmark_tab(session, concurrency)
            with gr.Tab("Sequence to sequence"):
                pair_pickers = _pairs_tab(session, concurrency)
            with gr.Tab("Training") as training_tab:
                _training_tab(session, training_tab)
        pickers = [write_pickers, bench_pickers, pair_pickers]

        def refresh() -> list[Any]:
            return [_choices(session, kind) for kind in ("gpt", "gpt", "seq2seq")]

        page.load(refresh, None, pickers, queue=False, **UNSEEN)
        _api(session, concurrency)
    return page


def _choices(session: Session, kind: Any, **options: Any) -> gr.Dropdown:
    found = [(entry.label, entry.name) for entry in session.catalogue.entries(kind)]
    return gr.Dropdown(choices=found, value=found[0][1] if found else None, **options)


def _picker(session: Session, kind: str, name: str) -> gr.Dropdown:
    return _choices(session, kind, label="Checkpoint", interactive=True, scale=3, elem_id=f"{name}-run")


def _owner(request: gr.Request) -> str:
    return str(request.session_hash)


def _wire(
    session: Session,
    buttons: tuple[gr.Button, gr.Button],
    work: Callable[..., Any],
    inputs: Any,
    outputs: Any,
    limit: int,
) -> None:
    """A press of Start ends this visitor's running request and waits for its turn; Stop ends it at the next token."""
    start, stop = buttons

    def end(request: gr.Request) -> None:
        session.jobs.stop(_owner(request))

    first = start.click(end, None, None, queue=False, trigger_mode="multiple", **UNSEEN)
    running = first.then(
        work, inputs, outputs, concurrency_id=MODEL, concurrency_limit=limit, api_visibility="private",
        show_progress="minimal", show_progress_on=outputs[-1],
    )  # fmt: skip
    stop.click(end, None, None, queue=False, **UNSEEN).then(None, None, None, cancels=[running], **UNSEEN)


def _write_tab(session: Session, training: QuickTraining, concurrency: int) -> gr.Dropdown:
    limits = session.limits
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            empty = gr.HTML(visible=False, padding=False)
            with gr.Row():
                train = gr.Button("Train the quick model", variant="primary", visible=False)
                leave = gr.Button("Stop the training", visible=False)
            run = _picker(session, "gpt", "write")
            prompt = gr.Textbox(EXAMPLES[0], label="Prompt", lines=3, max_lines=8, elem_id="prompt")
            gr.Examples(EXAMPLES, prompt, label="Examples", cache_examples=False, api_visibility="private")
            with gr.Row():
                button = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
            with gr.Row():
                new_tokens = gr.Slider(1, limits.new_tokens, 500, step=1, label="New tokens", elem_id="new-tokens")
                temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature (0: likeliest)")
            with gr.Accordion("More of the sampler", open=False):
                with gr.Row():
                    top_k = gr.Slider(0, 100, 0, step=1, label="Top k (0: all)")
                    top_p = gr.Slider(0.01, 1, 1, step=0.01, label="Top p")
                with gr.Row():
                    min_p = gr.Slider(0, 1, 0, step=0.01, label="Min p")
                    penalty = gr.Slider(0.5, 2, 1, step=0.05, label="Repetition penalty")
                stop_string = gr.Textbox(label="Stop string", max_lines=1)
                when_full = gr.Radio(
                    [("stop", "stop"), ("let the older half go", "slide")],
                    value="slide",
                    label="When the context is full",
                )
            seed = gr.Number(1, label="Seed: the same one, the same text", precision=0, minimum=0, elem_id="seed")
            compare = gr.Checkbox(label="Compare: read the same tokens without the cache afterwards", elem_id="compare")
            coloured = gr.Checkbox(label="Colour characters by their probability", elem_id="coloured")
        with gr.Column(scale=7, min_width=320):
            text = gr.HTML(
                '<div class="written"></div>',
                elem_id="text",
                min_height=320,
                max_height=480,
                autoscroll=True,
                padding=False,
            )
            chart = gr.LinePlot(
                show.chart_rows("position", []),
                x="position",
                y="value",
                color="line",
                color_map=COLOURS,
                colors_in_legend=[WITH, WITHOUT],
                x_title="position",
                y_title="milliseconds per token",
                color_title=" ",
                x_lim=[0, 500],
                y_lim=[0, 1],
                height=260,
                elem_id="chart",
            )
            figures = gr.HTML('<dl class="figures"></dl>', elem_id="figures", padding=False)
            message = gr.HTML("", elem_id="message", padding=False)

    def work(
        run: Any, prompt: Any, new_tokens: Any, temperature: Any, top_k: Any, top_p: Any, min_p: Any, penalty: Any,
        stop_string: Any, when_full: Any, seed: Any, compare: Any, coloured: Any, request: gr.Request,
    ) -> Updates:  # fmt: skip
        axes: tuple[float, float] | None = None
        looks = session.write(
            _owner(request), run, prompt, max_new_tokens=new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            min_p=min_p, repetition_penalty=penalty, stop=stop_string, when_full=when_full, seed=seed, compare=compare,
            alternatives=bool(coloured),
        )  # fmt: skip
        with closing(looks):
            for writing in _told(looks):
                if isinstance(writing, InputError):
                    yield gr.skip(), gr.skip(), gr.skip(), show.message_html(str(writing))
                    return
                frame = show.token_times(writing)
                wanted = (float(len(writing.prompt) + writing.limit), show.axis_top(frame))
                plot: Any = frame
                if axes is None or wanted[1] > axes[1]:
                    axes = wanted
                    plot = gr.LinePlot(value=frame, x_lim=[0, axes[0]], y_lim=[0, axes[1]])
                html = show.text_html(writing, coloured=bool(coloured))
                yield html, plot, show.writing_figures(writing), ""

    _wire(session, (button, stop), work,
        [run, prompt, new_tokens, temperature, top_k, top_p, min_p, penalty, stop_string, when_full, seed, compare,
         coloured],
        [text, chart, figures, message], concurrency,
    )  # fmt: skip
    _offer_training(session, training, empty, train, leave, run)
    return run


def _offer_training(
    session: Session, training: QuickTraining, empty: gr.HTML, train: gr.Button, leave: gr.Button, run: gr.Dropdown
) -> None:
    """Where nothing is trained, say so, and train the quick model with a progress bar."""
    timer = gr.Timer(1.0, active=False)
    outputs = [empty, train, leave, timer, run]

    def look() -> tuple[Any, ...]:
        step, steps, words = training.progress()
        none = not session.catalogue.entries("gpt")
        if training.running:
            bar = gr.HTML(show.progress_html(step, steps, words), visible=True)
            return bar, gr.Button(visible=False), gr.Button(visible=True), gr.Timer(active=True), gr.skip()
        words = words or (
            f"There is no trained model under {session.catalogue.runs}/ yet. The quick one takes about two minutes on "
            f"a laptop, needs no network, and writes like a child that has heard Shakespeare."
        )
        html = gr.HTML(show.message_html(words, "going"), visible=none or bool(step))
        return (
            *(html, gr.Button(visible=none), gr.Button(visible=False), gr.Timer(active=False)),
            _choices(session, "gpt") if step else gr.skip(),
        )

    def start() -> tuple[Any, ...]:
        if not session.catalogue.entries("gpt"):
            training.start()
        return look()

    def leave_it() -> tuple[Any, ...]:
        training.stop()
        return look()

    train.click(start, None, outputs, queue=False, **UNSEEN)
    leave.click(leave_it, None, outputs, queue=False, **UNSEEN)
    timer.tick(look, None, outputs, queue=False, **UNSEEN)
    gr.on(None, look, None, outputs, queue=False, **UNSEEN)


def _told(looks: Iterator[Any]) -> Iterator[Any]:
    """Looks at a job; last, if it fails for a reason that a visitor can see to, that."""
    try:
        yield from looks
    except InputError as error:
        yield error


def _benchmark_tab(session: Session, concurrency: int) -> gr.Dropdown:
    gr.Markdown(
        "The time until 100, 200, 300 and 500 new tokens after a prompt of 8, read without the key-value cache and with"
        " it. The reference is a 12-layer, 768-wide model; smaller models are bound by other things."
    )
    with gr.Row():
        run = _picker(session, "gpt", "benchmark")
        button = gr.Button("Run", variant="primary", min_width=100, elem_id="benchmark-start")
        stop = gr.Button("Stop", variant="stop", min_width=100, elem_id="benchmark-stop")
    table = gr.HTML(_table(None), elem_id="benchmark-rows", padding=False)
    with gr.Row():
        options: Any = {
            "x": "position",
            "y": "value",
            "color": "line",
            "color_map": COLOURS,
            "color_title": " ",
            "x_title": "new tokens",
        }
        options |= {"value": show.chart_rows("position", []), "x_lim": [0, ROWS[-1]], "y_lim": [0, 1], "height": 280}
        options["colors_in_legend"] = list(COLOURS)[:3]
        single = gr.LinePlot(y_title="milliseconds per token", elem_id="benchmark-single", **options)
        until = gr.LinePlot(y_title="seconds until a token", elem_id="benchmark-until", **options)
    figures = gr.HTML("", elem_id="benchmark-figures", padding=False)
    download = gr.DownloadButton("Download the JSON", interactive=False, elem_id="benchmark-json")
    message = gr.HTML("", padding=False)

    def work(run: Any, request: gr.Request) -> Updates:
        tops = [0.0, 0.0]
        looks = session.benchmark(_owner(request), run)
        with closing(looks):
            for result in _told(looks):
                if isinstance(result, InputError):
                    yield *(gr.skip() for _ in range(5)), show.message_html(str(result))
                    return
                plots: list[Any] = []
                for n, frame in enumerate(show.benchmark_times(result)):
                    plots.append(frame)
                    if show.axis_top(frame) > tops[n]:
                        tops[n] = show.axis_top(frame)
                        plots[n] = gr.LinePlot(value=frame, y_lim=[0, tops[n]])
                file = gr.skip()
                if result.phase == "done":
                    file = gr.DownloadButton(value=_json_file(result.figures()), interactive=True)
                yield _table(result), *plots, show.benchmark_figures(result), file, ""

    _wire(session, (button, stop), work, [run], [table, single, until, figures, download, message], concurrency)
    return run


def _table(result: Any) -> str:
    return f'<div class="scroll">{show.reference_table(result)}</div>'


def _json_file(figures: dict[str, Any]) -> str:
    import json

    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    file = folder / "decode.json"
    file.write_text(json.dumps(figures, indent=1) + "\n")
    return str(file)


def _pairs_tab(session: Session, concurrency: int) -> gr.Dropdown:
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            run = _picker(session, "seq2seq", "pairs")
            source = gr.Textbox(SOURCES[0], label="Source", max_lines=3, elem_id="source")
            gr.Examples(SOURCES, source, label="Examples", cache_examples=False, api_visibility="private")
            beams = gr.Slider(1, session.limits.beams, 1, step=1, label="Beams (1: greedy)")
            with gr.Row():
                button = gr.Button("Decode", variant="primary", elem_id="decode")
                stop = gr.Button("Stop", variant="stop")
            gr.Markdown(
                "Train one with `python launch/train_seq2seq.py --config configs/seq2seq/reverse.yaml` (or `copy.yaml`,"
                " `dates.yaml`); it appears here when the page is loaded anew."
            )
        with gr.Column(scale=7, min_width=320):
            target = gr.HTML('<div class="target"></div>', elem_id="target", padding=False)
            gr.Markdown("Where the decoder looks in the source, for each layer and head:")
            picture = gr.Plot(show_label=False, elem_id="attention")
            message = gr.HTML("", padding=False)

    def work(run: Any, source: Any, beams: Any, request: gr.Request) -> Updates:
        looks = session.transduce(_owner(request), run, source, beams)
        with closing(looks):
            for found in _told(looks):
                if isinstance(found, InputError):
                    yield gr.skip(), gr.skip(), show.message_html(str(found))
                    return
                drawn = gr.skip()
                if found.phase == "done" and found.attention:
                    names = found.loaded.vocabulary
                    drawn = attention_figure(found.attention, found.source_tokens, found.tokens, names)
                yield show.target_html(found), drawn, show.message_html(found.why, "going")

    _wire(session, (button, stop), work, [run, source, beams], [target, picture, message], concurrency)
    return run


def _training_tab(session: Session, tab: gr.Tab) -> None:
    runs = gr.CheckboxGroup([], label="Runs", elem_id="training-runs")
    plots = []
    with gr.Row():
        for name in CURVES:
            options: Any = {
                "x": "step",
                "y": "value",
                "color": "line",
                "color_title": " ",
                "x_title": "step",
                "y_title": name,
                "y_axis_format": {"loss": ".2f", "learning rate": ".0e"}.get(name, "~s"),
            }
            plots.append(gr.LinePlot(height=280, elem_id=f"curve-{name.split()[0]}", **options))
    sample = gr.Textbox(label="Latest sample", lines=6, max_lines=12, interactive=False, elem_id="sample")
    seen = gr.State(())
    timer = gr.Timer(2.0, active=False)

    def chosen(names: Any) -> list[Any]:
        known = {run.path.name: run for run in session.catalogue.folders()}
        return [known[name] for name in names or [] if name in known][: session.limits.runs]

    def look(names: Any, seen: Any) -> tuple[Any, ...]:
        found = chosen(names)
        now = stamp(found)
        if now == seen:
            return tuple(gr.skip() for _ in range(len(plots) + 2))
        curves = read_curves(found)
        label = f"Latest sample: {curves.sample_of}" if curves.sample_of else "Latest sample"
        return *(_curve(curves.frames[name]) for name in CURVES), gr.Textbox(curves.sample, label=label), now

    def select() -> tuple[Any, Any]:
        names = [run.path.name for run in session.catalogue.folders()]
        newest = max(session.catalogue.folders(), key=lambda run: run.path.stat().st_mtime, default=None)
        return (
            gr.CheckboxGroup(choices=names, value=[newest.path.name] if newest else []),
            gr.Timer(active=True),
        )

    outputs = [*plots, sample, seen]
    tab.select(select, None, [runs, timer], queue=False, **UNSEEN).then(
        look, [runs, seen], outputs, queue=False, **UNSEEN
    )
    runs.change(look, [runs, seen], outputs, queue=False, **UNSEEN)
    timer.tick(look, [runs, seen], outputs, queue=False, **UNSEEN)


def _curve(frame: pd.DataFrame) -> gr.LinePlot:
    """A chart that shows all of some lines. Its axes are given, without which the page does not draw it anew."""
    if frame.empty:
        return gr.LinePlot(value=frame)
    low, high = frame["value"].min(), frame["value"].quantile(0.99)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    lines = {line: PALETTE[n % len(PALETTE)] for n, line in enumerate(frame["line"].unique())}
    limits: dict[str, Any] = {"x_lim": [0, float(frame["step"].max())]}
    limits["y_lim"] = [float(low - room), float(high + room)]
    return gr.LinePlot(value=frame, color_map=lines, colors_in_legend=list(lines), **limits)


def _api(session: Session, concurrency: int) -> None:
    """The same work for programs."""

    def generate(
        run: str,
        prompt: str,
        max_new_tokens: int = 300,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        when_full: str = "stop",
        stop: str = "",
        compare: bool = False,
    ) -> Generator[dict[str, Any], None, None]:
        looks = session.write(
            uuid4().hex, run, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            min_p=min_p, repetition_penalty=repetition_penalty, seed=seed, when_full=when_full, stop=stop,
            compare=compare,
        )  # fmt: skip
        yield from _answers(looks, lambda writing: {"text": writing.text} | writing.figures())

    def benchmark(run: str, new_tokens: int = ROWS[-1]) -> Generator[dict[str, Any], None, None]:
        yield from _answers(session.benchmark(uuid4().hex, run, new_tokens), lambda result: result.figures())

    def transduce(run: str, source: str, beams: int = 1) -> Generator[dict[str, Any], None, None]:
        yield from _answers(
            session.transduce(uuid4().hex, run, source, beams),
            lambda found: {
                "target": found.target,
                "probabilities": found.probabilities,
                "beams": [{"target": text, "log_probability": p} for text, p in found.beams],
                "end": found.why or found.phase,
            },
        )

    said = {
        generate: f"Continue a prompt with a GPT. when_full is one of {', '.join(get_args(WhenFull))}; a seed is "
        f"at most {MOST_SEED}.",
        benchmark: "Seconds until 100, 200, 300 and 500 new tokens, without the key-value cache and with it.",
        transduce: "The target of a source, by a trained encoder-decoder: greedy, or with several beams.",
    }
    for function, description in said.items():
        api(
            function,
            api_name=function.__name__,
            api_description=description,
            concurrency_id=MODEL,
            concurrency_limit=concurrency,
        )


def _answers(looks: Generator[Any, None, None], answer: Callable[[Any], dict[str, Any]]) -> Updates:
    with closing(looks):
        for result in _told(looks):
            if isinstance(result, InputError):
                raise gr.Error(str(result), print_exception=False)
            yield answer(result)


def launch(page: gr.Blocks, *, concurrency: int = 1, waiting: int = 16, **options: Any) -> Any:
    """Serve the page: no analytics, no monitoring, no history, no uploads, nothing from elsewhere."""
    page.queue(max_size=waiting, default_concurrency_limit=concurrency)
    return page.launch(
        quiet=True,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        footer_links=[],
        max_file_size=1,
        allowed_paths=[],
        theme=theme(),
        css_paths=Path(__file__).with_name("style.css"),
        **options,
    )


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
    parser.add_argument("--share", action="store_true", help="Also make a public link through Gradio's servers.")
    parser.add_argument(
        "--auth",
        type=str,
        help="USER:PASSWORD that visitors must give. Default: DEMO_AUTH of the environment.",
    )
    parser.add_argument("--concurrency", type=int, default=1, help="Requests that run a model at once.")
    parser.add_argument("--waiting", type=int, default=16, help="Requests that may wait for their turn.")
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
    auth = _auth(options.auth if options.auth is not None else os.environ.get("DEMO_AUTH"))
    port = check.integer("port", options.port, 1, 65_535)
    _check_address(options.host, port)
    set_cpu_threads()
    session = Session(Path(options.runs), inference_device(), limits)
    training = QuickTraining(Path(options.runs))
    page = build(session, training, concurrency)
    try:
        _, url, _ = launch(
            page,
            concurrency=concurrency,
            waiting=waiting,
            server_name=options.host,
            server_port=port,
            share=options.share,
            auth=auth,
            prevent_thread_lock=True,
        )
        print(f"open {url}  (Ctrl-C ends it)", flush=True)
        page.block_thread()
    finally:
        training.stop()


def _check_address(host: str, port: int) -> None:
    """Gradio says less of an address that cannot be had."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise InputError(f"cannot listen at {host}:{port}: {os.strerror(error.errno or 0)}") from error


def _auth(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise InputError("auth must be USER:PASSWORD, neither of them empty")
    return user, password


if __name__ == "__main__":
    sys.exit(exit_code(main))
