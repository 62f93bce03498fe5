"""Sampling token by token: the rows of a batch, what may be sampled, and where a completion ends."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lmflow.components import GenerateRequest
from lmflow.data.sample import Prompt
from lmflow.errors import DataError, LmflowError
from lmflow.inference.batching import Owner, Request
from lmflow.inference.decoder import Decoder
from lmflow.inference.generate import DecodingBatch, Rows, SamplingRules, check_finite, completion_budgets
from lmflow.inference.hf import HuggingFace
from lmflow.inference.text_stream import TextStream
from lmflow.inference.types import Sampling

hf = HuggingFace()
CPU = torch.device("cpu")


def owner(budget: int = 3, sample: int = 0, ids: tuple[int, ...] = (5,), **options: Any) -> Owner:
    return Owner(Request(0, Prompt(ids), Sampling(**options), False, budget, 1), sample, None)


def no_ends(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.bool)


# What completions may have


def test_budgets_of_several_prompts():
    prompts = [Prompt([5] * count) for count in (1, 6, 3)]
    assert completion_budgets(prompts, 4, 8) == [4, 2, 4]
    assert completion_budgets(prompts, [1, 9, 9], 8) == [1, 2, 5]
    assert completion_budgets(prompts, 4, None) == [4, 4, 4]
    assert completion_budgets([], 4, 8) == []
    with pytest.raises(DataError, match=r"^Prompt 2 of 2 has 8 tokens"):
        completion_budgets([Prompt([5]), Prompt([5] * 8)], 4, 8)


def test_a_completion_ends_where_the_context_ends(model: Any):
    near, far = Prompt([5] * 250), Prompt([5] * 10)
    sampling = Sampling(max_new_tokens=20, min_new_tokens=20)
    [[one], [other]] = hf.generate(GenerateRequest(model, [near, far], sampling))
    assert (len(one.ids), one.finish_reason) == (6, "length")
    assert (len(other.ids), other.finish_reason) == (20, "length")


def test_weights_that_are_no_numbers(model: Any):
    with torch.no_grad():
        model.module.lm_head.weight.fill_(float("nan"))
    for temperature in 0.0, 1.0:
        with pytest.raises(LmflowError, match="not finite"):
            hf.generate(GenerateRequest(model, [Prompt([5])], Sampling(temperature=temperature)))


# Rows


def test_tokens_by_hand():
    rows = Rows.begin([owner(3), owner(1)], CPU)
    assert (len(rows), rows.counts.tolist(), rows.done.tolist()) == (2, [0, 0], [False, False])
    assert rows.tokens.shape == (2, 4), "one column more than tokens, for what finished rows go on sampling"
    rows = rows.with_sampled(torch.tensor([7, 8]), torch.tensor([-0.5, -0.25]), no_ends(2))
    assert (rows.counts.tolist(), rows.done.tolist(), rows.last.tolist()) == ([1, 1], [False, True], [7, 8])
    rows = rows.with_sampled(torch.tensor([9, 9]), torch.tensor([-1.0, -1.0]), torch.tensor([True, False]))
    assert (rows.counts.tolist(), rows.done.tolist()) == ([2, 1], [True, True])
    assert rows.tokens[0, :2].tolist() == [7, 9]
    assert rows.tokens[1, :1].tolist() == [8], "a finished row keeps its tokens"
    assert rows.logprobs[0, :2].tolist() == [-0.5, -1.0]


def test_rows_of_other_widths_go_one_above_the_other():
    narrow = Rows.begin([owner(1)], CPU).with_sampled(torch.tensor([7]), torch.tensor([-0.5]), no_ends(1))
    wide = Rows.begin([owner(4), owner(2)], CPU).with_sampled(
        torch.tensor([8, 9]), torch.tensor([-1.0, -2.0]), no_ends(2)
    )
    both = narrow.above(wide)
    assert both.tokens.shape == both.logprobs.shape == (3, 5)
    assert both.tokens[:, 0].tolist() == [7, 8, 9]
    assert both.token_budgets.tolist() == [1, 4, 2]
    assert both.at(torch.tensor([2, 0])).tokens[:, 0].tolist() == [9, 7]
    assert wide.above(narrow).tokens[:, 0].tolist() == [8, 9, 7]


def test_each_row_has_random_numbers_of_its_own():
    """By prompt, sample and seed alone: not by the row it happens to lie in."""
    owners = [owner(), owner(sample=1), owner(seed=1), owner(ids=(6,)), owner()]
    keys = Rows.begin(owners, CPU).keys.tolist()
    assert len(set(keys[:4])) == 4
    assert keys[4] == keys[0]
    assert Rows.begin(owners[::-1], CPU).keys.tolist() == keys[::-1]


# What may be sampled


@pytest.fixture
def rules() -> SamplingRules:
    """Of a model whose token 1 ends a text and whose tokens 2 and 9 are never sampled; 9 is beyond its head."""
    model: Any = SimpleNamespace(end_ids=(1, 8), suppressed_ids=(2, 9), unknown_ids=(), device=CPU)
    return SamplingRules(model)


def allowed(rules: SamplingRules, counts: list[int], least: Any) -> list[list[int]]:
    logits = rules.allowed(torch.zeros(len(counts), 5), torch.tensor(counts), least)
    return [row.isfinite().nonzero().squeeze(-1).tolist() for row in logits]


def test_padding_is_never_sampled(rules: SamplingRules):
    assert allowed(rules, [0, 7], 0) == [[0, 1, 3, 4]] * 2


def test_the_end_waits_for_the_least_length(rules: SamplingRules):
    assert allowed(rules, [0, 1, 2], 2) == [[0, 3, 4], [0, 3, 4], [0, 1, 3, 4]]
    assert allowed(rules, [0, 1, 2], torch.tensor([0, 2, 3])) == [[0, 1, 3, 4], [0, 3, 4], [0, 3, 4]]


def test_a_model_that_never_ends_has_no_end_to_wait_for():
    model: Any = SimpleNamespace(end_ids=(), suppressed_ids=(), unknown_ids=(), device=CPU)
    assert allowed(SamplingRules(model), [0], 5) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("broken", [float("nan"), float("-inf"), float("inf")])
def test_what_has_no_probability_is_an_error(broken: float):
    check_finite(torch.tensor([-0.5, -100.0]))
    with pytest.raises(LmflowError, match="not finite numbers: its weights are damaged or have diverged"):
        check_finite(torch.tensor([-0.5, broken]))


# A batch


def batch_of(model: Any, *owners: Owner) -> DecodingBatch:
    decoder = Decoder(model.module)
    with torch.no_grad():
        logits = decoder.prefill([each.request.prompt for each in owners])
        batch = DecodingBatch(model, decoder, Rows.begin(owners, model.device), list(owners))
        assert batch.sample(logits) == len(owners)
    return batch


def test_a_batch_says_what_it_takes(model: Any):
    batch = batch_of(model, owner(4, ids=(5, 6), min_new_tokens=9), owner(1, ids=(5,), min_new_tokens=9))
    size = batch.size()
    assert (size.rows, size.width, size.to_come) == (2, 2, 3)
    assert batch.finished() == [1]
    with torch.no_grad():
        assert batch.step() == 1, "the finished row computes in vain"
    assert [len(ids) for ids, _ in batch.drawn([0, 1])] == [2, 1]


def test_rows_that_stay_go_on_as_before(model: Any):
    owners = [owner(6, ids=(5, 6, 7), min_new_tokens=9), owner(6, ids=(8,), min_new_tokens=9)]
    whole, cut = batch_of(model, *owners), batch_of(model, *owners)
    cut.keep([1])
    assert cut.owners == [owners[1]]
    with torch.no_grad():
        for _ in range(3):
            whole.step()
            cut.step()
    assert cut.drawn([0])[0][0] == whole.drawn([1])[0][0]


def test_a_stop_string_ends_its_row_alone(model: Any, scripted: Callable[[list[int]], Any]):
    tokenizer = model.tokenizer
    script = tokenizer("the fox jumps", add_special_tokens=False)["input_ids"]
    says = scripted([*script[1:], *[script[0]] * 20])
    stopping, going = (owner(12, ids=(script[0],), temperature=0) for _ in range(2))
    stopping.text, going.text = TextStream(says.decode, ("fox",)), TextStream(says.decode, ("zzz",))
    batch = batch_of(says, stopping, going)
    with torch.no_grad():
        while not batch.finished():
            batch.step()
    assert batch.finished() == [0]
    assert stopping.text.stopped
    assert not going.text.stopped
    assert "fox" in says.decode(batch.drawn([0])[0][0])
