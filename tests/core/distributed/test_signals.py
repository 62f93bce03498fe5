"""Signals: who handles them, which of them ask to stop, and what processes forked meanwhile do with them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from lmflow.distributed.signals import STOPPING, default_handlers, handling, stopping_signals


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in STOPPING]
    heard: list[int] = []
    with handling(lambda number, _: heard.append(number), *STOPPING):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGHUP, signal.SIGTERM]
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_a_terminal_that_closes_is_heard_of_unless_that_is_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert stopping_signals() == list(STOPPING)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert stopping_signals() == [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_forked_process_ends_when_it_is_told_to(number: int):
    with handling(lambda *_: os._exit(3), number):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(4)
        os.kill(child, number)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == number


def test_ctrl_c_is_python_s_own_in_a_forked_process():
    with handling(lambda *_: None, signal.SIGINT):
        child = os.fork()
        if child == 0:
            os._exit(0 if signal.getsignal(signal.SIGINT) == signal.default_int_handler else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_the_usual_handlers():
    default_handlers(*STOPPING)
    assert [signal.getsignal(number) for number in STOPPING] == [
        signal.default_int_handler,
        signal.SIG_DFL,
        signal.SIG_DFL,
    ]
