"""The suite of inferencers asks of those that search or choose what they promise, and no more.

Beam search and best of n are written as a plugin's author would; they read the whole text anew for every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from pydantic import Field

from lmflow.components import GenerateRequest, Inferencer
from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow.inference.batching import finish
from lmflow.inference.decoder import eval_mode
from lmflow.inference.generate import SamplingRules, completion_budgets
from lmflow.inference.hf import HuggingFace
from lmflow.inference.text_stream import TextStream
from lmflow.inference.types import Completion, Sampling
from lmflow.testing import InferencerSuite
from lmflow.testing.inferencer_reference import greedy, next_logits
from lmflow.testing.tiny import tiny_letters, tiny_model


@dataclass(frozen=True)
class Beam:
    """A beginning of a completion, and what its tokens' log-probabilities are."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    done: bool = False

    @property
    def score(self) -> float:
        """Mean log-probability of a token, so that short ones win nothing."""
        return sum(self.logprobs) / max(1, len(self.logprobs))


class BeamSearch(Inferencer):
    """The `n` most probable completions that a search with a few beams finds; temperature and filters mean nothing."""

    name = "beam-search"
    samples_exactly = False

    beams: int = Field(3, gt=0, description="Beginnings that are kept; at least as many as completions are asked for.")

    def generate(self, request: GenerateRequest) -> list[list[Completion]]:
        """See `Inferencer.generate`."""
        model, samplings = request.model, request.samplings
        limits = [sampling.max_new_tokens for sampling in samplings]
        budgets = completion_budgets(request.prompts, limits, model.context_length)
        with torch.no_grad(), eval_mode(model.module):
            return [
                [
                    self.completion(model, beam, sampling)
                    for beam in self.search(model, prompt, sampling, budget, request.progress)
                ]
                for prompt, sampling, budget in zip(request.prompts, samplings, budgets, strict=True)
            ]

    def search(self, model: Any, prompt: Prompt, sampling: Sampling, budget: int, progress: Any) -> list[Beam]:
        """The best completions, the best first; where there are fewer, they are repeated."""
        width = max(self.beams, sampling.n)
        beams = [Beam()]
        while not all(beam.done for beam in beams):
            open_beams = [beam for beam in beams if not beam.done]
            scores = self.next_logprobs(model, prompt, open_beams, sampling)
            found = [beam for beam in beams if beam.done]
            for beam, row in zip(open_beams, scores, strict=True):
                values, tokens = row.topk(min(width, int(row.isfinite().sum())))
                for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
                    found.append(self.longer(model, beam, token, value, sampling, budget))
            if progress is not None:
                progress(width)
            beams = sorted(found, key=lambda beam: (-beam.score, beam.ids))[:width]
        return [beams[place % len(beams)] for place in range(sampling.n)]

    def next_logprobs(self, model: Any, prompt: Prompt, beams: Sequence[Beam], sampling: Sampling) -> torch.Tensor:
        """Log-probabilities of the next token after each of these beams, (B, V)."""
        rows = torch.tensor([[*prompt.ids, *beam.ids] for beam in beams])
        counts = torch.tensor([len(beam.ids) for beam in beams])
        logits = model.module(input_ids=rows, use_cache=False).logits[:, -1].float()
        return SamplingRules(model).allowed(logits, counts, sampling.min_new_tokens).log_softmax(-1)

    def longer(self, model: Any, beam: Beam, token: int, logprob: float, sampling: Sampling, budget: int) -> Beam:
        """The beam with one more token."""
        longer = Beam((*beam.ids, token), (*beam.logprobs, logprob))
        text = model.decode(longer.ids)
        ended = token in model.end_ids or any(stop in text for stop in sampling.stop)
        return replace(longer, done=ended or len(longer.ids) >= budget)

    def completion(self, model: Any, beam: Beam, sampling: Sampling) -> Completion:
        """What is returned of a beam."""
        text = TextStream(model.decode, sampling.stop)
        for token in beam.ids:
            if token not in model.end_ids:
                text.add(token)
        return finish(model, list(beam.ids), list(beam.logprobs), text)


class BestOfN(Inferencer):
    """Of several samples the one whose tokens are most probable on average."""

    name = "best-of-n"
    samples_exactly = False

    tries: int = Field(3, gt=0, description="Samples of which each completion is the best.")

    def generate(self, request: GenerateRequest) -> list[list[Completion]]:
        """See `Inferencer.generate`."""
        more = [each.model_copy(update={"n": each.n * self.tries}) for each in request.samplings]
        drawn = HuggingFace().generate(replace(request, sampling=more))
        return [
            [max(row[start : start + self.tries], key=self.score) for start in range(0, len(row), self.tries)]
            for row in drawn
        ]

    def score(self, completion: Completion) -> float:
        """Mean log-probability of a token."""
        return sum(completion.logprobs) / len(completion.logprobs)


SKIPPED = {
    "test_greedy_completions_take_the_most_probable_token",
    "test_probabilities_are_those_sampled_from",
    "test_n_samples_of_each_prompt",
    "test_the_same_seed_gives_the_same_completions",
    "test_a_stop_string_ends_a_completion",
    *(f"test_sampling_follows_the_distribution[{name}]" for name in ("plain", "temperature", "top_k", "top_p")),
    "test_sampling_follows_the_distribution[all-of-them]",
}
"""Tests that ask for exact samples; some of them only after they have asked for what all promise."""


