"""What a launcher of several processes left in the environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lmflow.distributed.environment import this_worker
from lmflow.doctor.finding import Finding
from lmflow.errors import RecipeError

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def check_launcher(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Variables by which a launcher tells a process of the others, and that may have outlived it."""
    present = [name for name in LAUNCHER if environment.get(name)]
    remedy = f"unset {' '.join(present)}"
    try:
        worker = this_worker(environment)
    except RecipeError as error:
        yield Finding("launcher", "error", f"{str(error).partition(';')[0]}: every run stops at once.", remedy)
        return
    if worker is None or worker.size == 1:
        return
    if worker.is_known:
        text = f"This is process {worker.rank} of {worker.size}, as {worker.launcher} says."
        yield Finding("launcher", "ok", text)
    else:
        text = (
            f"{', '.join(present)}: set as in one of {worker.size} processes, but neither torchrun nor srun started "
            "this one. A run waits for the others, and fails if they do not come."
        )
        yield Finding("launcher", "warning", text, remedy)
