"""A chart of lines as HTML and SVG that takes the page's colours and any width.

It is drawn anew several times a second next to a model that is running, and so has to cost next to nothing: names and
numbers are text that the page lays out, and only the lines are a picture, stretched to the room there is.
"""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

TICKS = 5
STRAY = 0.98
"""Above this share of the points no room is kept."""


class Line(NamedTuple):
    """Points of one thing, from left to right; a faint line stands behind others."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    faint: bool = False

    @property
    def kind(self) -> str:
        """Its class, for the style sheet."""
        return ' class="faint"' if self.faint else ""


def line_chart(
    lines: Sequence[Line], x_title: str, y_title: str, *, x_range: tuple[float, float], y_range: tuple[float, float]
) -> str:
    """The chart; a name stands with its line's last value. Points beyond a range are drawn at its end."""
    drawn = "".join(_polyline(line, x_range, y_range) for line in lines)
    rows = [(_share(y, y_range), short(y)) for y in ticks(*y_range)]
    columns = [(_share(x, x_range), short(x)) for x in ticks(*x_range)]
    grid = "".join(f"M0 {100 - share:.2f}H100" for share, _ in rows)
    labels = "".join(f'<span class="y" style="bottom:{share:.2f}%">{name}</span>' for share, name in rows)
    labels += "".join(f'<span class="x" style="left:{share:.2f}%">{name}</span>' for share, name in columns)
    keys = "".join(
        f'<span><i{line.kind} style="background:{escape(line.colour)}"></i>{escape(line.name)}'
        f"{f' <b>{short(line.points[-1][1])}</b>' if line.points else ''}</span>"
        for line in lines
    )
    return (
        f'<figure class="chart"><figcaption>{escape(y_title)}</figcaption><div class="plot">'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="grid" d="{grid}"/>{drawn}</svg>{labels}</div><p class="x-title">{escape(x_title)}</p>'
        f'<p class="keys">{keys}</p></figure>'
    )


def _polyline(line: Line, x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    points = " ".join(f"{_share(x, x_range):.2f},{100 - _share(y, y_range):.2f}" for x, y in line.points)
    return f'<polyline{line.kind} points="{points}" style="stroke:{escape(line.colour)}"/>'


def _share(value: float, ends: tuple[float, float]) -> float:
    """Where a value lies between two ends, in percent."""
    low, high = ends
    return 100 * min(max((value - low) / (high - low), 0.0), 1.0)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends."""
    step = round_up((high - low) / TICKS)
    return [n * step for n in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def round_up(value: float) -> float:
    """The next of 1, 2 and 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= value * 0.999)


def axis_top(lines: Sequence[Line]) -> float:
    """Where an axis that begins at 0 ends: above all but stray values, and rounded, so that it seldom changes."""
    values = sorted(y for line in lines for _, y in line.points)
    return round_up(1.2 * values[floor(STRAY * (len(values) - 1))]) if values else 1.0


def value_range(lines: Sequence[Line]) -> tuple[float, float]:
    """From the least value to the greatest that is not stray, with some room."""
    values = sorted(y for line in lines for _, y in line.points)
    if not values:
        return 0.0, 1.0
    low, high = values[0], values[ceil(STRAY * (len(values) - 1))]
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def short(value: float) -> str:
    """A number with about three digits."""
    if abs(value) >= 1000:
        return f"{value / 1000:.3g}k" if abs(value) < 1e6 else f"{value / 1e6:.3g}M"
    return f"{value:.0e}" if 0 < abs(value) < 0.001 else f"{value:.3g}"
