"""The life of a run, from a resolved recipe to a directory that holds everything about it."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmflow import __version__
from lmflow.errors import (
    Interrupted,
    LmflowError,
    LostContact,
    RunDirectoryError,
    TrainingError,
    UnforeseeableError,
    is_disk_full,
)
from lmflow.journal import Journal
from lmflow.journal_display import Display
from lmflow.launching.group import Group
from lmflow.launching.joining import join
from lmflow.launching.worker import is_lost_contact
from lmflow.machine_memory import give_back_freed_memory
from lmflow.plugins import Plugins
from lmflow.recipe import Recipe, ResolvedRecipe, dump
from lmflow.recipe_settings import LAUNCH, SOURCES
from lmflow.run_directory import FollowedDirectory, RunDirectory

if TYPE_CHECKING:
    from lmflow.components import Tuner
    from lmflow.data.sample import Dataset, Sample
    from lmflow.evaluation import Answers
    from lmflow.models import LanguageModel
    from lmflow.training.trainer import Trainer

VERSIONED = ("torch", "transformers", "peft", "accelerate", "pluggy", "pydantic", "safetensors", "tokenizers")
SHOWN_ANSWERS = 20
"""Held-out prompts answered before and after when no reward scores them."""


@dataclass(frozen=True)
class RunResult:
    """Where a run's directory is, and what its run.json holds."""

    directory: Path
    record: Mapping[str, Any]

    @property
    def status(self) -> str:
        """completed, interrupted or failed."""
        return str(self.record["status"])


def run(
    resolved: ResolvedRecipe,
    plugins: Plugins,
    *,
    output: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
    foresee: bool = True,
) -> RunResult:
    """Carry out a recipe in its own directory.

    With `foresee` the run first says what it will take, as `lmflow plan` does. In one of several processes the main one
    alone opens the directory, writes, shows and tells plugins of events.
    Raises LmflowError after recording in run.json why the run ended; finished work stays in the directory.
    """
    recipe = resolved.recipe
    group = join(recipe, display.note if display else None)
    if not group.is_main:
        return follow(recipe, plugins, group, resume)
    directory: RunDirectory | None = None

    def begin() -> Path:
        nonlocal directory
        directory = RunDirectory(output or default_output(recipe), resume=resume, overwrite=overwrite)
        check_same_recipe(directory, recipe, resume)
        return directory.path.absolute()

    try:
        group.on_main(begin)
        assert directory is not None
        journal = Journal(directory, plugins.emit, display, group)
        with plugins.telling(recipe.trackers), journal.listening():
            return Run(recipe, plugins, directory, journal, resume, foresee=foresee).carry_out()
    finally:
        if directory is not None:
            directory.close()


def follow(recipe: Recipe, plugins: Plugins, group: Group, resume: bool) -> RunResult:
    """Carry out the same recipe as the main process, in the directory that it has opened, and in silence."""
    directory = FollowedDirectory(group.on_main(Path))
    journal = Journal(None, lambda *_, **__: None, None, group)
    with journal.listening():
        return Run(recipe, plugins, directory, journal, resume).carry_out()


