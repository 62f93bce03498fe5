"""The part of the suite of inferencers that asks which tokens are sampled, and where a completion ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from lmflow.components import GenerateRequest, Inferencer
from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow.inference.types import Completion, Sampling
from lmflow.testing.inferencer_reference import completion_probabilities, greedy, model_logprobs, texts
from lmflow.testing.statistics import chance

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel

DISTRIBUTIONS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7},
    "all-of-them": {"temperature": 0.8, "top_k": 4, "top_p": 0.85},
}
"""Samplings whose distribution is tested."""
LENGTH = 2
"""Tokens of the completions whose distribution is tested: the second depends on the first."""


def need_exact(inferencer: Inferencer, what: str) -> None:
    """Skip the test where the inferencer searches or chooses, so that `what` is not promised."""
    if not inferencer.samples_exactly:
        pytest.skip(f"inferencer {inferencer.name} says samples_exactly = False, so it does not promise {what}")


class SamplingTests:
    """Which tokens are sampled, with which seeds, and where completions end."""

    draws: ClassVar[int]
    least_chance: ClassVar[float]

    # Which tokens are sampled

    def test_greedy_completions_take_the_most_probable_token(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """At temperature 0 every token is the most probable one after all those before it."""
        need_exact(inferencer, "the most probable token at each place")
        drawn = inferencer.generate(GenerateRequest(model, prompts, Sampling(temperature=0, max_new_tokens=12)))
        for prompt, [completion] in zip(prompts, drawn, strict=True):
            expected = greedy(model, prompt, 12)
            assert list(completion.ids) == expected, (
                f"expected the greedy tokens {expected} after a prompt of {len(prompt.ids)}; found "
                f"{list(completion.ids)}. Usual cause: positions or masks that are off by the padding of a batch, or a "
                "cache that is not cut back."
            )

    @pytest.mark.parametrize("sampling", DISTRIBUTIONS)
    def test_sampling_follows_the_distribution(
        self, inferencer: Inferencer, letters: LanguageModel, sampling: str
    ) -> None:
        """Completions come as often as the model's distribution says, with temperature, top-k and top-p applied.

        A chi-square test over all completions of two tokens, which a right inferencer fails once in 10,000 seeds.
        """
        need_exact(inferencer, "completions distributed as the model's")
        options = Sampling(n=self.draws, max_new_tokens=LENGTH, seed=11, **DISTRIBUTIONS[sampling])
        [drawn] = inferencer.generate(GenerateRequest(letters, [Prompt([1, 2, 3])], options))
        expected = completion_probabilities(letters, [1, 2, 3], options)
        counts: dict[tuple[int, ...], int] = {}
        for completion in drawn:
            counts[completion.ids] = counts.get(completion.ids, 0) + 1
        impossible = sorted(counts.keys() - expected.keys())
        assert not impossible, (
            f"expected no completion of probability 0; found {impossible[:3]}. Usual cause: top-k or top-p is not "
            "applied to every token, or a token is sampled after the end of the text."
        )
        found = chance(counts, expected)
        assert found >= self.least_chance, (
            f"expected completions as often as the distribution says; counts this far from it have a probability of "
            f"{found:.2g}. Usual cause: temperature applied twice or not at all, probabilities that are not normalised "
            "again after tokens are left out, or random numbers that are used twice."
        )

    def test_probabilities_are_those_sampled_from(self, inferencer: Inferencer, letters: LanguageModel) -> None:
        """`logprobs` holds, for each token, its log-probability in the distribution it was sampled from."""
        need_exact(inferencer, "log-probabilities under the sampling distribution")
        options = Sampling(n=50, max_new_tokens=LENGTH, temperature=0.8, top_k=4, seed=3)
        [drawn] = inferencer.generate(GenerateRequest(letters, [Prompt([1, 2, 3])], options))
        expected = completion_probabilities(letters, [1, 2, 3], options)
        for completion in drawn:
            right = math.log(expected[completion.ids])
            assert abs(sum(completion.logprobs) - right) < 1e-3, (
                f"expected log-probabilities that sum to {right:.4f} for {completion.ids}; found "
                f"{sum(completion.logprobs):.4f}. Usual cause: they are taken before temperature and filters."
            )

    def test_every_token_has_a_log_probability(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """`logprobs` holds one number for each of `ids`, finite and at most 0."""
        for completion in complete(inferencer, model, prompts, Sampling(n=2, max_new_tokens=6, temperature=0.7)):
            assert len(completion.logprobs) == len(completion.ids), "expected a log-probability for each token"
            wrong = [each for each in completion.logprobs if not (math.isfinite(each) and each <= 1e-6)]
            assert not wrong, f"expected log-probabilities that are finite and at most 0; found {wrong}"

    def test_at_temperature_0_log_probabilities_are_the_models(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """At temperature 0 `logprobs` are those that the model itself gives to `ids`: for a search as well."""
        drawn = inferencer.generate(GenerateRequest(model, prompts, Sampling(temperature=0, max_new_tokens=6)))
        for prompt, [completion] in zip(prompts, drawn, strict=True):
            right = model_logprobs(model, prompt, completion.ids)
            off = max(abs(a - b) for a, b in zip(completion.logprobs, right, strict=True))
            assert off < 1e-3, (
                f"expected the log-probabilities {rounded(right)} of {list(completion.ids)} after a prompt of "
                f"{len(prompt.ids)}; found {rounded(completion.logprobs)}. Usual cause: a cache whose rows are not put "
                "in the order of the beams that go on, positions that are off, or sums in place of each token's own."
            )

    # Samples and seeds

    def test_n_samples_of_each_prompt(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """Each prompt, in order, gets `n` completions, and they are not all the same."""
        request = GenerateRequest(model, prompts, Sampling(n=6, max_new_tokens=8, seed=1))
        try:
            drawn = inferencer.generate(request)
        except LmflowError as error:
            pytest.fail(
                f"expected 6 completions for each prompt; it says: {error}. Usual cause: a search that has no more "
                "completions than beams; aligners and evaluators choose `n`, so it has to keep as many.",
                pytrace=False,
            )
        assert [len(row) for row in drawn] == [6] * len(prompts), (
            f"expected 6 completions for each of {len(prompts)} prompts; found {[len(row) for row in drawn]}"
        )
        need_exact(inferencer, "samples that are independent")
        for row in drawn:
            assert len({completion.ids for completion in row}) > 1, (
                "expected different samples of one prompt; found one six times. Usual cause: one random stream for all."
            )

    def test_the_same_seed_gives_the_same_completions(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """The seed decides the completions: the same again with the same, others with another."""
        import torch

        options = Sampling(n=3, max_new_tokens=8, seed=5)
        first = texts(inferencer.generate(GenerateRequest(model, prompts, options)))
        torch.manual_seed(99)
        assert texts(inferencer.generate(GenerateRequest(model, prompts, options))) == first, (
            "expected the same completions from the same seed; found others. Usual cause: torch's global generator, "
            "whose state is somebody else's."
        )
        need_exact(inferencer, "other completions from another seed")
        other = texts(inferencer.generate(GenerateRequest(model, prompts, options.model_copy(update={"seed": 6}))))
        assert other != first, "expected other completions from another seed; found the same"

    # Where a completion ends

    def test_the_end_of_text_ends_a_completion(self, inferencer: Inferencer, letters: LanguageModel) -> None:
        """An end-of-text token is the last token of its completion, is not in its text, and the reason is `eos`."""
        drawn = complete(inferencer, letters, [Prompt([1, 2, 3])], Sampling(n=40, max_new_tokens=6, seed=2))
        for completion in drawn:
            inner = [token for token in completion.ids[:-1] if token in letters.end_ids]
            assert not inner, f"expected nothing after the end of text; found {completion.ids}"
            ended = completion.ids[-1] in letters.end_ids
            reason = "eos" if ended else "length"
            assert completion.finish_reason == reason, (
                f"expected finish_reason {reason!r} of {completion.ids}; found {completion.finish_reason!r}"
            )
            assert ended or len(completion.ids) == 6, f"expected 6 tokens or an end of text; found {completion.ids}"
            text = letters.decode(completion.ids)
            assert completion.text == text, f"expected the text {text!r}; found {completion.text!r}"
        assert any(completion.finish_reason == "eos" for completion in drawn), (
            "expected some of 40 completions to end before the limit; none did. Usual cause: the end-of-text token is "
            "never sampled."
        )

    def test_no_completion_is_longer_than_asked(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """`max_new_tokens` is the most a completion has, whatever is sampled at once."""
        for limit in (1, 2, 7):
            drawn = complete(inferencer, model, prompts, Sampling(n=2, max_new_tokens=limit, seed=4))
            longest = max(len(completion.ids) for completion in drawn)
            assert longest <= limit, f"expected at most {limit} tokens; found {longest}"

    def test_no_completion_ends_too_early(self, inferencer: Inferencer, letters: LanguageModel) -> None:
        """With `min_new_tokens` no end-of-text token is sampled before so many tokens."""
        options = Sampling(n=40, max_new_tokens=6, min_new_tokens=4, seed=2)
        drawn = complete(inferencer, letters, [Prompt([1, 2, 3])], options)
        early = [completion.ids for completion in drawn if set(completion.ids[:4]) & set(letters.end_ids)]
        assert not early, f"expected no end of text among the first 4 tokens; found {early[:3]}"

    def test_a_stop_string_ends_a_completion(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """A completion ends where a stop string begins: the text is cut before it, and the reason is `stop`."""
        plain = Sampling(temperature=0, max_new_tokens=16)
        [whole] = complete(inferencer, model, prompts[:1], plain)
        # Two whole characters: one of which some bytes are still to come is text only once they are there.
        middle = len(whole.text) // 2
        pairs = [whole.text[at : at + 2] for at in (*range(middle, len(whole.text) - 1), *range(middle))]
        stop = next((pair for pair in pairs if "\N{REPLACEMENT CHARACTER}" not in pair), "")
        assert stop, f"expected some text to stop at; the completion at temperature 0 is {whole.text!r}"
        stopping = plain.model_copy(update={"stop": (stop,), "n": 3, "temperature": 0.5})
        for each in complete(inferencer, model, prompts, stopping):
            text = model.decode(each.ids)
            cut = text[: text.index(stop)] if stop in text else text
            reason = "stop" if stop in text else "eos" if each.ids[-1] in model.end_ids else "length"
            assert each.text == cut, f"expected {cut!r}, cut before {stop!r}; found {each.text!r}"
            assert each.finish_reason == reason, f"expected finish_reason {reason!r}; found {each.finish_reason!r}"
        need_exact(inferencer, "the same tokens with a stop string and without")
        [stopped] = complete(inferencer, model, prompts[:1], plain.model_copy(update={"stop": (stop,)}))
        expected = whole.text[: whole.text.index(stop)]
        assert stopped.text == expected, f"expected {expected!r}, cut before {stop!r}; found {stopped.text!r}"
        assert stopped.finish_reason == "stop", f"expected finish_reason 'stop'; found {stopped.finish_reason!r}"
        ids = whole.ids[: len(stopped.ids)]
        assert stopped.ids == ids, "expected the ids sampled until the stop string was seen"
        assert stop not in model.decode(ids[:-1]), "expected no token after the one that completes the stop string"

    def test_prompts_without_room_are_refused(self, inferencer: Inferencer, model: LanguageModel) -> None:
        """A prompt without a token, or one that fills the model's context, is an LmflowError and not a crash."""
        assert model.context_length is not None, "expected a model with a context length"
        for ids in ([], [5] * model.context_length, [5] * (model.context_length + 7)):
            try:
                inferencer.generate(GenerateRequest(model, [Prompt(ids)], Sampling(max_new_tokens=4)))
            except LmflowError:
                continue
            except Exception as error:
                pytest.fail(
                    f"expected an LmflowError for a prompt of {len(ids)} tokens; found {error!r}", pytrace=False
                )
            pytest.fail(f"expected an LmflowError for a prompt of {len(ids)} tokens; it was answered", pytrace=False)

    def test_a_completion_ends_with_the_context(self, inferencer: Inferencer, model: LanguageModel) -> None:
        """Where the model's context ends before `max_new_tokens`, so does the completion."""
        assert model.context_length is not None, "expected a model with a context length"
        prompt = Prompt([5] * (model.context_length - 3))
        options = Sampling(temperature=0, max_new_tokens=50, min_new_tokens=50)
        [completion] = complete(inferencer, model, [prompt], options)
        assert len(completion.ids) == 3, (
            f"expected the 3 tokens that the context of {model.context_length} leaves; found {len(completion.ids)}"
        )


def complete(
    inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt], sampling: Sampling
) -> list[Completion]:
    """The completions of all prompts, one after the other."""
    return [each for row in inferencer.generate(GenerateRequest(model, prompts, sampling)) for each in row]


def rounded(values: Sequence[float]) -> list[float]:
    """Numbers as a message shows them."""
    return [round(value, 3) for value in values]
