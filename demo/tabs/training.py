"""The curves of the runs."""

from typing import Any

import gradio as gr

from demo.catalogue import changed
from demo.curves import CURVES, read_curves, stamp
from demo.line_chart import Line, line_chart, value_range
from demo.session import Session
from demo.tabs.common import UNSEEN

NAME = "Training"


def training_tab(session: Session, tabs: gr.Tabs) -> None:
    """The tab `NAME` of some, which follows the runs while it is the one that is shown."""
    runs = gr.CheckboxGroup([], label=f"Runs (at most {session.limits.runs} are drawn)", elem_id="training-runs")
    with gr.Row(elem_classes="curves"):
        plots = [
            gr.HTML(_chart(name, []), elem_id=f"curve-{name.split()[0]}", padding=False, min_height=280)
            for name in CURVES
        ]
    sample = gr.Textbox(label="Latest samples", lines=6, max_lines=12, interactive=False, elem_id="sample")
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
        label = f"Latest samples of {curves.samples_of}" if curves.samples_of else "Latest samples"
        return *(_chart(name, curves.charts[name]) for name in CURVES), gr.Textbox(curves.samples, label=label), now

    def select(shown: gr.SelectData, ticked: Any) -> tuple[Any, Any]:
        if shown.value != NAME:
            return gr.skip(), gr.Timer(active=False)
        folders = session.catalogue.folders()
        names = [run.path.name for run in folders]
        newest = max(folders, key=lambda run: changed(run.path), default=None)
        kept = [name for name in ticked or [] if name in names] or ([newest.path.name] if newest else [])
        return gr.CheckboxGroup(choices=names, value=kept), gr.Timer(active=True)

    outputs = [*plots, sample, seen]
    tabs.select(select, runs, [runs, timer], queue=False, **UNSEEN).then(
        look, [runs, seen], outputs, queue=False, **UNSEEN
    )
    runs.change(look, [runs, seen], outputs, queue=False, **UNSEEN)
    timer.tick(look, [runs, seen], outputs, queue=False, **UNSEEN)


def _chart(name: str, lines: list[Line]) -> str:
    steps = max((line.points[-1][0] for line in lines), default=1)
    return line_chart(lines, "step", name, x_range=(0, max(steps, 1)), y_range=value_range(lines))
