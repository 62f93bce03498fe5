"""The page about a run of several stages: what each has come to, and where its own page is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from html import escape

from lmflow.formatting import duration, size
from lmflow.report.answers import clip
from lmflow.report.content import Content, finite
from lmflow.report.next_steps import next_commands
from lmflow.report.page import wrap_page
from lmflow.report.sections import STATUS_TEXT, folded, section, tile
from lmflow.run_files import REPORT, STAGES

PENDING = "This stage has not begun."
COMPARED = (
    ("held-out mean reward", "heldout_reward", 1, ""),
    ("greedy accuracy", "heldout_accuracy", 100, "%"),
    ("held-out loss", "eval_loss", 1, ""),
)
"""What is shown of a stage: label, metric, factor, unit."""


def render_stages(content: Content) -> str:
    """The whole page, made from the run.json of all stages."""
    stages = {name: replace(content, record=each) for name, each in content.part("stages").items()}
    steps = "".join(
        f"<li><code>{escape(each)}</code></li>" for each in next_commands(content.record, content.directory)
    )
    parts = [headline(content, stages), *(stage_section(name, each) for name, each in stages.items())]
    parts.append(section("Next", f'<ul class="commands">{steps}</ul>'))
    parts.append(section("Recipe", folded("The whole recipe", f"<pre>{escape(content.recipe)}</pre>")))
    return wrap_page(f"{content.name} · lmflow run", "\n".join(parts))


def headline(content: Content, stages: dict[str, Content]) -> str:
    """Status, how many stages there are, what went wrong, and what all took."""
    status, error = content.status, content.record.get("error")
    done = sum(each.status == "completed" for each in stages.values())
    trouble = f'<pre class="error">{escape(clip(str(error)))}</pre>' if error else ""
    figures = tile("stages", f"{done} of {len(stages)} completed")
    if (wall := finite(content.record.get("wall_seconds"))) is not None:
        figures += tile("wall time", duration(wall))
    return (
        f'<header><p class="status {escape(status)}">{escape(status)}</p><h1>{escape(content.name)}</h1>'
        f'<p class="lead">A run of its own for each stage: {escape(", ".join(stages))}.</p>'
        f'{notice(STATUS_TEXT.get(status, ""))}{trouble}</header><div class="tiles">{figures}</div>'
    )


def stage_section(name: str, stage: Content) -> str:
    """What a stage has come to, and the way to its own page."""
    if stage.status == "pending":
        return section(f"{name}: pending", notice(PENDING))
    link = f'<p><a href="{STAGES}/{escape(name)}/{REPORT}">The report of {escape(name)}</a></p>'
    figures = f'<div class="tiles">{"".join(tiles(stage))}</div>'
    return section(f"{name}: {stage.status}", notice(STATUS_TEXT.get(stage.status, "")) + figures + link)


def notice(text: str) -> str:
    """A remark, nothing if it is empty."""
    return f'<p class="notice">{escape(text)}</p>' if text else ""


def tiles(stage: Content) -> Iterator[str]:
    """A stage's large figures: what it compared, time and memory."""
    for label, name, factor, unit in COMPARED:
        if pair := stage.pair(name):
            digits = 1 if unit else 3
            yield tile(label, " → ".join(f"{factor * value:.{digits}f}{unit}" for value in pair))
    if wall := finite(stage.record.get("wall_seconds")):
        yield tile("wall time", duration(wall))
    if memory := finite(stage.record.get("peak_memory_bytes")):
        yield tile("peak memory", size(memory))
