"""The engine of inferencer speculative: samplings, arrival and neighbours change nothing of a request's completions."""

from __future__ import annotations

from random import Random

import pytest
import torch

from lmflow.components import GenerateRequest
from lmflow.errors import LmflowError
from lmflow.inference.types import Sampling
from lmflow.testing.requests import check_updates, random_sampling, run_at_random
from lmflow_speculative.speculative import Speculative


@pytest.fixture(scope="module")
def pair(make_model):
    """A target, and a draft that mostly agrees with it."""
    return make_model(), make_model(near=1)


def make(proposer, pair, **options):
    plain = Speculative(draft_length=4, **options)
    return plain.using(pair[1]) if proposer == "draft" else plain


def alone(inferencer, model, prompt, sampling):
    [drawn] = inferencer.generate(GenerateRequest(model, [prompt], sampling))
    return drawn


def same(one, other):
    close = one.logprobs == pytest.approx(other.logprobs, abs=2e-3)
    return (one.ids, one.text, one.finish_reason) == (other.ids, other.text, other.finish_reason) and close


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("proposer", ["draft", "lookup"])
def test_each_prompt_has_its_own_sampling(pair, prompts, proposer, seed):
    chance = Random(seed)
    requests = [(chance.choice(prompts), random_sampling(chance)) for _ in range(10)]
    adapt, budget = seed % 2 == 0, [32_768, 300][seed // 2]
    drawn = make(proposer, pair, adapt=adapt, batch_tokens=budget).generate(GenerateRequest(pair[0], *zip(*requests)))
    for (prompt, sampling), row in zip(requests, drawn, strict=True):
        expected = alone(make(proposer, pair, adapt=adapt), pair[0], prompt, sampling)
        for one, other in zip(row, expected, strict=True):
            assert same(one, other)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("proposer", ["draft", "lookup"])
def test_arrival_and_neighbours_change_nothing(pair, prompts, proposer, seed):
    chance = Random(seed)
    requests = [(chance.choice(prompts), random_sampling(chance)) for _ in range(10)]
    cancelled = chance.sample(range(len(requests)), 3)
    with make(proposer, pair, adapt=seed % 2 == 0).engine(pair[0]) as engine:
        found = run_at_random(engine, requests, chance, cancelled)
    for index, (prompt, sampling) in enumerate(requests):
        if index in cancelled and not any(found[index]):
            continue
        expected = alone(make(proposer, pair, adapt=seed % 2 == 0), pair[0], prompt, sampling)
        for updates, completion in zip(found[index], expected, strict=True):
            check_updates(updates, completion, same)


def test_greedy_rows_speculate_beside_sampled_ones(pair, prompts):
    """A greedy row keeps as many proposals beside others as alone: verification by probabilities comes to the same."""
    greedy, sampled = (Sampling(temperature=t, max_new_tokens=24, min_new_tokens=24) for t in (0, 1.3))
    by_itself = Speculative(draft_length=4, adapt=False).using(pair[1])
    alone(by_itself, pair[0], prompts[0], greedy)
    beside = Speculative(draft_length=4, adapt=False).using(pair[1])
    beside.generate(GenerateRequest(pair[0], prompts[:2], [greedy, sampled]))
    other = Speculative(draft_length=4, adapt=False).using(pair[1])
    alone(other, pair[0], prompts[1], sampled)
    together = [a + b for a, b in zip(by_itself.statistics.accepted, other.statistics.accepted, strict=True)]
    assert beside.statistics.accepted == together


@pytest.mark.parametrize("which", ["model", "draft"])
def test_neither_models_weights_may_change_while_requests_run(make_model, prompts, which):
    pair = make_model(), make_model(near=1)
    with Speculative(draft_length=2).using(pair[1]).engine(pair[0]) as engine:
        engine.submit(prompts[0], Sampling(max_new_tokens=20, min_new_tokens=20))
        engine.step()
        pair[which == "draft"].weights.changed()
        with pytest.raises(LmflowError, match="weights changed"):
            engine.step()


def test_the_draft_is_left_in_its_mode(pair, prompts):
    pair[1].module.train()
    with Speculative(draft_length=2).using(pair[1]).engine(pair[0]) as engine:
        engine.submit(prompts[0], Sampling(max_new_tokens=8))
        while not engine.idle:
            engine.step()
            assert pair[1].module.training
    pair[1].module.eval()
    assert torch.is_grad_enabled()