class Run:
    """One run under way: what is recorded about it beside the work itself."""

    def __init__(
        self,
        recipe: Recipe,
        plugins: Plugins,
        directory: RunDirectory,
        journal: Journal,
        resume: bool,
        *,
        foresee: bool = True,
    ) -> None:
        self.recipe = recipe
        self.plugins = plugins
        self.directory = directory
        self.journal = journal
        previous = directory.read_record() if resume else {}
        self.resume = resume
        self.foresees = foresee
        self.earlier_seconds = float(previous.get("wall_seconds", 0.0))
        self.started = time.time()
        self.peak_memory = 0
        self.record: dict[str, Any] = {
            "status": "running",
            "started": previous.get("started", now()),
            "seed": recipe.training.seed,
            "versions": versions(),
            "plugins": dict(plugins.versions()),
            "processes": journal.group.size,
            "error": None,
        }

    def carry_out(self) -> RunResult:
        """Work, and record how it ended."""
        self.directory.write_recipe(dump(self.recipe))
        self.write_record()
        self.journal.tell("lmflow_run_started", recipe=self.recipe, directory=self.directory.path)
        try:
            self.work()
        except Interrupted as error:
            self.finish("interrupted", None)
            self.wait_for_others()
            raise Interrupted(error.signal_number, self.how_to_resume()) from error
        except KeyboardInterrupt as error:  # the second Ctrl-C
            self.finish("interrupted", None)
            raise Interrupted(2, self.how_to_resume()) from error
        except BaseException as error:
            self.finish("failed", f"{type(error).__name__}: {error}")
            if is_disk_full(error):
                place = getattr(error, "filename", None) or self.directory.path
                raise LmflowError(
                    f"The disk is full: {place} could not be written. What was finished before is kept; "
                    f"free some space and continue with {self.resume_command()}"
                ) from error
            if is_lost_contact(error):
                raise LostContact(
                    f"another process of the run has ended, or does not answer ({str(error).splitlines()[0]}). Once "
                    f"that is mended, continue with {self.resume_command()}"
                ) from error
            raise
        self.finish("completed", None)
        self.wait_for_others()
        return RunResult(self.directory.path, self.record)

    def work(self) -> None:
        """The run itself: load, read, prepare, align, save, and measure before and after."""
        recipe, journal = self.recipe, self.journal
        outline = self.outline()
        data = self.read_data()
        self.foresee(outline, data)
        journal.agree_or_stop()
        model, precision = self.load_model()
        journal.agree_or_stop()
        self.compare_context(model, data)
        model = self.prepare(model)
        trainer = self.make_trainer(model, data, precision)
        self.self_test(trainer, model, data)
        before = self.measure("before", trainer, model, data)
        if self.resume:
            trainer.restore()
        recipe.aligner.align(model, data, trainer, recipe.inferencer, recipe.reward, journal)
        journal.group.barrier()  # what the main process wrote last can be read by all
        trainer.choose_result()
        result = self.save(trainer)
        after = self.measure("after", trainer, model, data)
        self.compare(before, after)
        self.record["result"] = result.name
        journal.metrics |= recipe.inferencer.figures()
        journal.metrics["tokens"] = trainer.tokens
        training_seconds = journal.seconds["training"]
        journal.metrics["tokens_per_second"] = trainer.tokens / training_seconds if training_seconds else None
        journal.metrics["steps"] = trainer.step
        self.peak_memory = int(journal.group.max(peak_memory()))

    def outline(self) -> LanguageModel | None:
        """The model without its weights, for the process that says what the run will take; None where none does."""
        from lmflow.components import Model
        from lmflow.planning import outline

        whole = type(self.recipe.model).outline is Model.outline
        return outline(self.recipe) if self.foresees and self.journal.group.is_main and not whole else None

    def foresee(self, outline: LanguageModel | None, data: Dataset) -> None:
        """Say so before anything is loaded where the run will not fit into memory."""
        from lmflow.planning import make_plan

        if outline is None:
            return
        try:
            with self.journal.phase("tokenising and planning"):
                plan = make_plan(self.recipe, outline, data, self.plugins)
        except UnforeseeableError as error:
            self.journal.note(str(error))
            return
        self.record["plan"] = plan.as_dict()
        if not plan.fits:
            self.journal.note(plan.warning())
        if plan.tight and give_back_freed_memory():
            self.journal.note("memory is tight: what is freed goes back to the system at once, which takes time")

    def load_model(self) -> tuple[LanguageModel, str]:
        """The model on its device, and the precision the run computes in."""
        from lmflow.data.chat_templates import use_template
        from lmflow.training.precision import DTYPES, choose_device, choose_precision

        device = choose_device(self.recipe.training.device)
        precision = choose_precision(self.recipe.training.precision, device)
        with self.journal.phase(f"loading model {self.recipe.model.name}"):
            model = self.recipe.model.load(DTYPES[precision], device, self.recipe.context)
        use_template(model.tokenizer, self.recipe.data.template)
        self.record |= {"device": device, "precision": precision}
        return model, precision

    def read_data(self) -> Dataset:
        """The samples, as the recipe's format reads them."""
        from lmflow.data.reading import load_dataset

        with self.journal.phase("reading data"):
            formats = self.plugins.classes("data")
            data, summary = self.journal.group.once_per_machine(
                lambda: load_dataset(self.recipe.data, formats, self.recipe.training.seed)
            )
        self.record["data"] = asdict(summary)
        if summary.recognised or summary.skipped or summary.unread:
            self.journal.note(summary.describe())
        return data

    def compare_context(self, model: LanguageModel, data: Dataset) -> None:
        """Say so where longer samples are let in than the model reads, or a longer context than any sample needs."""
        from lmflow.data.encoding import length_limit, longest_sequence

        reach = model.context_length
        if reach is None:
            return
        asked = data.options.max_length
        if asked is not None and asked > reach:
            self.journal.note(
                f"data.max_length {asked:,} is more than the model's context, which is the limit: {reach:,}"
            )
        if self.recipe.context is None:
            return
        longest = min(longest_sequence(model, data.train), length_limit(model, data.options) or reach)
        if longest < reach:
            self.journal.note(
                f"the context {self.recipe.context.name} reaches {reach:,} tokens, but what is trained on has at most "
                f"{longest:,}: positions beyond are not trained"
            )

    def prepare(self, model: LanguageModel) -> LanguageModel:
        """The model as the tuner made it trainable."""
        import torch

        torch.manual_seed(self.recipe.training.seed)  # adapters start from random numbers
        before = parameter_names(model)
        prepared = model.prepare(self.recipe.tuner)
        check_savable(self.recipe.tuner, before, parameter_names(prepared))
        parameters = list(prepared.module.parameters())
        self.journal.metrics["parameters"] = sum(p.numel() for p in parameters)
        self.journal.metrics["trainable_parameters"] = sum(p.numel() for p in parameters if p.requires_grad)
        return prepared

    def make_trainer(self, model: LanguageModel, data: Dataset, precision: str) -> Trainer:
        """The trainer the aligner will use, with the held-out samples that have answers."""
        from lmflow.data.encoding import encode_answered, length_limit
        from lmflow.training.trainer import Trainer

        return Trainer(
            model,
            self.recipe.training,
            self.journal,
            self.directory.checkpoints,
            precision=precision,
            packing=data.options.packing,
            max_length=length_limit(model, data.options),
            heldout=encode_answered(model, data.heldout, data.options),
            keep_start_weights=self.recipe.aligner.compares_with_start,
            strategy=self.recipe.launch.strategy,
        )

    def self_test(self, trainer: Trainer, model: LanguageModel, data: Dataset) -> None:
        """Prove on this model and data that training can work; raises TrainingError."""
        from lmflow.data.encoding import probe_sequences
        from lmflow.training.selftest import check_model

        with self.journal.phase("self-test"):
            check_model(trainer, probe_sequences(model, data), packing=data.options.packing)

    def measure(self, when: str, trainer: Trainer, model: LanguageModel, data: Dataset) -> Answers | None:
        """Held-out loss, loss on generic text, and greedy answers to held-out prompts."""
        from lmflow.evaluation import answer, generic_sequences
        from lmflow.inference.completion import Sampling

        recipe, metrics = self.recipe, self.journal.metrics
        if trainer.heldout:
            metrics[f"eval_loss_{when}"] = trainer.evaluate(trainer.heldout)
        metrics[f"generic_loss_{when}"] = trainer.evaluate(generic_sequences(model))
        aligner = recipe.aligner
        count = aligner.heldout_prompts if recipe.reward else min(aligner.heldout_prompts, SHOWN_ANSWERS)
        text = recipe.reward is not None
        samples = answerable(model, data.heldout, aligner.max_new_tokens, text=text)[:count]
        if not samples:
            return None
        greedy = Sampling(temperature=0.0, max_new_tokens=aligner.max_new_tokens)
        answers = answer(model, samples, trainer, recipe.inferencer, recipe.reward, greedy, self.journal)
        if answers.rewards is not None:
            metrics[f"heldout_greedy_reward_{when}"] = answers.mean_reward
            if recipe.reward is not None and recipe.reward.verifiable:
                metrics[f"heldout_accuracy_{when}"] = answers.accuracy
        return answers

    def save(self, trainer: Trainer) -> Path:
        """Write the result, by one process for all; where it lies."""
        whole = trainer.whole_model()  # of weights that are split, every process gives its part
        return self.journal.group.on_main(lambda: whole.save_tuned(self.recipe.tuner, self.directory.path))

    def compare(self, before: Answers | None, after: Answers | None) -> None:
        """Keep the answers from before and after side by side."""
        from lmflow.evaluation import compare

        if before is not None and after is not None:
            self.directory.write_comparison(compare(before, after))

    def finish(self, status: str, error: str | None) -> None:
        """Write run.json and the report; a failure to do so never hides why the run ended."""
        from lmflow.report import write_report

        self.record |= {"status": status, "error": error, "finished": now()}
        try:
            self.write_record()
            if self.journal.group.is_main:
                write_report(self.directory.path)
        except OSError:
            if status == "completed":
                raise
        self.journal.tell(
            "lmflow_run_finished", directory=self.directory.path, status=status, metrics=self.journal.metrics
        )

    def wait_for_others(self) -> None:
        """Leave together: no process ends while the main one writes, which a launcher might take for a fault."""
        with suppress(RuntimeError):  # another is gone already
            self.journal.group.barrier()

    def write_record(self) -> None:
        """run.json as things stand."""
        self.record["wall_seconds"] = round(self.earlier_seconds + time.time() - self.started, 2)
        self.record["peak_memory_bytes"] = max(self.peak_memory, peak_memory())  # of the process that took most
        self.record["seconds"] = {name: round(value, 3) for name, value in self.journal.seconds.items()}
        self.record["metrics"] = dict(self.journal.metrics)
        self.record["tables"] = dict(self.journal.tables)
        self.record["notes"] = list(self.journal.notes)
        self.directory.write_record(self.record)

    def resume_command(self) -> str:
        """What to type to continue."""
        return f"lmflow run --resume --output {self.directory.path}"

    def how_to_resume(self) -> str:
        """What an interrupted user is told."""
        return f"Stopped; what was finished is in {self.directory.path}. Continue with: {self.resume_command()}"


