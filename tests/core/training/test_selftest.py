"""The start-up checks: silent on a sound model, and each one catching the fault it is for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch, collate
from lmflow.data.sample import Item, TokenSequence
from lmflow.errors import TrainingError
from lmflow.models.language_model import LanguageModel
from lmflow.testing.tiny import tiny_tokenizer
from lmflow.training.batching_checks import all_logprobs, reversed_of
from lmflow.training.loss import forward_inputs
from lmflow.training.objective import FunctionObjective, Loss, NextToken, Objective
from lmflow.training.selftest import (
    check_gradients,
    check_model,
    check_movement,
    check_scores,
    choose_probes,
    moved,
    scores,
)


@pytest.fixture
def sequences() -> list[TokenSequence]:
    return [TokenSequence(list(range(5, 5 + n)), [False] * 2 + [True] * (n - 2), f"s{n}") for n in (6, 90, 11)]


def trainer_of(
    model: LanguageModel,
    *,
    packing: bool = False,
    objective: Objective | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Any:
    """What the checks ask of a trainer."""
    setup = SimpleNamespace(packing=packing, objective=objective or NextToken())
    return SimpleNamespace(model=model, setup=setup, autocast=autocast)


@pytest.mark.parametrize("packing", [False, True])
def test_a_sound_model_passes_and_is_left_as_it_was(packing: bool, tiny_model: Any, sequences: list[TokenSequence]):
    tiny_model.module.train()
    before = copy.deepcopy(tiny_model.module.state_dict())
    check_model(trainer_of(tiny_model, packing=packing), sequences)
    assert tiny_model.module.training
    assert all(torch.equal(before[name], value) for name, value in tiny_model.module.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_model.module.parameters())


def test_a_sound_model_passes_in_bf16(tiny_model: Any, sequences: list[TokenSequence]):
    """Autocast caches casts of trainable weights, which must not hide that they move."""
    check_model(trainer_of(tiny_model, autocast=lambda: torch.autocast("cpu", torch.bfloat16)), sequences)


def test_a_failed_check_leaves_the_model_as_it_was_too(tiny_model: Any, sequences: list[TokenSequence]):
    tiny_model.module.train()
    tiny_model.module.unused = nn.Parameter(torch.zeros(2))
    with pytest.raises(TrainingError, match="unused"):
        check_model(trainer_of(tiny_model), sequences)
    assert tiny_model.module.training
    assert all(parameter.grad is None for parameter in tiny_model.module.parameters())


def test_probes_are_short_and_keep_their_targets(sequences: list[TokenSequence]):
    probes = choose_probes(sequences)
    assert [len(p) for p in probes] == [6, 11, 48]
    assert all(p.num_targets for p in probes)


def test_probes_are_cut_around_the_first_target():
    late = TokenSequence(list(range(200)), [i >= 150 for i in range(200)])
    [probe] = choose_probes([late])
    assert list(probe.ids) == list(range(126, 174))
    assert probe.num_targets == 24


def test_inputs_beyond_tokens_come_first_and_are_not_cut(sequences: list[TokenSequence]):
    seen = TokenSequence([3] * 70, [True] * 70, model_inputs={"pixel_values": torch.zeros(1)})
    assert choose_probes([*sequences, seen])[0] is seen


def test_a_declared_parameter_the_loss_never_uses(tiny_model: Any, sequences: list[TokenSequence]):
    tiny_model.module.unused = nn.Parameter(torch.zeros(2))
    with pytest.raises(TrainingError, match="gradient does not reach 1 parameters, such as unused"):
        check_gradients(trainer_of(tiny_model), sequences[0])


def test_an_objective_that_forgets_a_head_of_its_own(tiny_model: Any, sequences: list[TokenSequence]):
    """It is the objective of the run whose gradient is looked at, with every sequence of the item."""
    tiny_model.module.value = nn.Linear(32, 1)
    given: list[int] = []

    def with_value(forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
        given.append(len(batch.sequences))
        loss = NextToken()(forward, module, batch).total
        return Loss(loss + module.value(torch.ones(32)).sum(), {"value": 1.0})  # type: ignore[operator]

    item = (sequences[0], sequences[2])
    check_gradients(trainer_of(tiny_model, objective=FunctionObjective(with_value, "item")), item)
    assert given == [2]
    tiny_model.module.zero_grad()
    with pytest.raises(TrainingError, match=r"does not reach 2 parameters, such as value.weight, value.bias"):
        check_gradients(trainer_of(tiny_model), item)


def test_an_objective_without_a_gradient(tiny_model: Any, sequences: list[TokenSequence]):
    cut_off = FunctionObjective(lambda *given: NextToken()(*given).total.detach())
    with pytest.raises(TrainingError, match="objective's loss has no gradient"):
        check_gradients(trainer_of(tiny_model, objective=cut_off), sequences[0])


def test_an_adapter_that_is_not_applied(tiny_model: Any, sequences: list[TokenSequence]):
    tiny_model.module.requires_grad_(False)
    tiny_model.module.adapter = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match="logits do not change"):
        check_movement(tiny_model, collate(sequences, 2))


def test_attention_across_packed_samples(tiny_model: Any, sequences: list[TokenSequence]):
    """A model that ignores where samples begin is caught before it trains on garbage."""
    forward = tiny_model.module.forward
    tiny_model.module.forward = lambda input_ids, position_ids=None, **rest: forward(input_ids, **rest)
    check_model(trainer_of(tiny_model), sequences)
    with pytest.raises(TrainingError, match=r"depends on the batch.*packed.*--data.packing false"):
        check_model(trainer_of(tiny_model, packing=True), sequences)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no sample gives the objective anything"),
        ([TokenSequence([3, 4], [False, False])], "No sample has a trained token"),
    ],
    ids=["no item", "no target"],
)
def test_nothing_to_test_with(items: Sequence[Item], message: str, tiny_model: Any):
    with pytest.raises(TrainingError, match=message):
        check_model(trainer_of(tiny_model), items)


def test_the_plain_reference_by_transformers_own_loss(tiny_model: Any, sequences: list[TokenSequence]):
    batch = collate(sequences[:1], 2)
    labels = batch.input_ids.masked_fill(~batch.loss_mask, -100)
    with torch.no_grad():
        expected = tiny_model.module(input_ids=batch.input_ids, labels=labels).loss
        found = all_logprobs(tiny_model.module, batch)
    assert float(-found.mean()) == pytest.approx(float(expected), rel=1e-6)


def test_moved_parameters_come_back_to_the_bit(tiny_model: Any):
    tiny_model.module.lm_head.weight.requires_grad_(False)
    before = copy.deepcopy(tiny_model.module.state_dict())
    with moved(tiny_model.module):
        changed = {n for n, v in tiny_model.module.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == set(before) - {"lm_head.weight"}
    assert all(torch.equal(before[name], value) for name, value in tiny_model.module.state_dict().items())


def test_reversed_is_as_long_and_another_text(sequences: list[TokenSequence]):
    other = reversed_of(sequences[0])
    assert list(other.ids) == list(reversed(sequences[0].ids))
    assert other.loss_mask == sequences[0].loss_mask


# Scorers


def scorer(pad_of_config: int | None = 2, *, pad: str | None = "<|pad|>", labels: int = 1) -> LanguageModel:
    """A tiny Llama that gives a number for a sequence; its tokenizer pads with `pad`, its configuration says what."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = tiny_tokenizer(pad=pad)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=1,
        pad_token_id=pad_of_config,
        num_labels=labels,
    )
    module = LlamaForSequenceClassification(config).eval()
    return LanguageModel(module, tokenizer, "scorer", kind="scorer")


