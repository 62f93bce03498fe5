"""What to type after a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmflow.run_files import resume_command


def next_commands(record: Mapping[str, Any], directory: Path) -> list[str]:
    """Commands that continue from the run at `directory`, the most useful first."""
    run = shlex.quote(str(directory))
    if record.get("status") != "completed":
        return [resume_command(directory)]
    commands = []
    if Path(str(record.get("result"))).name == "adapter":
        commands.append(f"lmflow export merge {run} --output {shlex.quote(f'{directory}-merged')}")
    commands.append(f"lmflow run --model {run} --data.path YOUR.jsonl")
    commands.append(f"lmflow run {shlex.quote(str(directory / 'recipe.yaml'))} --training.seed 1")
    return commands
