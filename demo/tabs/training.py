"""The curves of the runs."""

from typing import Any

import gradio as gr
import pandas as pd

from demo.curves import CURVES, read_curves, stamp
from demo.session import Session
from demo.tabs.common import UNSEEN

PALETTE = ["#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#db2777"]


def training_tab(session: Session, tab: gr.Tab) -> None:
    """The tab, which follows the runs while it is the one that is shown."""
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
