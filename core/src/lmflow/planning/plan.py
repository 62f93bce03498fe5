"""What a run will take, before it takes it: steps, tokens, memory by part; and what to change if that is too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from lmflow.components import Aligner, LoadRequest, PlanContext, Tuner, Workload
from lmflow.errors import EstimateError, LmflowError
from lmflow.formatting import size
from lmflow.planning.machine_memory import machine_memory, resident_memory
from lmflow.planning.passes import (
    asks_in_steps,
    computing,
    largest_scoring,
    largest_validation,
    other_skeletons,
    weight_bytes,
    weight_of,
)
from lmflow.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from lmflow.data.collate import Batch
    from lmflow.data.lengths import LengthReport
    from lmflow.data.sample import Dataset
    from lmflow.models.language_model import LanguageModel
    from lmflow.planning.footprint import Footprint, StepSettings
    from lmflow.plugins import Plugins
    from lmflow.training.packing import Packing

STEPS_LOOKED_AT = 1000
"""Steps from the first on among whose micro-batches the largest is sought."""
NOTABLE = 0.97
"""Share of the memory, without libraries, to which a change has to lower it to be worth naming."""


@dataclass(frozen=True)
class Remedy:
    """Options with which a run takes less memory, and how much it then takes."""

    options: str
    memory_total: int


@dataclass(frozen=True)
class Steps:
    """How the samples are gone through, in one process of those that share them."""

    count: int | None
    """Optimizer steps; None where the aligner does not say."""
    samples: int
    """Samples of an epoch (of an iteration, where they are made by the model)."""
    tokens: float
    """Tokens of a step in all processes, on average."""
    num_targets: float
    """Those of them that are targets."""
    passes: int
    """Forward passes of the step that has most."""
    rows: int
    """Rows of the largest forward pass."""
    length: int
    """Tokens of each of its rows, padding included."""
    real: float
    """Share of all rows' positions that are tokens, not padding."""


@dataclass(frozen=True)
class Plan:
    """What a run will take. Memory is in bytes, that of one process."""

    model: str
    device: str
    precision: str
    processes: int
    parameters: int
    trainable_parameters: int
    active_parameters: int
    """Those of them that move at one step, at most: fewer where the tuner names some (`Tuner.active`)."""
    packing: Packing
    """Whether rows are packed, and why."""
    steps: Steps
    memory: Footprint | None
    """None where it cannot be estimated, as for a model whose forward pass depends on values."""
    not_estimated: str
    """Why not, in one line."""
    available: int | None
    """What there is for each process; None where that is not known."""
    lengths: LengthReport | None = None
    """What is trained on, as the run will say it; None where the aligner makes it while it trains."""
    remedies: Sequence[Remedy] = ()

    @property
    def fits(self) -> bool:
        """Whether nothing is known that speaks against the run."""
        return self.memory is None or self.available is None or self.memory.total <= self.available

    @property
    def tight(self) -> bool:
        """Whether the run fits only if what it frees goes back to the system at once.

        The heap of the C library keeps freed memory, and was seen to grow to 2.4 times what was in use.
        """
        if self.memory is None or self.available is None or self.device != "cpu":
            return False
        return self.memory.total + 1.5 * (self.memory.activations + self.memory.logits) > self.available

    def warning(self) -> str:
        """What a run that does not fit says before it begins."""
        assert self.memory is not None
        assert self.available is not None
        needed, there = size(self.memory.total), size(self.available)
        text = f"this run is estimated to take {needed} of memory, and {there} are available"
        best = self.remedies[-1] if self.remedies else None
        if best is None:
            return f"{text}; lmflow plan says for what"
        return f"{text}; with {best.options} it takes {size(best.memory_total)} (lmflow plan says for what)"

    def as_dict(self) -> dict[str, Any]:
        """Everything, in plain values."""
        total = None if self.memory is None else self.memory.total
        lengths = self.lengths and self.lengths.as_dict()
        plain = asdict(replace(self, lengths=None))
        return {**plain, "lengths": lengths, "memory_total": total, "fits": self.fits}


