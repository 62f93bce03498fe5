"""Inferencers that answer requests otherwise in company, or leave something behind, fail the check that says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import PrivateAttr

from lmflow.components import Inferencer
from lmflow.components.engine import GenerateEngine
from lmflow.data.sample import Prompt
from lmflow.inference.types import Completion
from lmflow.testing.inferencer_requests import move, same
from lmflow.testing.tiny import tiny_model

from .plain_inferencer import GlobalRandomness, Plain, fails


class RandomnessByRow(Plain):
    """The random stream belongs to the place in the batch."""

    def generate(self, request):
        moved = [each.model_copy(update={"seed": each.seed + row}) for row, each in enumerate(request.samplings)]
        return super().generate(replace(request, sampling=moved))


class ReadsPadding(Plain):
    """Shorter prompts are padded to the longest, and the padding is read."""

    def generate(self, request):
        width, pad = max((len(prompt.ids) for prompt in request.prompts), default=0), request.model.pad_id
        padded = [Prompt([pad] * (width - len(p.ids)) + list(p.ids)) if p.ids else p for p in request.prompts]
        return super().generate(replace(request, prompts=padded))


class SortsPrompts(Plain):
    def generate(self, request):
        return super().generate(
            request.part(sorted(range(len(request.prompts)), key=lambda i: len(request.prompts[i].ids)))
        )


class StreamsAnother(Plain):
    def stream(self, request):
        [sampling] = request.samplings
        yield from super().stream(replace(request, sampling=sampling.model_copy(update={"seed": sampling.seed + 1})))


class StreamsWithoutTheEnd(Plain):
    def stream(self, request):
        for piece in super().stream(request):
            yield piece[:-1]


class EachOnlyOnce(Plain):
    def generate_each(self, request):
        yield from list(super().generate_each(request))[1:]


class SaysNothing(Plain):
    def generate(self, request):
        return super().generate(replace(request, progress=None))


class SaysItAtTheEnd(Plain):
    def generate(self, request):
        drawn = super().generate(replace(request, progress=None))
        if request.progress:
            request.progress(sum(len(completion.ids) for row in drawn for completion in row))
        return drawn


class LeavesEvalMode(Plain):
    def generate(self, request):
        request.model.module.eval()
        return super().generate(request)


class LeavesEvalModeWhenStopped(Plain):
    def generate(self, request):
        parts = list(request.model.module.modules())
        training = [part.training for part in parts]
        request.model.module.eval()
        drawn = super().generate(request)
        for part, mode in zip(parts, training):
            part.training = mode
        return drawn


class FreezesTheModel(Plain):
    def generate(self, request):
        request.model.module.requires_grad_(False)
        return super().generate(request)


class TouchesTheWeights(Plain):
    def generate(self, request):
        with torch.no_grad():
            next(request.model.module.parameters()).add_(1e-6)
        return super().generate(request)


class TheFirstSampling(Plain):
    """All prompts are sampled as the first is, but for their number."""

    def generate(self, request):
        first, samplings = request.samplings[0], request.samplings
        return super().generate(
            replace(request, sampling=[first.model_copy(update={"n": each.n}) for each in samplings])
        )


class MixedUpSamplings(Plain):
    """Sorts the prompts by length and puts completions back, but the samplings stay where they were."""

    def generate(self, request):
        order = sorted(range(len(request.prompts)), key=lambda i: len(request.prompts[i].ids))
        drawn = super().generate(replace(request, prompts=[request.prompts[i] for i in order]))
        return [drawn[order.index(place)] for place in range(len(order))]


class SeedsTorch(Plain):
    def generate(self, request):
        torch.manual_seed(request.samplings[0].seed)
        return super().generate(request)


class KeepsAnswers(Plain):
    """Remembers what it answered, whatever became of the weights."""

    _answers: dict[Any, Any] = PrivateAttr(default_factory=dict)

    def complete(self, model, prompt, room, sampling, number, progress):
        key = (tuple(prompt.ids), sampling, number)
        if key not in self._answers:
            self._answers[key] = super().complete(model, prompt, room, sampling, number, progress)
        return self._answers[key]


class KeepsWeights(Plain):
    """Samples from a copy of the weights it was opened with."""

    _copies: dict[int, Any] = PrivateAttr(default_factory=dict)

    def logits(self, model, ids):
        mine = self._copies.setdefault(id(model), copy.deepcopy(model.module))
        return mine(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1].clone()


class RandomEngine(Plain):
    """Its engine gives each request the seed of its ticket."""

    def engine(self, model):
        return TicketSeeds(self, model)


class TicketSeeds(GenerateEngine):
    def _add(self, ticket, prompt, sampling, follow):
        super()._add(ticket, prompt, sampling.model_copy(update={"seed": sampling.seed + ticket}), follow)


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (TheFirstSampling, "test_each_prompt_has_its_own_sampling", "the sampling of another prompt"),
        (MixedUpSamplings, "test_each_prompt_has_its_own_sampling", "the sampling of another prompt"),
        (SeedsTorch, "test_torchs_random_state_is_left_as_it_was", "expected torch's global random state"),
        (GlobalRandomness, "test_torchs_random_state_is_left_as_it_was", "expected torch's global random state"),
        (KeepsAnswers, "test_new_weights_are_used_at_once", "expected other completions from other weights"),
        (KeepsWeights, "test_new_weights_are_used_at_once", "expected other completions from other weights"),
        (RandomEngine, "test_requests_join_and_leave_while_others_run", "expected the completion of `generate` alone"),
        (RandomnessByRow, "test_the_order_of_prompts_does_not_matter", "belong to the row of the batch"),
        (SortsPrompts, "test_the_order_of_prompts_does_not_matter", "prompts sorted by length"),
        (ReadsPadding, "test_a_prompt_alone_gets_what_it_gets_in_company", "padding that is attended to"),
        (StreamsAnother, "test_streaming_gives_the_same_text", "expected the pieces to make"),
        (StreamsWithoutTheEnd, "test_streaming_gives_the_same_text", "expected the pieces to make"),
        (EachOnlyOnce, "test_one_by_one_gives_the_same_completions", "expected every prompt once"),
        (SaysNothing, "test_progress_counts_the_tokens", "it was told of 0"),
        (SaysItAtTheEnd, "test_progress_counts_the_tokens", "it was told once"),
        (LeavesEvalMode, "test_the_model_is_left_as_it_was", "in the mode it was in"),
        (FreezesTheModel, "test_the_model_is_left_as_it_was", "expected parameters trainable"),
        (TouchesTheWeights, "test_the_model_is_left_as_it_was", "expected sampling to change no weight"),
        (
            LeavesEvalModeWhenStopped,
            "test_sampling_that_is_stopped_leaves_the_model_as_it_was",
            "in the mode it was in",
        ),
    ],
)
def test_a_broken_inferencer_fails_its_check(
    broken: type[Inferencer], check: str, message: str, examine: Callable[..., dict[str, Any]]
):
    assert fails(examine, broken, check, message)


def test_moved_weights_are_all_others_and_said_to_be():
    model = tiny_model(seed=1, sharpness=6)
    before, version = {name: value.clone() for name, value in model.module.named_parameters()}, model.version
    move(model)
    assert model.version != version
    assert not [name for name, value in model.module.named_parameters() if torch.equal(value, before[name])]
    again = tiny_model(seed=1, sharpness=6)
    move(again)
    for name, value in model.module.named_parameters():
        assert torch.equal(value, again.module.get_parameter(name)), "and the same each time"


def test_completions_are_the_same_but_for_rounding():
    one = Completion((5, 1), "a", (-0.5, -0.25), "eos")
    assert same(one, replace(one, logprobs=(-0.5001, -0.25)))
    for other in (replace(one, ids=(5, 2)), replace(one, text="b"), replace(one, finish_reason="stop")):
        assert not same(one, other)
