"""Tokens of the tokenizer and rows of the weights: more of the one are named, more of the other are never sampled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lmflow.components import GenerateRequest
from lmflow.data.sample import Message, Prompt, Sample
from lmflow.errors import DataError
from lmflow.inference.generate import SamplingRules
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Sampling
from lmflow.models.encoding import encode
from lmflow.recipe.sections.data import DataOptions
from lmflow.testing.tiny import tiny_model

PADDED = 37
"""Rows of the head that are no token."""


@pytest.fixture
def small() -> Any:
    """A model whose tokenizer has a token more than its table of embeddings."""
    model = tiny_model()
    model.tokenizer.add_tokens(["<new>"])
    return model


@pytest.fixture
def padded() -> Any:
    """A model whose head has rows that are no token, and which have most of the probability."""
    model = tiny_model(seed=1)
    count = len(model.tokenizer)
    model.module.resize_token_embeddings(count + PADDED, mean_resizing=False)
    with torch.no_grad():
        model.module.get_output_embeddings().weight[:count].mul_(0.1)
    return replace(model, module=model.module)


def turns(text: str) -> Sample:
    return Sample((Message("user", "say it"), Message("assistant", text)), True, {}, "d.jsonl, line 3")


def test_a_token_that_the_weights_do_not_know_is_named(small: Any):
    number = small.tokenizer.convert_tokens_to_ids("<new>")
    message = (
        rf"d\.jsonl, line 3: token {number} \('<new>'\) is beyond the model's {number} embeddings: tiny-llama-0 has"
    )
    with pytest.raises(DataError, match=message):
        encode(small, [turns("a <new> b")], DataOptions())
    with pytest.raises(DataError, match=rf"token {number} .* is beyond"):
        small.encode_prompt(Sample((Message("user", "a <new> b"),), True, {}, ""))


def test_texts_without_it_are_sound(small: Any):
    sequences, _ = encode(small, [turns("a b")], DataOptions())
    assert len(sequences) == 1


def test_padding_that_the_weights_do_not_know_is_never_looked_up(small: Any):
    small.tokenizer.pad_token = "<new>"
    model = replace(small)
    assert model.pad_id == model.end_ids[0]


def test_tokens_are_kept_for_weights_of_the_same_size_alone(small: Any, padded: Any):
    assert small.token_key != replace(small, module=padded.module).token_key


def test_rows_that_are_no_token_are_never_sampled(padded: Any):
    count = len(padded.tokenizer)
    assert padded.unknown_ids == tuple(range(count, count + PADDED))
    request = GenerateRequest(padded, [Prompt([5, 9, 13])], Sampling(n=16, max_new_tokens=16, seed=0))
    (completions,) = HuggingFace().generate(request)
    ids = [each for completion in completions for each in completion.ids]
    assert len(ids) > 100
    assert max(ids) < count
    with torch.no_grad():
        logits = padded.module(torch.tensor([[5, 9, 13]])).logits[:, -1]
    unruled = logits.softmax(-1)[0, count:].sum()
    assert unruled > PADDED / (2 * len(logits[0])), "without the rule they would be sampled"
    ruled = SamplingRules(padded).allowed(logits.clone(), torch.zeros(1)).softmax(-1)
    assert ruled[0, count:].sum() == 0


def test_a_gap_within_the_tokenizer_is_not_sampled_either(padded: Any):
    kept = padded.tokenizer.get_vocab()
    missing = max(kept.values()) - 3
    padded.tokenizer.get_vocab = lambda: {token: number for token, number in kept.items() if number != missing}
    assert missing in replace(padded).unknown_ids
