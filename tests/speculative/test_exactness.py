"""Speculation changes how tokens are found, never which, nor how they are distributed."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch

from lmflow.components import GenerateRequest
from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow.inference.hf import HuggingFace
from lmflow.inference.sampling import filtered_logprobs
from lmflow.inference.types import Sampling
from lmflow_speculative import acceptance
from lmflow_speculative.speculative import Speculative

DRAWS = 6_000
NEW = 4
PROMPT = Prompt([1, 2, 3, 1, 2])
SAMPLINGS = [
    {},
    {"temperature": 0.6},
    {"top_k": 3},
    {"top_p": 0.8},
    {"temperature": 1.4, "top_k": 4, "top_p": 0.9},
]


@torch.no_grad()
def enumerate_target(model: Any, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """Probability of every completion of PROMPT, by reading each prefix whole."""
    finished: dict[tuple[int, ...], float] = {}
    growing: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NEW):
        prefixes = list(growing)
        logits = model.module(torch.tensor([[*PROMPT.ids, *prefix] for prefix in prefixes])).logits[:, -1]
        rows = filtered_logprobs(logits, sampling.temperature, sampling.top_k, sampling.top_p).exp().tolist()
        following = {}
        for prefix, row in zip(prefixes, rows):
            for token, probability in enumerate(row):
                if probability > 0:
                    where = finished if token in model.end_ids or len(prefix) == NEW - 1 else following
                    where[(*prefix, token)] = growing[prefix] * probability
        growing = following
    return finished


def chi_square_p(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Probability of so large a deviation by chance; rare completions are taken together."""
    if set(counts) - set(expected):
        return 0.0
    rare = [ids for ids, share in expected.items() if share * DRAWS < 5]
    cells = [(counts[ids], share * DRAWS) for ids, share in expected.items() if share * DRAWS >= 5]
    if rare:
        cells.append((sum(counts[ids] for ids in rare), sum(expected[ids] for ids in rare) * DRAWS))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))


def distance(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> tuple[float, float]:
    """Total variation between the draws and `expected`, and what chance exceeds once in a thousand times at most.

    By chance it comes to half the sum of the mean deviations; one draw changes it by 1 / DRAWS at most, so by
    McDiarmid's inequality it exceeds that by t with a probability below exp(-2 t^2 DRAWS).
    """
    found = sum(abs(counts[ids] / DRAWS - expected.get(ids, 0.0)) for ids in set(counts) | set(expected)) / 2
    mean = sum((share * (1 - share) / DRAWS) ** 0.5 for share in expected.values()) / 2
    return found, mean + math.sqrt(math.log(1000) / (2 * DRAWS))


def looks_right(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> bool:
    found, most = distance(counts, expected)
    return chi_square_p(counts, expected) > 1e-3 and found < most


def draw(model: Any, inferencer: Speculative, sampling: Sampling) -> Counter[tuple[int, ...]]:
    [row] = inferencer.generate(GenerateRequest(model, [PROMPT], sampling))
    return Counter(completion.ids for completion in row)


@pytest.fixture(scope="module")
def pair(make_letters):
    """A target and a draft that disagree."""
    return make_letters(1), make_letters(2)


CASES = [("draft", options) for options in SAMPLINGS]
CASES += [("adapted", SAMPLINGS[-1]), ("lookup", SAMPLINGS[0]), ("lookup", SAMPLINGS[-1])]


@pytest.mark.parametrize(("proposer", "options"), CASES, ids=str)
def test_the_sampled_distribution_is_the_targets(pair, proposer, options):
    target, draft = pair
    sampling = Sampling(n=DRAWS, max_new_tokens=NEW, seed=5, **options)
    inferencer = Speculative(draft_length=3, adapt=proposer == "adapted")
    if proposer != "lookup":
        inferencer = inferencer.using(draft)
    expected = enumerate_target(target, sampling)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
    counts = draw(target, inferencer, sampling)
    assert looks_right(counts, expected), (chi_square_p(counts, expected), distance(counts, expected))
    assert 0.05 < inferencer.statistics.acceptance_rate < 0.95  # else nothing was put to the test


def accept_always(target, proposed, counts, draft, uniforms):
    return torch.arange(proposed.shape[1]) < counts.unsqueeze(-1)


WRONG = {
    "accept": accept_always,
    "residual": lambda target, draft: target,
}


@pytest.mark.parametrize(("rule", "options"), [(rule, SAMPLINGS[case]) for rule in WRONG for case in (0, -1)], ids=str)
def test_a_wrong_rule_is_found_out(pair, monkeypatch, rule, options):
    target, draft = pair
    monkeypatch.setattr(acceptance, rule, WRONG[rule])
    sampling = Sampling(n=DRAWS, max_new_tokens=NEW, seed=5, **options)
    inferencer = Speculative(draft_length=3, adapt=False).using(draft)
    if rule == "accept" and sampling.top_k:  # a token of probability 0 is kept, which is found at once
        with pytest.raises(LmflowError, match="not finite"):
            draw(target, inferencer, sampling)
        return
    counts = draw(target, inferencer, sampling)
    expected = enumerate_target(target, sampling)
    found, most = distance(counts, expected)
    assert chi_square_p(counts, expected) < 1e-6
    assert found > most


def test_lookup_accepted_always_is_found_out(pair, monkeypatch):
    target, _ = pair
    monkeypatch.setattr(acceptance, "accept", accept_always)
    sampling = Sampling(n=DRAWS, max_new_tokens=NEW, seed=5)
    assert not looks_right(draw(target, Speculative(adapt=False), sampling), enumerate_target(target, sampling))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("proposer", ["draft", "lookup"])
def test_greedy_is_the_targets_token_for_token(make_model, prompts, architecture, proposer):
    target = make_model(architecture)
    sampling = Sampling(temperature=0, max_new_tokens=24)
    expected = HuggingFace().generate(GenerateRequest(target, prompts, sampling))
    inferencer = Speculative(draft_length=4)
    if proposer == "draft":
        inferencer = inferencer.using(make_model(architecture, near=1))
    drawn = inferencer.generate(GenerateRequest(target, prompts, sampling))
    assert [row[0].ids for row in drawn] == [row[0].ids for row in expected]
    assert [row[0].text for row in drawn] == [row[0].text for row in expected]
    assert [row[0].finish_reason for row in drawn] == [row[0].finish_reason for row in expected]
    for row, other in itertools.islice(zip(drawn, expected), 20):
        assert row[0].logprobs == pytest.approx(other[0].logprobs, abs=2e-3)
    assert inferencer.statistics.tokens_per_pass > 1.05


def test_log_probabilities_are_those_of_the_sampling_distribution(make_model, prompts):
    target = make_model()
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.9, n=2, max_new_tokens=10, seed=3)
    drawn = (
        Speculative(draft_length=4).using(make_model(near=1)).generate(GenerateRequest(target, prompts[:6], sampling))
    )
    pad = target.tokenizer.pad_token_id
    for prompt, row in zip(prompts, drawn):
        for completion in row:
            with torch.no_grad():
                logits = target.module(torch.tensor([[*prompt.ids, *completion.ids]])).logits[
                    0, len(prompt.ids) - 1 : -1
                ]
            logits[:, pad] = -torch.inf
            logprobs = filtered_logprobs(logits, 0.7, 20, 0.9)
            wanted = logprobs.gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1).tolist()
            assert completion.logprobs == pytest.approx(wanted, abs=2e-3)
