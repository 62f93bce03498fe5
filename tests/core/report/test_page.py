"""The page about a run: what it says, and that no state of a run's directory breaks it."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmflow.report import write_report
from lmflow.report.evaluation import render_evaluation


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


def test_a_failed_run_shows_its_error_and_how_to_resume(run, record):
    (run / "run.json").write_text(json.dumps({**record, "status": "failed", "error": "TrainingError: <nan>"}))
    page = page_of(run)
    assert "TrainingError: &lt;nan&gt;" in page
    assert "lmflow run --resume --output" in page


def test_numbers_that_are_not_finite_draw_no_point(run, write_lines: Callable[..., None]):
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
