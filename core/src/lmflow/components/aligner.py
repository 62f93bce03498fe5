"""Slot `aligner`: the objective, and the loop around the trainer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from lmflow.components.base import Component

if TYPE_CHECKING:
    from lmflow.components.contexts import AlignContext, PlanContext, RunContext
    from lmflow.components.model import Model
    from lmflow.data.lengths import LengthReport
    from lmflow.data.sample import Dataset, Item, Sample
    from lmflow.models.language_model import LanguageModel
    from lmflow.training.objective import Objective


@dataclass(frozen=True, slots=True)
class Workload:
    """What an aligner will train on, as far as it can be known before: for `lmflow plan`."""

    items: Sequence[Item]
    """What `Trainer.fit` will be given; what is yet to be sampled stands here at its longest."""
    steps: int | None
    """Optimizer steps of the whole run; None where that is not known."""
    heldout: Sequence[Item] = ()
    """Held-out items, which passes without gradients go through; `lmflow plan` fills them in."""
    lengths: LengthReport | None = None
    """What `encode` or `encode_pairs` said of the items; None where they are yet to be sampled."""


@dataclass(frozen=True, slots=True)
class Head:
    """Layers that an aligner adds to the model it trains: from a hidden state to numbers, such as a value or a reward.

    A hidden state is what the model's output embeddings are given at a position, (hidden size,).
    """

    outputs: int = 1
    """Numbers at each position."""
    hidden: tuple[int, ...] = ()
    """Sizes of the layers between, each followed by tanh; without any the head is one linear layer."""
    bias: bool = True
    """Whether the layers have biases."""
    starts_at_zero: bool = False
    """Whether a new head gives 0 everywhere; else its matrices start from a normal distribution of deviation
    1 / sqrt(inputs + 1)."""


class Aligner(Component):
    """Slot `aligner`: the objective, and the loop around the trainer. The fields here are common to all aligners."""

    compares_with_start: ClassVar[bool] = False
    """Whether `align` uses `trainer.start_weights()`, which costs a copy of the trainable parameters."""

    packs: ClassVar[bool] = False
    """Whether `data.packing auto` may pack its batches: what it minimises goes by sequences, and not by rows, and it
    trains on what `workload` names."""

    max_new_tokens: int = Field(64, gt=0, description="Longest completion when sampling and evaluating, in tokens.")
    heldout_prompts: int = Field(64, ge=0, description="Held-out prompts answered before and after.")

    @abstractmethod
    def align(self, context: AlignContext) -> None:
        """Train `context.model` through `context.trainer` until done.

        What it puts into `context.log.metrics` stands in run.json; `NAME_before` and `NAME_after` are also a row of the
        closing table. `context.trainer.restored` holds the state last given to `trainer.remember` in a run that is
        resumed.

        In a run of several processes each calls it with the same samples and has to take the same steps: it calls
        `trainer.fit` with the same items, and what each makes a part of comes from `context.processes.map_sharded`.
        """

    def objective(self, context: RunContext) -> Objective | None:
        """What is minimised, in training, in the self-test and on held-out items; None for the next-token loss.

        `context.models` are those that `models` names.
        """
        return None

    def models(self) -> Mapping[str, str | Model]:
        """Further models that it uses (a reference, a teacher), by name: what `--model` takes, or a component.

        A run opens each once in every process, on its device and in its dtype, frozen and in eval mode, and puts it
        into `context.models` under that name; `lmflow plan` counts its weights, and its passes without
        gradients: in each step, unless `annotate` is overridden to ask it before. Two names of one model share it.
        """
        return {}

    def heads(self, model: LanguageModel) -> Mapping[str, Head]:
        """Parameters that it adds to the model it trains, by name: a value head, a reward head.

        A new one starts from the seed; where `model` was saved with a head of that name, training goes on from it. They
        are in `context.model.heads`, and objectives apply them with `head_outputs` or `head_applied`. They train in
        every step, whatever the tuner trains, and are in checkpoints, in `start_weights()`, in what `lmflow plan`
        counts, and in a folder beside the result. The weights of `model` may have no values.
        """
        return {}

    def items(self, model: LanguageModel, samples: Sequence[Sample], data: Dataset) -> Sequence[Item] | None:
        """Items of samples as the objective reads them: for the self-test, the held-out loss, and `lmflow plan`.

        None, the default, stands for the token sequences of those that end with an answer. An aligner whose objective
        compares sequences returns tuples of them (`encode_pairs`). `data` has the options; samples that give no item
        are left out. The weights of `model` may have no values: what takes a forward pass belongs into `annotate`.
        """
        return None

    def annotate(self, context: AlignContext, items: Sequence[Item]) -> Sequence[Item]:
        """Items with what the objective needs of other weights in `objective_inputs`, such as a reference's logprobs.

        The default returns them as they are. A run calls it with held-out items and probes before the first step, when
        nothing is restored yet; `align` calls it with what it trains on.
        """
        return items

    def workload(self, context: PlanContext) -> Workload | None:
        """What `align` will train on, told before anything is trained.

        The default tells nothing: `lmflow plan` then goes by the `items` of all samples, and names no number of steps.
        """
        return None
