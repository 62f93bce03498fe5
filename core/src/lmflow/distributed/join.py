"""How a process of a run takes its place among the others, before any work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lmflow.distributed.environment import Worker, take_part, this_worker
from lmflow.distributed.processes import Processes, current_processes
from lmflow.distributed.signals import handling
from lmflow.errors import RecipeError

if TYPE_CHECKING:
    from lmflow.recipe.recipe import Recipe


def join(recipe: Recipe, note: Callable[[str], None] | None = None) -> Processes:
    """The processes that carry out `recipe`, once all are there; a process that nobody launched is alone.

    Raises RecipeError where the recipe asks for other processes than there are, or for more than there are GPUs, where
    one of its components works alone, and where the others were given another recipe. `note` tells the user that this
    process waits for others that have to be started elsewhere.
    """
    worker = this_worker()
    check_number(recipe, worker)
    if worker is None or worker.size == 1:
        return Processes()
    from lmflow.models.device import choose_device
    from lmflow.recipe.resolve import single_process_reasons

    components = [recipe.model, recipe.context, recipe.format, recipe.tuner, recipe.aligner, recipe.inferencer]
    if reasons := list(single_process_reasons(each for each in [*components, recipe.reward, *recipe.trackers] if each)):
        raise RecipeError(reasons)
    device = choose_device(recipe.training.device)
    if device == "cuda":
        check_gpus(worker)
    take_part(worker, recipe.launch.address)
    if note is not None and (worker.launcher != "lmflow" or recipe.launch.hosts > 1):
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        note(f"process {worker.rank} of {worker.size} waits for the others at {place}")
    with ended_by_ctrl_c():
        processes = current_processes(device, minutes=recipe.launch.timeout)
    check_alike(recipe, processes)
    return processes


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Within the context Ctrl-C ends this process at once: while torch waits for others, Python hears of no signal."""
    with handling(signal.SIG_DFL, signal.SIGINT):
        yield


def check_number(recipe: Recipe, worker: Worker | None) -> None:
    """The recipe's number of processes is that of the launcher, or is left to it; raises RecipeError."""
    wanted = recipe.launch.total
    if worker is None and wanted > 1:
        raise RecipeError(
            f"launch.processes: {wanted} processes are started by the command lmflow run, by torchrun or by srun; this "
            "one was started by none of them"
        )
    if worker is not None and wanted not in (1, worker.size):
        raise RecipeError(
            f"launch.processes: {wanted} in all, but {worker.launcher} has started {worker.size}; leave it out where "
            "something else starts the processes"
        )


def check_gpus(worker: Worker) -> None:
    """This machine has a GPU for each of its processes; raises RecipeError."""
    import torch

    here, gpus = worker.local_size or worker.local_rank + 1, torch.cuda.device_count()
    if here > gpus:
        seen = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        raise RecipeError(
            f"launch.processes: {here} on this machine, where torch sees {seen}, and each process needs one; ask for "
            f"{gpus}, or for --training.device cpu"
        )


def check_alike(recipe: Recipe, processes: Processes) -> None:
    """All processes were given the same recipe; raises RecipeError in each."""
    from lmflow.recipe.recipe import dump

    of_main = processes.broadcast(dump(recipe)).splitlines()
    mine = dump(recipe).splitlines()
    other = next((f"{a.strip()!r} there, {b.strip()!r} here" for a, b in zip(of_main, mine) if a != b), None)
    if other is None and of_main != mine:
        other = "sections differ"
    found = [difference for difference in processes.gather(other) if difference]
    if found:
        raise RecipeError(f"the processes were not given the same recipe: {found[0]}")
