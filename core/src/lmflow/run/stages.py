"""The stages of a run, each from what the one before it gave: load, read, prepare, test, save."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lmflow.components import LoadRequest, Model, RunContext, Tuner
from lmflow.errors import EstimateError, TrainingError
from lmflow.planning.machine_memory import give_back_freed_memory
from lmflow.plugins import Plugins
from lmflow.recipe.recipe import Recipe
from lmflow.run.directory import RunDirectory
from lmflow.run.log import RunLog
from lmflow.run.record import RunRecord

if TYPE_CHECKING:
    from lmflow.data.sample import Dataset, Item, Sample
    from lmflow.models.language_model import LanguageModel
    from lmflow.training.trainer import Trainer


@dataclass(frozen=True)
class Work:
    """What all stages of one run share."""

    recipe: Recipe
    plugins: Plugins
    directory: RunDirectory
    log: RunLog
    record: RunRecord
    closing: ExitStack = field(default_factory=ExitStack)
    """What has to be closed when the run ends, however it does."""


def read_data(work: Work) -> Dataset:
    """The samples, as the recipe's format reads them."""
    from lmflow.data.dataset import load_dataset

    recipe, log = work.recipe, work.log
    with log.phase("reading data"):
        formats = work.plugins.classes("data")
        data, summary = log.processes.once_per_node(lambda: load_dataset(recipe.data, formats, recipe.training.seed))
    work.record.values["data"] = asdict(summary)
    if summary.recognised or summary.skipped or summary.unread:
        log.note(summary.describe())
    return data


def estimate(work: Work, data: Dataset) -> None:
    """Say so before anything is loaded where the run will not fit into memory."""
    from lmflow.planning.plan import load_skeleton, make_plan

    recipe, log = work.recipe, work.log
    loads_all = type(recipe.model).skeleton is Model.skeleton
    if loads_all or not log.processes.is_rank0:
        return
    try:
        with log.phase("tokenising and planning"):
            plan = make_plan(recipe, load_skeleton(recipe, work.plugins), data, work.plugins)
    except EstimateError as error:
        log.note(str(error))
        return
    work.record.values["plan"] = plan.as_dict()
    if not plan.fits:
        log.note(plan.warning())
    if plan.tight and give_back_freed_memory():
        log.note("memory is tight: what is freed goes back to the system at once, which takes time")


def load_model(work: Work) -> LanguageModel:
    """The model on its device, in the dtype of the run's precision, with the recipe's chat template."""
    from lmflow.data.chat_templates import use_template
    from lmflow.models.device import DTYPES, choose_device, choose_precision

    recipe = work.recipe
    device = choose_device(recipe.training.device)
    precision = choose_precision(recipe.training.precision, device)
    request = LoadRequest(
        dtype=DTYPES[precision],
        device=device,
        context=recipe.context,
        attention=recipe.attention,
        plugins=work.plugins,
    )
    with work.log.phase(f"loading model {recipe.model.name}"):
        model = recipe.model.load(request)
    use_template(model.tokenizer, recipe.data.template)
    work.record.values |= {"device": device, "precision": precision}
    return model


def compare_context(work: Work, model: LanguageModel, data: Dataset) -> None:
    """Say so where longer samples are let in than the model reads, or a longer context than any sample needs."""
    from lmflow.models.encoding import length_limit, longest_sequence

    reach, recipe, log = model.context_length, work.recipe, work.log
    if reach is None:
        return
    asked = data.options.max_length
    if asked is not None and asked > reach:
        log.note(f"data.max_length {asked:,} is more than the model's context, which is the limit: {reach:,}")
    if recipe.context is None:
        return
    longest = min(longest_sequence(model, data.train), length_limit(model, data.options) or reach)
    if longest < reach:
        log.note(
            f"the context {recipe.context.name} reaches {reach:,} tokens, but what is trained on has at most "
            f"{longest:,}: positions beyond are not trained"
        )


def prepare(work: Work, model: LanguageModel) -> LanguageModel:
    """The model as the tuner made it trainable."""
    import torch

    recipe, metrics = work.recipe, work.log.metrics
    torch.manual_seed(recipe.training.seed)  # adapters start from random numbers
    before = parameter_names(model)
    prepared = model.prepare(recipe.tuner)
    check_savable(recipe.tuner, before, parameter_names(prepared))
    parameters = list(prepared.module.parameters())
    metrics["parameters"] = sum(p.numel() for p in parameters)
    metrics["trainable_parameters"] = sum(p.numel() for p in parameters if p.requires_grad)
    return prepared


def make_trainer(work: Work, model: LanguageModel, data: Dataset) -> Trainer:
    """The trainer the aligner will use, with the held-out items its objective judges."""
    from lmflow.models.encoding import length_limit
    from lmflow.training.objective import NextToken
    from lmflow.training.trainer import Setup, Trainer

    recipe = work.recipe
    setup = Setup(
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        tuner=recipe.tuner,
        objective=recipe.aligner.objective() or NextToken(),
        precision=work.record.values["precision"],
        packing=data.options.packing,
        max_length=length_limit(model, data.options),
        heldout=items_of(work, model, data.heldout, data),
        keep_start_weights=recipe.aligner.compares_with_start,
        strategy=recipe.launch.strategy,
    )
    return Trainer(model, recipe.training, work.log, work.directory.checkpoints, setup)


def self_test(work: Work, trainer: Trainer, data: Dataset) -> None:
    """Prove on this model, data and objective that training can work; raises TrainingError."""
    from lmflow.models.encoding import probe_samples
    from lmflow.training.selftest import check_model

    with work.log.phase("self-test"):
        check_model(trainer, items_of(work, trainer.model, probe_samples(data), data))


def items_of(work: Work, model: LanguageModel, samples: Sequence[Sample], data: Dataset) -> Sequence[Item]:
    """Items of samples as the aligner's objective reads them; by default those that end with an answer, tokenised."""
    from lmflow.models.encoding import encode_answered

    found = work.recipe.aligner.items(model, samples, data)
    return encode_answered(model, samples, data.options) if found is None else found


def open_inferencer(work: Work, model: LanguageModel) -> None:
    """Let the inferencer get ready; it is closed with the run."""
    context = RunContext(plugins=work.plugins, log=work.log, model=model)
    work.closing.enter_context(work.recipe.inferencer.opened(context))


def save(work: Work, trainer: Trainer) -> Path:
    """Write the result, by one process for all; where it lies."""
    full = trainer.full_model()  # of weights that are split, every process gives its part
    return work.log.processes.on_rank0(lambda: full.save_tuned(work.recipe.tuner, work.directory.path))


def parameter_names(model: LanguageModel) -> set[str]:
    """Names of all parameters."""
    return {name for name, _ in model.module.named_parameters()}


def check_savable(tuner: Tuner, before: set[str], after: set[str]) -> None:
    """Raise TrainingError where the tuner renames parameters and leaves saving to the default.

    That writes a model by Transformers' rules, which would find other names than it knows, and draw weights instead.
    """
    other = sorted(before ^ after)
    if other and type(tuner).save is Tuner.save:
        raise TrainingError(
            f"tuner {tuner.name}: prepare() adds or renames {len(other)} parameters, such as {other[0]}, which the "
            "default save() cannot write so that they are loaded again. Override save(): bring them into a copy of the "
            "model as it was, and call super().save(model.with_module(copy), directory)."
        )
