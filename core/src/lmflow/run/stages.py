"""The stages of a run, each from what the one before it gave: load, read, prepare, test, save."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmflow.atomic import move_into_place, scratch_directory
from lmflow.components import AlignContext, Aligner, LoadRequest, Model, RunContext, Tuner
from lmflow.errors import EstimateError, TrainingError
from lmflow.planning.machine_memory import give_back_freed_memory
from lmflow.plugins import Plugins
from lmflow.recipe.other_models import other_models
from lmflow.recipe.recipe import Recipe
from lmflow.run.directory import RunDirectory
from lmflow.run.log import RunLog
from lmflow.run.record import RunRecord
from lmflow.run.resume import check_same_data, check_same_weights

if TYPE_CHECKING:
    from lmflow.data.sample import Dataset
    from lmflow.models.language_model import LanguageModel
    from lmflow.planning.plan import Plan
    from lmflow.training.packing import Packing
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


def check_reward(work: Work) -> None:
    """Import the reward, and let it say what is wrong with it, before anything slow; by rank 0, which alone scores."""
    reward = work.recipe.reward
    if reward is not None:
        with work.log.phase(f"checking the reward {reward.name}"):
            work.log.processes.on_rank0(reward.check)


def read_data(work: Work) -> Dataset:
    """The samples, as the recipe's format reads them."""
    from lmflow.data.dataset import load_dataset
    from lmflow.data.formats import formats_of

    recipe, log = work.recipe, work.log
    with log.phase("reading data"):
        formats = formats_of(recipe, work.plugins)
        data, summary = log.processes.once_per_node(lambda: load_dataset(recipe.data, formats, recipe.training.seed))
    check_same_data(work.directory.path, work.record.values["data"], asdict(summary))
    work.record.values["data"] = asdict(summary)
    if summary.recognised or summary.skipped or summary.unread or summary.unread_fields or summary.unread_files:
        log.note(summary.describe())
    if log.processes.is_rank0:
        check_samples(work, data)
    return data


def check_samples(work: Work, data: Dataset) -> None:
    """Say what is odd about the samples, before they are tokens; what would spoil the run is found when they are."""
    from lmflow.data.findings import Findings
    from lmflow.data.sample_findings import find_in_samples

    findings = Findings()
    with work.log.phase("checking the samples"):
        find_in_samples(data.train, data.heldout, findings)
    work.log.tables["findings"] = findings.as_dict()
    for line in findings.lines("warning"):
        work.log.note(line)


def estimate(work: Work, data: Dataset) -> Plan | None:
    """Say so before anything is loaded where the run will not fit into memory; the plan, where there is one."""
    from lmflow.planning.plan import load_skeleton, make_plan

    recipe, log = work.recipe, work.log
    models = [recipe.model, *other_models(recipe.aligner, work.plugins).values()]
    loads_all = any(type(each).skeleton is Model.skeleton for each in models)
    if loads_all or not log.processes.is_rank0:
        return None
    try:
        with log.phase("tokenising and planning"):
            plan = make_plan(recipe, load_skeleton(recipe, work.plugins), data, work.plugins, packing_before(work))
    except EstimateError as error:
        log.note(str(error))
        return None
    work.record.values["plan"] = plan.as_dict()
    if not plan.fits:
        log.note(plan.warning())
    if plan.tight and give_back_freed_memory():
        log.note("memory is tight: what is freed goes back to the system at once, which takes time")
    return plan


def packing_before(work: Work) -> Packing | None:
    """How a run that is resumed packed rows before; None where it had not come so far."""
    from lmflow.training.packing import Packing

    chosen = work.record.values["packing"]
    try:
        return Packing(**chosen) if chosen else None
    except TypeError:  # run.json was damaged
        return None


def choose_packing(work: Work, model: LanguageModel, data: Dataset, plan: Plan | None) -> Packing:
    """Whether rows are packed: as before a resume, else as planned and proven on the model; it is said and recorded.

    `model` is not yet tuned, and `plan` None where there is none.
    """
    from lmflow.components.aligner import Workload
    from lmflow.planning.plan import packing_of, workload_of
    from lmflow.training.packing import proven

    recipe, log = work.recipe, work.log

    def choose() -> Packing:
        if (before := packing_before(work)) is not None:
            return before
        if plan is not None:
            return proven(plan.packing, model)
        is_open = recipe.data.packing == "auto" and recipe.aligner.packs
        workload = workload_of(recipe, model, data) if is_open else Workload((), None)
        return proven(packing_of(recipe, model, workload), model)

    chosen = log.processes.on_rank0(choose)
    work.record.values["packing"] = asdict(chosen)
    work.record.write()  # it must not be chosen anew after a resume
    if chosen.why:
        log.note(chosen.describe())
    return chosen


def load_model(work: Work) -> LanguageModel:
    """The model on its device, in the dtype of the run's precision, with the recipe's chat template."""
    from lmflow.data.tokenize import prepare_tokenizer
    from lmflow.models.device import choose_device, choose_precision

    recipe = work.recipe
    device = choose_device(recipe.training.device)
    work.record.values |= {"device": device, "precision": choose_precision(recipe.training.precision, device)}
    request = replace(load_request(work), context=recipe.context, attention=recipe.attention)
    with work.log.phase(f"loading model {recipe.model.name}"):
        model = recipe.model.load(request)
    keep_weights(work, "model", model)
    prepare_tokenizer(model.tokenizer, recipe.data)
    return model