def make_plan(
    recipe: Recipe, model: LanguageModel, data: Dataset, plugins: Plugins, packing: Packing | None = None
) -> Plan:
    """The plan of a recipe whose data is read; `model` is its skeleton, which the tuner changes.

    `packing` is what a run that is resumed has chosen before. Raises EstimateError where the tuner cannot do with a
    skeleton.
    """
    from lmflow.models.encoding import items_of
    from lmflow.models.quantization import count_parameters

    device, precision = computing(recipe)
    workload = workload_of(recipe, model, data)
    chooser = partial(packing_of, model=model, workload=workload, earlier=packing)
    packing = chooser(recipe)
    others = other_skeletons(recipe, plugins)
    model = prepared(model, recipe)
    workload = replace(workload, heldout=items_of(recipe.aligner, model, data.heldout, data))
    active = most_active(recipe, model)
    steps, memory, not_estimated = estimate(recipe, model, workload, packing, others, active)
    # Looked at only now, because going through a step has loaded what a run loads.
    libraries = resident_memory() if device == "cpu" else 0
    plan = Plan(
        model=type(model.module).__name__,
        device=device,
        precision=precision,
        processes=recipe.launch.total,
        parameters=count_parameters(model.module),
        trainable_parameters=count_parameters(model.module, trainable_only=True),
        active_parameters=count_active(model, active),
        packing=packing,
        steps=steps,
        memory=memory and replace(memory, libraries=libraries, models=sum(map(weight_bytes, others))),
        not_estimated=not_estimated,
        available=available_memory(device, recipe.launch.processes),
        lengths=workload.lengths,
    )
    if plan.fits:
        return plan
    return replace(plan, remedies=list(remedies(plan, recipe, model, workload, chooser, others, plugins)))


def load_skeleton(recipe: Recipe, plugins: Plugins) -> LanguageModel:
    """The recipe's model before it is tuned, with weights that may have no values."""
    import torch

    from lmflow.data.tokenize import prepare_tokenizer
    from lmflow.models.device import DTYPES

    request = LoadRequest(context=recipe.context, attention=recipe.attention, plugins=plugins)
    model = recipe.model.skeleton(request)
    prepare_tokenizer(model.tokenizer, recipe.data)
    model.module.to(getattr(torch, DTYPES[computing(recipe)[1]]))
    return model


def prepared(model: LanguageModel, recipe: Recipe) -> LanguageModel:
    """The skeleton as the tuner makes it trainable, with the aligner's heads.

    Raises EstimateError where that takes weights with values.
    """
    tuner = recipe.tuner
    try:
        model = model.prepare(tuner)
        return model.with_heads(recipe.aligner.heads(model), recipe.training.seed)
    except LmflowError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise EstimateError(
            f"tuner {tuner.name} prepares no model whose weights have no values ({why}), so what a run with it takes "
            "cannot be estimated"
        ) from error


def workload_of(recipe: Recipe, model: LanguageModel, data: Dataset) -> Workload:
    """What the aligner says that it will train on, else all samples."""
    told = recipe.aligner.workload(PlanContext(model=model, data=data, options=recipe.training))
    return told or workload_of_items(recipe.aligner, model, data)


def packing_of(recipe: Recipe, model: LanguageModel, workload: Workload, earlier: Packing | None = None) -> Packing:
    """Whether the recipe's rows are packed: as `earlier`, where that is given.

    Of `model` class and configuration are looked at, so that it may be tuned already.
    """
    if earlier is not None:
        return earlier
    from lmflow.models.encoding import length_limit
    from lmflow.training.packing import choose_packing

    limit = length_limit(model, recipe.data)
    asked, aligner, processes = recipe.data.packing, recipe.aligner, recipe.launch.total
    return choose_packing(asked, aligner, model, workload.items, recipe.training, limit, processes)


