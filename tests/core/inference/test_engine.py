"""Engines: a request gets what `generate` gives it alone, whatever else is in flight and however it is sampled."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch

from lmflow.components import GenerateRequest, Inferencer, Update
from lmflow.data.sample import Prompt
from lmflow.errors import DataError, LmflowError
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Completion, Sampling
from lmflow.testing.requests import check_updates, random_sampling, run_at_random

SEEDS = range(8)


class OnlyGenerates(Inferencer):
    """Nothing but `generate`, as the simplest inferencers have it."""

    name = "only-generates"

    def generate(self, request: GenerateRequest) -> list[list[Completion]]:
        CALLS.append(len(request.prompts))
        return HuggingFace().generate(request)


CALLS: list[int] = []


def random_requests(prompts: list[Prompt], chance: Random, count: int = 10) -> list[tuple[Prompt, Sampling]]:
    return [(chance.choice(prompts), random_sampling(chance)) for _ in range(count)]


def alone(model: Any, prompt: Prompt, sampling: Sampling) -> list[Completion]:
    [drawn] = HuggingFace().generate(GenerateRequest(model, [prompt], sampling))
    return drawn


def same(one: Completion, other: Completion) -> bool:
    close = one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    return (one.ids, one.text, one.finish_reason) == (other.ids, other.text, other.finish_reason) and close


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("architecture", "options"), [("llama", {}), ("gpt2", {}), ("mistral", {"sliding_window": 8})])
def test_each_prompt_has_its_own_sampling(
    make_model: Any, prompts: list[Prompt], architecture: str, options: Any, seed: int
):
    model = make_model(architecture, **options)
    requests = random_requests(prompts, Random(seed))
    inferencer = HuggingFace(batch_tokens=[32_768, 300][seed % 2])
    drawn = inferencer.generate(GenerateRequest(model, *zip(*requests)))
    for (prompt, sampling), row in zip(requests, drawn, strict=True):
        for one, other in zip(row, alone(model, prompt, sampling), strict=True):
            assert same(one, other)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("inferencer", "architecture", "options"),
    [
        (HuggingFace(), "llama", {}),
        (HuggingFace(batch_tokens=200), "gpt2", {}),
        (HuggingFace(), "mistral", {"sliding_window": 8}),
        (OnlyGenerates(), "llama", {}),
    ],
    ids=["llama", "gpt2-small-budget", "sliding-window", "only-generate"],
)
def test_arrival_and_neighbours_change_nothing(
    make_model: Any, prompts: list[Prompt], inferencer: Inferencer, architecture: str, options: Any, seed: int
):
    model, chance = make_model(architecture, **options), Random(seed)
    requests = random_requests(prompts, chance)
    cancelled = chance.sample(range(len(requests)), 3)
    with inferencer.engine(model) as engine:
        found = run_at_random(engine, requests, chance, cancelled)
    for index, (prompt, sampling) in enumerate(requests):
        if index in cancelled and not any(found[index]):
            continue
        for updates, expected in zip(found[index], alone(model, prompt, sampling), strict=True):
            check_updates(updates, expected, same)


def test_a_prompt_that_cannot_be_answered_is_refused_and_costs_no_other(model: Any, prompts: list[Prompt]):
    for inferencer in (HuggingFace(), OnlyGenerates()):
        with inferencer.engine(model) as engine:
            ticket = engine.submit(prompts[0], Sampling(max_new_tokens=2))
            with pytest.raises(DataError, match="The prompt is empty"):
                engine.submit(Prompt([]), Sampling())
            with pytest.raises(DataError, match=r"The prompt has 300 tokens; the model's context is 256"):
                engine.submit(Prompt([5] * 300), Sampling())
            assert {update.ticket for update in until_idle(engine)} == {ticket}


def until_idle(engine: Any) -> Iterator[Update]:
    while not engine.idle:
        yield from engine.step()


def test_the_default_engine_answers_few_at_a_time(model: Any, prompts: list[Prompt]):
    CALLS.clear()
    with OnlyGenerates().engine(model) as engine:
        for _ in range(20):
            engine.submit(prompts[0], Sampling(max_new_tokens=2, min_new_tokens=2))
        engine.step()
        assert engine.tokens == 32
        list(until_idle(engine))
    assert CALLS == [16, 4]


def test_weights_may_not_change_while_requests_run(model: Any, prompts: list[Prompt]):
    sampling = Sampling(temperature=0, max_new_tokens=6, min_new_tokens=6)
    with HuggingFace().engine(model) as engine:
        ticket = engine.submit(prompts[0], sampling)
        engine.step()
        change(model)
        with pytest.raises(LmflowError, match=r"weights changed while 1 requests"):
            engine.step()
        engine.cancel(ticket)
        engine.submit(prompts[0], sampling)
        change(model)  # a request that has not begun is sampled from the new weights
        [update] = until_idle(engine)
        assert update.completion == alone(model, prompts[0], sampling)[0]
    each = HuggingFace(batch_tokens=1).generate_each(GenerateRequest(model, prompts, sampling))
    next(each)
    change(model)
    assert len(list(each)) == len(prompts) - 1  # one at a time: nothing had begun
    pieces = HuggingFace().stream(GenerateRequest(model, prompts[:1], sampling))
    next(pieces)
    change(model)
    with pytest.raises(LmflowError, match="weights changed"):
        next(pieces)


def change(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    model.weights.changed()


def test_closing_forgets_everything(model: Any, prompts: list[Prompt]):
    for inferencer in (HuggingFace(), OnlyGenerates()):
        engine = inferencer.engine(model)
        engine.submit(prompts[0], Sampling())
        engine.step() if isinstance(inferencer, HuggingFace) else None
        engine.submit(prompts[1], Sampling())
        engine.close()
        assert engine.idle
        assert engine.step() == []
