"""Inferencer `speculative` through the conformance suite: with prompt lookup, and with a draft; command `draft` too."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from lmflow.components import Command, Inferencer
from lmflow.testing import CommandSuite, InferencerSuite
from lmflow.testing.runs import RECORDS, write_records
from lmflow.testing.tiny import tiny_letters, tiny_model
from lmflow_speculative.plugin import lmflow_commands
from lmflow_speculative.speculative import Speculative


class TestLookup(InferencerSuite):
    draws = 5000

    @pytest.fixture
    def inferencer(self) -> Inferencer:
        return Speculative()


class TestDraft(InferencerSuite):
    """The draft differs from the target, so that proposals are refused too."""

    draws = 5000

    @pytest.fixture
    def inferencer(self, request: pytest.FixtureRequest, tmp_path: Path) -> Inferencer:
        enumerable = "letters" in request.fixturenames
        return Speculative().using(tiny_letters(2) if enumerable else tiny_model(seed=1, sharpness=6, noise_seed=3))


class TestDraftCommand(CommandSuite):
    @pytest.fixture
    def command(self) -> Command:
        [command] = lmflow_commands()
        return command

    @pytest.fixture
    def call(self, model_directory: Path, tmp_path: Path) -> Sequence[str]:
        data = write_records(tmp_path / "records.jsonl", RECORDS)
        places = ["--model", str(model_directory), "--data.path", str(data), "--output", str(tmp_path / "draft")]
        small = ["--sampling.n", "1", "--sampling.max_new_tokens", "4", "--training.max_steps", "1"]
        return [*places, *small, "--draft.heldout_prompts", "1", "--json"]

    @pytest.fixture
    def mistakes(self, model_directory: Path, tmp_path: Path) -> Sequence[Sequence[str]]:
        somewhere = ["--model", str(model_directory), "--output", str(tmp_path / "draft")]
        return [
            ["--model", str(model_directory)],
            [*somewhere, "--data.path", str(tmp_path / "absent.jsonl")],
            [*somewhere, "--draft.layrs", "2"],
        ]
