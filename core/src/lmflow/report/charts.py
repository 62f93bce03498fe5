"""Line and bar charts as SVG text: no scripts, no files, colours from the page's style sheet.

Every chart carries a title, a description in words, and a table of its values for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lmflow.formatting import number
from lmflow.report.content import Point

LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 36
MOST_POINTS = 240
MOST_DOTS = 40
MOST_ROWS = 40

Scale = Callable[[float], float]
Thinned = tuple[float, float, float, float]
"""x, mean, lowest and highest of the points it stands for."""


@dataclass(frozen=True)
class Size:
    """Units of the drawing; text is 12 units high, so a drawing is best shown near this many pixels wide."""

    width: int
    height: int


LARGE = Size(520, 250)
SMALL = Size(290, 170)


def line_chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    *,
    size: Size = LARGE,
    percent: bool = False,
    from_zero: bool = False,
) -> str:
    """A figure with one line per named series, empty if none has a point.

    Long series are thinned to means, with the range they stand for shaded. `percent` shows shares as percentages
    on an axis from 0 to 100; `from_zero` begins the axis at 0.
    """
    drawn = {name: thin(points) for name, points in series.items() if points}
    if not drawn:
        return ""
    xs = [p[0] for points in drawn.values() for p in points]
    lows, highs = ([p[at] for points in drawn.values() for p in points] for at in (2, 3))
    low, high = (0.0, 1.0) if percent else (min([*lows, 0.0]) if from_zero else min(lows), max(highs))
    y_ticks = ticks(low, high, 5 if size is LARGE else 4)
    y_label = percentage if percent else tick_label(y_ticks)
    x_of = scale(min(xs), max(xs), LEFT, size.width - RIGHT)
    y_of = scale(y_ticks[0], y_ticks[-1], size.height - BOTTOM, TOP)
    x_ticks = whole_ticks(min(xs), max(xs), 8 if size is LARGE else 5)
    parts = [_rows(y_ticks, y_of, y_label, size), _columns([(x_of(x), number(x)) for x in x_ticks], x_label, size)]
    for index, points in enumerate(drawn.values()):
        parts.append(_line(index, points, x_of, y_of, y_label if percent else number, x_label))
    said = percentage if percent else number
    brief = percentage if percent else lambda value: number(value, 3)
    legend = {name: from_to(brief(points[0][1]), brief(points[-1][1])) for name, points in drawn.items()}
    table = _table(x_label, {name: [(x, y) for x, y, _, _ in points] for name, points in drawn.items()}, said)
    described = "; ".join(
        f"{name} over {number(p[0][0])} to {number(p[-1][0])}: from {said(p[0][1])} to {said(p[-1][1])}, "
        f"lowest {said(min(q[2] for q in p))}, highest {said(max(q[3] for q in p))}"
        for name, p in drawn.items()
    )
    return _figure(title, "".join(parts), legend, described, table, size)


def bar_chart(
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    x_label: str,
    *,
    stacked: bool,
    unit: str = "",
    size: Size = LARGE,
    percent: bool = False,
) -> str:
    """A figure with the values of each series at each label, on top of one another or side by side; may be empty."""
    if not labels or not any(value for values in series.values() for value in values):
        return ""
    columns = list(zip(*series.values()))
    y_ticks = ticks(0.0, max(sum(each) if stacked else max(each) for each in columns), 5)
    y_of = scale(0.0, y_ticks[-1], size.height - BOTTOM, TOP)
    step = (size.width - LEFT - RIGHT) / len(labels)
    said = percentage if percent else lambda value: f"{number(value)} {unit}".strip()
    every = math.ceil(len(labels) / 12)
    centres = [LEFT + step * (at + 0.5) for at in range(len(labels))]
    shown = list(zip(centres, labels))[::every]
    parts = [_rows(y_ticks, y_of, percentage if percent else tick_label(y_ticks), size), _columns(shown, x_label, size)]
    wide = min(step * 0.72, 64.0) / (1 if stacked else len(series))
    for at, values in enumerate(columns):
        base = 0.0
        for index, (name, value) in enumerate(zip(series, values)):
            start = -wide / 2 if stacked else wide * (index - len(series) / 2)
            top, bottom = y_of(base + value), y_of(base)
            told = f"{name}, {x_label} {labels[at]}: {said(value)}"
            parts.append(
                f'<rect class="bar c{index}" x="{centres[at] + start:.1f}" y="{top:.1f}" width="{max(wide, 0.5):.1f}" '
                f'height="{max(0.0, bottom - top):.1f}"><title>{escape(told)}</title></rect>'
            )
            base += value if stacked else 0.0
    legend = {name: said(sum(values)) if stacked else "" for name, values in series.items()}
    table = _cells([x_label, *series], [[label, *map(said, each)] for label, each in zip(labels, columns)])
    described = "; ".join(f"{name} at most {said(max(values))}" for name, values in series.items())
    return _figure(title, "".join(parts), legend, described, table, size)


def _line(
    index: int, points: Sequence[Thinned], x_of: Scale, y_of: Scale, said: Callable[[float], str], x_label: str
) -> str:
    places = [(x_of(x), y_of(y)) for x, y, _, _ in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    text = f'<polyline class="line c{index}" points="{path}"/>'
    if any(low != high for _, _, low, high in points):
        edge = [(x, high) for x, _, _, high in points] + [(x, low) for x, _, low, _ in reversed(points)]
        text = (
            f'<polygon class="band c{index}" points="{" ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in edge)}"/>'
            + text
        )
    if len(points) <= MOST_DOTS:
        text += "".join(
            f'<circle class="dot c{index}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>'
            f"{escape(f'{x_label} {number(at)}: {said(value)}')}</title></circle>"
            for (x, y), (at, value, _, _) in zip(places, points)
        )
    return text


def _rows(values: Sequence[float], y_of: Scale, label: Callable[[float], str], size: Size) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{size.width - RIGHT}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>'
        f'<text x="{LEFT - 7}" y="{y_of(y) + 4:.1f}" text-anchor="end">{label(y)}</text>'
        for y in values
    )


def _columns(marks: Sequence[tuple[float, str]], label: str, size: Size) -> str:
    texts = "".join(
        f'<text x="{x:.1f}" y="{size.height - BOTTOM + 16}" text-anchor="middle">{escape(text)}</text>'
        for x, text in marks
    )
    middle = (LEFT + size.width - RIGHT) / 2
    return f'{texts}<text x="{middle}" y="{size.height - 4}" text-anchor="middle">{escape(label)}</text>'


def _figure(title: str, body: str, legend: Mapping[str, str], description: str, table: str, size: Size) -> str:
    keys = "".join(
        f'<span><i class="key c{index}"></i>{escape(name)} <b>{escape(value)}</b></span>'
        for index, (name, value) in enumerate(legend.items())
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="legend">{keys}</div>'
        f'<svg class="{"large" if size == LARGE else "small"}" viewBox="0 0 {size.width} {size.height}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{body}</svg>"
        f"<details><summary>Values</summary>{table}</details></figure>"
    )


def _table(x_label: str, series: Mapping[str, Sequence[Point]], said: Callable[[float], str]) -> str:
    """Values by x, at most MOST_ROWS rows spread evenly, the last one included."""
    by_name = {name: dict(points) for name, points in series.items()}
    xs = sorted({x for values in by_name.values() for x in values})
    if len(xs) > MOST_ROWS:
        xs = [xs[round(at * (len(xs) - 1) / (MOST_ROWS - 1))] for at in range(MOST_ROWS)]
    rows = [[number(x), *(said(v[x]) if x in v else "" for v in by_name.values())] for x in xs]
    return _cells([x_label, *series], rows)


def _cells(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(each)}</td>" for each in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def from_to(first: str, last: str) -> str:
    """Where a line begins and ends, once if that is the same."""
    return first if first == last else f"{first} → {last}"


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Thinned]:
    """At most `most` points, in the order of x: means of equal runs with their range, so no spike is hidden."""
    ordered = sorted(points)
    count = math.ceil(len(ordered) / most)
    runs = [ordered[start : start + count] for start in range(0, len(ordered), count)]
    return [
        (run[-1][0], sum(y for _, y in run) / len(run), min(y for _, y in run), max(y for _, y in run)) for run in runs
    ]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values from at or below `low` to at or above `high`, roughly `about` intervals."""
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-100):  # a constant: show it against zero
        low, high = min(0.0, 2 * low), max(0.0, 2 * high) or (0.0 if low else 1.0)
    step = round_step((high - low) / about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def whole_ticks(low: float, high: float, about: int) -> list[float]:
    """Round whole numbers within [low, high]: steps and iterations have no fractions."""
    step = max(1.0, round_step((high - low) / about)) if high > low else 1.0
    step = float(math.ceil(step))
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """The linear function that maps [low, high] to [start, end]; a single value goes to the middle."""
    if high == low:
        return lambda _: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def tick_label(values: Sequence[float]) -> Callable[[float], str]:
    """How to write these ticks: all with the same number of decimals."""
    step, largest = values[1] - values[0], max(map(abs, values))
    if largest >= 1e6 or step < 5e-4:
        return lambda value: number(float(f"{value:.3g}"))
    decimals = next(count for count in range(5) if abs(round(step, count) - step) < step * 1e-3)
    return lambda value: f"{value + 0.0:,.{decimals}f}"


def percentage(value: float) -> str:
    """82.8%"""
    return f"{100 * value:.3g}%"
