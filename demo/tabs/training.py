"""The curves of the runs."""

from typing import Any

import gradio as gr

from demo.curves import CURVES, read_curves, stamp, version
from demo.line_chart import Axis, Line, line_chart, short, value_range
from demo.session import Session
from demo.tabs.common import ORDERS, UNSEEN, order_of_runs

NAME = "Training"
LOGARITHMIC = ["step", "value"]


def training_tab(session: Session, tabs: gr.Tabs) -> None:
    """The tab `NAME` of some, which follows the runs while it is the one that is shown."""
    with gr.Row(elem_classes="finding"):
        words = gr.Textbox(label="Find runs", placeholder="part of a name", max_lines=1, min_width=140, elem_id="find")
        order = order_of_runs(min_width=140)
        log = gr.CheckboxGroup(LOGARITHMIC, label="Logarithmic axis", min_width=140, elem_id="logarithmic")
    runs = gr.CheckboxGroup([], label=f"Runs (at most {session.limits.runs} are drawn)", elem_id="training-runs")
    with gr.Row(elem_classes="curves"):
        plots = [
            gr.HTML(_chart(name, [], []), elem_id=f"curve-{name.split()[0]}", padding=False, min_height=280)
            for name in CURVES
        ]
    sample = gr.Textbox(label="Latest samples", lines=6, max_lines=12, interactive=False, elem_id="sample")
    seen = gr.State(())
    timer = gr.Timer(2.0, active=False)

    def chosen(names: Any) -> list[Any]:
        known = {run.path.name: run for run in session.catalogue.folders()}
        return [known[name] for name in names or [] if name in known][: session.limits.runs]

    def look(names: Any, log: Any, seen: Any) -> tuple[Any, ...]:
        found = chosen(names)
        now = (stamp(found), log)
        if now == seen:
            return tuple(gr.skip() for _ in range(len(plots) + 2))
        curves = read_curves(found)
        label = f"Latest samples of {curves.samples_of}" if curves.samples_of else "Latest samples"
        charts = (_chart(name, curves.charts[name], log) for name in CURVES)
        return *charts, gr.Textbox(curves.samples, label=label), now

    def offered(words: Any, order: Any, ticked: Any) -> Any:
        """The runs whose names have the words, and those that are ticked; where none is, the newest gets a tick."""
        bits = {entry.name: entry.bits for entry in session.catalogue.entries()}
        newest_first = sorted(session.catalogue.folders(), key=lambda run: version(run.path), reverse=True)
        names = [run.path.name for run in newest_first]
        kept = [name for name in ticked or [] if name in names] or names[:1]
        names.sort(key=lambda name: ORDERS[order](name, bits.get(name)))
        found = [name for name in names if name in kept or str(words or "").lower() in name.lower()]
        labels = [name if (best := bits.get(name)) is None else f"{name} ({short(best)} bits)" for name in found]
        return gr.CheckboxGroup(choices=list(zip(labels, found, strict=True)), value=kept)

    def select(shown: gr.SelectData, *asked: Any) -> tuple[Any, Any]:
        return (offered(*asked), gr.Timer(active=True)) if shown.value == NAME else (gr.skip(), gr.Timer(active=False))

    asked, outputs = [words, order, runs], [*plots, sample, seen]
    tabs.select(select, asked, [runs, timer], queue=False, **UNSEEN).then(
        look, [runs, log, seen], outputs, queue=False, **UNSEEN
    )
    gr.on([words.change, order.change], offered, asked, runs, queue=False, **UNSEEN)
    gr.on([runs.change, log.change, timer.tick], look, [runs, log, seen], outputs, queue=False, **UNSEEN)


def _chart(name: str, lines: list[Line], log: list[str]) -> str:
    steps = [x for line in lines for x, _ in line.points if x > 0]
    low, high = min(steps, default=1), max(steps, default=1)
    x_axis = Axis(low, max(high, 2 * low), True) if "step" in log else Axis(0, high)
    is_log = "value" in log
    return line_chart(lines, "step", name, x_range=x_axis, y_range=Axis(*value_range(lines, log=is_log), is_log))
