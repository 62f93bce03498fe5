from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from lmflow.distributed.processes import Group
from lmflow.errors import Interrupted
from lmflow.run.directory import RunDirectory
from lmflow.run.display import Silent
from lmflow.run.log import Journal


class Recorder(Silent):
    """A display that remembers what it was told to show."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.updates: list[Any] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, metrics: Any) -> None:
        self.updates.append(dict(metrics))


@pytest.fixture
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def journal(tmp_path, events):
    directory = RunDirectory(tmp_path / "run", resume=False, overwrite=False)
    yield Journal(directory, lambda event, **values: events.append((event, values)), Recorder())
    directory.close()


def test_a_step_is_written_shown_and_told_to_plugins(journal, events, tmp_path):
    journal.step({"step": 1, "loss": 0.5})
    journal.step({"step": 2, "loss": 0.25})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 0.25]
    assert events[-1] == ("lmflow_step_finished", {"step": 2, "metrics": {"step": 2, "loss": 0.25}})
    assert journal._display.updates[-1]["step"] == 2


def test_a_note_is_kept_and_shown_once(journal):
    journal.note("three samples were cut")
    journal.note("three samples were cut")
    assert journal.notes == journal._display.notes == ["three samples were cut"]


def test_phases_add_up_and_are_timed_even_when_they_fail(journal):
    with journal.phase("training"):
        pass
    first = journal.seconds["training"]
    with pytest.raises(RuntimeError), journal.phase("training"):
        raise RuntimeError
    assert journal.seconds["training"] > first >= 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_the_next_safe_place_stops(journal, number):
    before = signal.getsignal(number)
    with journal.listening():
        journal.check_stop()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted) as caught:
            journal.check_stop()
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once(journal):
    with journal.listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_torn_line_is_dropped_on_resume(journal, tmp_path):
    journal.step({"step": 1, "loss": 0.5})
    journal.step({"step": 2, "loss": 0.4})
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "lo')
    journal.forget_after(1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1]


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, lambda *_, **__: None)
    journal.step({"step": 1})
    journal.samples(1, [{"a": 1}])
    assert list(tmp_path.iterdir()) == []


class OneOfTwo(Group):
    """A process whose other one says `said` when they agree."""

    said = 0.0

    def max(self, value: float) -> float:
        return max(value, self.said)


def test_of_two_processes_none_stops_before_they_agreed():
    journal = Journal(None, lambda *_, **__: None, group=OneOfTwo(0, 2))
    with journal.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        journal.check_stop()
        assert journal.stop_signal is None
        with pytest.raises(Interrupted):
            journal.advance_or_stop()  # a share of sampling ends at once
        journal.step({"step": 1})
        with pytest.raises(Interrupted):
            journal.check_stop()


def test_a_process_stops_where_another_was_asked_to(monkeypatch):
    journal = Journal(None, lambda *_, **__: None, group=OneOfTwo(0, 2))
    journal.agree_or_stop()
    monkeypatch.setattr(OneOfTwo, "said", float(signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        journal.agree_or_stop()
    assert caught.value.signal_number == signal.SIGTERM
