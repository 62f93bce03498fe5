"""Engines: what is refused, what a completion may have, and the engine over `generate` alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lmflow.components import Engine, GenerateRequest, Inferencer, Update
from lmflow.components.engine import PROMPTS_AT_A_TIME, GenerateEngine, completion_budget, whole
from lmflow.data.sample import Prompt
from lmflow.errors import DataError, LmflowError
from lmflow.inference.types import Completion, Sampling


class Echo(Inferencer):
    """Answers each prompt with its own tokens, `n` times."""

    name = "echo"

    def generate(self, request: GenerateRequest) -> list[list[Completion]]:
        asked.append([(list(prompt.ids), sampling) for prompt, sampling in zip(request.prompts, request.samplings)])
        if any(prompt.ids[0] == 99 for prompt in request.prompts):
            raise LmflowError("no answer to 99")
        for prompt in request.prompts:
            if request.progress:
                request.progress(len(prompt.ids))
        return [
            [
                Completion(tuple(prompt.ids), f"{sample}:{prompt.ids[0]}", (0.0,) * len(prompt.ids), "length")
                for sample in range(sampling.n)
            ]
            for prompt, sampling in zip(request.prompts, request.samplings)
        ]


asked: list[Any] = []
MODEL: Any = SimpleNamespace(context_length=8)


@pytest.fixture
def engine() -> Iterator[Engine]:
    asked.clear()
    with GenerateEngine(Echo(), MODEL) as opened:
        yield opened


def until_idle(engine: Engine) -> list[Update]:
    updates = []
    while not engine.idle:
        updates += engine.step()
    return updates


# What a completion may have


@pytest.mark.parametrize(
    ("length", "new_tokens", "context", "expected"),
    [(1, 5, None, 5), (3, 5, 8, 5), (4, 5, 8, 4), (7, 5, 8, 1), (1, 1, 2, 1)],
)
def test_a_completion_ends_with_the_context(length: int, new_tokens: int, context: int | None, expected: int):
    assert completion_budget(length, new_tokens, context) == expected


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (0, r"^Prompt 3 is empty; there is nothing to continue\.$"),
        (8, r"^Prompt 3 has 8 tokens; the model's context is 8, which leaves no room for an answer\. Shorten it\.$"),
        (20, r"^Prompt 3 has 20 tokens"),
    ],
)
def test_a_prompt_without_room_for_a_token_is_refused_by_its_name(length: int, message: str):
    with pytest.raises(DataError, match=message):
        completion_budget(length, 5, 8, "Prompt 3")


def test_without_a_context_only_nothing_is_too_short():
    assert completion_budget(10**6, 3, None) == 3
    with pytest.raises(DataError, match="The prompt is empty"):
        completion_budget(0, 3, None)


# Requests


def test_tickets_are_numbers_of_their_own(engine: Engine):
    tickets = [engine.submit(Prompt([token]), Sampling()) for token in (5, 5, 6)]
    assert len(set(tickets)) == 3
    assert {update.ticket for update in until_idle(engine)} == set(tickets)


def test_a_refused_request_waits_for_nothing(engine: Engine):
    for ids in ([], [5] * 8):
        with pytest.raises(DataError):
            engine.submit(Prompt(ids), Sampling())
    assert engine.idle
    with pytest.raises(DataError, match="Message 2 is empty"):
        engine.check(Prompt([]), Sampling(), "Message 2")
    engine.check(Prompt([5]), Sampling())


def test_each_request_has_its_own_sampling(engine: Engine):
    samplings = [Sampling(n=2, seed=1), Sampling(temperature=0)]
    tickets = [engine.submit(Prompt([token]), sampling) for token, sampling in zip((5, 6), samplings)]
    updates = until_idle(engine)
    assert asked == [[([5], samplings[0]), ([6], samplings[1])]]
    assert [(each.ticket, each.sample, each.text) for each in updates] == [
        (tickets[0], 0, "0:5"),
        (tickets[0], 1, "1:5"),
        (tickets[1], 0, "0:6"),
    ]


@pytest.mark.parametrize("follow", [False, True])
def test_an_update_is_the_whole_completion(follow: bool, engine: Engine):
    ticket = engine.submit(Prompt([5, 6]), Sampling(), follow=follow)
    [update] = engine.step()
    assert update == Update(ticket, 0, (5, 6), (0.0, 0.0), "0:5", update.completion)
    assert update.completion == Completion((5, 6), "0:5", (0.0, 0.0), "length")
    assert engine.idle
    assert engine.step() == []


def test_those_that_have_waited_longest_come_first(engine: Engine):
    tickets = [engine.submit(Prompt([5]), Sampling()) for _ in range(PROMPTS_AT_A_TIME + 3)]
    assert [each.ticket for each in engine.step()] == tickets[:PROMPTS_AT_A_TIME]
    late = engine.submit(Prompt([6]), Sampling())
    assert [each.ticket for each in engine.step()] == [*tickets[PROMPTS_AT_A_TIME:], late]
    assert engine.tokens == PROMPTS_AT_A_TIME + 4


def test_what_is_cancelled_is_never_asked(engine: Engine):
    first, second = (engine.submit(Prompt([token]), Sampling()) for token in (5, 6))
    engine.cancel(first)
    engine.cancel(first)
    engine.cancel(1000)
    assert [each.ticket for each in until_idle(engine)] == [second]
    assert [[ids for ids, _ in call] for call in asked] == [[[6]]]


def test_requests_of_a_step_that_failed_wait_until_they_are_cancelled(engine: Engine):
    good, bad = engine.submit(Prompt([5]), Sampling()), engine.submit(Prompt([99]), Sampling())
    with pytest.raises(LmflowError, match="no answer to 99"):
        engine.step()
    assert not engine.idle
    engine.cancel(bad)
    assert [each.ticket for each in until_idle(engine)] == [good]


def test_an_error_closes_the_engine():
    engine = GenerateEngine(Echo(), MODEL)
    engine.submit(Prompt([5]), Sampling())
    with pytest.raises(KeyError), engine:
        raise KeyError
    assert engine.idle


def test_completions_as_updates_by_ticket_and_sample():
    one = Completion((5,), "a", (-0.5,), "eos")
    other = replace(one, text="b")
    assert list(whole({7: [one, other], 3: []})) == [
        Update(7, 0, (5,), (-0.5,), "a", one),
        Update(7, 1, (5,), (-0.5,), "b", other),
    ]
