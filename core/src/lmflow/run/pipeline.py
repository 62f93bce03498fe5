"""A recipe of several stages: a run for each, in order, in one directory that says where the whole stands."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lmflow.atomic import write_atomically
from lmflow.data.files import files_of
from lmflow.data.source import validation_place
from lmflow.distributed.environment import this_worker
from lmflow.distributed.join import join
from lmflow.distributed.processes import Processes
from lmflow.distributed.signals import handling, stopping_signals
from lmflow.errors import Interrupted, LmflowError, RunDirectoryError
from lmflow.plugins import Plugins
from lmflow.recipe.recipe import ResolvedRecipe, dump
from lmflow.recipe.references import references_in
from lmflow.recipe.stages import Stage, StagedRecipe, dump_stages
from lmflow.run.begun import check_begun, remember
from lmflow.run.directory import FollowedDirectory, RunDirectory, opened_by_rank0
from lmflow.run.display import Display, Silent
from lmflow.run.pipeline_record import PipelineRecord, is_finished, place_of, result_of
from lmflow.run.record import RunResult
from lmflow.run.resume import how_to_resume
from lmflow.run.run import new_output, run
from lmflow.run.workers import check_outcome, needs_workers, run_in_workers
from lmflow.run_files import RECIPE, STAGES, holds_run, resume_command


@dataclass(frozen=True)
class Pipeline:
    """What all stages share: their directory, the processes that carry them all out, and how they are shown.

    `flags` are those of `lmflow run` for a stage that is carried out in processes of its own.
    """

    staged: StagedRecipe
    plugins: Plugins
    directory: RunDirectory
    processes: Processes
    record: PipelineRecord
    make_display: Callable[[], Display]
    flags: Sequence[str]
    resume: bool


def run_stages(
    staged: StagedRecipe,
    plugins: Plugins,
    *,
    output: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    make_display: Callable[[], Display] = Silent,
    flags: Sequence[str] = (),
) -> RunResult:
    """Carry out the stages in order, each as a run in `stages/NAME` of one directory; the last one's result is its own.

    With `resume` finished stages stay as they are, and the one that was not is resumed. Raises LmflowError, after
    recording in run.json which stage ended why.
    """
    processes = join(staged.stages[0].planned.recipe) if this_worker() else Processes()
    if not resume:
        check_data(staged, output)
        check_rewards(staged)
    directory = open_whole(staged, processes, output, resume, overwrite)
    record = PipelineRecord(staged, plugins, directory, resumed=resume)
    pipeline = Pipeline(staged, plugins, directory, processes, record, make_display, flags, resume)
    with closing(directory), recorded(pipeline), signals_interrupt():
        for number, stage in enumerate(staged.stages, 1):
            carry_out(pipeline, stage, number)
    return RunResult(directory.path, record.values)


def check_data(staged: StagedRecipe, output: Path | None) -> None:
    """Raise DataError where a stage names data that is not there, before any begins, unless another may write it."""
    for stage in staged.stages:
        data = stage.planned.recipe.data
        with naming(stage):
            held = validation_place(data)
            for place in [*(data.model_copy(update={"path": path}) for path in (data.path, *data.mix)), held]:
                if place is not None and place.path is not None and not _may_be_written(place.path, output):
                    files_of(place.path, place.subset, place.split)


def check_rewards(staged: StagedRecipe) -> None:
    """Let rewards say what is wrong with them before any stage begins, but for one that is yet to be made."""
    for stage in staged.stages:
        reward = stage.planned.recipe.reward
        if reward is not None and not any(path.startswith("reward.") for path in references_in(stage.settings)):
            with naming(stage):
                reward.check()


def _may_be_written(path: str, output: Path | None) -> bool:
    """Whether a place lies in the directory of the whole run, where an earlier stage may write it."""
    return output is not None and Path(path).absolute().is_relative_to(output.absolute())


@contextmanager
def naming(stage: Stage) -> Iterator[None]:
    """Within the context errors say which stage they are about; that it was interrupted is said of the whole."""
    try:
        yield
    except Interrupted:
        raise
    except LmflowError as error:
        error.args = (f"stage {stage.name}: {error}", *error.args[1:])
        raise


def open_whole(
    staged: StagedRecipe, processes: Processes, output: Path | None, resume: bool, overwrite: bool
) -> RunDirectory:
    """The directory of all stages, opened by one process of one machine, which alone writes to it."""
    launch = staged.stages[0].planned.recipe.launch
    if launch.hosts > 1 and output is None:
        raise RunDirectoryError("stages on several machines need --output DIR, the same on each of them.")
    if launch.host_rank > 0 and output is not None:
        return FollowedDirectory(output)

    def begin() -> RunDirectory:
        place = output or new_output("-".join(stage.name for stage in staged.stages)[:40])
        return RunDirectory(place, resume=resume, overwrite=overwrite, folders=[STAGES])

    def check(directory: RunDirectory) -> None:
        if resume:
            check_begun(directory.path, staged)
        directory.write_recipe(dump_stages(staged))

    return opened_by_rank0(processes, begin, check)


@contextmanager
def recorded(pipeline: Pipeline) -> Iterator[None]:
    """Within the context the stages are carried out; afterwards run.json says how that ended."""
    record = pipeline.record
    try:
        yield
    except Interrupted:
        record.finish("interrupted")
        raise
    except KeyboardInterrupt as error:
        record.finish("interrupted")
        raise Interrupted(signal.SIGINT, how_to_resume(pipeline.directory.path)) from error
    except BaseException as error:
        record.finish("failed", f"{type(error).__name__}: {error}")
        if isinstance(error, LmflowError):
            again = resume_command(pipeline.directory.path)
            error.args = (
                f"{error}\nWhat was finished is kept. Once that is mended, go on with: {again}",
                *error.args[1:],
            )
        raise
    record.finish("completed")
    with suppress(RuntimeError):  # another is gone already
        pipeline.processes.barrier()  # none ends while rank 0 writes, which a launcher might take for a fault


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Within the context signals end what goes on between two stages as Ctrl-C does; in a stage the run hears them."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    with handling(interrupt, *(number for number in stopping_signals() if number != signal.SIGINT)):
        yield


def carry_out(pipeline: Pipeline, stage: Stage, number: int) -> None:
    """Carry out a stage that is not finished. Its errors name it; raises Interrupted where no other may begin."""
    place, count = place_of(pipeline.directory.path, stage.name), len(pipeline.staged.stages)
    begun = pipeline.resume and holds_run(place)
    finished = begun and is_finished(place)
    with closing(pipeline.make_display()) as display:
        display.note(f"stage {number} of {count}: {stage.name}{' is finished already' if finished else ''}")
    if finished:
        return
    if not isinstance(pipeline.directory, FollowedDirectory):
        remember(pipeline.directory.path, stage)
    pipeline.record.write(running=stage.name)
    with naming(stage):
        asked = run_stage(pipeline, stage, place, resume=begun)
    asked = int(pipeline.processes.max(asked or 0))
    if asked and number < count:
        raise Interrupted(asked, how_to_resume(pipeline.directory.path))
    release_memory()


def run_stage(pipeline: Pipeline, stage: Stage, place: Path, *, resume: bool) -> int | None:
    """The run of a stage, here or in processes of its own; a signal that asked to stop when it was done."""
    whole = pipeline.directory
    resolved = stage.started(pipeline.plugins, lambda name: str(result_of(place_of(whole.path, name)).absolute()))
    if resume and not isinstance(whole, FollowedDirectory):
        # It is the recipe of the whole that must not change; where earlier results lie may, if all was moved.
        write_atomically(place / RECIPE, dump(resolved.recipe))
    if needs_workers(resolved.recipe):
        return run_elsewhere(pipeline, resolved, place, resume=resume)
    with closing(pipeline.make_display()) as display:
        return run(resolved, pipeline.plugins, output=place, resume=resume, display=display).stop_signal


def run_elsewhere(pipeline: Pipeline, resolved: ResolvedRecipe, place: Path, *, resume: bool) -> int | None:
    """The same in processes that are started for this stage alone, and end with it."""
    flags = [*pipeline.flags, *(["--resume"] if resume else [])]
    show_all = "--debug" in flags
    _, outcome = run_in_workers(resolved.recipe, place, flags, show_all=show_all, show_result=False)
    check_outcome(outcome)
    return outcome.asked


def release_memory() -> None:
    """Free what a stage has left behind, and count the GPU's memory anew for the next."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