def workload_of_items(aligner: Aligner, model: LanguageModel, data: Dataset) -> Workload:
    """What is trained on where the aligner does not say: all samples, for a number of steps that is not known."""
    from lmflow.models.encoding import items_of

    return Workload(items_of(aligner, model, data.train, data), None)


def estimate(
    recipe: Recipe,
    model: LanguageModel,
    workload: Workload,
    packing: Packing,
    others: Sequence[nn.Module],
    active: frozenset[str] | None,
) -> tuple[Steps, Footprint | None, str]:
    """The steps of a prepared model, the memory they take, or else why that cannot be said.

    `active` is what `most_active` gives.
    """
    from lmflow.planning.footprint import StepSettings

    steps, batch = lay_out_steps(recipe, model, workload, packing)
    device, precision = computing(recipe)
    setting = StepSettings(
        passes=steps.passes,
        precision=precision,
        gradient_checkpointing=recipe.training.gradient_checkpointing,
        keeps_start=recipe.aligner.compares_with_start,
        strategy=recipe.launch.strategy,
        processes=recipe.launch.total,
        device=device,
        optimizer_bytes=recipe.optimizer.bytes_per_parameter(),
        active=active,
    )
    try:
        peaks = peaks_of(recipe, model, workload, others, batch, setting)
        return steps, max(peaks, key=lambda footprint: footprint.total), ""
    except Exception as error:  # of whatever kind: it is the model's own code, on tensors that it was not written for
        return steps, None, f"{type(error).__name__}: {error}".partition("\n")[0]


def peaks_of(
    recipe: Recipe,
    model: LanguageModel,
    workload: Workload,
    others: Sequence[nn.Module],
    batch: Batch,
    setting: StepSettings,
) -> Iterator[Footprint]:
    """What a run takes where it may take most: in a step, and in the passes without gradients around it."""
    from lmflow.planning.footprint import predict_footprint, predict_other, predict_validation

    yield predict_footprint(model.module, batch, setting, others if asks_in_steps(recipe.aligner) else ())
    if workload.heldout:
        yield predict_validation(model.module, largest_validation(recipe, model, workload.heldout), setting)
    if not (others or recipe.aligner.compares_with_start):
        return
    scored = largest_scoring(model, workload.items)
    if recipe.aligner.compares_with_start:
        yield predict_validation(model.module, scored, setting)
    for other in others:
        for each in (batch, scored):
            yield predict_other(model.module, other, each, setting)


def most_active(recipe: Recipe, model: LanguageModel) -> frozenset[str] | None:
    """Names of what moves at the step that moves most, of those looked at; None where all that trains always does.

    Raises TrainingError where the tuner names what cannot move.
    """
    from lmflow.distributed.strategies.base import trainable_parameters
    from lmflow.training.rotation import active_parameters, rotates

    if not rotates(recipe.tuner):
        return None
    trainable, seed = trainable_parameters(model.module), recipe.training.seed
    steps = range(min(STEPS_LOOKED_AT, recipe.training.max_steps or STEPS_LOOKED_AT))
    found = {active_parameters(recipe.tuner, list(trainable), step, seed) for step in steps}
    return max(found, key=lambda names: sum(trainable[name].numel() for name in names))


def count_active(model: LanguageModel, names: frozenset[str] | None) -> int:
    """Parameters that move at that step."""
    from lmflow.models.quantization import count_parameters

    if names is None:
        return count_parameters(model.module, trainable_only=True)
    return sum(each.numel() for name, each in model.module.named_parameters() if name in names)


