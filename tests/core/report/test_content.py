"""What a report says, read from a run's directory: anything may be missing, cut short or spoilt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmflow.report.content import (
    Comparisons,
    Content,
    Curve,
    chosen_names,
    finite,
    loss_curves,
    read_content,
    read_object,
    read_rows,
    read_samples,
    read_text,
    reward_shares,
    to_comparisons,
    to_curves,
)


def content(**values: Any) -> Content:
    return Content("run", Path("run"), **values)


# Reading


def test_a_whole_run_is_read_without_a_gap(run: Path):
    found = read_content(run)
    assert found.gaps == []
    assert (found.name, found.status) == ("my-run", "completed")
    assert found.components == {"model": "demo", "tuner": "lora", "aligner": "raft", "data": "demo"}
    assert list(found.points("loss")) == [(1.0, 1.0), (2.0, 0.5), (3.0, 1 / 3), (4.0, 0.25)]
    assert found.curves["reward_mean"].unit == "iteration"
    assert found.comparisons.count == 12
    assert list(found.samples) == [1, 2]


def test_missing_files_are_named_once(tmp_path: Path):
    gaps: list[str] = []
    assert read_text(tmp_path / "recipe.yaml", gaps) == ""
    assert read_object(tmp_path / "run.json", gaps) == {}
    assert read_rows(tmp_path / "metrics.jsonl", gaps, "there are no curves", expected=True) == []
    assert read_rows(tmp_path / "comparison.jsonl", gaps, "", expected=False) == []
    assert gaps == [
        "There is no recipe.yaml.",
        "There is no run.json: status, versions and summary figures are unknown.",
        "There is no metrics.jsonl: there are no curves.",
    ]


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_an_object_that_is_none_is_a_gap(text: str, tmp_path: Path):
    (tmp_path / "run.json").write_text(text)
    gaps: list[str] = []
    assert read_object(tmp_path / "run.json", gaps) == {}
    assert gaps == ["run.json cannot be read as JSON: status, versions and summary figures are unknown."]


def test_bad_lines_are_left_out_and_counted(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": \n[2]\n{"a": 3}\n')
    gaps: list[str] = []
    assert read_rows(tmp_path / "rows.jsonl", gaps, "", expected=True) == [{"a": 1}, {"a": 3}]
    assert gaps == ["rows.jsonl: 2 lines could not be read and are left out."]
    (tmp_path / "one.jsonl").write_text("nonsense\n")
    read_rows(tmp_path / "one.jsonl", gaps, "", expected=True)
    assert gaps[-1] == "one.jsonl: 1 line could not be read and is left out."


def test_no_more_rows_are_read_than_asked_for(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' * 9)
    assert len(read_rows(tmp_path / "rows.jsonl", [], "", expected=True, most=4)) == 4


def test_samples_are_those_of_the_first_and_last_iteration(tmp_path: Path, write_lines: Callable[..., None]):
    for iteration in (1, 2, 10):
        write_lines(tmp_path / f"iteration-{iteration:04d}.jsonl", [{"reward": iteration}])
    (tmp_path / "iteration-last.jsonl").write_text("{}\n")
    assert read_samples(tmp_path, []) == {1: [{"reward": 1}]}, "what is numbered by no number is left out"
    (tmp_path / "iteration-last.jsonl").unlink()
    assert read_samples(tmp_path, []) == {1: [{"reward": 1}], 10: [{"reward": 10}]}


def test_one_iteration_is_shown_once(tmp_path: Path, write_lines: Callable[..., None]):
    write_lines(tmp_path / "iteration-0001.jsonl", [{"reward": 1}])
    assert list(read_samples(tmp_path, [])) == [1]
    assert read_samples(tmp_path / "nowhere", []) == {}


# Curves


def test_curves_are_over_steps_or_iterations_whichever_came_first():
    rows = [
        {"step": 1, "loss": 2.0, "name": "text", "flag": True},
        {"step": 2, "loss": float("nan")},
        {"step": 2, "iteration": 1, "kl": 0.5, "loss": 9.0},
        {"loss": 3.0},
        {"step": 3, "loss": 1.0},
    ]
    found = to_curves(rows)
    assert found["loss"] == Curve([(1.0, 2.0), (3.0, 1.0)], "step")
    assert found["kl"] == Curve([(1.0, 0.5)], "iteration")
    assert "name" not in found
    assert "flag" not in found


def test_the_held_out_loss_begins_before_the_first_step_and_ends_after_the_last():
    metrics = {"eval_loss_before": 3.0, "eval_loss_after": 1.0}
    curves = {"loss": Curve([(1, 2.5), (4, 1.5)], "step"), "eval_loss": Curve([(2, 2.0)], "step")}
    found = loss_curves(content(record={"metrics": metrics}, curves=curves))
    assert found["held-out"] == [(0.0, 3.0), (2, 2.0), (4, 1.0)]
    curves["eval_loss"] = Curve([(4, 1.25)], "step")
    found = loss_curves(content(record={"metrics": metrics}, curves=curves))
    assert found["held-out"] == [(0.0, 3.0), (4, 1.25)], "the last step was evaluated already"
    assert loss_curves(content(record={"metrics": metrics}))["held-out"] == [], "without a step there is no place"


def test_curves_nobody_knows_are_others():
    curves = {
        "loss": Curve([(1, 1), (2, 1)], "step"),
        "margin": Curve([(1, 1), (2, 1)], "step"),
        "once": Curve([(1, 1)], "step"),
    }
    assert list(content(curves=curves).other_curves) == ["margin"]


# Figures


def test_figures_are_finite_numbers_or_none():
    metrics = {"a_before": 1, "a_after": 2.5, "b_before": 1, "c_before": float("inf"), "c_after": 1, "t": "text"}
    found = content(record={"metrics": metrics, "versions": 3})
    assert found.pair("a") == (1.0, 2.5)
    assert found.pair("b") is None
    assert found.pair("c") is None
    assert found.metric("t") is None
    assert found.part("versions") == {}
    assert found.status == "unknown"
    assert found.other_pairs == ["a"]


def test_pairs_with_a_place_of_their_own_are_no_others():
    metrics = {f"{name}_{when}": 1.0 for name in ("eval_loss", "eval_accuracy") for when in ("before", "after")}
    assert content(record={"metrics": metrics}).other_pairs == ["eval_accuracy"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (0.5, 0.5),
        (True, None),
        ("1", None),
        (None, None),
        (float("nan"), None),
        (1e101, None),
        (-1e99, -1e99),
    ],
)
def test_finite(value: Any, expected: float | None):
    assert finite(value) == expected


# Answers


def test_answers_are_counted_by_change_and_by_reward():
    rows = [
        {"before": "a", "after": "a", "reward_before": 1.0, "reward_after": 1.0},
        {"before": "a", "after": "b", "reward_before": 0.0, "reward_after": 1.0},
        {"before": "a", "after": "c", "reward_before": 0.5, "reward_after": 0.0},
        {"before": "a", "after": "d", "reward_before": 0.5},
    ]
    assert to_comparisons(rows) == Comparisons(rows, 4, 3, 1, 1)
    assert to_comparisons([{"before": "a", "after": "b"}]) == Comparisons([{"before": "a", "after": "b"}], 1, 1)
    many = to_comparisons([{"before": "a", "after": "b"}] * 50)
    assert (len(many.shown), many.count) == (20, 50)


def test_few_rewards_are_shown_as_they_are():
    samples = {1: [{"reward": 0.0}, {"reward": 0.0}, {"reward": 1.0}, {}], 4: [{"reward": 1}]}
    assert reward_shares(samples) == (["0", "1"], {"iteration 1": [2 / 3, 1 / 3], "iteration 4": [0.0, 1.0]})


def test_many_rewards_are_shown_in_intervals_that_hold_all_of_them():
    samples = {1: [{"reward": float(i)} for i in range(100)], 2: [{"reward": 99.0}], 3: [{"reward": None}]}
    labels, shares = reward_shares(samples, bins=5)
    assert labels == ["0", "20", "40", "59", "79"]
    assert shares == {"iteration 1": [0.2] * 5, "iteration 2": [0, 0, 0, 0, 1.0]}
    assert reward_shares({1: [{}]}) == ([], {})


@pytest.mark.parametrize("text", ["", "a: [", "- a", "tuner: lora\nmodel: {path: x}", "\t"])
def test_a_recipe_that_names_nothing(text: str):
    assert chosen_names(text) == {}
