"""How a run of several processes ended, told once, from how each of them ended."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lmflow.atomic import write_atomically
from lmflow.distributed.worker import Report
from lmflow.report import write_report
from lmflow.run_files import CHECKPOINTS, LOCK, RECORD, read_record, resume_command, to_json

SHOWN = 5
"""Lines of a crashed process that are shown."""


@dataclass(frozen=True)
class ExitStatus:
    """How one process ended: `code` is its exit code, or minus the signal that ended it."""

    rank: int
    pid: int
    code: int
    at: float
    killed: bool = False
    """Whether the launcher ended it, because of another."""
    report: Report | None = None
    stderr: Sequence[str] = ()
    """What it wrote to standard error."""

    @property
    def kind(self) -> str:
        """What it says of its end; "crashed" where it could say nothing."""
        if self.report is not None:
            return self.report.kind
        return "completed" if self.code == 0 else "killed" if self.killed else "crashed"


@dataclass(frozen=True)
class Outcome:
    """The exit code of the command, and the lines it ends with on standard error."""

    code: int
    lines: Sequence[str] = ()
    asked: int | None = field(default=None, compare=False)
    """A signal that the user sent, be it when all was done."""


def summarize(ended: Sequence[ExitStatus], size: int, output: Path, asked: int | None) -> Outcome:
    """How the run of `size` processes ended; `ended` are those of this machine, `asked` a signal that the user sent.

    Where rank 0 could not write what became of the run, or knew less, run.json and the report are completed.
    """
    if (ended[0].kind == "completed" and ended[0].rank == 0) or all(each.kind == "completed" for each in ended):
        return Outcome(0, asked=asked)
    # A process that is asked to stop before it listens to signals has no words for it.
    failures = [each for each in ended if each.kind == "error" or (each.kind == "crashed" and not asked)]
    stopped = asked or next((each.report.code - 128 for each in ended if each.report and each.kind == "interrupted"), 0)
    if stopped and not failures:
        return _interrupted(ended, stopped, output)
    first = min(failures or [each for each in ended if each.kind != "completed"], key=lambda each: each.at)
    return _failed(first, ended, size, output)


def _interrupted(ended: Sequence[ExitStatus], number: int, output: Path) -> Outcome:
    written = _complete_record(ended, output, "interrupted", None)
    words = next((each.report.lines for each in ended if each.report and each.kind == "interrupted"), None)
    if words is None:
        words = [f"Stopped. {_how_to_go_on(output)}" if written else "Stopped before the run began."]
    return Outcome(128 + number, words)


def _failed(first: ExitStatus, ended: Sequence[ExitStatus], size: int, output: Path) -> Outcome:
    own_words = first.report.lines if first.report else []
    alike = [each for each in ended if each.report and each.report.lines == own_words]
    if first.kind == "error" and (len(alike) == len(ended) or alike[0].rank == 0):
        return Outcome(first.report.code if first.report else 1, own_words)  # the run would fail in one process too
    who = f"process {first.rank} of {size}"
    if first.kind == "error":
        lines = [f"error: {who}: {own_words[0].removeprefix('error: ')}", *own_words[1:]]
    elif first.kind == "crashed":
        lines = [f"error: {who} {_fate(first.code)}", *(f"  {line}" for line in first.stderr[-SHOWN:])]
    else:
        lines = [f"error: {who} has lost the others: {' '.join(own_words).removeprefix('error: ')[:300]}"]
    if _complete_record(ended, output, "failed", lines[0].removeprefix("error: ")):
        lines.append(f"error: all processes are stopped. {_how_to_go_on(output)}")
    return Outcome(first.report.code if first.report else 1, lines)


def _fate(code: int) -> str:
    """What became of a process, from its exit code."""
    if code >= 0:
        return f"ended with exit code {code}, without a word of why"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
    hint = "; the system does that to the largest process where memory runs out" if -code == signal.SIGKILL else ""
    return f"was killed by signal {-code} ({name}){hint}"


def _how_to_go_on(output: Path) -> str:
    steps = [int(path.name.rpartition("-")[2]) for path in (output / CHECKPOINTS).glob("step-*[0-9]")]
    kept = f"The last checkpoint is that of step {max(steps)}" if steps else "There is no checkpoint yet"
    return f"{kept}. Continue with: {resume_command(output)}"


def _complete_record(ended: Sequence[ExitStatus], output: Path, status: str, error: str | None) -> bool:
    """Write into run.json how the run ended, where rank 0 could not; returns whether the run had begun."""
    main = next((each for each in ended if each.rank == 0), None)
    if main is None or not _was_opened_by(output, main.pid):
        return False
    record = read_record(output)
    if not record:
        return False
    if record.get("status") == "completed":  # and resumed, but it did not come so far that anything was changed
        return True
    if (record.get("status"), record.get("error")) != (status, error):
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        record |= {"status": status, "error": error, "finished": finished}
        write_atomically(output / RECORD, to_json(record, indent=2) + "\n")
        write_report(output)
    return True


def _was_opened_by(output: Path, process: int) -> bool:
    """Whether the run's directory was last used by that process: another's run is none of ours."""
    try:
        return (output / LOCK).read_text().strip() == str(process)
    except OSError:
        return False
