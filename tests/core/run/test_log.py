from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from lmflow.distributed.processes import Processes
from lmflow.errors import Interrupted
from lmflow.run.directory import RunDirectory
from lmflow.run.display import Silent
from lmflow.run.log import RunLog


class Recorder(Silent):
    """A display that remembers what it was told to show."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.updates: list[Any] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, metrics: Any) -> None:
        self.updates.append(dict(metrics))

    def count(self, *counted: Any) -> None:
        self.notes.append(str(counted))


@pytest.fixture
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def log(tmp_path, events):
    directory = RunDirectory(tmp_path / "run", resume=False, overwrite=False)
    yield RunLog(directory, lambda event, **values: events.append((event, values)), Recorder())
    directory.close()


def test_a_step_is_written_shown_and_told_to_plugins(log, events, tmp_path):
    log.step({"step": 1, "loss": 0.5})
    log.step({"step": 2, "loss": 0.25})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 0.25]
    assert events[-1] == ("lmflow_step_finished", {"step": 2, "metrics": {"step": 2, "loss": 0.25}})
    assert log._display.updates[-1]["step"] == 2


def test_a_note_is_kept_and_shown_once(log):
    log.note("three samples were cut")
    log.note("three samples were cut")
    assert log.notes == log._display.notes == ["three samples were cut"]


def test_what_is_counted_is_shown_and_not_kept(log):
    log.count("samples tokenised", 1, 2)
    assert (log.notes, log._display.notes) == ([], ["('samples tokenised', 1, 2)"])


def test_phases_add_up_and_are_timed_even_when_they_fail(log):
    with log.phase("training"):
        pass
    first = log.seconds["training"]
    with pytest.raises(RuntimeError), log.phase("training"):
        raise RuntimeError
    assert log.seconds["training"] > first >= 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_and_the_next_safe_place_stops(log, number):
    outside = signal.signal(number, signal.default_int_handler)  # whatever these tests were started with, as by nohup
    before = signal.getsignal(number)
    with log.handle_signals():
        log.check_stop()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted) as caught:
            log.check_stop()
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is before
    signal.signal(number, outside)


def test_under_nohup_a_terminal_that_closes_stops_nothing(log):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with log.handle_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        log.check_stop()
    signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_has_gone_ends_no_run(tmp_path):
    class Gone(Recorder):
        def note(self, text: str) -> None:
            super().note(text)
            raise OSError(5, "Input/output error")

    display = Gone()
    log = RunLog(None, lambda *_, **__: None, display)
    log.note("one")
    log.note("two")
    assert display.notes == ["one"]
    assert log.notes == ["one", "two"]


def test_a_second_ctrl_c_stops_at_once(log):
    with log.handle_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_torn_line_is_dropped_on_resume(log, tmp_path):
    log.step({"step": 1, "loss": 0.5})
    log.step({"step": 2, "loss": 0.4})
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "lo')
    log.forget_after(1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1]


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = RunLog(None, lambda *_, **__: None)
    log.step({"step": 1})
    log.samples(1, [{"a": 1}])
    assert list(tmp_path.iterdir()) == []


class OneOfTwo(Processes):
    """A process whose other one says `said` when they agree."""

    said = 0.0

    def max(self, value: float) -> float:
        return max(value, self.said)


def test_of_two_processes_none_stops_before_they_agreed():
    log = RunLog(None, lambda *_, **__: None, processes=OneOfTwo(0, 2))
    with log.handle_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        log.check_stop()
        assert log.stop_signal is None
        with pytest.raises(Interrupted):
            log.advance_or_stop()  # a share of sampling ends at once
        log.step({"step": 1})
        with pytest.raises(Interrupted):
            log.check_stop()


def test_a_process_stops_where_another_was_asked_to(monkeypatch):
    log = RunLog(None, lambda *_, **__: None, processes=OneOfTwo(0, 2))
    log.sync_and_check_stop()
    monkeypatch.setattr(OneOfTwo, "said", float(signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        log.sync_and_check_stop()
    assert caught.value.signal_number == signal.SIGTERM
