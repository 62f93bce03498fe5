"""Heatmaps and curves of what the evaluators found: SVG by ourselves, PNG by matplotlib where it is installed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmflow.atomic import write_atomically

Rows = Sequence[Mapping[str, Any]]
CELL_WIDTH, CELL_HEIGHT, LEFT, TOP, BOTTOM = 72, 34, 64, 28, 40
WIDTH, HEIGHT = 480, 280
FONT = 'font-family="sans-serif" font-size="12" fill="#333"'


def draw_heatmap(rows: Rows, directory: Path) -> list[Path]:
    """Write passkey.svg, and passkey.png with matplotlib: accuracy by depth (down) and length (across)."""
    directory.mkdir(parents=True, exist_ok=True)
    lengths = sorted({row["length"] for row in rows})
    depths = sorted({row["depth"] for row in rows})
    accuracy = {(row["length"], row["depth"]): float(row["accuracy"]) for row in rows}
    plot = directory / "passkey.svg"
    write_atomically(plot, heatmap_svg(lengths, depths, accuracy))
    if find_spec("matplotlib") is None:
        return [plot]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + len(lengths), 1.5 + 0.5 * len(depths)), layout="constrained")
    axes = figure.add_subplot()
    grid = [[accuracy[length, depth] for length in lengths] for depth in depths]
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set(xlabel="length, tokens", ylabel="depth", title="pass keys found")
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            axes.text(x, y, f"{value:.0%}", ha="center", va="center")
    figure.colorbar(image)
    figure.savefig(directory / "passkey.png", dpi=150)
    return [plot, directory / "passkey.png"]


def draw_curve(rows: Rows, directory: Path) -> list[Path]:
    """Write perplexity-by-length.svg, and the same as .png with matplotlib."""
    directory.mkdir(parents=True, exist_ok=True)
    points = sorted((int(row["length"]), float(row["perplexity"])) for row in rows)
    plot = directory / "perplexity-by-length.svg"
    write_atomically(plot, curve_svg(points))
    if find_spec("matplotlib") is None:
        return [plot]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([x for x, _ in points], [y for _, y in points], marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks([x for x, _ in points], [f"{x:,}" for x, _ in points])
    axes.set(xlabel="length, tokens", ylabel="perplexity", title="perplexity by length")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.savefig(directory / "perplexity-by-length.png", dpi=150)
    return [plot, directory / "perplexity-by-length.png"]


def heatmap_svg(lengths: Sequence[int], depths: Sequence[float], accuracy: Mapping[tuple[int, float], float]) -> str:
    """One cell for each length and depth, from red (0) to green (1), with the share written in it."""
    width, height = LEFT + CELL_WIDTH * len(lengths) + 10, TOP + CELL_HEIGHT * len(depths) + BOTTOM
    parts = [text(width / 2, 16, "pass keys found")]
    for y, depth in enumerate(depths):
        middle = TOP + CELL_HEIGHT * (y + 0.5)
        parts.append(text(LEFT - 8, middle + 4, f"{depth:.0%}", "end"))
        for x, length in enumerate(lengths):
            value = accuracy[length, depth]
            left = LEFT + CELL_WIDTH * x
            told = f"{length:,} tokens, depth {depth:.0%}: {value:.0%}"
            parts.append(
                f'<rect x="{left}" y="{TOP + CELL_HEIGHT * y}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" '
                f'fill="hsl({120 * value:.0f} 60% 72%)"><title>{told}</title>'
                "</rect>"
            )
            parts.append(text(left + CELL_WIDTH / 2, middle + 4, f"{value:.0%}"))
    bottom = TOP + CELL_HEIGHT * len(depths)
    parts += [text(LEFT + CELL_WIDTH * (x + 0.5), bottom + 16, f"{each:,}") for x, each in enumerate(lengths)]
    parts.append(text(width / 2, bottom + 34, "length in tokens; depth of the number on the left"))
    return svg(width, height, parts, "Share of pass keys found by depth and length")


def curve_svg(points: Sequence[tuple[int, float]]) -> str:
    """A line of perplexity over length, the lengths on a logarithmic axis."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    xs = [math.log2(x) for x, _ in points]
    low, high = 0.0, max((y for _, y in finite), default=1.0) * 1.1
    left, right, top, bottom = 60, WIDTH - 20, 30, HEIGHT - 45
    span = max(xs) - min(xs) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (math.log2(x) - min(xs)) / span * (right - left), bottom - (y - low) / (high - low) * (
            bottom - top
        )

    parts = [text(WIDTH / 2, 16, "perplexity by length")]
    for step in range(5):
        value = low + (high - low) * step / 4
        _, y = place(points[0][0], value)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(text(left - 6, y + 4, f"{value:.3g}", "end"))
    placed = [place(x, y) for x, y in finite]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts.append(f'<polyline points="{path}" fill="none" stroke="#2a6fbb" stroke-width="2"/>')
    for (x, y), (length, value) in zip(placed, finite):
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#2a6fbb">'
            f"<title>{length:,} tokens: {value:.4g}</title></circle>"
        )
    parts += [text(place(length, low)[0], bottom + 18, f"{length:,}") for length, _ in points]
    parts.append(text(WIDTH / 2, HEIGHT - 8, "length in tokens"))
    return svg(WIDTH, HEIGHT, parts, "Perplexity by length in tokens")


def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    """One label."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {FONT}>{escape(words)}</text>'


def svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    """A plot that stands alone in a file and can be put into a page as it is."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>\n'
    )
