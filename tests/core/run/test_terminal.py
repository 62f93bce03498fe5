"""What a run looks like while it goes on: live on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from lmflow.run import terminal as module
from lmflow.run.display import Silent
from lmflow.run.terminal import (
    CountingDisplay,
    LiveDisplay,
    PlainDisplay,
    describe_metrics,
    make_progress,
    make_run_display,
)

METRICS = {"step": 4, "iteration": 1, "loss": 0.123456, "reward_mean": 0.5, "tokens_per_second": 6021.5, "kl": 0.1}


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


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_a_step_is_said_again_after_some_seconds(clock: Clock):
    stream = io.StringIO()
    display = PlainDisplay(stream)
    for step in range(10):
        display.update({"step": step})
        clock.now += 2.0
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["0", "3", "6", "9"]


def test_an_iteration_is_always_said(clock: Clock):
    stream = io.StringIO()
    display = PlainDisplay(stream)
    for iteration in range(3):
        display.update({"step": iteration, "iteration": iteration})
    assert len(stream.getvalue().splitlines()) == 3


def test_counting_says_how_far_it_is_from_time_to_time(clock: Clock):
    stream = io.StringIO()
    display = CountingDisplay(stream)
    display.phase("loading model demo", None)
    display.advance()
    display.phase("answering", 1000)
    for _ in range(12):
        clock.now += 1.0
        display.advance(50)
    display.update({"step": 3})
    display.note("a note")
    assert stream.getvalue().splitlines() == [
        "loading model demo",
        "answering (0 of 1,000)",
        "answering (250 of 1,000)",
        "answering (500 of 1,000)",
        "a note",
    ]


@pytest.mark.parametrize("kind", [PlainDisplay, CountingDisplay])
def test_how_far_something_long_is_is_said_only_after_some_seconds(kind: Any, clock: Clock):
    stream = io.StringIO()
    display = kind(stream)
    for total in (3000, 20_000):
        for done in range(1000, total + 1, 1000):
            display.count("samples tokenised", done, total)
            clock.now += 1.0
    assert stream.getvalue().splitlines() == [
        f"{done:,} of 20,000 samples tokenised" for done in (6000, 11_000, 16_000)
    ]


def test_a_terminal_shows_how_far_something_long_is(terminal: Console):
    display = LiveDisplay(terminal)
    display.phase("tokenising and planning", None)
    display.count("samples tokenised", 2, 5)
    display._live.refresh()
    display.close()
    assert "samples tokenised" in terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "2/5" in terminal.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"loss": 0.5, "step": 1200}, ["step 1,200", "loss 0.500"]),
        ({"tokens_per_second": 99.5}, ["tokens/s 99.500"]),
        ({"eval_loss": 123.4}, ["held-out loss 123"]),
        ({"kl": 1.0, "loss": None, "reward_mean": "x"}, []),
    ],
)
def test_metrics_as_text(metrics: dict[str, Any], expected: list[str]):
    assert describe_metrics(metrics) == expected


class Stream(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        """As it was told."""
        return self.terminal


@pytest.mark.parametrize(
    ("terminal", "silent", "expected"),
    [
        (True, True, (Silent, Silent)),
        (True, False, (LiveDisplay, LiveDisplay)),
        (False, False, (PlainDisplay, CountingDisplay)),
        (False, True, (Silent, Silent)),
    ],
)
def test_the_display_goes_by_what_standard_error_is(
    terminal: bool, silent: bool, expected: tuple[type, type], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    made = make_run_display(silent=silent), make_progress(quiet=silent)
    for display, kind in zip(made, expected, strict=True):
        assert type(display) is kind
        display.close()
