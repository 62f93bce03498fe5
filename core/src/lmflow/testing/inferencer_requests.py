"""The part of the suite of inferencers that asks how requests are answered, and what is left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING

import pytest

from lmflow.components import GenerateRequest, Inferencer
from lmflow.data.sample import Prompt
from lmflow.inference.types import Completion, Sampling
from lmflow.testing.comparing import all_tensors, different, some
from lmflow.testing.inferencer_reference import greedy, texts
from lmflow.testing.requests import check_updates, random_sampling, run_at_random

if TYPE_CHECKING:
    from torch import Tensor

    from lmflow.models.language_model import LanguageModel

OPTIONS = Sampling(n=3, max_new_tokens=8, seed=5)


class RequestTests:
    """Requests in company and alone, in pieces and one by one; the model and torch are left as they were."""

    # Neighbours

    def test_the_order_of_prompts_does_not_matter(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """Prompts in another order get the same completions, in that order."""
        order = [2, 0, 3, 1]
        straight = texts(inferencer.generate(GenerateRequest(model, prompts, OPTIONS)))
        turned = texts(inferencer.generate(GenerateRequest(model, [prompts[i] for i in order], OPTIONS)))
        assert turned == [straight[i] for i in order], (
            "expected a prompt's completions wherever it stands; found others. Usual cause: prompts sorted by length "
            "and not put back, or random numbers that belong to the row of the batch."
        )

    def test_a_prompt_alone_gets_what_it_gets_in_company(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """Neighbours in a batch change nothing: a resumed run samples in other batches than the run it continues."""
        together = texts(inferencer.generate(GenerateRequest(model, prompts, OPTIONS)))
        alone = [texts(inferencer.generate(GenerateRequest(model, [prompt], OPTIONS)))[0] for prompt in prompts]
        assert alone == together, (
            "expected the same completions alone and in company; found others. Usual cause: padding that is attended "
            "to, or one random stream for a whole batch."
        )

    def test_each_prompt_has_its_own_sampling(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """`request.sampling` may be one for each prompt: temperature, filters, `n`, lengths, stops and seed."""
        chosen = Random(1)
        samplings = [random_sampling(chosen, most=8) for _ in range(8)]
        several = [*prompts, *prompts][: len(samplings)]
        together = inferencer.generate(GenerateRequest(model, several, samplings))
        for prompt, sampling, found in zip(several, samplings, together, strict=True):
            [expected] = inferencer.generate(GenerateRequest(model, [prompt], sampling))
            assert texts([found]) == texts([expected]), (
                f"expected what the prompt gets alone with {sampling!r}; found others. Usual cause: the sampling of "
                "another prompt; `request.samplings` has them in the order of the prompts."
            )

    def test_requests_join_and_leave_while_others_run(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """The updates of a request to the engine make what `generate` gives it alone, whatever else runs."""
        for seed in range(3):
            chosen = Random(seed)
            requests = [(chosen.choice(prompts), random_sampling(chosen, most=8)) for _ in range(6)]
            cancelled = [0]
            with inferencer.engine(model) as engine:
                found = run_at_random(engine, requests, chosen, cancelled)
            for index, (prompt, sampling) in enumerate(requests):
                if index in cancelled and not any(found[index]):
                    continue
                [expected] = inferencer.generate(GenerateRequest(model, [prompt], sampling))
                for updates, completion in zip(found[index], expected, strict=True):
                    check_updates(updates, completion, same)

    # The other ways to ask

    def test_streaming_gives_the_same_text(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """The pieces of `stream`, put together, are the text of the first completion `generate` gives."""
        n = 2 if inferencer.samples_exactly else 1
        for options in (Sampling(temperature=0, max_new_tokens=12), Sampling(n=n, max_new_tokens=12, seed=7)):
            for prompt in prompts:
                [[first, *_]] = inferencer.generate(GenerateRequest(model, [prompt], options))
                streamed = "".join(inferencer.stream(GenerateRequest(model, [prompt], options)))
                assert streamed == first.text, f"expected the pieces to make {first.text!r}; they make {streamed!r}"

    def test_one_by_one_gives_the_same_completions(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """`generate_each` gives every prompt once, with what `generate` gives."""
        each = list(inferencer.generate_each(GenerateRequest(model, prompts, OPTIONS)))
        indices = sorted(index for index, _ in each)
        assert indices == list(range(len(prompts))), f"expected every prompt once; found the indices {indices}"
        found = [texts([completions])[0] for _, completions in sorted(each, key=lambda pair: pair[0])]
        assert found == texts(inferencer.generate(GenerateRequest(model, prompts, OPTIONS))), (
            "expected the completions of `generate`"
        )

    def test_progress_counts_the_tokens(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """`progress` is told of every token sampled, as it is sampled; those of a search need not be returned."""
        told: list[int] = []
        drawn = inferencer.generate(
            GenerateRequest(model, prompts, Sampling(n=2, max_new_tokens=8, seed=7), told.append)
        )
        total = sum(len(completion.ids) for row in drawn for completion in row)
        right = sum(told) == total if inferencer.samples_exactly else sum(told) >= total
        assert right, f"expected progress to be told of {total} tokens; it was told of {sum(told)}"
        assert len(told) > 1, "expected progress to be told after every pass; it was told once"

    # What it leaves behind

    def test_new_weights_are_used_at_once(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """After `model.version` has changed, completions are those of the new weights; nothing old is used."""
        options = Sampling(temperature=0, max_new_tokens=8)
        old = texts(inferencer.generate(GenerateRequest(model, prompts, options)))
        move(model)
        new = texts(inferencer.generate(GenerateRequest(model, prompts, options)))
        cause = "Usual cause: weights, a cache or answers kept from before; `model.version` says when they are old."
        assert new != old, f"expected other completions from other weights; found the same. {cause}"
        fresh = texts(inferencer.generate(GenerateRequest(copy.deepcopy(model), prompts, options)))
        assert new == fresh, f"expected what another model of the same weights gives; found something else. {cause}"
        if inferencer.samples_exactly:
            expected = [greedy(model, prompt, 8) for prompt in prompts]
            found = [list(ids) for [(ids, _)] in new]
            assert found == expected, f"expected the greedy tokens of the new weights; found others. {cause}"

    def test_torchs_random_state_is_left_as_it_was(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """Sampling takes nothing from torch's global generator, on which training depends, and does not seed it."""
        import torch

        before = torch.get_rng_state()
        inferencer.generate(GenerateRequest(model, prompts, OPTIONS))
        assert torch.equal(torch.get_rng_state(), before), (
            "expected torch's global random state as it was; it has changed. Usual cause: torch.manual_seed or "
            "torch.multinomial without a generator; lmflow.inference.sampling has random numbers by seed and place."
        )

    def test_the_model_is_left_as_it_was(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """Weights, what is trainable, and training mode are as before; sampling leaves no gradient."""
        before, mode = all_tensors(model), self._in_training(model)
        self._sample_in_training(inferencer, model, prompts, None)
        self._check_left(model, before, mode)

    def test_sampling_that_is_stopped_leaves_the_model_as_it_was(
        self, inferencer: Inferencer, model: LanguageModel, prompts: Sequence[Prompt]
    ) -> None:
        """What `progress` raises comes out of `generate`, and the model is as before."""

        def stop(_: int) -> None:
            raise KeyboardInterrupt

        before, mode = all_tensors(model), self._in_training(model)
        with pytest.raises(KeyboardInterrupt):
            self._sample_in_training(inferencer, model, prompts, stop)
        self._check_left(model, before, mode)

    def _in_training(self, model: LanguageModel) -> list[bool]:
        """Put the model into training mode but for its last part; the mode of each part."""
        parts = list(model.module.modules())
        model.module.train()
        parts[-1].eval()
        return [part.training for part in parts]

    def _sample_in_training(
        self,
        inferencer: Inferencer,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        progress: Callable[[int], None] | None,
    ) -> None:
        inferencer.generate(GenerateRequest(model, prompts, Sampling(n=2, max_new_tokens=6, seed=1), progress))

    def _check_left(self, model: LanguageModel, before: Mapping[str, Tensor], mode: Sequence[bool]) -> None:
        changed = different(all_tensors(model), before)
        assert not changed, f"expected sampling to change no weight; {some(changed)} changed"
        assert [part.training for part in model.module.modules()] == list(mode), (
            "expected every part in the mode it was in, training or eval. Usual cause: module.eval() without a way "
            "back that runs when something is raised; lmflow.inference.decoder.eval_mode does it."
        )
        frozen = [name for name, p in model.module.named_parameters() if not p.requires_grad or p.grad is not None]
        assert not frozen, f"expected parameters trainable and without a gradient, as before; not so {some(frozen)}"


def move(model: LanguageModel) -> None:
    """Change all weights, as an optimizer step does but further, and say so."""
    import torch

    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            spread = parameter.std(correction=0) + 0.02
            parameter.add_(torch.randn(parameter.shape, generator=noise) * spread)
    model.weights.changed()


def same(one: Completion, other: Completion) -> bool:
    """Whether two completions are the same; their log-probabilities differ by rounding between batches."""
    return (one.ids, one.text, one.finish_reason) == (other.ids, other.text, other.finish_reason)
