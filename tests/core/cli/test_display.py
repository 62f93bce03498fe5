"""What a run looks like: live on a terminal, plain elsewhere, and the closing table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lmflow.cli.display import result_lines, summary_table
from lmflow.run.terminal import LiveDisplay, PlainDisplay, describe_metrics

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
METRICS = {"step": 4, "iteration": 1, "loss": 0.123456, "reward_mean": 0.5, "tokens_per_second": 6021.5, "kl": 0.1}


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


def test_metrics_worth_showing_are_named_for_people():
    assert describe_metrics(METRICS) == ["step 4", "iteration 1", "loss 0.123", "reward 0.500", "tokens/s 6,022"]


def test_lines_for_files_and_pipes_hold_no_control_characters():
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.phase("loading model demo", None)
    for _ in range(3):
        display.phase("training", 4)
    display.update(METRICS)
    display.note("3 samples were cut")
    assert stream.getvalue().splitlines() == [
        "loading model demo",
        "training",
        "step 4  iteration 1  loss 0.123  reward 0.500  tokens/s 6,022",
        "3 samples were cut",
    ]


def test_steps_between_iterations_are_said_from_time_to_time():
    stream = io.StringIO()
    display = PlainDisplay(stream)
    for step in range(100):
        display.update({"step": step, "loss": 1.0})
    assert len(stream.getvalue().splitlines()) == 1


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def test_a_terminal_shows_progress_metrics_and_time_left(terminal):
    display = LiveDisplay(terminal)
    display.plan(4, "iterations")
    display.phase("training", 8)
    display.advance(4)
    display.advance_plan(1)
    display.update(METRICS)
    display.note("a note")
    display._live.refresh()
    display.close()
    shown = terminal.file.getvalue()
    for text in ("whole run (iterations)", "1/4", "training", "4/8", "loss 0.123", "tokens/s 6,022", "a note"):
        assert text in shown, text
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown  # the cursor is back
