"""The page about several stages: what each has come to, and the way to its own."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lmflow.report import write_report

DONE = {
    "status": "completed",
    "directory": "stages/sft",
    "result": "stages/sft/adapter",
    "wall_seconds": 92.4,
    "peak_memory_bytes": 935_000_000,
    "metrics": {"eval_loss_before": 2.0, "eval_loss_after": 1.25, "heldout_accuracy_before": 0.5},
}
PENDING = {"status": "pending", "result": None, "wall_seconds": 0.0, "peak_memory_bytes": 0, "metrics": {}}


def page_of(place: Path, **changes: Any) -> str:
    record = {
        "status": "failed",
        "error": "LmflowError: stage rl: <none>",
        "wall_seconds": 92.4,
        "stages": {"sft": DONE, "rl": {**PENDING, "status": "failed"}, "last": PENDING},
        **changes,
    }
    (place / "run.json").write_text(json.dumps(record))
    (place / "recipe.yaml").write_text("stages: {sft: {}}\n")
    return write_report(place).read_text(encoding="utf-8")


def test_it_says_of_each_stage_where_it_stands(tmp_path: Path):
    page = page_of(tmp_path)
    for text in ("1 of 3 completed", "sft: completed", "rl: failed", "last: pending", "2.000 → 1.250", "935 MB"):
        assert text in page, text
    assert "greedy accuracy" not in page, "only one of the pair is known"
    assert "stage rl: &lt;none&gt;" in page
    assert f"lmflow run --resume --output {tmp_path}" in page
    assert "stages: {sft: {}}" in page


def test_stages_that_have_begun_have_pages_of_their_own(tmp_path: Path):
    links: list[str | None] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "link", "img", "iframe")
            links.extend(value for name, value in attributes if name == "href")

    Links().feed(page_of(tmp_path))
    assert links == ["stages/sft/report.html", "stages/rl/report.html"]


@pytest.mark.parametrize("stage", [{}, {"status": 3}, {"metrics": None, "wall_seconds": "x"}])
def test_a_spoilt_record_leaves_a_page(tmp_path: Path, stage: dict[str, Any]):
    assert "sft" in page_of(tmp_path, stages={"sft": stage}, wall_seconds=None)
