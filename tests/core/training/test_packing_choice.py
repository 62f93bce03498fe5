"""Rows are packed where that is exact and padding would cost much, and it is said why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from lmflow.builtin.sft import Sft
from lmflow.components import Aligner
from lmflow.data.sample import Item, TokenSequence
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.training import packing as module
from lmflow.training.batches import micro_batches, sequences_of
from lmflow.training.packing import Packing, choose_packing, lengths_of_steps, padding_share, proven, row_length

UNEVEN = [10, 90] * 8


class Rowwise(Aligner):
    """One whose objective has not been said to go by sequences."""

    name = "rowwise"

    def align(self, context: Any) -> None:
        """Nothing."""


def of_lengths(*lengths: int) -> list[Item]:
    return [TokenSequence([5] * length, [True] * length, f"{i}") for i, length in enumerate(lengths)]


def options(**values: Any) -> TrainingOptions:
    return TrainingOptions(**{"batch_size": 4, "device": "cpu", **values})


def skeleton(name: str, like: LanguageModel, **sizes: Any) -> LanguageModel:
    """A model of that architecture whose weights have no values."""
    with torch.device("meta"):
        return like.with_module(AutoModelForCausalLM.from_config(getattr(transformers, name)(**sizes)))


def chosen(model: LanguageModel, lengths: list[int], asked: Any = "auto", aligner: Aligner | None = None) -> Packing:
    return choose_packing(asked, aligner or Sft(), model, of_lengths(*lengths), options(), 256)


def test_what_the_recipe_says_is_done(tiny_model: LanguageModel):
    for asked in (True, False):
        assert chosen(tiny_model, UNEVEN, asked) == Packing(asked, "", 256)


def test_padding_beyond_a_tenth_is_worth_packing(tiny_model: LanguageModel):
    """By hand: in fours of 10, 10, 90, 90 there are 4 x 90 positions for 200 tokens, if they come so."""
    for model in (tiny_model, skeleton("LlamaConfig", tiny_model)):
        packing = chosen(model, UNEVEN)
        assert packing.is_used
        assert packing.why.startswith("padding would be ")
        assert packing.describe() == f"packed: {packing.why}"
    assert padding_share([[(10,), (90,), (10,), (90,)]], options()) == pytest.approx(1 - 200 / 360)


def test_little_padding_is_left(tiny_model: LanguageModel):
    packing = chosen(tiny_model, [95, 100] * 8)
    assert packing.describe().startswith("not packed: padding is ")
    assert not packing.is_used


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("BloomConfig", "but a model of type bloom lets packed samples see each other"),
        ("MambaConfig", "but a model of type mamba, without attention, takes what it has read on"),
    ],
)
def test_a_model_that_lets_samples_leak_is_not_packed(name: str, words: str, tiny_model: LanguageModel):
    packing = chosen(skeleton(name, tiny_model), UNEVEN)
    assert not packing.is_used
    assert words in packing.why


def test_what_cannot_be_tried_without_weights_is_not_packed(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("sizes")

    monkeypatch.setattr(module, "small_copy", fail)
    words = "whether a model of type llama keeps packed samples apart is not known without its weights (RuntimeError)"
    assert words in chosen(tiny_model, UNEVEN).why
    assert "scores whole sequences" in chosen(replace(tiny_model, kind="scorer"), UNEVEN).why


def test_an_aligner_packs_where_it_says_so(tiny_model: LanguageModel):
    assert chosen(tiny_model, UNEVEN, aligner=Rowwise()) == Packing(False, "", 256)
    assert chosen(tiny_model, UNEVEN, True, Rowwise()).is_used


def test_the_loaded_model_has_the_last_word(tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    packing = chosen(tiny_model, UNEVEN)
    assert proven(packing, tiny_model) == packing
    leaky = skeleton("BloomConfig", tiny_model, vocab_size=300, hidden_size=32, n_layer=2, n_head=4)
    leaky.module.to_empty(device="cpu")
    for parameter in leaky.module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    refused = proven(packing, leaky)
    assert (refused.is_used, refused.row_length) == (False, packing.row_length)
    assert "lets packed samples see each other" in refused.why
    assert proven(Packing(True, "", 256), leaky).is_used, "what was asked for is refused by the self-test"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("size", [None, 1, 3])
def test_the_padding_is_that_of_the_micro_batches(processes: int, size: int | None):
    items = [*of_lengths(7, 31, 18, 2, 44, 9, 25), (of_lengths(5, 30)[0], of_lengths(5, 30)[1])]
    given = options(micro_batch_size=size, batch_size=8)
    [step] = lengths_of_steps(cast(list[Item], items), given, processes)
    groups = [tuple(of_lengths(*group)) for group in step]
    batches = micro_batches(cast(Any, groups), given, False, None, 0)
    real = sum(batch.tokens for batch in batches) / sum(batch.input_ids.numel() for batch in batches)
    assert padding_share([step], given) == pytest.approx(1 - real)
    assert len(step) == len(items) // processes
    assert sum(len(sequences_of(item)) for item in items) == 9


@pytest.mark.parametrize(
    ("size", "limit", "expected"), [(None, None, 180), (None, 120, 120), (2, None, 90), (None, 4096, 180)]
)
def test_rows_take_no_more_memory_than_padded_ones(size: int | None, limit: int | None, expected: int):
    assert row_length([[(10,), (90,)]], options(micro_batch_size=size), limit) == expected


def test_long_rows_are_not_doubled_beyond_the_tokens_of_a_micro_batch():
    assert row_length([[(3000,)]], options(), None) == 4096
    assert row_length([[(5000,)]], options(), 8192) == 5000


def test_small_products_are_computed_on_one_thread_for_the_while():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with module.on_one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