@pytest.mark.parametrize("inferencer", [BeamSearch(), BestOfN()], ids=["beam-search", "best-of-n"])
def test_they_pass_all_but_what_only_exact_samples_can(inferencer: Inferencer, examine: Callable[..., dict[str, Any]]):
    reports = examine(InferencerSuite, inferencer=inferencer)
    assert {name: report.message for name, report in reports.items() if report.outcome == "failed"} == {}
    assert {name for name, report in reports.items() if report.outcome == "skipped"} == SKIPPED
    assert len(reports) - len(SKIPPED) >= 15
    for name in SKIPPED:
        assert f"inferencer {inferencer.name} says samples_exactly = False" in reports[name].message


class EndsIgnored(BeamSearch):
    def longer(self, model: Any, beam: Beam, token: int, logprob: float, sampling: Sampling, budget: int) -> Beam:
        longer = Beam((*beam.ids, token), (*beam.logprobs, logprob))
        return Beam(longer.ids, longer.logprobs, len(longer.ids) >= budget)


class OneBeam(BeamSearch):
    """`n` is ignored."""

    def search(self, model: Any, prompt: Prompt, sampling: Sampling, budget: int, progress: Any) -> list[Beam]:
        return super().search(model, prompt, sampling, budget, progress)[:1]


class NoProgress(BeamSearch):
    def search(self, model: Any, prompt: Prompt, sampling: Sampling, budget: int, progress: Any) -> list[Beam]:
        return super().search(model, prompt, sampling, budget, None)


class WidthOfTheBatch(BeamSearch):
    """The number of beams is what memory leaves for each prompt of the batch."""

    def generate(self, request: GenerateRequest) -> Any:
        fewer = self.model_copy(update={"beams": max(1, 5 - len(request.prompts))})
        return BeamSearch.generate(fewer, request)


class PositiveScores(BeamSearch):
    def next_logprobs(self, model: Any, prompt: Prompt, beams: Any, sampling: Sampling) -> torch.Tensor:
        return super().next_logprobs(model, prompt, beams, sampling) + 5


class BeamsMixedUp(BeamSearch):
    """Of several beams each is told what follows another: a cache that is not put in their order."""

    def next_logprobs(self, model: Any, prompt: Prompt, beams: Any, sampling: Sampling) -> torch.Tensor:
        return super().next_logprobs(model, prompt, beams, sampling).flip(0)


class NoMoreThanBeams(BeamSearch):
    def search(self, model: Any, prompt: Prompt, sampling: Sampling, budget: int, progress: Any) -> list[Beam]:
        if sampling.n > self.beams:
            raise LmflowError(f"{sampling.n} completions need as many beams")
        return super().search(model, prompt, sampling, budget, progress)


class ChoosesByTorch(BestOfN):
    def score(self, completion: Any) -> float:
        return float(torch.rand(()))


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (EndsIgnored, "test_the_end_of_text_ends_a_completion", "expected nothing after the end of text"),
        (OneBeam, "test_n_samples_of_each_prompt", "expected 6 completions"),
        (NoProgress, "test_progress_counts_the_tokens", "it was told of 0"),
        (WidthOfTheBatch, "test_a_prompt_alone_gets_what_it_gets_in_company", "alone and in company"),
        (PositiveScores, "test_every_token_has_a_log_probability", "finite and at most 0"),
        (BeamsMixedUp, "test_at_temperature_0_log_probabilities_are_the_models", "in the order of the beams"),
        (NoMoreThanBeams, "test_n_samples_of_each_prompt", "it has to keep as many"),
        (ChoosesByTorch, "test_the_same_seed_gives_the_same_completions", "torch's global generator"),
        (ChoosesByTorch, "test_torchs_random_state_is_left_as_it_was", "expected torch's global random state"),
    ],
)
def test_a_broken_search_fails_its_check(
    broken: type[Inferencer], check: str, said: str, examine: Callable[..., dict[str, Any]]
):
    report = examine(InferencerSuite, inferencer=broken(), only=check)[check]
    assert report.outcome == "failed"
    assert said in " ".join(report.message.replace("\nE  ", " ").split())


def test_the_beams_are_those_found_by_enumeration():
    """With as many beams as there are beginnings the search finds the most probable completions of all."""
    model, limit = tiny_letters(1), 3
    every: dict[tuple[int, ...], float] = {}
    growing = {(): (0.0, ())}
    while growing:
        ids, (total, scores) = growing.popitem()
        for token, logprob in enumerate(next_logits(model, [1, 2, 3, *ids]).log_softmax(-1).tolist()):
            longer = (*ids, token)
            if token in model.end_ids or len(longer) == limit:
                every[longer] = (total + logprob) / len(longer)
            elif logprob > -1e9:
                growing[longer] = (total + logprob, scores)
    best = sorted(every, key=lambda ids: -every[ids])[:4]
    request = GenerateRequest(model, [Prompt([1, 2, 3])], Sampling(n=4, max_new_tokens=limit))
    [found] = BeamSearch(beams=300).generate(request)
    assert [completion.ids for completion in found] == best


def test_one_beam_is_greedy():
    model = tiny_model(seed=1, sharpness=6)
    prompt = Prompt([5, 6, 7])
    [[completion]] = BeamSearch(beams=1).generate(GenerateRequest(model, [prompt], Sampling(max_new_tokens=8)))
    assert list(completion.ids) == greedy(model, prompt, 8)
