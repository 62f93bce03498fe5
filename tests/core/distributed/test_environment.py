"""Whether a launcher has started this process, by the variables it leaves."""

import pytest

from lmflow.distributed.environment import Worker, first_node, take_part, this_worker, usual_threads
from lmflow.errors import RecipeError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "x",
}
SLURM = {
    "SLURM_JOB_ID": "123457",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def test_a_process_that_nobody_launched():
    assert this_worker({}) is None
    assert this_worker({"WORLD_SIZE": "2"}) is None


def test_torchrun():
    assert this_worker(TORCHRUN) == Worker(5, 8, 1, 4, "torchrun")
    assert not Worker(5, 8, 1, 4, "torchrun").is_rank0


def test_a_task_of_slurm():
    worker = this_worker(SLURM)
    assert worker == Worker(3, 4, 1, 2, "SLURM")
    environment = dict(SLURM)
    take_part(worker, None, environment)
    assert {name: environment[name] for name in TORCHRUN if name in environment} == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "18457",
    }
    assert this_worker(environment) is not None  # now it reads as torchrun's


def test_an_address_of_the_recipe_is_where_tasks_of_slurm_meet():
    environment = dict(SLURM)
    take_part(Worker(3, 4, 1, 2, "SLURM"), "10.0.0.1:4000", environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "4000")


def test_the_batch_script_itself_is_no_task():
    assert this_worker({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}) is None
    assert this_worker({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-09,12],cpu3", "gpu07"), ("cpu3,gpu[1-2]", "cpu3"), ("localhost", "localhost"), ("a-b[3]", "a-b3")],
)
def test_the_first_machine_of_slurms_list(nodes: str, first: str):
    assert first_node(nodes) == first


def test_half_of_an_answer_is_refused():
    with pytest.raises(RecipeError, match=r"WORLD_SIZE=2.*without MASTER_ADDR and MASTER_PORT; unset RANK WORLD_SIZE"):
        this_worker({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(RecipeError, match="RANK=x is no number"):
        this_worker({"RANK": "x", "WORLD_SIZE": "1"})


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmflow.distributed.environment.available_cores", lambda: 7)
    assert [usual_threads(processes) for processes in (1, 2, 3, 16)] == [7, 3, 2, 1]
