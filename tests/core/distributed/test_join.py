"""A process takes its place among the others, or says why it cannot."""

import signal
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest

from lmflow.components import Aligner
from lmflow.distributed.environment import Worker
from lmflow.distributed.join import check_alike, check_gpus, check_number, ended_by_ctrl_c, join
from lmflow.distributed.processes import Processes
from lmflow.errors import RecipeError
from lmflow.plugins import load_plugins
from lmflow.recipe.recipe import Recipe, dump
from lmflow.recipe.resolve import resolve
from lmflow.recipe.sections.launch import LaunchOptions


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return resolve(load_plugins()).recipe


@pytest.fixture(autouse=True)
def _nobody_launched_this(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def of(recipe: Recipe, processes: int) -> Recipe:
    return replace(recipe, launch=LaunchOptions(processes=processes))


def test_alone(recipe: Recipe):
    assert join(recipe) == Processes(0, 1)


def test_processes_are_started_by_the_command(recipe: Recipe):
    """A Python program that calls `run` is one process."""
    with pytest.raises(RecipeError, match=r"launch\.processes: 2 processes are started by the command lmflow run"):
        join(of(recipe, 2))


def test_another_number_than_the_launchers(recipe: Recipe):
    check_number(recipe, Worker(0, 4, 0, 4, "torchrun"))  # left to torchrun
    check_number(of(recipe, 4), Worker(0, 4, 0, 4, "torchrun"))
    with pytest.raises(RecipeError, match="3 in all, but torchrun has started 4"):
        check_number(of(recipe, 3), Worker(0, 4, 0, 4, "torchrun"))


@pytest.mark.parametrize(("local_size", "local_rank"), [(4, 0), (None, 3)])
def test_a_gpu_for_each_process(local_size: int | None, local_rank: int, monkeypatch: pytest.MonkeyPatch):
    import torch

    worker = Worker(local_rank, 4, local_rank, local_size, "torchrun")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    check_gpus(worker)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RecipeError, match=r"4 on this machine, where torch sees 1 GPU.*ask for 1, or.*device cpu"):
        check_gpus(worker)


class Loner(Aligner):
    """Stands alone."""

    name = "loner"
    one_process: ClassVar[str | None] = "it keeps its ranking in memory"

    def align(self, *_: Any) -> None:
        """Do nothing."""


def test_a_component_that_works_alone_under_torchrun(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="loner works in one process only: it keeps its ranking in memory"):
        join(replace(recipe, aligner=Loner()))


@dataclass(frozen=True)
class Second(Processes):
    """The second of two processes; `main` is the recipe that the first was given."""

    main: str = ""
    heard: list[Any] = field(default_factory=list)

    def broadcast(self, value: Any) -> Any:
        return self.main

    def gather(self, value: Any) -> list[Any]:
        return [None, value]


def test_another_recipe_than_the_others(recipe: Recipe):
    check_alike(recipe, Second(1, 2, dump(recipe)))
    other = replace(recipe, training=recipe.training.model_copy(update={"seed": 3}))
    with pytest.raises(RecipeError, match="not given the same recipe: 'seed: 3' there, 'seed: 0' here"):
        check_alike(recipe, Second(1, 2, dump(other)))
    with pytest.raises(RecipeError, match="not given the same recipe: sections differ"):
        check_alike(recipe, Second(1, 2, dump(recipe) + "more: 1\n"))


def test_ctrl_c_while_waiting_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with ended_by_ctrl_c():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
