"""The conformance suite for inferencers: what every inferencer promises to those who sample with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import pytest

from lmflow.components import Inferencer, RunContext
from lmflow.data.sample import Prompt
from lmflow.testing.contexts import quiet_log
from lmflow.testing.inferencer_requests import RequestTests
from lmflow.testing.inferencer_sampling import SamplingTests
from lmflow.testing.runs import plugins_with, supply

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel

TEXTS = ("the quick brown fox jumps over", "lazy", "a model learns to answer and then to stop, and more: ä€", "user")


class InferencerSuite(SamplingTests, RequestTests):
    """An examination of one inferencer; inherit from it in a class whose name begins with Test.

        from lmflow.testing import InferencerSuite

        class TestMyInferencer(InferencerSuite):
            @pytest.fixture
            def inferencer(self):
                return MyInferencer()

    Each test is one requirement, and its docstring says which. The models are tiny ones of random weights, made sharper
    so that a few tokens stand out; the fixtures `model` and `letters` can be replaced where an inferencer needs others.
    The inferencer is open during each test. Where its `samples_exactly` is False, tests of the distribution, of
    independent samples and of their log-probabilities are skipped, but for those at temperature 0, which are the
    model's own. As many completions as a request asks for are expected of a search too: up to 40 at once.
    """

    draws: ClassVar[int] = 1000
    """Completions sampled for each test of a distribution; more of them find smaller errors."""
    least_chance: ClassVar[float] = 1e-4
    """A distribution is refused when a right one would look as bad with a smaller probability than this."""

    @pytest.fixture
    def inferencer(self) -> Inferencer:
        """The inferencer under examination; every suite supplies its own."""
        supply(self, "inferencer")

    @pytest.fixture
    def model(self) -> LanguageModel:
        """The model most tests sample from."""
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

    @pytest.fixture(autouse=True)
    def opened(self, request: pytest.FixtureRequest, inferencer: Inferencer) -> Iterator[None]:
        """The inferencer is open while a test runs, with the model that the test samples from."""
        model = request.getfixturevalue("letters" if "letters" in request.fixturenames else "model")
        context = RunContext(plugins=plugins_with(type(inferencer), companions=()), log=quiet_log(), model=model)
        with inferencer.opened(context):
            yield
