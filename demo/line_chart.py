"""A chart of lines as HTML and SVG that takes the page's colours and any width.

It is drawn anew several times a second next to a model that is running, and so has to cost next to nothing: names and
values are text that the page lays out, and only the lines are a picture, stretched to the room there is.
"""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

TICKS = 5
STRAY = 0.98
"""Above this share of the points no room is kept."""


class Line(NamedTuple):
    """Points of one thing, from left to right; a faint line stands behind others, and `value` with its name."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    value: str | None = None

    @property
    def kind(self) -> str:
        """Its classes and its colour, for the style sheet."""
        classes = ["line", *(["faint"] if self.faint else []), *(["dot"] if len(self.points) == 1 else [])]
        return f'class="{" ".join(classes)}" style="--line:{escape(self.colour)}"'


class Axis(NamedTuple):
    """From one end to the other; `log`: equal steps are equal factors, and both ends are above 0."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, in percent; beyond an end, at that end."""
        low, value, high = self.low, min(max(value, self.low), self.high), self.high
        return 100 * (log10(value / low) / log10(high / low) if self.log else (value - low) / (high - low))

    @property
    def ticks(self) -> list[float]:
        """Round numbers on it."""
        powers = range(floor(log10(self.low)), ceil(log10(self.high))) if self.log else range(0)
        factors = (1, 2, 5) if len(powers) < TICKS / 2 else (1,)
        found = [f * 10.0**n for n in powers[:: len(powers) // (2 * TICKS) + 1] for f in factors]
        found = [value for value in (*found, 10.0**powers.stop) if self.low <= value <= self.high] if found else []
        return found if len(found) > 1 else ticks(self.low, self.high)


def line_chart(
    lines: Sequence[Line],
    x_title: str,
    y_title: str,
    *,
    x_range: Axis | tuple[float, float],
    y_range: Axis | tuple[float, float],
) -> str:
    """The chart; a name stands with its line's value, or its last one. Points beyond a range are drawn at its end."""
    x_axis, y_axis = Axis(*x_range), Axis(*y_range)
    drawn = "".join(_polyline(line, x_axis, y_axis) for line in lines)
    rows = [(y_axis.share(y), short(y)) for y in y_axis.ticks]
    columns = [(x_axis.share(x), short(x)) for x in x_axis.ticks]
    grid = "".join(f"M0 {100 - share:.2f}H100" for share, _ in rows)
    labels = "".join(f'<span class="y" style="bottom:{share:.2f}%">{name}</span>' for share, name in rows)
    labels += "".join(f'<span class="x" style="left:{share:.2f}%">{name}</span>' for share, name in columns)
    keys = "".join(
        f"<span><i {line.kind}></i>{escape(line.name)}"
        f"{f' <b>{escape(line.value or short(line.points[-1][1]))}</b>' if line.points else ''}</span>"
        for line in lines
    )
    return (
        f'<figure class="chart"><figcaption>{escape(y_title)}</figcaption><div class="plot">'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="grid" d="{grid}"/>{drawn}</svg>{labels}</div><p class="x-title">{escape(x_title)}</p>'
        f'<p class="keys">{keys}</p></figure>'
    )


def _polyline(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    points = [f"{x_axis.share(x):.2f},{100 - y_axis.share(y):.2f}" for x, y in line.points]
    points += points if len(points) == 1 else []  # One point is a line of no length, which has round ends.
    return f'<polyline {line.kind} points="{" ".join(points)}"/>'


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


def value_range(lines: Sequence[Line], *, log: bool = False) -> tuple[float, float]:
    """From the least value to the greatest that is not stray, with some room; `log`: of those above 0."""
    values = sorted(y for line in lines for _, y in line.points if y > 0 or not log)
    if not values:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = values[0], values[ceil(STRAY * (len(values) - 1))]
    if log:
        return low / 1.05, high * 1.05
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def short(value: float) -> str:
    """A value with about three digits."""
    if abs(value) >= 1000:
        return f"{value / 1000:.3g}k" if abs(value) < 1e6 else f"{value / 1e6:.3g}M"
    return f"{value:.0e}" if 0 < abs(value) < 0.001 else f"{value:.3g}"
