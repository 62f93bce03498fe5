"""Line and bar charts as SVG text: no scripts, no files, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from lmflow.report.content import Point

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 34
MOST_POINTS = 300


def line_chart(title: str, series: Mapping[str, Sequence[Point]], x_label: str) -> str:
    """A figure with one line per named series, empty if none has a point. Long series are thinned."""
    drawn = {name: thin(finite(points)) for name, points in series.items() if finite(points)}
    if not drawn:
        return ""
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    x_ticks = [tick for tick in ticks(min(xs), max(xs), 6) if min(xs) <= tick <= max(xs)]
    y_ticks = ticks(min(ys), max(ys), 5)
    x_of = scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_of = scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_grid(x_ticks, y_ticks, x_of, y_of, x_label)]
    for index, points in enumerate(drawn.values()):
        places = [(x_of(x), y_of(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line c{index}" points="{path}"/>')
        if len(points) <= 40:
            parts += [
                f'<circle class="dot c{index}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{number(px)}: {number(py)}'
                "</title></circle>"
                for (x, y), (px, py) in zip(places, points)
            ]
    return _figure(title, "".join(parts), list(drawn), describe(drawn))


def stacked_bars(title: str, series: Mapping[str, Sequence[Point]], x_label: str, unit: str) -> str:
    """A figure with one bar per x, the series on top of one another; empty if there is nothing."""
    drawn = {name: dict(finite(points)) for name, points in series.items() if finite(points)}
    xs = sorted({x for values in drawn.values() for x in values})
    if not xs:
        return ""
    totals = [sum(values.get(x, 0.0) for values in drawn.values()) for x in xs]
    y_ticks = ticks(0.0, max(totals) or 1.0, 5)
    y_of = scale(0.0, y_ticks[-1], HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(xs)
    centres = {x: LEFT + step * (index + 0.5) for index, x in enumerate(xs)}
    shown = xs[:: math.ceil(len(xs) / 12)]
    parts = [_grid(shown, y_ticks, centres.__getitem__, y_of, x_label)]
    for x in xs:
        base = 0.0
        for index, (name, values) in enumerate(drawn.items()):
            value = values.get(x, 0.0)
            top, bottom = y_of(base + value), y_of(base)
            parts.append(
                f'<rect class="bar c{index}" x="{centres[x] - step * 0.35:.1f}" y="{top:.1f}" width="{step * 0.7:.1f}" '
                f'height="{max(0.0, bottom - top):.1f}"><title>{escape(name)}, {number(x)}: {number(value)} {unit}'
                "</title></rect>"
            )
            base += value
    sums = {name: f"{sum(values.values()):.1f} {unit}" for name, values in drawn.items()}
    return _figure(title, "".join(parts), list(drawn), ", ".join(f"{name} {total}" for name, total in sums.items()))


def _grid(x_ticks: Sequence[float], y_ticks: Sequence[float], x_of, y_of, x_label: str) -> str:  # type: ignore[no-untyped-def]
    rows = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y_of(y) + 4:.1f}" text-anchor="end">{number(y)}</text>'
        for y in y_ticks
    )
    columns = "".join(
        f'<text class="tick" x="{x_of(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(x)}</text>'
        for x in x_ticks
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = f'<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>'
    return rows + columns + label


def _figure(title: str, body: str, names: Sequence[str], description: str) -> str:
    legend = ""
    if len(names) > 1:
        items = "".join(f'<span><i class="key c{i}"></i>{escape(name)}</span>' for i, name in enumerate(names))
        legend = f'<div class="legend">{items}</div>'
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{legend}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(description)}">'
        f"{body}</svg></figure>"
    )


def describe(series: Mapping[str, Sequence[Point]]) -> str:
    """Where each line begins and ends, in words, for those who cannot see it."""
    return "; ".join(f"{name} from {number(points[0][1])} to {number(points[-1][1])}" for name, points in series.items())


def finite(points: Sequence[Point]) -> list[Point]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: means of equal runs, so that no spike is invented and the level is kept."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(run[-1][0], sum(y for _, y in run) / len(run)) for run in runs]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values from at or below `low` to at or above `high`, roughly `about` of them."""
    if low == high:
        low, high = (low - 1, high + 1) if low == 0 else (low - abs(low) / 2, high + abs(high) / 2)
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def scale(low: float, high: float, start: float, end: float):  # type: ignore[no-untyped-def]
    """The linear function that maps [low, high] to [start, end]."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def number(value: float) -> str:
    """A value as short as it can be read: 1,234 0.25 1e-05."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"
