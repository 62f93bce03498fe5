"""What follows a run on a terminal: the closing table, and what to do next."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lmflow.cli.display import result_lines, show_summary, summary_table

RECORD: dict[str, Any] = {
    "status": "completed",
    "result": "adapter",
    "wall_seconds": 92.4,
    "peak_memory_bytes": 935_000_000,
    "metrics": {
        "heldout_reward_before": 0.352,
        "heldout_reward_after": 0.648,
        "heldout_accuracy_before": 0.15,
        "heldout_accuracy_after": 0.83,
        "eval_loss_after": 1.0,
        "tokens_per_second": 6021.5,
    },
}


def printed(table: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return str(console.file.getvalue())


def test_the_closing_table_compares_before_and_after():
    text = printed(summary_table(RECORD))
    rows = {cells[0].strip(): [c.strip() for c in cells[1:]] for cells in (r.split("│") for r in text.splitlines())}
    assert rows["held-out mean reward"] == ["0.352", "0.648", "+0.296"]
    assert rows["greedy accuracy"] == ["15.0%", "83.0%", "+68.0 points"]
    assert rows["wall time"][1] == "1 min 32 s"
    assert rows["peak memory"][1] == "935 MB"
    assert "held-out loss" not in text  # only one of the pair is known


def test_what_an_aligner_compares_is_a_row_too():
    metrics = {"preference_margin_before": 0.0, "preference_margin_after": 1.25, "eval_loss_before": None}
    text = printed(summary_table({**RECORD, "metrics": metrics}))
    assert "preference margin" in text
    assert "+1.250" in text


def test_after_the_table_come_result_report_and_the_next_commands():
    lines = result_lines(RECORD, Path("runs/a"))
    assert "Result   runs/a/adapter" in lines
    assert "Report   runs/a/report.html" in lines
    assert "Next     lmflow export merge runs/a --output runs/a-merged" in lines


def test_of_stages_there_is_a_table_each_and_the_result_of_the_last(capsys: pytest.CaptureFixture[str]):
    stages = {"sft": RECORD, "rl": {**RECORD, "result": "stages/rl/adapter"}}
    whole = {"status": "completed", "wall_seconds": 184.8, "stages": stages, "result": "stages/rl/adapter"}
    show_summary(whole, Path("runs/a"))
    out = capsys.readouterr().out
    assert out.index("Stage sft completed") < out.index("Stage rl completed")
    assert "2 stages completed in 3 min 5 s" in out
    assert "Result   runs/a/stages/rl/adapter" in out
    assert "lmflow export merge runs/a --output runs/a-merged" in out
