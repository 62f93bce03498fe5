"""How a process tells of its end: to `lmflow run`, or by itself where torchrun or SLURM started it."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.cli import report_error
from lmflow.distributed import worker
from lmflow.distributed.environment import REPORT
from lmflow.distributed.worker import Report, is_lost_contact, kind_of, read_report, report_end
from lmflow.errors import DataError, FailedElsewhere, Interrupted, LostContact, RecipeError, TrainingError

InTwo = Callable[..., Sequence["subprocess.CompletedProcess[str]"]]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the variables of a process, as a launcher does."""

    def put(rank: int, **more: str) -> None:
        usual = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        for name, value in {**usual, **more}.items():
            monkeypatch.setenv(name, value)

    monkeypatch.delenv(REPORT, raising=False)
    return put


def test_the_launcher_prints_for_its_processes(environment: Any, tmp_path: Path, capsys: Any):
    file = tmp_path / "process-1.json"
    environment(1, **{REPORT: str(file)})
    assert report_error(DataError("one\ntwo")) == 2
    assert capsys.readouterr().err == ""
    assert read_report(file) == Report("error", 2, ["error: one", "  two"])
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_a_process_that_said_nothing(tmp_path: Path):
    assert read_report(tmp_path / "process-0.json") is None


def test_the_main_process_of_torchrun_speaks(environment: Any):
    environment(0)
    assert report_end(DataError("bad"), 2, ["error: bad"]) == ["error: bad"]


def test_another_process_of_torchrun_speaks_of_what_the_main_one_does_not(environment: Any, monkeypatch: Any):
    environment(1)
    assert report_end(DataError("bad"), 2, ["error: bad"]) == ["process 1 of 2: error: bad"]
    monkeypatch.setattr(worker, "is_reported_by_rank0", lambda text: text == "error: bad")
    assert report_end(DataError("bad"), 2, ["error: bad"]) == []
    assert report_end(DataError("worse"), 2, ["error: worse"]) == ["process 1 of 2: error: worse"]


@pytest.mark.parametrize("error", [RecipeError("x"), Interrupted(2), FailedElsewhere("x"), LostContact("x")])
def test_what_all_know_another_process_leaves_to_the_main_one(environment: Any, error: Exception):
    environment(1)
    assert report_end(error, 1, ["error: x"]) == []


def test_broken_variables_are_an_error_like_any_other(environment: Any, capsys: Any):
    environment(1, RANK="first")
    assert report_error(RecipeError("RANK=first is no number")) == 2
    assert capsys.readouterr().err == "error: RANK=first is no number\n"


def test_kinds_of_end():
    assert kind_of(Interrupted(15)) == kind_of(KeyboardInterrupt()) == "interrupted"
    assert kind_of(FailedElsewhere("x")) == "elsewhere"
    assert kind_of(LostContact("x")) == "lost"
    assert kind_of(TrainingError("x")) == kind_of(RuntimeError("Connection closed by peer")) == "error"  # no group


def test_errors_of_exchanges_are_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    lost = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:31"
    assert is_lost_contact(RuntimeError(lost))
    assert is_lost_contact(torch.distributed.DistBackendError("anything"))
    assert not is_lost_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_contact(ValueError(lost))


ENDING = """
import contextlib, sys, time
import torch
from torch import distributed
from lmflow import cli
from lmflow.cli import app
from lmflow.distributed.processes import current_processes

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(3)

def work(_):
    group = current_processes("cpu")
    distributed.barrier()
    torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))  # torch's threads outlive the group from here on
    sys.stdout.write("not flushed")
    if group.rank == 0:
        sys.modules["slow"] = Slow()  # Python takes its time to end
        exchange = distributed.all_reduce(torch.ones(1), async_op=True)
        exchange.get_future().then(lambda _: None)  # and the exchange, which ends meanwhile, lets go of an object of it
    else:
        time.sleep(1)
        with contextlib.suppress(RuntimeError):  # the other has ended
            distributed.all_reduce(torch.ones(1))
    return 7

app.run_app = work
cli.main([])
"""


@pytest.mark.slow
def test_threads_of_torch_do_not_abort_a_process_that_ends(in_two_processes: InTwo):
    ended = in_two_processes(ENDING)
    assert [(each.returncode, each.stdout, each.stderr) for each in ended] == [(7, "not flushed", "")] * 2
