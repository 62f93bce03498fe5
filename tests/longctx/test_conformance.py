"""The contexts and evaluators of this distribution through the conformance suites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lmflow.components import Context, Evaluator
from lmflow.data.sample import Message, Sample
from lmflow.testing import ContextSuite, EvaluatorSuite
from lmflow.testing.tiny import tiny_model
from lmflow_longctx.contexts import Dynamic, Linear, Llama3, Ntk, Yarn
from lmflow_longctx.passkey import Passkey
from lmflow_longctx.perplexity import PerplexityByLength


@pytest.mark.parametrize("method", [Linear, Ntk, Dynamic, Yarn, Llama3])
class TestContexts(ContextSuite):
    @pytest.fixture
    def context(self, method: type[Any]) -> Context:
        return method(factor=2)


class TestContextByLength(ContextSuite):
    factor = 4.0

    @pytest.fixture
    def context(self) -> Context:
        return Linear(length=1024)


@pytest.mark.parametrize("scoring", ["greedy", "choice"])
class TestPasskey(EvaluatorSuite):
    @pytest.fixture
    def evaluator(self, scoring: Any) -> Evaluator:
        return Passkey(lengths=[160], depths=[0.0, 1.0], trials=1, digits=2, scoring=scoring, alternatives=2)


class TestPerplexityByLength(EvaluatorSuite):
    order_matters = True  # which windows are scored depends on where they lie

    @pytest.fixture
    def evaluator(self) -> Evaluator:
        return PerplexityByLength(lengths=[16, 32], stretch=8, windows=4)

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        text = "the quick brown fox jumps over the lazy dog " * 8
        return [Sample((Message("assistant", text[n:]),), False, {"text": text[n:]}, f"t:{n}") for n in range(3)]

    @pytest.fixture
    def model(self) -> Any:
        return tiny_model(sharpness=2.0)