def answerable(model: LanguageModel, samples: Sequence[Sample], max_new_tokens: int, *, text: bool) -> list[Sample]:
    """Samples whose prompt leaves room for an answer; plain text counts as a prompt only with `text`."""
    asked = [s for s in samples if text or s.templated or len(s.messages) > 1]
    limit = model.context_length
    return [s for s in asked if limit is None or len(model.encode_prompt(s).ids) + max_new_tokens <= limit]


def parameter_names(model: LanguageModel) -> set[str]:
    """Names of all parameters."""
    return {name for name, _ in model.module.named_parameters()}


def check_savable(tuner: Tuner, before: set[str], after: set[str]) -> None:
    """Raise TrainingError where the tuner renames parameters and leaves saving to the default.

    That writes a model by Transformers' rules, which would find other names than it knows, and draw weights instead.
    """
    from lmflow.components import Tuner as Base

    other = sorted(before ^ after)
    if other and type(tuner).save is Base.save:
        raise TrainingError(
            f"tuner {tuner.name}: prepare() adds or renames {len(other)} parameters, such as {other[0]}, which the "
            "default save() cannot write so that they are loaded again. Override save(): bring them into a copy of the "
            "model as it was, and call super().save(model.with_module(copy), directory)."
        )


def default_output(recipe: Recipe) -> Path:
    """`runs/<time>-<tuner>-<aligner>`, with a number appended if that exists."""
    base = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{recipe.tuner.name}-{recipe.aligner.name}"
    candidate, number = base, 2
    while candidate.exists():
        candidate, number = base.with_name(f"{base.name}-{number}"), number + 1
    return candidate


