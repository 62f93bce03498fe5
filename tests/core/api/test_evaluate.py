"""`lmflow.evaluate`: the same figures as `lmflow eval`, of a model named or loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import Field

import lmflow
from lmflow.testing.runs import RECORDS, write_records


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return write_records(tmp_path / "records.jsonl", RECORDS)


def test_a_model_named_and_one_loaded_a_path_records_and_a_section(model, model_directory, records):
    expected = lmflow.evaluate(model, "nll", records)
    assert expected.metrics["records"] == len(RECORDS)
    assert lmflow.evaluate(model_directory, "nll", list(RECORDS)).metrics == expected.metrics
    some = lmflow.evaluate(model, "nll", {"path": records, "limit": 3}, of="all")
    assert some.metrics["records"] == 3


def test_it_measures_what_the_command_measures(model_directory, records, tmp_path, capsys):
    from lmflow.cli import main

    found = lmflow.evaluate(model_directory, "nll", records, output=tmp_path / "out")
    words = ["eval", "--evaluator", "nll", "--model", model_directory, "--data.path", records, "--json"]
    with pytest.raises(SystemExit):
        main([str(word) for word in words])
    record = json.loads(capsys.readouterr().out)
    assert record["metrics"] == found.metrics
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["metrics"] == found.metrics
    assert written["model"] == record["model"]


class Count(lmflow.Evaluator):
    """Count the parameters."""

    name = "count"
    reads_data = False
    scale: float = Field(1.0, description="What the count is multiplied with.")

    def evaluate(self, context: lmflow.EvaluateContext) -> lmflow.Evaluation:
        """All of them, scaled."""
        assert not context.samples
        total = sum(each.numel() for each in context.model.module.parameters())
        return lmflow.Evaluation({"parameters": total * self.scale})


@pytest.mark.parametrize("evaluator", [Count, Count(scale=1.0), "count"], ids=str)
def test_an_evaluator_of_ones_own(model, evaluator):
    whole = sum(each.numel() for each in model.model.module.parameters())
    assert lmflow.evaluate(model, evaluator, components=[Count]).metrics == {"parameters": whole}


def test_options_are_the_evaluators(model, records):
    assert lmflow.evaluate(model, Count, scale=0.0).metrics == {"parameters": 0.0}
    with pytest.raises(
        lmflow.RecipeError, match=r"evaluator\.batch_token: unknown option; did you mean evaluator\.batch_tokens\?"
    ):
        lmflow.evaluate(model, "nll", records, batch_token=3)
    with pytest.raises(lmflow.RecipeError, match="no evaluator is called nlll; did you mean nll"):
        lmflow.evaluate(model, "nlll", records)


def test_a_loaded_model_stays_open(model, records):
    lmflow.evaluate(model, "nll", records)
    assert model.generate("a", max_new_tokens=1).ids
