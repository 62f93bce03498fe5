"""The life of a run, from a resolved recipe to a directory that holds everything about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from lmflow.components import AlignContext
from lmflow.distributed.join import join
from lmflow.distributed.processes import Processes
from lmflow.distributed.worker import is_lost_contact
from lmflow.errors import Interrupted, LmflowError, LostContact, is_disk_full
from lmflow.plugins import Plugins
from lmflow.plugins.user_code import exit_error
from lmflow.recipe.other_models import other_models
from lmflow.recipe.recipe import Recipe, ResolvedRecipe, dump
from lmflow.run import stages
from lmflow.run.directory import RunDirectory, opened_by_rank0
from lmflow.run.display import Display
from lmflow.run.log import RunLog
from lmflow.run.record import RunRecord, RunResult
from lmflow.run.resume import check_same_recipe, how_to_resume
from lmflow.run_files import resume_command


def run(
    resolved: ResolvedRecipe,
    plugins: Plugins,
    *,
    output: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
    estimate: bool = True,
) -> RunResult:
    """Carry out a recipe in its own directory: load, read, prepare, align, save, and measure before and after.

    With `estimate` the run first says what it will take, as `lmflow plan` does. In one of several processes rank 0
    alone opens the directory, writes, shows and tells plugins of events.
    Raises LmflowError after recording in run.json why the run ended; finished work stays in the directory.
    """
    from lmflow.data.tally import tokenising_counted
    from lmflow.run.before_after import compare, measure

    recipe = resolved.recipe
    with (
        opened(recipe, plugins, output, resume, overwrite, display) as work,
        recorded(work),
        tokenising_counted(work.log.count),
    ):
        log = work.log
        if log.processes.on_rank0(lambda: work.record.is_finished):
            log.note("the run is completed already: there is nothing to resume")
            return RunResult(work.directory.path, work.record.earlier)
        other_models(recipe.aligner, plugins)  # what is misspelt is told before anything is read
        stages.check_reward(work)
        data = stages.read_data(work)
        plan = stages.estimate(work, data) if estimate else None
        log.sync_and_check_stop()
        model = stages.load_model(work)
        log.sync_and_check_stop()
        models = stages.open_models(work)
        stages.compare_context(work, model, data)
        packing = stages.choose_packing(work, model, data, plan)
        model = stages.prepare(work, model)
        context = stages.make_context(work, model, data, models, packing)
        trainer = context.trainer
        stages.self_test(context, recipe.aligner)
        stages.open_inferencer(work, context)
        before = measure("before", context, recipe.aligner)
        if resume:
            trainer.restore()
            begin(work)
        recipe.aligner.align(context)
        log.processes.barrier()  # what rank 0 wrote last can be read by all
        trainer.choose_result()
        result = stages.save(work, trainer)
        after = measure("after", context, recipe.aligner)
        if before is not None and after is not None:
            work.directory.write_comparison(compare(before, after))
        work.record.values["result"] = result.name
        summarize(work, context)
    return RunResult(work.directory.path, work.record.values, work.log.asked_to_stop)


@contextmanager
def opened(
    recipe: Recipe, plugins: Plugins, output: Path | None, resume: bool, overwrite: bool, display: Display | None
) -> Iterator[stages.Work]:
    """The run's directory, log and record, open among the processes of the run until it ends."""
    processes = join(recipe, display.note if display else None)
    directory = open_directory(recipe, processes, output, resume, overwrite)
    rank0 = processes.is_rank0
    log = RunLog(directory if rank0 else None, plugins.emit if rank0 else silent, display if rank0 else None, processes)
    work = stages.Work(recipe, plugins, directory, log, RunRecord(recipe, plugins, directory, log, resumed=resume))
    try:
        with plugins.with_trackers(recipe.trackers if rank0 else ()), log.handle_signals(), work.closing:
            yield work
    finally:
        directory.close()


def open_directory(
    recipe: Recipe, processes: Processes, output: Path | None, resume: bool, overwrite: bool
) -> RunDirectory:
    """The run's directory: opened and locked by rank 0, which alone writes, and followed by the others."""
    return opened_by_rank0(
        processes,
        lambda: RunDirectory(output or default_output(recipe), resume=resume, overwrite=overwrite),
        lambda directory: check_same_recipe(directory, recipe, resume),
    )


def silent(*_: object, **__: object) -> None:
    """Tell nobody: of several processes rank 0 alone tells plugins."""


@contextmanager
def recorded(work: stages.Work) -> Iterator[None]:
    """Within the context the run's work is done; afterwards run.json says how it ended."""
    place, record = work.directory.path, work.record
    for note in work.directory.notes:
        work.log.note(note)
    if not record.had_ended:
        begin(work)
    try:
        yield
    except Interrupted as error:
        record.finish("interrupted")
        record.wait_for_others()
        raise Interrupted(error.signal_number, how_to_resume(place)) from error
    except KeyboardInterrupt as error:  # the second Ctrl-C
        record.finish("interrupted")
        raise Interrupted(2, how_to_resume(place)) from error
    except BaseException as error:
        told = explained(error, place)
        record.finish("failed", f"{type(error).__name__}: {told if isinstance(error, SystemExit) else error}")
        raise told from error
    record.finish("completed")
    record.wait_for_others()


def begin(work: stages.Work) -> None:
    """From here on the run's files are those of this attempt: where one that had ended is resumed, training goes on."""
    if work.record.begun:
        return
    work.directory.write_recipe(dump(work.recipe))
    work.record.begin()
    work.log.emit("lmflow_run_started", recipe=work.recipe, directory=work.directory.path)


def explained(error: BaseException, place: Path) -> BaseException:
    """The error as the user is to see it: what a full disk or a lost process means for the run."""
    if isinstance(error, SystemExit):
        return exit_error(error)
    if is_disk_full(error):
        where = getattr(error, "filename", None) or place
        return LmflowError(
            f"The disk is full: {where} could not be written. What was finished before is kept; "
            f"free some space and continue with {resume_command(place)}"
        )
    if is_lost_contact(error):
        return LostContact(
            f"another process of the run has ended, or does not answer ({str(error).splitlines()[0]}). Once "
            f"that is mended, continue with {resume_command(place)}"
        )
    return error


def summarize(work: stages.Work, context: AlignContext) -> None:
    """What the whole run took, into its metrics."""
    log, trainer = work.log, context.trainer
    seconds = log.seconds["training"]
    log.metrics |= context.inferencer.figures()
    log.metrics["tokens"] = trainer.tokens
    log.metrics["tokens_per_second"] = trainer.tokens / seconds if seconds else None
    log.metrics["steps"] = trainer.step
    work.record.compare_memory()


def default_output(recipe: Recipe) -> Path:
    """`runs/<time>-<tuner>-<aligner>`, with a number appended if that exists."""
    return new_output(f"{recipe.tuner.name}-{recipe.aligner.name}")


def new_output(label: str) -> Path:
    """`runs/<time>-<label>`, with a number appended if that exists."""
    base = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{label}"
    candidate, number = base, 2
    while candidate.exists():
        candidate, number = base.with_name(f"{base.name}-{number}"), number + 1
    return candidate
