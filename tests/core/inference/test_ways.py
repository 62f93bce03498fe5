"""Every kind of cache that Transformers has: what is sampled is what plain forward passes say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lmflow.components import GenerateRequest
from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Sampling
from lmflow.inference.ways import USUAL, WAYS, describe_way, find_way, holds, probe_ids
from lmflow.models.language_model import LanguageModel
from lmflow.testing.architectures import tiny_architecture
from lmflow.testing.tiny import scale_matrices

STATES = {
    "mamba": "padded prompts",
    "falcon_mamba": "padded prompts",
    "mamba2": "padded",
    "rwkv": "one at a time",
    "jamba": "padded",
    "bamba": "padded",
    "granitemoehybrid": "padded",
    "qwen3_next": "padded",
    "lfm2": "padded",
    "recurrent_gemma": "no cache",
    "nemotron_h": "padded",
    "zamba2": "padded",
    "falcon_h1": "padded",
    "minimax": "equal lengths",
}
"""Architectures whose layers keep states, and how each is decoded."""
OTHERS = {"gpt2": "padded", "opt": "padded", "bart": "equal lengths", "gpt_oss": "padded", "xlstm": "no cache"}


@pytest.fixture(scope="module")
def make(make_tokenizer: Callable[..., Any]) -> Callable[..., LanguageModel]:
    def model(kind: str, **options: Any) -> LanguageModel:
        tokenizer = make_tokenizer()
        module = tiny_architecture(kind, len(tokenizer), **options)
        scale_matrices(module, 3.0)
        return LanguageModel(module, tokenizer, kind)

    return model


def plain_greedy(model: LanguageModel, ids: list[int], tokens: int) -> list[int]:
    """The most probable tokens, each from one plain forward pass over all before it."""
    row = list(ids)
    never = list(model.suppressed_ids)
    for _ in range(tokens):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].float()
        logits[never] = -torch.inf
        row.append(int(logits.argmax()))
        if row[-1] in model.end_ids:
            break
    return row[len(ids) :]


@pytest.mark.parametrize("kind", [*STATES, *OTHERS])
def test_what_is_sampled_is_what_plain_passes_say(kind: str, make: Callable[..., LanguageModel]):
    """Alone, beside prompts of other lengths, twice of one prompt, and with rows that end apart and join."""
    model = make(kind)
    assert find_way(model).name == (STATES | OTHERS)[kind]
    prompts = [Prompt([5, 6, 7, 8, 9, 10, 11]), Prompt([40, 41]), Prompt([90, 91, 92, 93]), Prompt([20, 21])]
    lengths = [5, 2, 6, 4]
    expected = [plain_greedy(model, list(p.ids), n) for p, n in zip(prompts, lengths, strict=True)]
    hf = HuggingFace(batch_tokens=48)
    for n, temperature in ((1, 0), (2, 1e-4)):
        samplings = [Sampling(temperature=temperature, max_new_tokens=length, n=n) for length in lengths]
        drawn = hf.generate(GenerateRequest(model, prompts, samplings))
        assert [[list(c.ids) for c in row] for row in drawn] == [[ids] * n for ids in expected]
    alone = hf.generate(GenerateRequest(model, prompts[1:2], samplings[1]))
    assert list(alone[0][0].ids) == expected[1]


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "jamba", "minimax"])
def test_completions_do_not_depend_on_neighbours(kind: str, make: Callable[..., LanguageModel]):
    model = make(kind)
    sampling = Sampling(max_new_tokens=6, min_new_tokens=6, n=2, seed=3)
    prompts = [Prompt([5, 6, 7, 8, 9]), Prompt([40])]
    together = HuggingFace().generate(GenerateRequest(model, prompts, sampling))
    for prompt, drawn in zip(prompts, together, strict=True):
        [alone] = HuggingFace().generate(GenerateRequest(model, [prompt], sampling))
        assert [c.ids for c in alone] == [c.ids for c in drawn]
        for one, other in zip(alone, drawn, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_model_that_looks_ahead_is_refused(make: Callable[..., LanguageModel]):
    with pytest.raises(LmflowError, match="type bert is no causal language model: later tokens change"):
        find_way(make("bert"))


def test_the_probe_is_made_once_and_leaves_the_model_as_it_was(make: Callable[..., LanguageModel]):
    model = make("gpt2")
    model.module.train()
    passes: list[None] = []
    model.module.register_forward_pre_hook(lambda *_: passes.append(None))
    assert find_way(model) is USUAL
    assert model.module.training
    assert 0 < len(passes) < 20
    passes.clear()
    assert find_way(model) is USUAL
    assert not passes
    assert describe_way(model) == ""


def test_what_is_unusual_is_said(make: Callable[..., LanguageModel]):
    assert describe_way(make("rwkv")) == (
        "A model of type rwkv is decoded in its own way, as the usual one would be wrong: rows are decoded one at a "
        "time."
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_oss", "mixtral", "jamba"])
def test_rounding_does_not_change_the_way(kind: str, dtype: torch.dtype, make: Callable[..., LanguageModel]):
    model = make(kind)
    model.module.to(dtype)
    assert find_way(model) is USUAL


@pytest.mark.parametrize("kind", ["rwkv", "recurrent_gemma", "mamba"])
def test_a_wrong_way_is_found_in_low_precision_too(kind: str, make: Callable[..., LanguageModel]):
    model = make(kind)
    model.module.to(torch.bfloat16)
    assert find_way(model).name == STATES[kind]


def test_a_model_whose_plain_pass_fails_or_is_not_finite_is_decoded_as_usual(make: Callable[..., LanguageModel]):
    broken = make("gpt2")
    broken.module.transformer.wte.weight.data.fill_(torch.nan)
    assert find_way(broken) is USUAL
    failing = make("gpt2")
    failing.module.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # not among what architectures raise where a way is not theirs
        find_way(failing)


def test_ids_of_the_probe_are_plain_text(make: Callable[..., LanguageModel]):
    model = make("gpt2")
    ids = probe_ids(model)
    assert len(set(ids)) > 20
    assert not {*model.end_ids, *model.suppressed_ids} & {*ids}


def test_every_way_is_right_for_plain_attention(make: Callable[..., LanguageModel]):
    from lmflow.inference.ways import _truth, probing

    model = make("llama")
    with probing(model.module):
        truth = _truth(model, probe_ids(model))
        assert truth is not None
        assert [holds(way, model.module, truth) for way in WAYS] == [True, False, True, True, True, True]
