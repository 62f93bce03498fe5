"""The suite of inferencers fails inferencers that are broken in one respect, and says in which.

The good one is slow and plain: it reads the whole text anew for every token. The broken ones each differ in one step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import PrivateAttr

from lmflow.components import Inferencer
from lmflow.components.engine import GenerateEngine
from lmflow.data.sample import Prompt
from lmflow.errors import DataError, LmflowError
from lmflow.inference.decoder import eval_mode
from lmflow.inference.generate import completion_budgets
from lmflow.inference.sampling import filtered_logprobs, sample, stream_key, uniforms
from lmflow.inference.types import Completion, Sampling
from lmflow.testing import InferencerSuite


class Plain(Inferencer):
    """One token after the other, the whole text read for each: a good inferencer."""

    name = "plain"
    _known: dict[tuple[int, ...], Any] = PrivateAttr(default_factory=dict)
    """Logits by what was read, within one call: a thousand completions of two tokens read the same few texts."""

    def generate(self, request):
        self._known.clear()
        model, samplings = request.model, request.samplings
        limits = [sampling.max_new_tokens for sampling in samplings]
        rooms = completion_budgets(request.prompts, limits, model.context_length)
        with torch.no_grad(), eval_mode(model.module):
            return [
                [self.complete(model, prompt, room, sampling, number, request.progress) for number in range(sampling.n)]
                for prompt, sampling, room in zip(request.prompts, samplings, rooms)
            ]

    def complete(self, model, prompt, room, sampling, number, progress):
        key = self.key(prompt, number, sampling)
        ids, logprobs, text, reason = [], [], "", "length"
        while len(ids) < room:
            logits = self.logits(model, [*prompt.ids, *ids])
            logits[:, list(model.suppressed_ids)] = -torch.inf
            if len(ids) < sampling.min_new_tokens:
                logits[:, list(model.end_ids)] = -torch.inf
            scores = self.distribution(logits, sampling, len(ids))
            token = int(sample(scores, uniforms(torch.tensor([key]), torch.tensor([len(ids)]))))
            ids.append(token)
            logprobs.append(float(scores[0, token]))
            if progress:
                progress(1)
            if self.ends(model, token):
                reason = "eos"
                break
            text, stopped = self.cut(model.decode(ids), sampling.stop)
            if stopped:
                return Completion(tuple(ids), text, tuple(logprobs), "stop")
        return Completion(tuple(ids), model.decode(ids), tuple(logprobs), reason)

    def key(self, prompt: Prompt, number: int, sampling: Sampling) -> int:
        return stream_key(prompt.ids, number, sampling.seed)

    def logits(self, model: Any, ids: Sequence[int]) -> Any:
        if tuple(ids) not in self._known:
            self._known[tuple(ids)] = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]
        return self._known[tuple(ids)].clone()

    def distribution(self, logits: Any, sampling: Sampling, drawn: int) -> Any:
        return filtered_logprobs(logits, sampling.temperature, sampling.top_k, sampling.top_p)

    def ends(self, model: Any, token: int) -> bool:
        return token in model.end_ids

    def cut(self, text: str, stops: Sequence[str]) -> tuple[str, bool]:
        found = [text.index(stop) for stop in stops if stop in text]
        return (text[: min(found)], True) if found else (text, False)


class OffByOne(Plain):
    """Reads all but the last token from the second one on, as a cache that is a step behind does."""

    def logits(self, model, ids):
        return super().logits(model, ids[:-1] if len(ids) > 3 else ids)


class IgnoresTemperature(Plain):
    def distribution(self, logits, sampling, drawn):
        return super().distribution(logits, sampling.model_copy(update={"temperature": 1.0}), drawn)


class ColdFirstToken(Plain):
    """The temperature is applied twice to the first token."""

    def distribution(self, logits, sampling, drawn):
        first = sampling.model_copy(update={"temperature": sampling.temperature**2})
        return super().distribution(logits, sampling if drawn else first, drawn)


class NucleusBeforeTopK(Plain):
    """Top-p of the whole distribution, then top-k: another order, another distribution."""

    def distribution(self, logits, sampling, drawn):
        nucleus = filtered_logprobs(logits, sampling.temperature, 0, sampling.top_p)
        return filtered_logprobs(nucleus, 1.0, sampling.top_k, 1.0)


class SmallerNucleus(Plain):
    """Leaves out the token that reaches top-p, so that less than that probability is kept."""

    def distribution(self, logits, sampling, drawn):
        scores = filtered_logprobs(logits, sampling.temperature, sampling.top_k)
        ordered, order = scores.exp().sort(descending=True)
        out = ordered.cumsum(-1) > sampling.top_p
        out[:, 0] = False
        return scores.masked_fill(torch.empty_like(out).scatter(-1, order, out), -torch.inf).log_softmax(-1)


class MoreThanK(Plain):
    def distribution(self, logits, sampling, drawn):
        k = sampling.top_k + 1 if sampling.top_k else 0
        return super().distribution(logits, sampling.model_copy(update={"top_k": k}), drawn)


class AcceptsWrongly(Plain):
    """Speculation with an even draft whose refused proposals are drawn anew from the target, not from the rest."""

    def distribution(self, logits, sampling, drawn):
        right = super().distribution(logits, sampling, drawn).exp()
        even = torch.full_like(right, 1 / right.shape[-1])
        accepted = torch.minimum(right, even)
        return (accepted + (1 - accepted.sum(-1, keepdim=True)) * right).log()


class ScoresBeforeFilters(Plain):
    def complete(self, model, prompt, room, sampling, number, progress):
        drawn = super().complete(model, prompt, room, sampling, number, progress)
        raw = []
        for place, token in enumerate(drawn.ids):
            raw.append(float(self.logits(model, [*prompt.ids, *drawn.ids[:place]]).log_softmax(-1)[0, token]))
        return replace(drawn, logprobs=tuple(raw))


class OneStream(Plain):
    def key(self, prompt, number, sampling):
        return stream_key(prompt.ids, 0, sampling.seed)


class IgnoresTheSeed(Plain):
    def key(self, prompt, number, sampling):
        return stream_key(prompt.ids, number, 0)


class GlobalRandomness(Plain):
    def key(self, prompt, number, sampling):
        return int(torch.randint(1 << 40, ()))


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


class NeverEnds(Plain):
    def ends(self, model, token):
        return False


class ShowsTheEnd(Plain):
    def complete(self, model, prompt, room, sampling, number, progress):
        drawn = super().complete(model, prompt, room, sampling, number, progress)
        return replace(drawn, text=model.tokenizer.decode(list(drawn.ids), skip_special_tokens=False))


class OneTooMany(Plain):
    def complete(self, model, prompt, room, sampling, number, progress):
        return super().complete(model, prompt, room + 1, sampling, number, progress)


class EndsEarly(Plain):
    def complete(self, model, prompt, room, sampling, number, progress):
        early = sampling.model_copy(update={"min_new_tokens": 0})
        return super().complete(model, prompt, room, early, number, progress)


class KeepsTheStop(Plain):
    def cut(self, text, stops):
        return text, super().cut(text, stops)[1]


class IgnoresTheStop(Plain):
    def cut(self, text, stops):
        return text, False


class AnswersAnything(Plain):
    def generate(self, request):
        return super().generate(replace(request, prompts=[p if p.ids else Prompt([1]) for p in request.prompts]))


class CutsLongPrompts(Plain):
    """Drops the beginning of a prompt that fills the context, and says nothing."""

    def generate(self, request):
        room = request.model.context_length - 1
        return super().generate(replace(request, prompts=[Prompt(list(p.ids)[-room:]) for p in request.prompts]))


class CrashesWithoutRoom(Plain):
    def generate(self, request):
        try:
            return super().generate(request)
        except DataError as error:
            raise IndexError(str(error)) from None


class ForgetsTheContext(Plain):
    def complete(self, model, prompt, room, sampling, number, progress):
        return super().complete(model, prompt, sampling.max_new_tokens, sampling, number, progress)


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


class AlwaysOne(Plain):
    """Takes `n` for granted."""

    def generate(self, request):
        return super().generate(
            replace(request, sampling=[each.model_copy(update={"n": 1}) for each in request.samplings])
        )


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


class ForgetsLogprobs(Plain):
    def complete(self, model, prompt, room, sampling, number, progress):
        drawn = super().complete(model, prompt, room, sampling, number, progress)
        return replace(drawn, logprobs=drawn.logprobs[1:])


class RandomEngine(Plain):
    """Its engine gives each request the seed of its ticket."""

    def engine(self, model):
        return TicketSeeds(self, model)


class TicketSeeds(GenerateEngine):
    def _add(self, ticket, prompt, sampling, follow):
        super()._add(ticket, prompt, sampling.model_copy(update={"seed": sampling.seed + ticket}), follow)


class NeverOpened(Plain):
    """Needs what `open` is given."""

    _context: Any = PrivateAttr(None)

    def open(self, context):
        self._context = context

    def close(self):
        self._context = None

    def generate(self, request):
        if self._context is None:
            raise LmflowError("not open")
        return super().generate(request)


@pytest.mark.parametrize("good", [Plain, NeverOpened])
def test_a_good_inferencer_passes_everything(good: type[Inferencer], examine: Callable[..., dict[str, Any]]):
    reports = examine(InferencerSuite, inferencer=good())
    assert {name: report.message for name, report in reports.items() if report.outcome != "passed"} == {}


DISTRIBUTION = "test_sampling_follows_the_distribution"


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (OffByOne, "test_greedy_completions_take_the_most_probable_token", "expected the greedy tokens"),
        (IgnoresTemperature, f"{DISTRIBUTION}[temperature]", "as often as the distribution says"),
        (ColdFirstToken, f"{DISTRIBUTION}[temperature]", "as often as the distribution says"),
        (NucleusBeforeTopK, f"{DISTRIBUTION}[all-of-them]", "expected"),
        (SmallerNucleus, f"{DISTRIBUTION}[top_p]", "as often as the distribution says"),
        (MoreThanK, f"{DISTRIBUTION}[top_k]", "no completion of probability 0"),
        (AcceptsWrongly, f"{DISTRIBUTION}[plain]", "as often as the distribution says"),
        (OffByOne, f"{DISTRIBUTION}[plain]", "as often as the distribution says"),
        (OneStream, f"{DISTRIBUTION}[plain]", "as often as the distribution says"),
        (NeverEnds, f"{DISTRIBUTION}[plain]", "after the end of the text"),
        (ScoresBeforeFilters, "test_probabilities_are_those_drawn_from", "expected log-probabilities that sum"),
        (ForgetsLogprobs, "test_every_token_has_a_log_probability", "expected a log-probability for each token"),
        (OneStream, "test_n_samples_of_each_prompt", "one random stream for all"),
        (AlwaysOne, "test_n_samples_of_each_prompt", "expected 6 completions"),
        (TheFirstSampling, "test_each_prompt_has_its_own_sampling", "the sampling of another prompt"),
        (MixedUpSamplings, "test_each_prompt_has_its_own_sampling", "the sampling of another prompt"),
        (SeedsTorch, "test_torchs_random_state_is_left_as_it_was", "expected torch's global random state"),
        (GlobalRandomness, "test_torchs_random_state_is_left_as_it_was", "expected torch's global random state"),
        (KeepsAnswers, "test_new_weights_are_used_at_once", "expected other completions from other weights"),
        (KeepsWeights, "test_new_weights_are_used_at_once", "expected other completions from other weights"),
        (RandomEngine, "test_requests_join_and_leave_while_others_run", "expected the completion of `generate` alone"),
        (IgnoresTheSeed, "test_the_same_seed_gives_the_same_completions", "expected other completions"),
        (GlobalRandomness, "test_the_same_seed_gives_the_same_completions", "torch's global generator"),
        (RandomnessByRow, "test_the_order_of_prompts_does_not_matter", "belong to the row of the batch"),
        (SortsPrompts, "test_the_order_of_prompts_does_not_matter", "prompts sorted by length"),
        (ReadsPadding, "test_a_prompt_alone_gets_what_it_gets_in_company", "padding that is attended to"),
        (NeverEnds, "test_the_end_of_text_ends_a_completion", "expected nothing after the end of text"),
        (ShowsTheEnd, "test_the_end_of_text_ends_a_completion", "expected the text"),
        (OneTooMany, "test_no_completion_is_longer_than_asked", "expected at most 1 tokens; found 2"),
        (EndsEarly, "test_no_completion_ends_too_early", "expected no end of text among the first 4"),
        (KeepsTheStop, "test_a_stop_string_ends_a_completion", "cut before"),
        (IgnoresTheStop, "test_a_stop_string_ends_a_completion", "cut before"),
        (AnswersAnything, "test_prompts_without_room_are_refused", "of 0 tokens; it was answered"),
        (CutsLongPrompts, "test_prompts_without_room_are_refused", "it was answered"),
        (CrashesWithoutRoom, "test_prompts_without_room_are_refused", "found IndexError"),
        (ForgetsTheContext, "test_a_completion_ends_with_the_context", "expected the 3 tokens"),
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
            "test_a_drawing_that_is_stopped_leaves_the_model_as_it_was",
            "in the mode it was in",
        ),
    ],
)
def test_a_broken_inferencer_fails_its_check(
    broken: type[Inferencer], check: str, said: str, examine: Callable[..., dict[str, Any]]
):
    only = check.replace("[", " and ").removesuffix("]")
    report = examine(InferencerSuite, inferencer=broken(), only=only)[check]
    assert report.outcome == "failed"
    assert " ".join(said.split()) in " ".join(report.message.replace("\nE  ", " ").split())
