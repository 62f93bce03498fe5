"""A tuner that rotates, and an objective over pairs: two processes train and judge as one does."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("rotation_worker.py")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("parallel")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process: this one."""
    worker = runpy.run_path(str(WORKER))
    found: dict[str, Any] = worker["work"](tmp_path_factory.mktemp("alone"))
    return found


def test_one_process_trains_all_layers_in_turn(alone: dict[str, Any]):
    assert alone["processes"] == 1
    assert len(alone["steps"]) == 6
    kept = {name.split(".")[2] for name in alone["state"] if ".layers." in name}
    assert kept == {"0"}, "of the layer that rested last, nothing is kept"


def test_two_processes_equal_one(alone: dict[str, Any], in_two_processes: Any, tmp_path: Path):
    done = in_two_processes(WORKER.read_text(), str(tmp_path))
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == 2
    for name in ("steps", "before", "after", "weights", "state"):
        assert first[name] == second[name], f"both processes have the same {name}, to the bit"
    for found, expected in zip(first["steps"], alone["steps"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for when in ("before", "after"):
        assert first[when] == pytest.approx(alone[when], rel=1e-4, abs=1e-5)
    assert first["before"] == pytest.approx(alone["before"], rel=1e-6)
    assert first["state"] == alone["state"]
    for name, values in alone["weights"].items():
        assert first["weights"][name] == pytest.approx(values, abs=5e-5), name
