"""Observers in real runs: what they are told, and that nothing they do reaches the run."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr

from lmflow.components import Tracker
from lmflow.errors import Interrupted, LmflowError
from lmflow.hookspecs import hookimpl
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.resolve import resolve
from lmflow.recipe.settings import Origin, Setting
from lmflow.run import before_after
from lmflow.run.run import RunResult, run
from lmflow.run_files import METRICS
from lmflow.testing.comparing import file_hashes
from lmflow.testing.runs import RECORDS, SETTINGS, SMALL, TIME, StopAfter, write_records


class Teller(Tracker):
    """Remember every event."""

    name = "teller"
    _heard: list[tuple[Any, ...]] = PrivateAttr(default_factory=list)

    @hookimpl
    def lmflow_run_started(self, recipe: Any, directory: Path) -> None:
        self._heard.append(("started", recipe.tuner.name, (directory / "recipe.yaml").is_file()))

    @hookimpl
    def lmflow_step_finished(self, step: int, metrics: Any) -> None:
        self._heard.append(("step", step, dict(metrics)))

    @hookimpl
    def lmflow_checkpoint_saved(self, path: Path) -> None:
        self._heard.append(("checkpoint", path.name, path.is_dir()))

    @hookimpl
    def lmflow_run_finished(self, directory: Path, status: str, metrics: Any) -> None:
        self._heard.append(("finished", status, dict(metrics)))

    def heard(self, event: str) -> list[tuple[Any, ...]]:
        return [rest for kind, *rest in self._heard if kind == event]


class Hostile(Tracker):
    """Do one bad thing at every event."""

    name = "hostile"
    _act: Callable[..., Any] = PrivateAttr()

    def __init__(self, act: Callable[..., Any]) -> None:
        super().__init__()
        self._act = act

    @hookimpl
    def lmflow_run_started(self) -> None:
        self._act({})

    @hookimpl
    def lmflow_step_finished(self, metrics: Any) -> None:
        self._act(metrics)

    @hookimpl
    def lmflow_checkpoint_saved(self) -> None:
        self._act({})

    @hookimpl
    def lmflow_run_finished(self, metrics: Any) -> None:
        self._act(metrics)


def throw(error: BaseException) -> Callable[..., None]:
    def act(_: Any) -> None:
        raise error

    return act


def write(metrics: Any) -> None:
    if metrics:
        metrics["loss"] = 0.0


def draw_numbers(_: Any) -> None:
    import numpy
    import torch

    torch.rand(3), random.random(), numpy.random.rand(3)


def seed_numbers(_: Any) -> None:
    import numpy
    import torch

    torch.manual_seed(7), random.seed(7), numpy.random.seed(7)


def switch_gradients_off(_: Any) -> None:
    import torch

    torch.set_grad_enabled(False)


def change_default_dtype(_: Any) -> None:
    import torch

    torch.set_default_dtype(torch.float64)


def leave_directory(_: Any) -> None:
    os.chdir("/")


FAILING = {
    "raises": throw(ValueError("disk")),
    "exits": throw(SystemExit(3)),
    "writes": write,
}
MEDDLING = {
    "prints": lambda _: print("out"),
    "draws numbers": draw_numbers,
    "seeds": seed_numbers,
    "gradients": switch_gradients_off,
    "dtype": change_default_dtype,
    "directory": leave_directory,
}


@pytest.fixture(autouse=True)
def _as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch

    monkeypatch.chdir(tmp_path)
    dtype = torch.get_default_dtype()
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


@pytest.fixture(scope="module")
def carry_out(plugins: Plugins, model_directory: Path) -> Callable[..., RunResult]:
    """A small run with the observers given; its output is a relative path, as users give it."""

    def start(output: str, *observers: Tracker) -> RunResult:
        records = write_records(Path("records.jsonl").resolve(), RECORDS)
        settings = {
            **SETTINGS,
            **SMALL,
            "model": str(model_directory),
            "data.path": str(records),
            "data.validation": 0.25,
            "training.checkpoint_every": 2,
        }
        resolved = resolve(
            plugins, None, [Setting(key, value, Origin("option", key)) for key, value in settings.items()]
        )
        with plugins.with_trackers(observers):
            return run(resolved, plugins, output=Path(output))

    return start


@pytest.fixture(scope="module")
def alone(carry_out: Callable[..., RunResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody observes."""
    place = tmp_path_factory.mktemp("alone")
    with chdir(place):
        carry_out("run")
    return place / "run"


def lines_of(directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    lines = [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if TIME not in name} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("deed", [*FAILING, *MEDDLING])
def test_nothing_an_observer_does_reaches_the_run(deed, carry_out, alone, tmp_path, capsys):
    teller = Teller()
    result = carry_out("watched", Hostile({**FAILING, **MEDDLING}[deed]), teller)
    assert result.status == "completed"
    assert lines_of(tmp_path / "watched") == lines_of(alone)
    assert file_hashes(tmp_path / "watched" / "model") == file_hashes(alone / "model")
    assert len([note for note in result.record["notes"] if note.startswith("tracker hostile")]) == (deed in FAILING)
    assert [step for step, _ in teller.heard("step")] == [line["step"] for line in lines_of(alone)]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("deed", [deed for deed in MEDDLING if deed != "prints"])
def test_the_process_is_afterwards_as_it_was(deed, plugins):
    import numpy
    import torch

    def state() -> list[Any]:
        drawn = [torch.rand(1).item(), random.random(), float(numpy.random.rand())]
        return [*drawn, torch.is_grad_enabled(), torch.get_default_dtype(), Path.cwd()]

    def seed() -> None:
        torch.manual_seed(1), random.seed(1), numpy.random.seed(1)

    seed()
    expected = state()
    seed()
    with plugins.with_trackers([Hostile(MEDDLING[deed])]):
        assert plugins.emit("lmflow_step_finished", step=1, metrics={}) == []
    assert state() == expected


def test_events_come_in_order_with_what_they_name(carry_out, tmp_path):
    teller = Teller()
    result = carry_out("out", teller)
    kinds = [kind for kind, *_ in teller._heard]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert (kinds.count("started"), kinds.count("finished")) == (1, 1)
    assert teller.heard("started") == [["full", True]]
    assert all(metrics["step"] == step for step, metrics in teller.heard("step"))
    assert [step for step, _ in teller.heard("step")] == sorted(step for step, _ in teller.heard("step"))
    assert teller.heard("checkpoint")
    assert all(stands for _, stands in teller.heard("checkpoint"))
    assert teller.heard("finished") == [["completed", result.record["metrics"]]]


def test_a_failed_run_is_told_as_failed(carry_out, monkeypatch):
    monkeypatch.setattr(before_after, "compare", lambda *_: throw(LmflowError("no more"))(None))
    teller = Teller()
    with pytest.raises(LmflowError, match="no more"):
        carry_out("out", teller)
    assert [status for status, _ in teller.heard("finished")] == ["failed"]


def test_an_interrupted_run_is_told_as_interrupted(carry_out):
    teller = Teller()
    with pytest.raises(Interrupted):
        carry_out("out", teller, StopAfter(lines=2))
    assert [status for status, _ in teller.heard("finished")] == ["interrupted"]
