"""The page about a run: what it says, and that no state of a run's directory breaks it."""

from __future__ import annotations

import itertools
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lmflow.report import write_report
from lmflow.report.answers import mark_difference
from lmflow.report.charts import bar_chart, line_chart, thin, ticks
from lmflow.report.evaluation import render_evaluation
from lmflow.report.sections import forgotten

RECORD: dict[str, Any] = {
    "status": "completed",
    "started": "2026-01-01T00:00:00+00:00",
    "seed": 0,
    "device": "cpu",
    "precision": "fp32",
    "wall_seconds": 14.2,
    "peak_memory_bytes": 935_000_000,
    "result": "adapter",
    "versions": {"python": "3.11.9", "torch": "2.15.0"},
    "data": {"path": "a.jsonl", "train": 512, "heldout": 64},
    "notes": ["3 samples were cut to 512 tokens"],
    "seconds": {"training": 4.0, "sampling": 6.0},
    "metrics": {
        "heldout_reward_before": 0.35,
        "heldout_reward_after": 0.65,
        "heldout_accuracy_before": 0.15,
        "heldout_accuracy_after": 0.83,
        "eval_loss_before": 0.28,
        "eval_loss_after": 0.11,
        "generic_loss_before": 3.654,
        "generic_loss_after": 3.662,
        "parameters": 1_000_000,
        "trainable_parameters": 80_000,
        "tokens": 7258,
        "tokens_per_second": 6021.5,
        "steps": 4,
    },
}
ITERATION = {
    "reward_mean": 0.4,
    "reward_kept_mean": 0.9,
    "heldout_reward": 0.5,
    "distinct_1": 0.05,
    "distinct_2": 0.1,
    "response_length": 4.6,
    "stopped_share": 1.0,
    "kl": 0.2,
    "seconds_sampling": 0.5,
    "seconds_scoring": 0.001,
    "seconds_training": 0.3,
}
RECIPE = "model:\n  name: demo\ntuner:\n  name: lora\naligner:\n  name: raft\ndata:\n  name: demo\n"
HOSTILE = '</script><script>alert("x")</script>&amp; ünï 😀'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a finished run of two iterations."""
    directory = tmp_path / "my-run"
    (directory / "samples").mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps(RECORD))
    (directory / "recipe.yaml").write_text(RECIPE)
    lines = [{"step": s, "loss": 1 / s, "learning_rate": 1e-3, "grad_norm": 1.0} for s in range(1, 5)]
    lines += [{"step": 2 * i, "iteration": i, **ITERATION, "plugin_metric": i * 0.5} for i in (1, 2)]
    write_lines(directory / "metrics.jsonl", lines)
    compared = {"prompt": HOSTILE, "before": "6 0 8", "after": "0 6 8", "expected": "0 6 8"}
    write_lines(directory / "comparison.jsonl", [{**compared, "reward_before": 0.0, "reward_after": 1.0}] * 12)
    row = {"prompt": "Sort: 3 1", "completion": "1 3", "reward": 1.0, "kept": True, "finish_reason": "eos", "tokens": 4}
    for iteration in (1, 2):
        write_lines(directory / "samples" / f"iteration-{iteration:04d}.jsonl", [row, {**row, "reward": 0.0}])
    return directory


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def page_of(directory: Path) -> str:
    text = write_report(directory).read_text(encoding="utf-8")
    check_balanced(text)
    return text


def check_balanced(page: str) -> None:
    """Every tag is closed in order, and nothing is fetched or run."""
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "link", "img", "iframe")
            assert not [name for name, value in attributes if name in ("src", "href") or name.startswith("on")]
            if tag not in ("meta", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

        def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            pass

    Checker().feed(page)
    assert open_tags == []
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_says_what_happened(run):
    page = page_of(run)
    for text in (
        "my-run",
        "lora with raft on model demo",
        "0.350 → 0.650",
        "15.0% → 83.0%",
        "+68.0 points",
        "14 s",
        "935 MB",
        "Mean reward",
        "Loss, nats per trained token",
        "Practically nothing was forgotten",
        "3 samples were cut to 512 tokens",
        "plugin_metric",
        "12 answers changed; by reward 12 are better, 0 worse, 0 as good as before",
        "lmflow export merge",
        "name: raft",
        "torch",
    ):
        assert text in page, text


def test_texts_from_models_and_data_are_escaped(run):
    page = page_of(run)
    assert "&lt;script&gt;alert" in page
    assert "😀" in page


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "comparison.jsonl", "recipe.yaml"])
@pytest.mark.parametrize(
    "content", [None, "", "{", "[1, 2]", "null\n\n3\n", '{"loss": "text", "step": null}\n', "\xff\x00"]
)
def test_a_missing_or_spoilt_file_leaves_a_page(run, name: str, content: str | None):
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content.encode("latin-1"))
    assert "my-run" in page_of(run)


def test_a_missing_record_is_said(run):
    (run / "run.json").unlink()
    assert "There is no run.json" in page_of(run)


def test_a_failed_run_shows_its_error_and_how_to_resume(run):
    (run / "run.json").write_text(json.dumps({**RECORD, "status": "failed", "error": "TrainingError: <nan>"}))
    page = page_of(run)
    assert "TrainingError: &lt;nan&gt;" in page
    assert "lmflow run --resume --output" in page


def test_numbers_that_are_not_finite_draw_no_point(run):
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": float("inf")}]
    write_lines(run / "metrics.jsonl", rows)
    assert ">nan<" not in page_of(run)


def test_an_empty_directory_still_has_a_page(tmp_path):
    assert "There is no run.json" in page_of(tmp_path)


def test_the_page_about_an_evaluation_holds_figures_and_plots(tmp_path):
    plot = tmp_path / "curve.svg"
    plot.write_text('<?xml version="1.0"?>\n<svg viewBox="0 0 2 2"><title>a curve</title></svg>')
    record = {
        "evaluator": {"name": "perplexity", "window": 64},
        "records": 3,
        "metrics": {"perplexity": 41.5},
        "inferencer_figures": {},
        "notes": ["<one> record was left out"],
        "seconds": 1.5,
        "versions": {"torch": "2.15.0"},
    }
    page = render_evaluation(record, [plot, tmp_path / "curve.png"])
    check_balanced(page)
    for text in ("perplexity", "41.5", "<title>a curve</title>", "&lt;one&gt; record", "window", "2.15.0"):
        assert text in page, text
    assert "<?xml" not in page
    assert "What the inferencer counted" not in page


def test_words_only_one_answer_has_are_marked():
    before, after = mark_difference("sort the 6 0 8", "sort the 0 6 8")
    assert "<del>" in before
    assert "<ins>" in after
    assert before.startswith("sort the")
    assert after.startswith("sort the")


def test_answers_without_a_common_word_are_not_marked():
    assert mark_difference("a <b>", "x y z w") == ("a &lt;b&gt;", "x y z w")


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (3.0, 3.001, "Practically nothing was forgotten"),
        (3.0, 2.8, "Nothing was forgotten"),
        (3.0, 3.05, "A little was forgotten"),
        (3.0, 3.3, "Some was forgotten"),
        (3.0, 4.0, "Much was forgotten"),
        (3.0, 900.0, "the model is broken"),
    ],
)
def test_what_was_forgotten_in_words(before: float, after: float, verdict: str):
    assert verdict in forgotten(before, after)


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
