"""Asking in a process of its own: what crashes, hangs or takes long there leaves the doctor standing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answers:
    """What a process said, by topic, and why it ended before its time ("" if it did not)."""

    said: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""
    late: bool = False
    """Whether it was ended because it took too long."""


def say(topic: str, value: Any) -> None:
    """Answer from within such a process; what is said before a crash is heard."""
    sys.stdout.write(json.dumps({"topic": topic, "value": value}) + "\n")
    sys.stdout.flush()


def ask(
    arguments: Sequence[str], environment: Mapping[str, str], question: Any = None, *, timeout: float = 120.0
) -> Answers:
    """Run `python ARGUMENTS` with `question` as JSON on standard input; `timeout` is in seconds.

    Python starts with -P, as the installed command does: nothing is imported from the working directory.
    """
    command = [sys.executable, "-P", *arguments]
    given = json.dumps(question).encode()
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, env=dict(environment), timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as late:
        return Answers(_said(late.stdout or b""), f"it took more than {timeout:.0f} s", late=True)
    return Answers(_said(done.stdout), _failure(done.returncode, done.stderr))


def _said(output: bytes) -> dict[str, Any]:
    """The answers among what a process printed; libraries print there too."""
    answers = {}
    for line in output.decode(errors="replace").splitlines():
        if line.startswith('{"topic": '):
            answer = json.loads(line)
            answers[answer["topic"]] = answer["value"]
    return answers


def _failure(code: int, errors: bytes) -> str:
    if code == 0:
        return ""
    if code < 0:
        return f"it crashed with {signal.Signals(-code).name}"
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else f"it ended with exit code {code}"