def squared_error(forward: nn.Module, module: nn.Module, batch: Batch) -> Tensor:
    """Of each sequence's score, against a label that is the same for all."""
    found: Tensor = forward(**forward_inputs(batch)).logits.float().squeeze(-1)
    return (found - 1.0).square().sum()


def bradley_terry(forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
    """Of pairs, the preferred one first: -log sigmoid of how much higher it scores."""
    found: Tensor = forward(**forward_inputs(batch)).logits.float().squeeze(-1)
    margin = found[::2] - found[1::2]
    return Loss(-nn.functional.logsigmoid(margin).sum(), {"accuracy": (margin > 0).float().sum()})


@pytest.fixture
def texts() -> list[TokenSequence]:
    """Sequences that end with the end of text, as a scorer reads them; nothing in them is a target."""
    return [TokenSequence([*range(5, 5 + n), 1], [False] * (n + 1), f"t{n}") for n in (4, 9, 30, 6)]


def test_a_scorer_passes_with_an_objective_on_its_score(texts: list[TokenSequence]):
    model = scorer()
    check_model(trainer_of(model, objective=FunctionObjective(squared_error, "item")), texts)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    check_model(trainer_of(model, objective=FunctionObjective(bradley_terry, "item")), pairs)


def test_a_scorer_whose_padding_ends_texts_too_scores_alike_in_every_batch(texts: list[TokenSequence]):
    """With pad = eos padding is looked for from the right in the whole batch, and each alone must give the same."""
    model = scorer(1, pad="<|im_end|>")
    assert model.pad_id == 1
    check_model(trainer_of(model, objective=FunctionObjective(squared_error, "item")), texts)
    together = scores(model.module, collate(texts, 1))
    for i, each in enumerate(texts):
        alone = scores(model.module, collate([each], 1))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)
        hidden = model.module.model(input_ids=torch.tensor([each.ids])).last_hidden_state  # type: ignore[operator]
        torch.testing.assert_close(alone, model.module.score(hidden)[:, -2], rtol=1e-5, atol=1e-5)  # type: ignore[operator]


def test_a_scorer_that_does_not_know_its_padding_is_told_what_to_set(texts: list[TokenSequence]):
    objective = FunctionObjective(squared_error, "item")
    for known in (7, None):  # another token than the tokenizer pads with, or none
        with pytest.raises(TrainingError, match=r"Self-test: .*configuration must name the tokenizer's pad token"):
            check_model(trainer_of(scorer(known), objective=objective), texts)


def test_a_single_sequence_needs_no_padding(texts: list[TokenSequence]):
    check_scores(scorer(None), texts[:1], packing=False)


def test_a_scorer_reads_one_sequence_in_each_row(texts: list[TokenSequence]):
    with pytest.raises(TrainingError, match=r"Set --data\.packing false"):
        check_model(trainer_of(scorer(), packing=True), texts)


def test_an_adapter_that_does_not_change_the_score(texts: list[TokenSequence]):
    model = scorer()
    model.module.requires_grad_(False)
    model.module.adapter = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match="do not change when the trainable parameters move"):
        check_movement(model, collate(texts[:1], 2))


def test_scores_have_a_number_for_each_label(texts: list[TokenSequence]):
    found = scores(scorer(labels=3).module, collate(texts, 2))
    assert found.shape == (4, 3)
    assert found.dtype == torch.float32