def check_same_recipe(directory: RunDirectory, recipe: Recipe, resume: bool) -> None:
    """A resumed run continues the recipe it began with; raises RunDirectoryError showing the first difference."""
    if not (resume and directory.recipe.exists()):
        return
    old, new = without_launch(directory.recipe.read_text(encoding="utf-8")), without_launch(dump(recipe))
    differences = [f"  {a.strip()!r} in the run, {b.strip()!r} now" for a, b in zip(old, new) if a != b]
    if old != new:
        shown = "\n".join(differences[:5]) or "  (sections differ)"
        raise RunDirectoryError(
            f"{directory.path} was started with another recipe:\n{shown}\n"
            "Resume with --resume --output alone, or start a new run from its result with --model."
        )


def without_launch(recipe: str) -> list[str]:
    """The lines of a recipe but for what may change: in how many processes it is carried out, versions of plugins."""
    import yaml

    sections: dict[str, Any] = yaml.safe_load(recipe) or {}
    sections.pop(LAUNCH, None)
    sections[SOURCES] = {key: str(source).partition(" ")[0] for key, source in (sections.get(SOURCES) or {}).items()}
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True).splitlines()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages results depend on."""
    found = {"python": platform.python_version(), "lmflow": __version__}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_memory() -> int:
    """Highest memory use of this process so far in bytes: the GPU's where one is used, else resident memory."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if platform.system() == "Darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
