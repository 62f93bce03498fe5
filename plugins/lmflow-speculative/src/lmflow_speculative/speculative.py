"""Inferencer `speculative`: exact samples, several for each pass of the model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from pydantic import Field, PrivateAttr, field_validator

from lmflow.errors import LmflowError
from lmflow.inference.engine import PassInferencer
from lmflow_speculative.statistics import Statistics

if TYPE_CHECKING:
    from lmflow.components import Engine, RunContext
    from lmflow.models.language_model import LanguageModel
    from lmflow.plugins import Plugins
    from lmflow_speculative.speculation import Plan


class Speculative(PassInferencer):
    """Let a draft model, or a look back at the text, propose tokens that the model then checks together."""

    name = "speculative"
    may_change = ("batch_tokens",)

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
    _plugins: Plugins | None = PrivateAttr(None)
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

    def open(self, context: RunContext) -> None:
        """Keep what finds the draft, which is loaded at the first request."""
        self._plugins = context.plugins

    def close(self) -> None:
        """Free the draft."""
        self._plugins = None
        self._drafts.clear()
        self._agreeing.clear()

    def figures(self) -> Mapping[str, float]:
        """Acceptance and passes of all calls so far."""
        return self._statistics.figures() if self._statistics.tokens else {}

    def engine(self, model: LanguageModel) -> Engine:
        """See `SpeculativeEngine`. Raises LmflowError where the draft cannot serve the model."""
        from lmflow_speculative.speculation import SpeculativeEngine

        return SpeculativeEngine(model, self.batch_tokens, self._plan(model), self._statistics)

    def using(self, draft: LanguageModel) -> Speculative:
        """The same inferencer with a draft that is loaded already, and statistics of its own."""
        other = Speculative.model_validate(self.model_dump() | {"draft": None})
        other._given = draft
        return other

    def _plan(self, model: LanguageModel) -> Plan:
        """How to propose tokens of this model."""
        from lmflow_speculative.drafting import check_decoding, check_positions, check_vocabularies, relative_cost
        from lmflow_speculative.lengths import AdaptedLength, FixedLength
        from lmflow_speculative.speculation import Plan

        check_positions(model)
        draft = self._given if self.draft is None else self._load(self.draft, model)
        if draft is not None and model.tokenizer not in self._agreeing:
            check_vocabularies(draft, model)
            self._agreeing.add(model.tokenizer)
        for each in (model, draft):
            if each is not None:
                check_decoding(each)
        cost = relative_cost(model, draft)
        return Plan(draft, self.lookup, self.draft_length, (lambda: AdaptedLength(cost)) if self.adapt else FixedLength)

    def _load(self, reference: str, model: LanguageModel) -> LanguageModel:
        """The draft, loaded once for each dtype and device the model comes in."""
        from lmflow_speculative.drafting import load_draft

        if self._plugins is None:
            raise LmflowError("inferencer.draft: open() gives the plugins that the draft is found with; call it first")

        dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
        key = (reference, dtype, str(model.device))
        if key not in self._drafts:
            self._drafts[key] = load_draft(self._plugins, *key, model.attention)
        return self._drafts[key]
