"""The command line within the test's own process, which saves loading torch for every call."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Called:
    """What a call of the command left."""

    code: int
    out: str
    err: str


class Terminal(io.TextIOWrapper):
    """Says that a person types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def lmflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    """Calls the command with arguments and, as `stdin`, what is piped into it; None is a terminal."""

    def call(*arguments: object, stdin: str | bytes | None = "") -> Called:
        from lmflow.cli import main

        piped = stdin.encode() if isinstance(stdin, str) else stdin or b""
        kind = Terminal if stdin is None else io.TextIOWrapper
        monkeypatch.setattr(sys, "stdin", kind(io.BytesIO(piped), encoding="utf-8"))
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert {number: signal.getsignal(number) for number in handlers} == handlers
        printed = capsys.readouterr()
        return Called(stop.value.code if isinstance(stop.value.code, int) else 0, printed.out, printed.err)

    return call
