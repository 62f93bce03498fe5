"""What becomes a point of a curve."""

import math
from pathlib import Path

from lmflow_trackers.curves import Curves, points, recall, remember, written_lines


def test_names_are_grouped_by_where_they_come_from():
    assert points({"step": 3, "loss": 1, "eval_loss": 2.0}) == {"train/loss": 1.0, "heldout/loss": 2.0}
    assert points({"step": 3, "iteration": 1, "kl": 0.5, "heldout_reward": 1.0}) == {
        "iteration/kl": 0.5,
        "heldout/reward": 1.0,
    }


def test_only_finite_numbers_become_points():
    odd = {"step": 1, "a": math.nan, "b": math.inf, "c": "text", "d": None, "e": True, "f": [1], "g": 2}
    assert points(odd) == {"train/g": 2.0}


def test_a_curve_takes_each_step_once():
    curves = Curves({"loss": 3})
    assert curves.advance(3, {"loss": 1.0, "new": 1.0}) == {"new": 1.0}
    assert curves.advance(4, {"loss": 1.0, "new": 2.0}) == {"loss": 1.0, "new": 2.0}
    assert curves.advance(4, {"loss": 1.0}) == {}


def test_a_torn_line_is_passed_over(tmp_path: Path):
    assert list(written_lines(tmp_path)) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert list(written_lines(tmp_path)) == [{"step": 1}]


def test_what_is_remembered_is_recalled(tmp_path: Path):
    assert recall(tmp_path, "mlflow") == {}
    remember(tmp_path, "mlflow", {"run_id": "1"})
    assert recall(tmp_path, "mlflow") == {"run_id": "1"}
    assert recall(tmp_path, "tensorboard") == {}
