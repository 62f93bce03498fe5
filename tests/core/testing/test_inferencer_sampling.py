"""Inferencers that sample other tokens than they should, or end elsewhere, fail the check that says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lmflow.components import Inferencer
from lmflow.data.sample import Prompt
from lmflow.errors import DataError
from lmflow.inference.sampling import filtered_logprobs, stream_key
from lmflow.inference.types import Sampling
from lmflow.testing.inferencer_reference import completion_probabilities
from lmflow.testing.inferencer_sampling import DISTRIBUTIONS, LENGTH, complete, need_exact
from lmflow.testing.tiny import tiny_letters, tiny_model

from .plain_inferencer import GlobalRandomness, Plain, fails


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


class AlwaysOne(Plain):
    """Takes `n` for granted."""

    def generate(self, request):
        return super().generate(
            replace(request, sampling=[each.model_copy(update={"n": 1}) for each in request.samplings])
        )


class ForgetsLogprobs(Plain):
    def complete(self, model, prompt, room, sampling, number, progress):
        drawn = super().complete(model, prompt, room, sampling, number, progress)
        return replace(drawn, logprobs=drawn.logprobs[1:])


DISTRIBUTION = "test_sampling_follows_the_distribution"


@pytest.mark.parametrize(
    ("broken", "check", "message"),
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
        (ScoresBeforeFilters, "test_probabilities_are_those_sampled_from", "expected log-probabilities that sum"),
        (ForgetsLogprobs, "test_every_token_has_a_log_probability", "expected a log-probability for each token"),
        (OneStream, "test_n_samples_of_each_prompt", "one random stream for all"),
        (AlwaysOne, "test_n_samples_of_each_prompt", "expected 6 completions"),
        (IgnoresTheSeed, "test_the_same_seed_gives_the_same_completions", "expected other completions"),
        (GlobalRandomness, "test_the_same_seed_gives_the_same_completions", "torch's global generator"),
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
    ],
)
def test_a_broken_inferencer_fails_its_check(
    broken: type[Inferencer], check: str, message: str, examine: Callable[..., dict[str, Any]]
):
    assert fails(examine, broken, check, message)


class Searches(Plain):
    """Promises less: it might search, or choose."""

    samples_exactly = False


def test_what_is_not_promised_is_skipped_and_named():
    need_exact(Plain(), "anything")
    with pytest.raises(pytest.skip.Exception) as skipped:
        need_exact(Searches(), "completions distributed as the model's")
    assert str(skipped.value) == (
        "inferencer plain says samples_exactly = False, so it does not promise completions distributed as the model's"
    )


def test_completions_of_all_prompts_stand_in_a_row():
    model = tiny_model(seed=1, sharpness=6)
    found = complete(Plain(), model, [Prompt([5]), Prompt([6, 7])], Sampling(n=2, max_new_tokens=2, seed=1))
    alone = complete(Plain(), model, [Prompt([6, 7])], Sampling(n=2, max_new_tokens=2, seed=1))
    assert len(found) == 4
    assert [each.ids for each in found[2:]] == [each.ids for each in alone]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_each_distribution_is_another_than_the_plain_one(name: str):
    """A sampling that changed nothing would let through an inferencer that ignores it."""
    letters = tiny_letters(1)
    options = Sampling(max_new_tokens=LENGTH, **DISTRIBUTIONS[name])
    found = completion_probabilities(letters, [1, 2, 3], options)
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    plain = completion_probabilities(letters, [1, 2, 3], Sampling(max_new_tokens=LENGTH))
    apart = sum(abs(found.get(ids, 0) - share) for ids, share in plain.items()) / 2
    assert (apart > 0.05) is (name != "plain")
