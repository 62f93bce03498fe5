"""Chat templates that loop or write without end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lmflow.data import template_limits
from lmflow.data.rendering import renderings
from lmflow.data.sample import Message, Sample
from lmflow.data.template_limits import TemplateLimitError, check_length, limited_time
from lmflow.data.template_traits import traits_of
from lmflow.errors import DataError

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
Q, A = Message("user", "q"), Message("assistant", "a")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.1)


def test_a_loop_ends_and_leaves_no_timer():
    with pytest.raises(TemplateLimitError, match="more than 0 seconds of a processor"), limited_time():
        all(iter(lambda: True, False))
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL
    with limited_time():
        pass


def test_what_other_threads_compute_is_not_counted():
    done = threading.Event()

    def compute() -> None:
        while not done.is_set():
            sum(range(1000))

    other = threading.Thread(target=compute)
    other.start()
    with limited_time():
        done.wait(0.5)
    done.set()
    other.join()


def test_in_another_thread_nothing_is_bounded_and_nothing_fails():
    found: list[int] = []

    def render() -> None:
        with limited_time():
            found.append(1)

    other = threading.Thread(target=render)
    other.start()
    other.join()
    assert found == [1]


def test_a_template_that_always_loops_is_refused_once(make_tokenizer: Callable[..., Any]):
    with pytest.raises(DataError, match=r"^The chat template cannot be used: it takes more than .*--data\.template\.$"):
        traits_of(make_tokenizer(chat_template=TURNS + LOOP))


@pytest.mark.parametrize(
    ("extra", "reason"),
    [(LOOP, "it takes more than"), ("{% for i in range(99999) %}{{ 'x' * 300 }}{% endfor %}", "it writes 29,999,7")],
)
def test_a_dialogue_that_a_template_does_not_end_with_is_named(
    extra: str, reason: str, make_tokenizer: Callable[..., Any]
):
    template = TURNS + "{% if messages[0].content == 'big' %}" + extra + "{% endif %}"
    tokenizer = make_tokenizer(chat_template=template)
    with pytest.raises(DataError, match=f"^f:3: the model's chat template cannot write this dialogue .*: {reason}"):
        renderings(tokenizer, Sample((Message("user", "big"), A), source="f:3"))
    assert renderings(tokenizer, Sample((Q, A), source="f:3"))


def test_what_is_said_may_be_long():
    long = Message("user", "数据" * 1_000_000)
    check_length(long.content * 3, [long], [])
    with pytest.raises(TemplateLimitError):
        check_length("x" * 1_000_500, [Q], [])
