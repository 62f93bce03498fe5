"""The files of a run's directory: whether there is a run, and what it is a part of."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lmflow.run_files import holds_run, to_json, whole_run, write_lines


@pytest.mark.parametrize("name", ["recipe.yaml", "run.json"])
def test_a_recipe_or_a_record_is_a_run(tmp_path: Path, name: str):
    assert not holds_run(tmp_path)
    (tmp_path / name).write_text("{}")
    assert holds_run(tmp_path)


def test_a_stage_is_a_part_of_the_run_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stage = tmp_path / "stages" / "sft"
    assert whole_run(stage) == stage, "a folder that happens to be called stages"
    (tmp_path / "run.json").write_text("{}")
    assert whole_run(stage) == tmp_path
    assert whole_run(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert whole_run(Path("stages/sft")) == Path()


def test_json_holds_no_number_that_json_does_not_have(tmp_path: Path):
    value = {"a": [math.nan, 1.5, (math.inf, "é")], "b": {"c": -math.inf}, "d": Path("x")}
    assert to_json(value) == '{"a": [null, 1.5, [null, "é"]], "b": {"c": null}, "d": "x"}'
    write_lines(tmp_path / "rows.jsonl", [value])
    assert json.loads((tmp_path / "rows.jsonl").read_text())["a"][0] is None
