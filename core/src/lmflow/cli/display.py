"""The closing table of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmflow.formatting import change, duration, size
from lmflow.report.next_steps import next_commands
from lmflow.run_files import REPORT
from lmflow.terminal import make_console, printable

if TYPE_CHECKING:
    from rich.table import Table

COMPARED = (
    ("held-out mean reward", "heldout_reward", 3, ""),
    ("held-out greedy reward", "heldout_greedy_reward", 3, ""),
    ("greedy accuracy", "heldout_accuracy", 1, "%"),
    ("held-out loss", "eval_loss", 3, ""),
    ("loss on generic text", "generic_loss", 3, ""),
)
"""Rows of the closing table: label, metric, decimals, unit."""


def show_summary(record: Mapping[str, Any], directory: Path) -> None:
    """Print the closing table on standard output."""
    console = make_console(soft_wrap=False)
    for name, stage in record.get("stages", {}).items():
        console.print(summary_table(stage, f"Stage {name}"))
        console.print()
    if "stages" in record:
        console.print(f"{len(record['stages'])} stages {record['status']} in {duration(record['wall_seconds'])}")
    else:
        console.print(summary_table(record))
    for line in result_lines(record, directory):
        console.print(printable(line), soft_wrap=True, highlight=False)


def summary_table(record: Mapping[str, Any], title: str = "Run") -> Table:
    """What changed, before and after, and what it cost; metrics the run does not have are left out."""
    from rich.table import Table

    metrics = record["metrics"]
    table = Table(title=printable(f"{title} {record['status']}"), title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for label, name, decimals, unit in (*COMPARED, *further(metrics)):
        before, after = metrics.get(f"{name}_before"), metrics.get(f"{name}_after")
        if name == "heldout_greedy_reward" and "heldout_accuracy_after" in metrics:
            continue  # the accuracy says it already
        if before is not None and after is not None:
            scale = 100 if unit == "%" else 1
            values = [f"{scale * value:.{decimals}f}{unit}" for value in (before, after)]
            difference = change(scale * before, scale * after, decimals)
            table.add_row(printable(label), *values, f"{difference}{unit.replace('%', ' points')}")
    table.add_section()
    table.add_row("wall time", "", duration(record["wall_seconds"]), "")
    table.add_row("peak memory", "", size(record["peak_memory_bytes"]), "")
    if metrics.get("tokens_per_second"):
        table.add_row("training speed", "", f"{metrics['tokens_per_second']:,.0f} tokens/s", "")
    return table


def further(metrics: Mapping[str, Any]) -> Sequence[tuple[str, str, int, str]]:
    """Rows for what an aligner compares itself: each metric it has with `_before` and `_after`."""
    known = {name for _, name, _, _ in COMPARED}
    names = [name.removesuffix("_before") for name in metrics if name.endswith("_before")]
    return [(name.replace("_", " "), name, 3, "") for name in names if name not in known]


def result_lines(record: Mapping[str, Any], directory: Path) -> Sequence[str]:
    """Where the results are, and what to type next."""
    return [
        "",
        f"Result   {directory / record.get('result', '')}",
        f"Report   {directory / REPORT}",
        *(f"{'Next' if index == 0 else '':<9}{step}" for index, step in enumerate(next_commands(record, directory))),
    ]
