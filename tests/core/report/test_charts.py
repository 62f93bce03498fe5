"""Charts: what is drawn is what was measured, within the frame, whatever the data."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest

from lmflow.report.charts import (
    bar_chart,
    line_chart,
    percentage,
    round_step,
    scale,
    thin,
    tick_label,
    ticks,
    whole_ticks,
)


def svg_of(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + 6])


def test_a_line_chart_draws_its_points_within_its_frame():
    svg = svg_of(line_chart("T", {"a": [(0, 1.0), (5, 3.0), (10, 2.0)]}, "step"))
    [line] = svg.iter("polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1][1] < points[2][1] < points[0][1]  # up is smaller


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)], [(3.0, 1e-30), (4.0, 1e30)]])
def test_a_chart_of_little_or_extreme_data(points: list[tuple[float, float]]):
    figure = line_chart("T", {"a": points}, "step")
    assert (figure == "") == (points == [])
    if points:
        svg_of(figure)


def test_bars_are_as_high_as_their_values():
    svg = svg_of(bar_chart("T", ["1", "2"], {"a": [1.0, 2.0]}, "x", stacked=False))
    low, high = (float(bar.attrib["height"]) for bar in svg.iter("rect"))
    assert high == pytest.approx(2 * low, abs=0.2)


def test_thinning_keeps_mean_and_range():
    points = [(float(at), float(at % 10)) for at in range(10_000)]
    thinned = thin(points)
    assert len(thinned) <= 240
    assert min(low for _, _, low, _ in thinned) == 0
    assert max(high for _, _, _, high in thinned) == 9
    assert sum(mean for _, mean, _, _ in thinned) / len(thinned) == pytest.approx(4.5, abs=0.1)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3.2, 3.9), (-5.0, 12.0), (1e-6, 2e-6), (7.0, 7.0)])
def test_ticks_enclose_the_data_in_even_steps(low: float, high: float):
    found = ticks(low, high, 5)
    assert found[0] <= low
    assert found[-1] >= high
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert max(steps) == pytest.approx(min(steps))
    assert 2 <= len(found) <= 8


def test_without_a_value_above_zero_there_are_no_bars():
    assert bar_chart("T", [], {"a": []}, "x", stacked=False) == ""
    assert bar_chart("T", ["1"], {"a": [0.0]}, "x", stacked=False) == ""
    assert line_chart("T", {}, "step") == ""


def test_stacked_bars_stand_on_one_another():
    svg = svg_of(bar_chart("T", ["1"], {"a": [1.0], "b": [3.0]}, "x", stacked=True, unit="s"))
    first, second = (bar.attrib for bar in svg.iter("rect"))
    assert float(second["y"]) + float(second["height"]) == pytest.approx(float(first["y"]), abs=0.15)
    assert float(second["height"]) == pytest.approx(3 * float(first["height"]), abs=0.3)
    assert first["x"] == second["x"]


def test_bars_side_by_side_do_not_overlap():
    svg = svg_of(bar_chart("T", ["1", "2"], {"a": [1.0, 2.0], "b": [3.0, 1.0]}, "x", stacked=False))
    bars = sorted((float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in svg.iter("rect"))
    assert len(bars) == 4
    assert all(x + width <= following + 0.11 for (x, width), (following, _) in itertools.pairwise(bars))


def test_every_chart_says_in_words_and_in_a_table_what_it_draws():
    figure = line_chart("Loss & more", {"a<b": [(1, 3.0), (2, 1.0), (3, 2.0)]}, "step")
    assert "<title>Loss &amp; more</title>" in figure
    assert "a&lt;b over 1 to 3: from 3 to 2, lowest 1, highest 3" in figure
    table = ElementTree.fromstring(figure[figure.index("<table>") : figure.index("</table>") + 8])
    assert [[cell.text for cell in row] for row in table.iter("tr")] == [
        ["step", "a<b"],
        ["1", "3"],
        ["2", "1"],
        ["3", "2"],
    ]


def test_a_long_table_is_spread_evenly_and_ends_with_the_last_value():
    figure = line_chart("T", {"a": [(float(at), 1.0 + at) for at in range(200)]}, "step")
    table = ElementTree.fromstring(figure[figure.index("<table>") : figure.index("</table>") + 8])
    rows = [[cell.text for cell in row] for row in table.iter("tr")][1:]
    assert len(rows) == 40
    assert (rows[0], rows[-1]) == (["0", "1"], ["199", "200"])


def test_shares_are_drawn_on_an_axis_from_none_to_all():
    figure = line_chart("T", {"a": [(1, 0.4), (2, 0.6)]}, "step", percent=True)
    texts = [each.text for each in svg_of(figure).iter("text")]
    assert {"0%", "100%"} <= set(texts)
    assert "40% → 60%" in figure


def test_an_axis_from_zero_and_one_that_is_not():
    points = {"a": [(1.0, 100.0), (2.0, 101.0)]}
    lowest = [
        min(
            float(t.text.replace(",", ""))
            for t in svg_of(line_chart("T", points, "", from_zero=zero)).iter("text")
            if t.attrib["text-anchor"] == "end" and t.text
        )
        for zero in (True, False)
    ]
    assert lowest == [0.0, 100.0]


def test_where_points_are_thinned_their_range_is_shaded():
    wild = [(float(at), float(at % 2)) for at in range(1000)]
    svg = svg_of(line_chart("T", {"a": wild}, "step"))
    [band] = svg.iter("polygon")
    heights = [float(pair.split(",")[1]) for pair in band.attrib["points"].split()]
    assert max(heights) - min(heights) > 100, "the spikes are seen, though the mean line is flat"
    assert not list(svg.iter("circle")), "so many points have no dots"
    assert len(list(svg_of(line_chart("T", {"a": wild[:9]}, "step")).iter("circle"))) == 9


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 10, [0, 5, 10]), (3, 4, [3, 4]), (7, 7, [7]), (1, 1000, [500, 1000])]
)
def test_steps_have_whole_ticks_within_their_range(low: float, high: float, expected: list[float]):
    assert whole_ticks(low, high, 2) == expected


@pytest.mark.parametrize(
    ("rough", "expected"), [(1, 1), (1.2, 2), (2.2, 2.5), (3, 5), (6, 10), (0.03, 0.05), (4000, 5000)]
)
def test_round_steps(rough: float, expected: float):
    assert round_step(rough) == pytest.approx(expected)


def test_a_scale_is_linear_and_puts_a_single_value_in_the_middle():
    across = scale(2.0, 6.0, 100.0, 300.0)
    assert [across(2.0), across(4.0), across(6.0)] == [100.0, 200.0, 300.0]
    assert scale(5.0, 5.0, 100.0, 300.0)(5.0) == 200.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 0.5], ["0.00", "0.25", "0.50"]),
        ([-1.0, 0.0, 1.0], ["-1", "0", "1"]),
        ([0.0, 1000.0, 2000.0], ["0", "1,000", "2,000"]),
        ([0.0, 0.0001, 0.0002], ["0", "1e-4", "2e-4"]),
    ],
)
def test_ticks_are_written_with_as_many_decimals_as_they_need(values: list[float], expected: list[str]):
    label = tick_label(values)
    assert [label(value) for value in values] == expected


@pytest.mark.parametrize(("value", "expected"), [(0.828, "82.8%"), (1.0, "100%"), (0.0, "0%"), (0.12345, "12.3%")])
def test_percentages(value: float, expected: str):
    assert percentage(value) == expected
