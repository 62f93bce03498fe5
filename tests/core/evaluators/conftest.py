"""What the tests of evaluators share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lmflow.components import GenerateRequest, Inferencer
from lmflow.inference.types import Completion
from lmflow.run.log import RunLog


class Parrot(Inferencer):
    """Gives prepared texts in the order of the prompts, and remembers what it was asked."""

    name = "parrot"
    texts: tuple[str, ...] = ()

    def generate(self, request: GenerateRequest) -> list[list[Completion]]:
        ASKED.append((list(request.prompts), request.sampling))
        return [[Completion((5,), text, (-0.5,), "eos")] for text in self.texts[: len(request.prompts)]]


ASKED: list[Any] = []


@pytest.fixture
def parrot() -> Callable[[Sequence[str]], Parrot]:
    """Makes an inferencer that says the given texts."""
    ASKED.clear()
    return lambda texts: Parrot(texts=tuple(texts))


@pytest.fixture
def asked() -> list[Any]:
    """(prompts, sampling) of each call of a parrot."""
    return ASKED


@pytest.fixture
def log() -> RunLog:
    """A log that shows nothing."""
    return RunLog(None, lambda *_, **__: None)
