"""What further models take while they compute: against torch's profiler, and which passes a recipe makes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from transformers.models.llama.configuration_llama import LlamaConfig

from lmflow.builtin.sft import Sft
from lmflow.components import Aligner, Head
from lmflow.data.collate import collate
from lmflow.data.sample import TokenSequence
from lmflow.models.language_model import LanguageModel
from lmflow.planning.footprint import (
    StepSettings,
    predict_footprint,
    predict_other,
    predict_validation,
)
from lmflow.planning.passes import asks_in_steps, largest_scoring, weight_bytes, weight_of
from lmflow.testing.tiny import tiny_model
from lmflow.training.batches import MICRO_BATCH_TOKENS
from lmflow.training.distributions import kl_divergence
from lmflow.training.loss import target_map, target_states, token_logprobs
from lmflow.training.output_head import output_head

from .peaks import live_peak, without_weights

BATCH = collate(
    [TokenSequence([1 + i % 400 for i in range(n)], [i > n // 3 for i in range(n)]) for n in (200, 190, 210)], 0
)


def make(hidden: int, layers: int, vocabulary: int = 500) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 5 * hidden // 2, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, vocab_size=vocabulary, pad_token_id=0))


@pytest.mark.parametrize("vocabulary", [500, 4000])
@pytest.mark.parametrize(("hidden", "layers"), [(64, 3), (256, 6)], ids=["as large", "larger"])
def test_a_step_that_asks_a_teacher(hidden: int, layers: int, vocabulary: int):
    student, teacher = make(64, 3, vocabulary).train(), make(hidden, layers, vocabulary).eval().requires_grad_(False)
    output_head(teacher), output_head(student)

    def distil() -> None:
        student.zero_grad()
        states, head = target_states(teacher, BATCH)

        def compare(ours: Tensor, theirs: Tensor) -> Tensor:
            return kl_divergence(head(theirs), ours)

        target_map(student, student, BATCH, compare, states).sum().backward()

    found = predict_footprint(student, BATCH, StepSettings(), [teacher])
    assert without_weights(found) == pytest.approx(live_peak(distil), rel=0.15)
    alone = predict_footprint(student, BATCH, StepSettings())
    assert found.weights == alone.weights  # the teacher's are counted elsewhere
    assert without_weights(found) > without_weights(alone)


@pytest.mark.parametrize(("hidden", "layers"), [(64, 3), (256, 6)], ids=["as large", "larger"])
def test_a_teachers_pass(hidden: int, layers: int):
    teacher = make(hidden, layers).eval().requires_grad_(False)
    output_head(teacher)
    found = predict_other(make(64, 2), teacher, BATCH, StepSettings())
    assert found.activations + found.logits == pytest.approx(live_peak(lambda: target_states(teacher, BATCH)), rel=0.15)


@pytest.mark.parametrize("lengths", [[300] * 12, [20] * 100, [1500, 1400]], ids=["some", "short", "long"])
def test_a_references_passes_over_the_largest_batch(lengths: list[int]):
    model = LanguageModel(
        make(128, 4).eval().requires_grad_(False), SimpleNamespace(pad_token_id=0, eos_token_id=0), "r"
    )
    sequences = [TokenSequence([1 + i % 400 for i in range(n)], [i > 2 for i in range(n)]) for n in lengths]
    output_head(model.module)
    batch = largest_scoring(model, sequences)
    assert weight_of(batch)[0] <= MICRO_BATCH_TOKENS
    found = predict_other(make(64, 2), model.module, batch, StepSettings())
    real = live_peak(lambda: token_logprobs(model, sequences))
    assert found.activations + found.logits == pytest.approx(real, rel=0.15)


def test_what_training_keeps_meanwhile_is_counted():
    student, teacher = make(64, 3), make(64, 2).eval().requires_grad_(False)
    moving = 4 * sum(each.numel() for each in student.parameters())
    one, more = (predict_other(student, teacher, BATCH, StepSettings(passes=passes)) for passes in (1, 2))
    buffers = sum(each.numel() * each.element_size() for each in student.buffers())
    assert (one.weights, one.gradients, one.optimizer) == (moving + buffers, 0, 2 * moving)
    assert (more.gradients, more.activations) == (moving, one.activations)
    split = predict_other(student, teacher, BATCH, StepSettings(strategy="fsdp", processes=4))
    assert split.optimizer == one.optimizer // 4
    assert split.activations == one.activations  # each process has the whole teacher


def test_the_trained_models_own_passes_are_as_before():
    module = make(64, 3).requires_grad_(False).to(torch.bfloat16)
    module.model.layers[-1].requires_grad_(True)
    found = predict_validation(module, BATCH, StepSettings(precision="bf16", keeps_start=True))
    frozen = sum(2 * each.numel() for each in module.parameters() if not each.requires_grad)
    moving = sum(4 * each.numel() for each in module.parameters() if each.requires_grad)
    buffers = sum(each.numel() * each.element_size() for each in module.buffers())
    assert found.weights == frozen + 2 * moving + buffers
    assert found.optimizer == 2 * moving


def test_a_teacher_of_other_tokens_is_asked_and_not_compared():
    student, teacher = make(64, 3), make(64, 2, 300).requires_grad_(False)
    alone = predict_footprint(student, BATCH, StepSettings())
    found = predict_footprint(student, BATCH, StepSettings(), [teacher])
    assert found.logits == alone.logits
    kept = 4 * 64 * BATCH.num_targets
    assert alone.activations < found.activations <= alone.activations + 2 * kept


def test_a_scorer_is_asked_for_its_scores():
    config = LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, vocab_size=500
    )
    config.pad_token_id, config.num_labels = 0, 1
    scorer = LlamaForSequenceClassification(config).eval().requires_grad_(False)
    found = predict_other(make(64, 2), scorer, BATCH, StepSettings())

    def score() -> None:
        with torch.no_grad():
            scorer(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask, use_cache=False)

    assert found.logits == 0
    assert found.activations == pytest.approx(live_peak(score), rel=0.15)


def test_a_head_is_counted_in_a_step_to_the_percent():
    model = tiny_model().with_heads({"value": Head(hidden=(4096,))}, 0)
    added = sum(each.numel() for each in model.heads["value"].parameters())
    plain, found = (predict_footprint(each.module, BATCH, StepSettings(passes=2)) for each in (tiny_model(), model))
    assert found.weights - plain.weights == 4 * added
    assert found.optimizer - plain.optimizer >= 8 * added
    assert found.gradients - plain.gradients == pytest.approx(4 * added, rel=0.01)


class AsksBefore(Sft):
    """Has its reference answer before the first step."""

    name = "asks-before"

    def annotate(self, context: Any, items: Any) -> Any:
        return items


@pytest.mark.parametrize(("aligner", "asks"), [(Sft(), True), (AsksBefore(), False)])
def test_models_that_annotate_asks_are_not_asked_in_steps(aligner: Aligner, asks: bool):
    assert asks_in_steps(aligner) is asks


def test_weights_are_counted_as_they_are_held():
    module: nn.Module = make(64, 2)
    count = sum(each.numel() for each in module.parameters())
    assert weight_bytes(module) == 4 * count
    assert weight_bytes(module.to(torch.bfloat16)) == 2 * count
