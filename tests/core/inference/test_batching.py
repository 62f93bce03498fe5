"""Requests that share passes: when they join, when they leave, and what each is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from lmflow.components import GenerateRequest, Update
from lmflow.data.sample import Prompt
from lmflow.inference.batching import LEAVE_SHARE, Owner, PassEngine, Request, finish
from lmflow.inference.decoder import Decoder
from lmflow.inference.generate import DecodingEngine
from lmflow.inference.hf import HuggingFace
from lmflow.inference.scheduler import Demand
from lmflow.inference.text_stream import TextStream
from lmflow.inference.types import Completion, Sampling
from lmflow.inference.ways import find_way


def alone(model: Any, prompt: Prompt, sampling: Sampling) -> list[Completion]:
    [drawn] = HuggingFace().generate(GenerateRequest(model, [prompt], sampling))
    return drawn


def until_idle(engine: Any) -> Iterator[Update]:
    while not engine.idle:
        yield from engine.step()


def test_rows_of_different_sampling_share_every_pass(model: Any, prompts: list[Prompt]):
    """As many passes as the longest completion has tokens, not one series for each sampling."""
    samplings = [
        Sampling(temperature=t, max_new_tokens=9, min_new_tokens=9, n=n) for t, n in zip((0, 0.5, 1, 2), (3, 1, 2, 1))
    ]
    passes: list[int] = []
    find_way(model)
    handle = model.module.register_forward_pre_hook(
        lambda _, __, inputs: passes.append(len(inputs["input_ids"])), with_kwargs=True
    )
    HuggingFace().generate(GenerateRequest(model, prompts, samplings))
    handle.remove()
    assert passes == [4, *[1 + 1 + 2 + 1] * 8]


def test_a_cancelled_request_brings_nothing_more_and_costs_no_more_passes(model: Any, prompts: list[Prompt]):
    long = Sampling(max_new_tokens=30, min_new_tokens=30, n=2)
    with HuggingFace().engine(model) as engine:
        first = engine.submit(prompts[0], long, follow=True)
        second = engine.submit(prompts[1], long, follow=True)
        assert {update.ticket for update in engine.step()} == {first, second}
        engine.cancel(first)
        before = engine.tokens
        assert {update.ticket for update in engine.step()} == {second}
        assert engine.tokens - before == 2
        engine.cancel(second)
        assert engine.idle
        assert engine.step() == []
        engine.cancel(second)  # nothing happens
        waiting = engine.submit(prompts[2], long)
        engine.cancel(waiting)
        assert engine.idle


def test_a_request_joins_those_that_run(model: Any, prompts: list[Prompt]):
    sampling = Sampling(max_new_tokens=20, min_new_tokens=20)
    with HuggingFace().engine(model) as engine:
        engine.submit(prompts[0], sampling)
        engine.step()
        joined = engine.submit(prompts[1], sampling, follow=True)
        assert [update.ticket for update in engine.step()] == [joined]  # its prompt is read at the next step
        before = engine.tokens
        engine.step()
        assert engine.tokens - before == 2  # and from then on both grow in one pass


def test_a_finished_followed_row_is_told_of_at_once(model: Any, prompts: list[Prompt]):
    short, long = (Sampling(max_new_tokens=count, min_new_tokens=count) for count in (2, 30))
    with HuggingFace().engine(model) as engine:
        for _ in range(20):
            engine.submit(prompts[0], long)
        ticket = engine.submit(prompts[1], short, follow=True)
        engine.step()
        [update] = engine.step()
        assert (update.ticket, update.completion is not None) == (ticket, True)


def test_requests_whose_prompts_cannot_be_read_wait_and_can_be_cancelled(
    model: Any, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    sampling = Sampling(max_new_tokens=6, min_new_tokens=6)
    with HuggingFace().engine(model) as engine:
        running = engine.submit(prompts[0], sampling)
        engine.step()
        broken = engine.submit(prompts[1], sampling)
        prefill = Decoder.prefill
        monkeypatch.setattr(Decoder, "prefill", fail)
        with pytest.raises(MemoryError):
            engine.step()
        monkeypatch.setattr(Decoder, "prefill", prefill)
        engine.cancel(broken)
        [update] = until_idle(engine)
        assert update.ticket == running
        assert update.completion == alone(model, prompts[0], sampling)[0]


def test_modes_and_gradients_are_as_before_between_steps(model: Any, prompts: list[Prompt]):
    model.module.train()
    with HuggingFace().engine(model) as engine:
        engine.submit(prompts[0], Sampling(max_new_tokens=4, min_new_tokens=4))
        engine.step()
        assert all(part.training for part in model.module.modules())
        assert torch.is_grad_enabled()
        with torch.inference_mode(False):
            ids = torch.tensor([list(prompts[0].ids)])
            model.module(ids, labels=ids, use_cache=False).loss.backward()
        engine.step()
    assert all(part.training for part in model.module.modules())


# Rows of a request


@pytest.mark.parametrize(
    ("sampling", "rows", "copies"),
    [(Sampling(n=3), 3, 1), (Sampling(n=3, temperature=0), 1, 3), (Sampling(temperature=0), 1, 1)],
)
def test_greedy_completions_of_a_prompt_are_one_row(sampling: Sampling, rows: int, copies: int):
    request = Request(0, Prompt([5]), sampling, False, 4, 0)
    assert (request.rows, request.copies) == (rows, copies)


def test_each_copy_of_a_row_gets_its_updates(model: Any, prompts: list[Prompt]):
    sampling = Sampling(n=3, temperature=0, max_new_tokens=3, min_new_tokens=3)
    with HuggingFace().engine(model) as engine:
        engine.submit(prompts[0], sampling, follow=True)
        updates = list(until_idle(engine))
    by_sample = [[each for each in updates if each.sample == sample] for sample in range(3)]
    assert [[(each.ids, each.text) for each in row] for row in by_sample[1:]] == [
        [(each.ids, each.text) for each in by_sample[0]]
    ] * 2
    assert all(row[-1].completion is not None for row in by_sample)


# Coming and going


class Scripted:
    """A batch without a model: row i has all its tokens after `lengths[i]` steps."""

    flexible = True

    def __init__(self, owners: list[Owner], model: Any) -> None:
        self.owners, self.model = owners, model
        self.ids: list[list[int]] = [[] for _ in owners]

    def size(self) -> Demand:
        return Demand(len(self.owners), 1, 9)

    def step(self) -> int:
        going = [row for row in range(len(self.owners)) if row not in self.finished()]
        for row in going:
            self.ids[row].append(5)
            if self.owners[row].text is not None:
                self.owners[row].text.add(5)  # type: ignore[union-attr]
        return len(going)

    def finished(self) -> list[int]:
        return [row for row, each in enumerate(self.owners) if len(self.ids[row]) >= each.request.token_budget]

    def drawn(self, rows: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        return [(self.ids[row], [0.0] * len(self.ids[row])) for row in rows]

    def keep(self, rows: Sequence[int]) -> None:
        kept.append(list(rows))
        self.ids, self.owners = [self.ids[row] for row in rows], [self.owners[row] for row in rows]


kept: list[list[int]] = []


class ScriptedEngine(PassEngine[Scripted]):
    """An engine over such batches."""

    def _begin(self, prompts: Sequence[Prompt], repeats: Sequence[int], owners: list[Owner]) -> tuple[Scripted, int]:
        batch = Scripted(owners, self.model)
        return batch, batch.step()

    def _join(self, batch: Scripted, entering: Scripted) -> None:
        batch.owners, batch.ids = batch.owners + entering.owners, batch.ids + entering.ids


@pytest.fixture
def scripted_engine(model: Any) -> Callable[..., ScriptedEngine]:
    kept.clear()
    return lambda budget=10_000: ScriptedEngine(model, budget)


def length(tokens: int, **more: Any) -> Sampling:
    return Sampling(max_new_tokens=tokens, **more)


def test_few_finished_rows_stay_until_they_are_one_in_so_many(scripted_engine: Callable[..., ScriptedEngine]):
    engine = scripted_engine()
    engine.submit(Prompt([5]), length(1))
    for _ in range(2 * LEAVE_SHARE - 1):
        engine.submit(Prompt([5]), length(9))
    assert engine.step() == []
    assert kept == [], "one of sixteen is not worth a copy of the cache"
    engine.submit(Prompt([5]), length(9))  # waits, for it is few beside those that run
    assert len(list(until_idle(engine))) == 2 * LEAVE_SHARE + 1


def test_a_finished_row_that_is_followed_leaves_at_once(scripted_engine: Callable[..., ScriptedEngine]):
    engine = scripted_engine()
    ticket = engine.submit(Prompt([5]), length(1), follow=True)
    for _ in range(2 * LEAVE_SHARE - 1):
        engine.submit(Prompt([5]), length(9))
    [update] = engine.step()
    assert (update.ticket, update.completion is not None) == (ticket, True)
    assert kept == [list(range(1, 2 * LEAVE_SHARE))]


def test_tokens_count_rows_that_were_unfinished(scripted_engine: Callable[..., ScriptedEngine]):
    engine = scripted_engine()
    engine.submit(Prompt([5]), length(2, n=2))
    engine.submit(Prompt([6]), length(3))
    list(until_idle(engine))
    assert engine.tokens == 2 * 2 + 3


def test_requests_begin_in_the_order_they_came(scripted_engine: Callable[..., ScriptedEngine]):
    """Also where a later one would fit and the next does not."""
    engine = scripted_engine(budget=24)
    for _ in range(2):
        engine.submit(Prompt([5]), length(9))
    engine.submit(Prompt([5] * 40), length(1))
    last = engine.submit(Prompt([5]), length(1))
    engine.step()
    finished = [update.ticket for update in until_idle(engine)]
    assert finished[-1] == last or finished.index(last) > finished.index(2)
    assert sorted(finished) == [0, 1, 2, 3]


def test_those_that_cannot_join_wait_until_the_batch_is_empty(
    scripted_engine: Callable[..., ScriptedEngine], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Scripted, "flexible", False)
    engine = scripted_engine()
    first = engine.submit(Prompt([5]), length(3))
    engine.step()
    second = engine.submit(Prompt([5]), length(1))
    assert [update.ticket for update in until_idle(engine)] == [first, second]


def test_the_last_request_that_is_cancelled_frees_the_batch(scripted_engine: Callable[..., ScriptedEngine]):
    engine = scripted_engine()
    one, other = (engine.submit(Prompt([5]), length(9, n=2)) for _ in range(2))
    engine.step()
    engine.cancel(one)
    assert kept == [[2, 3]]
    assert not engine.idle
    engine.cancel(other)
    assert engine.idle
    assert engine.step() == []


# What is finished


def test_why_a_completion_ended(model: Any):
    [end] = model.end_ids
    [a], [b] = (model.tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "ab")
    assert finish(model, [a, end], [-1.0, -2.0], None) == Completion((a, end), "a", (-1.0, -2.0), "eos")
    assert finish(model, [a, b], [-1.0, -2.0], None) == Completion((a, b), "ab", (-1.0, -2.0), "length")
    stream = TextStream(model.decode, ("b",))
    for token in (a, b):
        stream.add(token)
    assert finish(model, [a, b], [-1.0, -2.0], stream) == Completion((a, b), "a", (-1.0, -2.0), "stop")
    going = TextStream(model.decode, ("zz",))
    going.add(a)
    assert finish(model, [a], [-1.0], going) == Completion((a,), "a", (-1.0,), "length")


def test_a_batch_holds_no_more_than_the_budget(model: Any, prompts: list[Prompt]):
    sizes: list[Demand] = []

    class Watched(DecodingEngine):
        """Notes what the batch takes after each step."""

        def step(self) -> list[Update]:
            updates = super().step()
            sizes.extend([self._batch.size()] if self._batch is not None else [])
            return updates

    budget = 120
    with Watched(model, budget) as engine:
        for prompt in [*prompts, *prompts]:
            engine.submit(prompt, Sampling(max_new_tokens=8, min_new_tokens=8))
        assert len(list(until_idle(engine))) == 8
    assert max(each.rows for each in sizes) > 1
    assert all(each.rows == 1 or each.rows * (each.width + each.to_come) <= budget for each in sizes)
