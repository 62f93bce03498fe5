"""The embedded model, tasks and reward, and SmolLM2, through the conformance suites."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from lmflow.components import DataFormat, Model, Reward
from lmflow.testing import DataFormatSuite, ModelSuite, RewardSuite
from lmflow.testing.data_format import BadRecord, Dialogue
from lmflow_demo.demo import Demo, DemoReward, DemoTasks
from lmflow_demo.smollm2 import SmolLM2


class TestDemoModel(ModelSuite):
    @pytest.fixture
    def model_component(self) -> Model:
        return Demo()


@pytest.mark.slow
@pytest.mark.skipif(bool(SmolLM2.missing()), reason="the packages that smollm2 is made from are not installed")
class TestSmolLM2(ModelSuite):
    @pytest.fixture
    def model_component(self) -> Model:
        return SmolLM2()


class TestDemoTasks(DataFormatSuite):
    recognised = False

    @pytest.fixture
    def data_format(self) -> DataFormat:
        return DemoTasks()

    @pytest.fixture
    def records(self) -> Sequence[Mapping[str, Any]]:
        train, heldout = DemoTasks().embedded()
        return [*train[:3], *heldout[:3]]

    @pytest.fixture
    def dialogues(self, records: Sequence[Mapping[str, Any]]) -> Sequence[Dialogue]:
        return [[("user", record["prompt"]), ("assistant", record["answer"])] for record in records]

    @pytest.fixture
    def bad_records(self) -> Sequence[BadRecord]:
        return [({"prompt": "q"}, "answer"), ({"prompt": None, "answer": "a"}, "prompt")]


class TestDemoReward(RewardSuite):
    @pytest.fixture
    def reward(self) -> Reward:
        return DemoReward()
