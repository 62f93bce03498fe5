"""Inferencer `speculative`: exact samples, several for each pass of the model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from pydantic import Field, PrivateAttr, field_validator

from lmflow.components import Inferencer
from lmflow.inference.completion import Completion, Prompt, Sampling
from lmflow_speculative.statistics import Statistics

if TYPE_CHECKING:
    from lmflow.models import LanguageModel
    from lmflow_speculative.speculation import Plan


class Speculative(Inferencer):
    """Let a draft model, or a look back at the text, propose tokens that the model then checks together."""

    name = "speculative"

    draft: str | None = Field(
        None,
        description="Smaller model with the same tokenizer (directory, run, adapter, component), as `lmflow draft` "
        "trains it; if unset, proposals are looked up in the prompt and the answer so far.",
    )
    lookup: int = Field(3, gt=0, description="Longest run of tokens looked up, where there is no draft.")
    draft_length: int = Field(8, gt=0, description="Tokens proposed for each pass of the model; with adapt, at most.")
    adapt: bool = Field(True, description="Propose fewer where the next is not expected to pay, row by row.")
    batch_tokens: int = Field(
        32_768,
        gt=0,
        description="Most tokens in the model's key-value cache, prompts and completions of all rows; a prompt's "
        "samples stay together even if they take more.",
    )

    _statistics: Statistics = PrivateAttr(default_factory=Statistics)
    _drafts: dict[tuple[str, str, str], LanguageModel] = PrivateAttr(default_factory=dict)
    _given: LanguageModel | None = PrivateAttr(None)
    _agreeing: WeakSet[Any] = PrivateAttr(default_factory=WeakSet)
    """Tokenizers of models that the draft was found to agree with."""

    @field_validator("draft")
    @classmethod
    def _exists(cls, draft: str | None) -> str | None:
        """What is plainly a path must be there, so that a run stops before it loads the target."""
        if draft is None or (draft.count("/") < 2 and not draft.startswith((".", "/", "~"))):
            return draft
        place = Path(draft).expanduser()
        if place.exists():
            return str(place)
        siblings = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        near = difflib.get_close_matches(place.name, siblings, n=1)
        raise ValueError(f"{draft} does not exist" + (f"; did you mean {place.parent / near[0]}?" if near else ""))

    @property
    def statistics(self) -> Statistics:
        """What all calls of this inferencer brought so far."""
        return self._statistics

    def figures(self) -> Mapping[str, float]:
        """Acceptance and passes of all calls so far."""
        return self._statistics.figures() if self._statistics.tokens else {}

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw completions, longest prompts first; see `Inferencer.generate`.

        Raises DataError for a prompt that is empty or leaves no room in the model's context, LmflowError where the
        draft cannot serve the model.
        """
        drawn = dict(self.generate_each(model, prompts, sampling, progress))
        return [drawn[index] for index in range(len(prompts))]

    def generate_each(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield each prompt's completions when the last of them is drawn; see `Inferencer.generate_each`.

        The model is in eval mode until the last is taken or the iterator closed.
        """
        from lmflow.inference.drawing import whole_prompts
        from lmflow_speculative.speculation import speculate

        # Greedy completions of one prompt are all the same, so one is drawn.
        n = 1 if sampling.temperature == 0 else sampling.n
        options = sampling.model_copy(update={"n": n})
        plan = self._plan(model, prompts)
        with closing(speculate(model, prompts, options, self.batch_tokens, plan, self._statistics)) as passes:
            for index, completions in whole_prompts(passes, n, progress):
                yield index, completions * (sampling.n // n)

    def stream(self, model: LanguageModel, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """Yield the text of the first completion `generate` gives, piece by piece, each as soon as it is final.

        The model is in eval mode until the last piece is taken or the iterator closed.
        """
        from lmflow.inference.stopping import TextStream
        from lmflow_speculative.speculation import speculate

        text = TextStream(model.decode, sampling.stop)
        one = sampling.model_copy(update={"n": 1})
        plan = self._plan(model, [prompt])
        with closing(
            speculate(model, [prompt], one, self.batch_tokens, plan, self._statistics, lambda: text)
        ) as passes:
            for _ in passes:
                if piece := text.take():
                    yield piece

    def using(self, draft: LanguageModel) -> Speculative:
        """The same inferencer with a draft that is loaded already, and statistics of its own."""
        other = Speculative.model_validate(self.model_dump() | {"draft": None})
        other._given = draft
        return other

    def _plan(self, model: LanguageModel, prompts: Sequence[Prompt]) -> Plan:
        """How to propose for these prompts."""
        from lmflow_speculative.drafting import check_positions, check_prompts, check_vocabularies, relative_cost
        from lmflow_speculative.lengths import AdaptedLength, FixedLength
        from lmflow_speculative.speculation import Plan

        check_positions(model)
        draft = self._given if self.draft is None else self._load(self.draft, model)
        if draft is not None:
            if model.tokenizer not in self._agreeing:
                check_vocabularies(draft, model)
                self._agreeing.add(model.tokenizer)
            check_prompts(draft, prompts)
        cost = relative_cost(model, draft)
        return Plan(draft, self.lookup, self.draft_length, (lambda: AdaptedLength(cost)) if self.adapt else FixedLength)

    def _load(self, reference: str, model: LanguageModel) -> LanguageModel:
        """The draft, loaded once for each number format and device the model comes in."""
        from lmflow_speculative.drafting import load_draft

        dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
        key = (reference, dtype, str(model.device))
        if key not in self._drafts:
            self._drafts[key] = load_draft(*key)
        return self._drafts[key]
