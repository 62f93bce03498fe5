"""The conformance suite for inferencers: what every inferencer promises to those who draw with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from lmflow.components import GenerateRequest, Inferencer
from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow.inference.types import Completion, Sampling
from lmflow.testing.comparing import all_tensors, different, some
from lmflow.testing.runs import supply
from lmflow.testing.statistics import chance, reference_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from lmflow.models.language_model import LanguageModel

TEXTS = ("the quick brown fox jumps over", "lazy", "a model learns to answer and then to stop, and more: ä€", "user")
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


class InferencerSuite:
    """An examination of one inferencer; inherit from it in a class whose name begins with Test.

        from lmflow.testing import InferencerSuite

        class TestMyInferencer(InferencerSuite):
            @pytest.fixture
            def inferencer(self):
                return MyInferencer()

    Each test is one requirement, and its docstring says which. The models are tiny ones of random weights, made sharper
    so that a few tokens stand out; the fixtures `model` and `letters` can be replaced where an inferencer needs others.
    """

    draws: ClassVar[int] = 1000
    """Completions drawn for each test of a distribution; more of them find smaller errors."""
    least_chance: ClassVar[float] = 1e-4
    """A distribution is refused when a right one would look as bad with a smaller probability than this."""

    @pytest.fixture
    def inferencer(self) -> Inferencer:
        """The inferencer under examination; every suite supplies its own."""
        supply(self, "inferencer")

    @pytest.fixture
    def model(self) -> LanguageModel:
        """The model most tests draw from."""
        from lmflow.testing.tiny import tiny_model

        return tiny_model(seed=1, sharpness=6)

    @pytest.fixture
    def letters(self) -> LanguageModel:
        """A model over six tokens, whose distribution can be enumerated."""
        from lmflow.testing.tiny import tiny_letters

        return tiny_letters(1)

    @pytest.fixture
    def prompts(self, model: LanguageModel) -> Sequence[Prompt]:
        """Prompts of different lengths."""
        return [Prompt(model.tokenizer(text)["input_ids"]) for text in TEXTS]

    # Which tokens are drawn

    def test_greedy_completions_take_the_most_probable_token(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """At temperature 0 every token is the most probable one after all those before it."""
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
        options = Sampling(n=self.draws, max_new_tokens=LENGTH, seed=11, **DISTRIBUTIONS[sampling])
        [drawn] = inferencer.generate(GenerateRequest(letters, [Prompt([1, 2, 3])], options))
        expected = completion_probabilities(letters, [1, 2, 3], options)
        counts: dict[tuple[int, ...], int] = {}
        for completion in drawn:
            counts[completion.ids] = counts.get(completion.ids, 0) + 1
        impossible = sorted(counts.keys() - expected.keys())
        assert not impossible, (
            f"expected no completion of probability 0; found {impossible[:3]}. Usual cause: top-k or top-p is not "
            "applied to every token, or a token is drawn after the end of the text."
        )
        found = chance(counts, expected)
        assert found >= self.least_chance, (
            f"expected completions as often as the distribution says; counts this far from it have a probability of "
            f"{found:.2g}. Usual cause: temperature applied twice or not at all, probabilities that are not normalised "
            "again after tokens are left out, or random numbers that are used twice."
        )

    def test_probabilities_are_those_drawn_from(self, inferencer: Inferencer, letters: LanguageModel) -> None:
        """`logprobs` holds, for each token, its log-probability in the distribution it was drawn from."""
        import math

        options = Sampling(n=50, max_new_tokens=LENGTH, temperature=0.8, top_k=4, seed=3)
        [drawn] = inferencer.generate(GenerateRequest(letters, [Prompt([1, 2, 3])], options))
        expected = completion_probabilities(letters, [1, 2, 3], options)
        for completion in drawn:
            assert len(completion.logprobs) == len(completion.ids), "expected a log-probability for each token"
            right = math.log(expected[completion.ids])
            assert abs(sum(completion.logprobs) - right) < 1e-3, (
                f"expected log-probabilities that sum to {right:.4f} for {completion.ids}; found "
                f"{sum(completion.logprobs):.4f}. Usual cause: they are taken before temperature and filters."
            )

    # Samples and seeds

    def test_n_samples_of_each_prompt(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """Each prompt, in order, gets `n` completions, and they are not all the same."""
        drawn = inferencer.generate(GenerateRequest(model, prompts, Sampling(n=6, max_new_tokens=8, seed=1)))
        assert [len(row) for row in drawn] == [6] * len(prompts), (
            f"expected 6 completions for each of {len(prompts)} prompts; found {[len(row) for row in drawn]}"
        )
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
        other = texts(inferencer.generate(GenerateRequest(model, prompts, options.model_copy(update={"seed": 6}))))
        assert other != first, "expected other completions from another seed; found the same"

    def test_the_order_of_prompts_does_not_matter(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """Prompts in another order get the same completions, in that order."""
        options = Sampling(n=3, max_new_tokens=8, seed=5)
        order = [2, 0, 3, 1]
        straight = texts(inferencer.generate(GenerateRequest(model, prompts, options)))
        turned = texts(inferencer.generate(GenerateRequest(model, [prompts[i] for i in order], options)))
        assert turned == [straight[i] for i in order], (
            "expected a prompt's completions wherever it stands; found others. Usual cause: prompts sorted by length "
            "and not put back, or random numbers that belong to the row of the batch."
        )

    def test_a_prompt_alone_gets_what_it_gets_in_company(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """Neighbours in a batch change nothing: a resumed run draws in other batches than the run it continues."""
        options = Sampling(n=3, max_new_tokens=8, seed=5)
        together = texts(inferencer.generate(GenerateRequest(model, prompts, options)))
        alone = [texts(inferencer.generate(GenerateRequest(model, [prompt], options)))[0] for prompt in prompts]
        assert alone == together, (
            "expected the same completions alone and in company; found others. Usual cause: padding that is attended "
            "to, or one random stream for a whole batch."
        )

    # Where a completion ends

    def test_the_end_of_text_ends_a_completion(self, inferencer: Inferencer, letters: LanguageModel) -> None:
        """An end-of-text token is the last token of its completion, is not in its text, and the reason is `eos`."""
        [drawn] = inferencer.generate(
            GenerateRequest(letters, [Prompt([1, 2, 3])], Sampling(n=40, max_new_tokens=6, seed=2))
        )
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
            "never drawn."
        )

    def test_no_completion_is_longer_than_asked(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """`max_new_tokens` is the most a completion has, whatever is drawn at once."""
        for limit in (1, 2, 7):
            drawn = inferencer.generate(GenerateRequest(model, prompts, Sampling(n=2, max_new_tokens=limit, seed=4)))
            longest = max(len(completion.ids) for row in drawn for completion in row)
            assert longest <= limit, f"expected at most {limit} tokens; found {longest}"

    def test_no_completion_ends_too_early(self, inferencer: Inferencer, letters: LanguageModel) -> None:
        """With `min_new_tokens` no end-of-text token is drawn before so many tokens."""
        options = Sampling(n=40, max_new_tokens=6, min_new_tokens=4, seed=2)
        [drawn] = inferencer.generate(GenerateRequest(letters, [Prompt([1, 2, 3])], options))
        early = [completion.ids for completion in drawn if set(completion.ids[:4]) & set(letters.end_ids)]
        assert not early, f"expected no end of text among the first 4 tokens; found {early[:3]}"

    def test_a_stop_string_ends_a_completion(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """A completion ends where a stop string begins: the text is cut before it, and the reason is `stop`."""
        plain = Sampling(temperature=0, max_new_tokens=16)
        [[whole]] = inferencer.generate(GenerateRequest(model, prompts[:1], plain))
        stop = whole.text[len(whole.text) // 2 :][:2]
        assert stop, f"expected some text to stop at; the greedy completion is {whole.text!r}"
        [[cut]] = inferencer.generate(GenerateRequest(model, prompts[:1], plain.model_copy(update={"stop": (stop,)})))
        expected = whole.text[: whole.text.index(stop)]
        assert cut.text == expected, f"expected {expected!r}, cut before {stop!r}; found {cut.text!r}"
        assert cut.finish_reason == "stop", f"expected finish_reason 'stop'; found {cut.finish_reason!r}"
        assert list(cut.ids) == list(whole.ids[: len(cut.ids)]), "expected the ids drawn until the stop string was seen"

    def test_prompts_without_room_are_refused(self, inferencer: Inferencer, model: LanguageModel) -> None:
        """A prompt without a token, or one that fills the model's context, is an LmflowError and not a crash."""
        assert model.context_length is not None, "expected a model with a context length"
        for ids in ([], [5] * model.context_length):
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
        [[completion]] = inferencer.generate(
            GenerateRequest(model, [prompt], Sampling(temperature=0, max_new_tokens=50, min_new_tokens=50))
        )
        assert len(completion.ids) == 3, (
            f"expected the 3 tokens that the context of {model.context_length} leaves; found {len(completion.ids)}"
        )

    # The other ways to ask

    def test_streaming_gives_the_same_text(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """The pieces of `stream`, put together, are the text of the first completion `generate` gives."""
        for options in (Sampling(temperature=0, max_new_tokens=12), Sampling(n=2, max_new_tokens=12, seed=7)):
            for prompt in prompts:
                [[first, *_]] = inferencer.generate(GenerateRequest(model, [prompt], options))
                streamed = "".join(inferencer.stream(GenerateRequest(model, [prompt], options)))
                assert streamed == first.text, f"expected the pieces to make {first.text!r}; they make {streamed!r}"

    def test_one_by_one_gives_the_same_completions(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """`generate_each` gives every prompt once, with what `generate` gives."""
        options = Sampling(n=2, max_new_tokens=8, seed=7)
        each = list(inferencer.generate_each(GenerateRequest(model, prompts, options)))
        indices = sorted(index for index, _ in each)
        assert indices == list(range(len(prompts))), f"expected every prompt once; found the indices {indices}"
        found = [texts([completions])[0] for _, completions in sorted(each, key=lambda pair: pair[0])]
        assert found == texts(inferencer.generate(GenerateRequest(model, prompts, options))), (
            "expected the completions of `generate`"
        )

    def test_progress_counts_the_tokens(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """`progress` is told of every token drawn, as it is drawn."""
        told: list[int] = []
        drawn = inferencer.generate(
            GenerateRequest(model, prompts, Sampling(n=2, max_new_tokens=8, seed=7), told.append)
        )
        total = sum(len(completion.ids) for row in drawn for completion in row)
        assert sum(told) == total, f"expected progress to be told of {total} tokens; it was told of {sum(told)}"
        assert len(told) > 1, "expected progress to be told after every pass; it was told once"

    # What it leaves behind

    def test_the_model_is_left_as_it_was(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """Weights, what is trainable, and training mode are as before; drawing leaves no gradient."""
        before, mode = all_tensors(model), self._in_training(model)
        self._draw_in_training(inferencer, model, prompts, None)
        self._check_left(model, before, mode)

    def test_a_drawing_that_is_stopped_leaves_the_model_as_it_was(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """What `progress` raises comes out of `generate`, and the model is as before."""

        def stop(_: int) -> None:
            raise KeyboardInterrupt

        before, mode = all_tensors(model), self._in_training(model)
        with pytest.raises(KeyboardInterrupt):
            self._draw_in_training(inferencer, model, prompts, stop)
        self._check_left(model, before, mode)

    def _in_training(self, model: LanguageModel) -> list[bool]:
        """Put the model into training mode but for its last part; the mode of each part."""
        parts = list(model.module.modules())
        model.module.train()
        parts[-1].eval()
        return [part.training for part in parts]

    def _draw_in_training(
        self,
        inferencer: Inferencer,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        progress: Callable[[int], None] | None,
    ) -> None:
        inferencer.generate(GenerateRequest(model, prompts, Sampling(n=2, max_new_tokens=6, seed=1), progress))

    def _check_left(self, model: LanguageModel, before: Mapping[str, Tensor], mode: Sequence[bool]) -> None:
        changed = different(all_tensors(model), before)
        assert not changed, f"expected drawing to change no weight; {some(changed)} changed"
        assert [part.training for part in model.module.modules()] == list(mode), (
            "expected every part in the mode it was in, training or eval. Usual cause: module.eval() without a way "
            "back that runs when something is raised; lmflow.inference.decoder.eval_mode does it."
        )
        frozen = [name for name, p in model.module.named_parameters() if not p.requires_grad or p.grad is not None]
        assert not frozen, f"expected parameters trainable and without a gradient, as before; not so {some(frozen)}"


def greedy(model: LanguageModel, prompt: Prompt, count: int) -> list[int]:
    """The most probable next token, `count` times or until the end of the text, reading everything anew each time."""
    drawn: list[int] = []
    while len(drawn) < count and not (drawn and drawn[-1] in model.end_ids):
        drawn.append(int(next_logits(model, [*prompt.ids, *drawn]).argmax()))
    return drawn


def next_logits(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Logits (V,) of the token after `ids`, -inf for those that are never drawn."""
    import torch

    with torch.no_grad():
        logits: Tensor = model.module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double()
    logits[list(model.suppressed_ids)] = -torch.inf
    return logits


def completion_probabilities(
    model: LanguageModel, prompt: Sequence[int], sampling: Sampling
) -> dict[tuple[int, ...], float]:
    """The probability of every completion of at most `max_new_tokens` tokens that has one, by its ids."""
    found: dict[tuple[int, ...], float] = {}
    growing: dict[tuple[int, ...], float] = {(): 1.0}
    for length in range(1, sampling.max_new_tokens + 1):
        longer: dict[tuple[int, ...], float] = {}
        for ids, probability in growing.items():
            following = reference_probabilities(next_logits(model, [*prompt, *ids]).tolist(), sampling)
            for token, share in following.items():
                done = token in model.end_ids or length == sampling.max_new_tokens
                (found if done else longer)[(*ids, token)] = probability * share
        growing = longer
    return found


def texts(drawn: Sequence[Sequence[Completion]]) -> list[list[tuple[tuple[int, ...], str]]]:
    """Ids and texts of completions, [prompt][sample]."""
    return [[(completion.ids, completion.text) for completion in row] for row in drawn]
