"""Distribution and draw: by hand, against transformers, and by property."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lmflow.inference.sampling import filtered_logprobs, sample, sample_scored, stream_key, uniforms


def test_filters_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    assert filtered_logprobs(logits, 1.0, top_k=2).exp()[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    # 0.5 is less than 0.7, 0.5 + 0.25 is not: two tokens are the smallest set with that mass.
    assert filtered_logprobs(logits, 1.0, top_p=0.7).exp()[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    # Temperature 1/2 squares probabilities: 0.25, 0.0625, 0.0225, 0.01 of 0.345.
    squared = [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]
    assert filtered_logprobs(logits, 0.5).exp()[0].tolist() == pytest.approx(squared)
    assert filtered_logprobs(logits, 1.0, top_p=0.01).exp()[0].tolist() == pytest.approx([1, 0, 0, 0])
    assert filtered_logprobs(logits, 0.0).exp()[0].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 7, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
def test_filters_equal_those_of_transformers(temperature: float, top_k: int, top_p: float):
    logits = torch.randn(16, 50, generator=torch.Generator().manual_seed(0)) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(torch.zeros(16, 1, dtype=torch.long), logits.clone()).log_softmax(-1)
    actual = filtered_logprobs(logits, temperature, top_k, top_p)
    assert torch.equal(actual.isinf(), expected.isinf())
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.8), (0.8, 9, 0.9)]
)
def test_20000_draws_follow_the_distribution(temperature: float, top_k: int, top_p: float):
    """Chi-square over the draws of 20,000 streams; the bound is exceeded once in a thousand correct samplers."""
    draws = 20_000
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(5)) * 1.5
    probabilities = filtered_logprobs(logits, temperature, top_k, top_p).exp()[0].double()
    keys = torch.tensor([stream_key([1, 2, 3], sample, seed=11) for sample in range(draws)])
    random = uniforms(keys, torch.full_like(keys, 4))
    tokens, _ = sample_scored(logits.expand(draws, -1), random, temperature, top_k, top_p)
    counts = tokens.bincount(minlength=12).double()
    assert counts[probabilities == 0].sum() == 0
    possible = probabilities > 0
    expected = probabilities[possible] * draws
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    freedom = int(possible.sum()) - 1
    # Wilson and Hilferty's approximation of the quantile 0.999, whose normal quantile is 3.09.
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def test_draw_inverts_the_cumulative_distribution_and_never_takes_what_has_no_probability():
    logprobs = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]).log().expand(5, -1)
    numbers = torch.tensor([0.0, 0.24, 0.26, 0.76, 1 - 2.0**-53], dtype=torch.float64)
    assert sample(logprobs, numbers).tolist() == [1, 1, 3, 4, 4]


def test_uniforms_are_splitmix64():
    """The reference generator's outputs for seed 1234567 (Steele, Lea & Flood; published with the reference code)."""
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    key = torch.tensor([1234567]).expand(5)
    expected = [(output >> 11) * 2.0**-53 for output in outputs]
    assert uniforms(key, torch.arange(5)).tolist() == expected


def test_streams_are_uniform_and_unrelated():
    keys = torch.tensor([stream_key([1, 2], sample, seed=0) for sample in range(200)])
    numbers = uniforms(keys.unsqueeze(-1).expand(-1, 500), torch.arange(500).expand(200, -1))
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.004)
    assert float(numbers.std()) == pytest.approx(math.sqrt(1 / 12), abs=0.003)
    correlation = torch.corrcoef(numbers)
    assert float((correlation - torch.eye(200)).abs().max()) < 0.25


def test_a_stream_is_named_by_prompt_sample_seed_and_purpose():
    keys = {
        stream_key([1, 2], 0, 0),
        stream_key([1, 3], 0, 0),
        stream_key([2, 1], 0, 0),
        stream_key([1, 2], 1, 0),
        stream_key([1, 2], 0, 1),
        stream_key([1, 2], 0, 0, "accept"),
    }
    assert len(keys) == 6
    assert stream_key((1, 2), 0, 0) == stream_key([1, 2], 0, 0)