def lay_out_steps(recipe: Recipe, model: LanguageModel, workload: Workload, packing: Packing) -> tuple[Steps, Batch]:
    """The steps of a workload, and the largest of the batches that rank 0 goes through."""
    from lmflow.data.packing import plan_epoch
    from lmflow.training.batches import micro_batches, sequences_of

    options, items = recipe.training, workload.items
    seen, tokens, trained, passes, largest = 0, 0, 0, 0, None
    real, positions = 0, 0
    looked_at = min(STEPS_LOOKED_AT, workload.steps or STEPS_LOOKED_AT)
    for chosen in islice(plan_epoch(len(items), options.batch_size, options.seed, 0), looked_at):
        groups = [sequences_of(items[index]) for index in chosen]
        seen += 1
        tokens += sum(len(sequence) for group in groups for sequence in group)
        trained += sum(sequence.num_targets for group in groups for sequence in group)
        share = groups[:: recipe.launch.total]
        batches = micro_batches(share, options, packing.is_used, packing.row_length, model.pad_id, packing.padding)
        passes = max(passes, len(batches))
        for batch in batches:
            real += batch.tokens
            positions += batch.input_ids.numel()
            if largest is None or weight_of(batch) > weight_of(largest):
                largest = batch
    assert largest is not None  # there is always a sample: data without any is refused
    rows, length = largest.input_ids.shape
    steps = Steps(workload.steps, len(items), tokens / seen, trained / seen, passes, rows, length, real / positions)
    return steps, largest


# What there is, and what to do where it is too little


def available_memory(device: str, processes: int) -> int | None:
    """Bytes each of several processes on this machine may take; None where that is not known."""
    if device == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info()
        return int(free) // -(-processes // torch.cuda.device_count())
    memory = machine_memory()
    return None if memory is None else memory.available // processes


def remedies(
    plan: Plan,
    recipe: Recipe,
    model: LanguageModel,
    workload: Workload,
    choose: Callable[[Recipe], Packing],
    others: Sequence[nn.Module],
    plugins: Plugins,
) -> Iterator[Remedy]:
    """Options that lower the peak, each together with those before it, up to the first that is enough."""
    assert plan.memory is not None
    constant = plan.memory.libraries + plan.memory.models
    least, options = plan.memory.total - constant, ""
    for option, change in changes(plan, plugins):
        changed = change(recipe)
        if changed == recipe:
            continue
        if changed.tuner != recipe.tuner:
            model = prepared(load_skeleton(changed, plugins), changed)
        _, memory, _ = estimate(changed, model, workload, choose(changed), others, most_active(changed, model))
        if memory is None or memory.total > NOTABLE * least:
            continue
        recipe, least, options = changed, memory.total, f"{options} {option}".strip()
        yield Remedy(options, least + constant)
        if plan.available is not None and least + constant <= plan.available:
            return


def changes(plan: Plan, plugins: Plugins) -> Iterator[tuple[str, Callable[[Recipe], Recipe]]]:
    """What makes a run smaller, those first that leave its result as it is."""
    yield "--training.micro_batch_size 1", partial(with_training, micro_batch_size=1)
    yield "--training.gradient_checkpointing", partial(with_training, gradient_checkpointing=True)
    if plan.processes > 1:
        yield "--launch.strategy fsdp", with_split_weights
    if plan.device == "cuda" and plan.precision == "fp32":
        yield "--training.precision bf16", partial(with_training, precision="bf16")
    if plan.trainable_parameters == plan.parameters:
        for tuner in plugins.classes("tuner"):
            if tuner.trains_few:
                yield f"--tuner {tuner.name}", partial(with_tuner, tuner=tuner)


def with_training(recipe: Recipe, **options: Any) -> Recipe:
    """The recipe with other training options."""
    return replace(recipe, training=recipe.training.model_copy(update=options))


def with_tuner(recipe: Recipe, tuner: type[Tuner]) -> Recipe:
    """The recipe with another tuner, as it is by default."""
    return replace(recipe, tuner=tuner())


def with_split_weights(recipe: Recipe) -> Recipe:
    """The recipe with weights split over its processes."""
    return replace(recipe, launch=recipe.launch.model_copy(update={"strategy": "fsdp"}))