def keep_weights(work: Work, name: str, model: LanguageModel) -> None:
    """Let run.json say which weights were loaded; a resumed run goes on with the same, or raises RunDirectoryError."""
    known, found = work.record.values["weights"], {"path": model.source, "fingerprint": model.fingerprint}
    check_same_weights(work.directory.path, name, known.get(name), found)
    known[name] = found


def load_request(work: Work) -> LoadRequest:
    """On the run's device, in the dtype of its precision."""
    from lmflow.models.device import DTYPES

    chosen = work.record.values
    return LoadRequest(dtype=DTYPES[chosen["precision"]], device=chosen["device"], plugins=work.plugins)


def open_models(work: Work) -> dict[str, LanguageModel]:
    """The models that the aligner names beside the one it trains, frozen and in eval mode; equal ones once."""
    opened: list[tuple[Model, LanguageModel]] = []
    found: dict[str, LanguageModel] = {}
    for name, component in other_models(work.recipe.aligner, work.plugins).items():
        known = next((model for each, model in opened if each == component), None)
        if known is None:
            with work.log.phase(f"loading the {name} model {component.name}"):
                known = component.load(load_request(work))
            keep_weights(work, name, known)
            known.module.requires_grad_(False).eval()
            opened.append((component, known))
        found[name] = known
    return found


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

    from lmflow.models.quantization import count_parameters, is_quantized

    recipe, metrics = work.recipe, work.log.metrics
    if is_quantized(model.module) and not recipe.tuner.supports_quantization:
        raise TrainingError(
            f"{model.source} is stored quantised, and tuner {recipe.tuner.name} changes the weights of linear layers, "
            "which cannot move so. Choose a tuner that adds weights to them, or the model they were made from."
        )
    torch.manual_seed(recipe.training.seed)  # adapters start from random numbers
    before = parameter_names(model)
    prepared = model.prepare(recipe.tuner)
    check_savable(recipe.tuner, before, parameter_names(prepared))
    for each in prepared.tuner_notes(recipe.tuner):
        work.log.note(each)
    prepared = with_heads(work, prepared)
    metrics["parameters"] = count_parameters(prepared.module)
    metrics["trainable_parameters"] = count_parameters(prepared.module, trainable_only=True)
    return prepared


def with_heads(work: Work, model: LanguageModel) -> LanguageModel:
    """The model with the heads that the aligner trains; it is said which of them go on, and which are left out."""
    from lmflow.models.heads import listed

    aligner, log = work.recipe.aligner, work.log
    wanted = aligner.heads(model)
    if kept := sorted(model.heads.keys() & wanted.keys()):
        log.note(f"{listed(kept)} of {model.source} {'are' if len(kept) > 1 else 'is'} trained further")
    if left := sorted(model.heads.keys() - wanted.keys()):
        log.note(f"aligner {aligner.name} does not train {listed(left)} of {model.source}: left out of the result")
    return model.with_heads(wanted, work.recipe.training.seed)


def make_context(
    work: Work, model: LanguageModel, data: Dataset, models: Mapping[str, LanguageModel], packing: Packing
) -> AlignContext:
    """What the aligner works with, its trainer with the held-out items that its objective judges."""
    from lmflow.models.encoding import heldout_items
    from lmflow.training.objective import NextToken
    from lmflow.training.setup import Setup
    from lmflow.training.trainer import Trainer

    recipe, log = work.recipe, work.log
    aligner = recipe.aligner
    begun = RunContext(plugins=work.plugins, log=log, model=model, models=models)
    setup = Setup(
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        tuner=recipe.tuner,
        objective=aligner.objective(begun) or NextToken(),
        precision=work.record.values["precision"],
        packing=packing.is_used,
        max_length=packing.row_length,
        padding=packing.padding,
        heldout=heldout_items(aligner, model, data, log),
        keep_start_weights=aligner.compares_with_start,
        strategy=recipe.launch.strategy,
    )
    context = AlignContext(
        plugins=work.plugins,
        log=log,
        model=model,
        models=models,
        data=data,
        trainer=Trainer(model, recipe.training, log, work.directory.checkpoints, setup),
        inferencer=recipe.inferencer,
        reward=recipe.reward,
    )
    context.trainer.hold_out(aligner.annotate(context, setup.heldout))
    return context


def self_test(context: AlignContext, aligner: Aligner) -> None:
    """Prove on this model, data and objective that training can work; raises TrainingError."""
    from lmflow.models.encoding import items_of, probe_samples
    from lmflow.training.selftest import check_model

    with context.log.phase("self-test"):
        items = items_of(aligner, context.model, probe_samples(context.data), context.data)
        check_model(context.trainer, aligner.annotate(context, items))


def open_inferencer(work: Work, context: AlignContext) -> None:
    """Let the inferencer get ready; it is closed with the run."""
    work.closing.enter_context(context.inferencer.opened(context))


def save(work: Work, trainer: Trainer) -> Path:
    """Write the result, whole or not at all, by one process for all; where it lies."""
    from lmflow.models.heads import heads_apart, write_heads

    full = trainer.full_model()  # of weights that are split, every process gives its part

    def write() -> Path:
        with scratch_directory(work.directory.path / "result") as scratch:
            with heads_apart(full.module):  # a tuner writes what it knows
                place = full.save_tuned(work.recipe.tuner, scratch)
            write_heads(full.heads, place)
            target = work.directory.path / place.relative_to(scratch)
            move_into_place(place, target, replace=True)
        return target

    return work.log.processes.on_rank0(write)


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
