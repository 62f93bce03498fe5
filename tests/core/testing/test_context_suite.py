"""The suite of contexts passes a good one, and fails those that are broken in one respect, saying in which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lmflow.components import Context
from lmflow.errors import LmflowError
from lmflow.testing import ContextSuite


class Linear(Context):
    """Position interpolation: a good context, from which the broken ones below differ in a line."""

    name = "linear-of-mine"
    factor: float = 2.0

    def configure(self, config: Any) -> None:
        if getattr(config, "rope_parameters", None) is None:
            raise LmflowError(f"--context {self.name}: model type {config.model_type} has no rotary positions")
        config.rope_parameters = {**config.rope_parameters, "rope_type": "linear", "factor": self.factor}
        config.max_position_embeddings = int(config.max_position_embeddings * self.factor)


class ChangesMore(Linear):
    def configure(self, config):
        super().configure(config)
        config.attention_dropout = 0.1


class Nothing(Linear):
    def configure(self, config):
        """Say nothing, do nothing."""


class Resizes(Linear):
    def configure(self, config):
        super().configure(config)
        config.intermediate_size *= 2


class KeepsTheLimit(Linear):
    def configure(self, config):
        limit = config.max_position_embeddings
        super().configure(config)
        config.max_position_embeddings = limit


class TakesAnything(Linear):
    def configure(self, config):
        config.max_position_embeddings = 512
        config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


class ChangesBeforeRefusing(Linear):
    def configure(self, config):
        config.max_position_embeddings = 2 * config.max_position_embeddings
        config.max_position_embeddings //= 2
        config.n_positions = 999
        super().configure(config)
        del config.n_positions


class Overdoes(Linear):
    def configure(self, config):
        super().configure(config)
        config.rope_parameters |= {"factor": 2.0, "rope_type": "yarn", "attention_factor": 40.0}


class Remembers(Linear):
    seen: list[int] = []

    def configure(self, config):
        super().configure(config)
        self.seen.append(1)
        config.rope_parameters["factor"] = self.factor * len(self.seen)


ONLY, GROWS = "test_only_positions_change", "test_the_context_grows_as_declared"
REFUSED, SHORT = "test_unknown_models_are_refused", "test_short_texts_stay_readable"


def test_a_good_context_passes_everything(examine: Callable[..., Any]):
    reports = examine(ContextSuite, context=Linear())
    assert {name: report.message for name, report in reports.items() if report.outcome != "passed"} == {}


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (ChangesMore, ONLY, "other values of attention_dropout"),
        (Nothing, ONLY, "it is as it was"),
        (Remembers, "test_configuring_repeats", "other values of rope_parameters"),
        (Resizes, "test_the_weights_stay", "mlp"),
        (KeepsTheLimit, GROWS, "expected a context of 512 tokens"),
        (TakesAnything, REFUSED, "names the model type gpt2; found NoneType"),
        (ChangesBeforeRefusing, REFUSED, "other values of n_positions"),
        (Overdoes, SHORT, "expected a short text to be read nearly as before"),
    ],
)
def test_a_broken_context_fails_its_check(broken: type[Context], check: str, said: str, examine: Callable[..., Any]):
    report = examine(ContextSuite, context=lambda: broken(), only=check)[check]
    assert report.outcome == "failed"
    assert said in report.message


def test_a_module_changed_after_loading_is_noticed(examine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    from lmflow.models.pretrained import Pretrained

    load = Pretrained.load

    def load_and_patch(self: Any, request: Any) -> Any:
        model = load(self, request)
        if request.context is not None:
            model.module.model.rotary_emb.inv_freq.mul_(0.5)
        return model

    monkeypatch.setattr(Pretrained, "load", load_and_patch)
    check = "test_a_saved_model_needs_nothing_of_the_plugin"
    report = examine(ContextSuite, context=Linear(), only=check)[check]
    assert report.outcome == "failed"
    assert "instead of the configuration" in report.message
