"""The raft aligner through the conformance suite, with both of its strategies."""

import pytest

from lmflow.components import Aligner
from lmflow.testing import AlignerSuite
from lmflow_raft.raft import Raft


class TestRaft(AlignerSuite):
    metric = "heldout_reward"
    higher_is_better = True
    task_settings = {"tuner.name": "lora"}

    @pytest.fixture
    def aligner(self) -> Aligner:
        return Raft(iterations=4, prompts=48, samples=4, max_new_tokens=16)


class TestTop(AlignerSuite):
    """Training on the best of all completions, and with every weight: its learning rate is no more the default."""

    metric = "heldout_reward"
    higher_is_better = True
    task_settings = {"training.learning_rate": 3e-4}

    @pytest.fixture
    def aligner(self) -> Aligner:
        return Raft(iterations=4, prompts=48, samples=4, max_new_tokens=16, strategy="top", fraction=0.25)
