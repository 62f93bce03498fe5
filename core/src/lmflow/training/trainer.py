"""The one optimizer loop: every aligner trains through it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.components import Optimizer, Schedule, Tuner
from lmflow.components.log import RunnerLog
from lmflow.data.collate import Batch, collate
from lmflow.data.packing import plan_epoch
from lmflow.data.prefetch import prefetch
from lmflow.data.sample import Item, TokenSequence
from lmflow.distributed.processes import current_processes
from lmflow.distributed.strategies import make_strategy
from lmflow.distributed.strategies.base import trainable_parameters
from lmflow.distributed.strategies.ddp import DDP
from lmflow.errors import Interrupted, RecipeError, TrainingError
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.training.batches import micro_batches, sequences_of
from lmflow.training.checkpoint import (
    SCORE,
    Checkpoint,
    best_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    read_state,
    save_checkpoint,
    step_of,
)
from lmflow.training.compiling import CompiledLayers
from lmflow.training.objective import Loss, NextToken, Objective
from lmflow.training.optimizer import parameter_groups
from lmflow.training.precision import replaced_weights
from lmflow.training.rotation import Rotation
from lmflow.training.validate import validate

Sequences = tuple[TokenSequence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a trainer works, beside the options of the recipe's `training` section."""

    optimizer: Optimizer
    schedule: Schedule
    tuner: Tuner | None = None
    """What says which parameters train at which step, and their groups; None where all do alike."""
    objective: Objective = field(default_factory=NextToken)
    """What is minimised, and how held-out items are judged."""
    precision: str = "fp32"
    packing: bool = False
    max_length: int | None = None
    heldout: Sequence[Item] = ()
    keep_start_weights: bool = False
    strategy: str = "ddp"


class Trainer:
    """An optimizer over a model's trainable parameters, stepped by items, normalised by what the objective counts.

    The loss of a step is the sum over its targets divided by their number, over all micro-batches and all
    processes, so it does not depend on how the samples are split. Every source of randomness is a function of
    (seed, step), so a resumed run continues exactly.
    """

    def __init__(
        self, model: LanguageModel, options: TrainingOptions, log: RunnerLog, checkpoints: Path, setup: Setup
    ) -> None:
        check_setup(options, setup)
        self.model = model
        self.options = options
        self.setup = setup
        self.log = log
        self.step = 0
        self.total_steps = 0
        self.tokens = 0
        self.restored: Mapping[str, Any] = {}
        self._restored_step = 0
        self._aligner_state: Mapping[str, Any] = {}
        self._eval_loss = -1, math.nan  # the step of the last evaluation, and what it found
        self._evaluation_due = False  # the run was stopped before it had evaluated its last step
        self._checkpoints = checkpoints
        self._processes = current_processes(model.device.type)
        self._compiled = CompiledLayers(model.module) if options.compile else None
        if options.gradient_checkpointing:
            model.module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        trainable = trainable_parameters(model.module)
        if not trainable:
            raise TrainingError("The tuner left no parameter to train.")
        for parameter in trainable.values():  # master weights; compute follows `precision`
            parameter.data = parameter.data.float()
        self._rotation = Rotation(setup.tuner, trainable, options.seed)
        if self._processes.size > 1 and setup.strategy != "ddp":
            self._rotation.refuse(setup.strategy)
            if setup.keep_start_weights:
                raise RecipeError(
                    f"launch.strategy: this aligner compares with the weights training started from, which "
                    f"{setup.strategy} splits over the processes; use ddp"
                )
        kept = setup.keep_start_weights
        self._start = {name: p.detach().clone() for name, p in trainable.items()} if kept else None

    @property
    def heldout(self) -> Sequence[Item]:
        """Held-out items, as the objective reads them."""
        return self.setup.heldout

    def hold_out(self, items: Sequence[Item]) -> None:
        """Judge by other held-out items from now on, such as the same ones with a reference's log-probabilities."""
        self.setup = replace(self.setup, heldout=items)

    @cached_property
    def _strategy(self) -> DDP:
        """The model as it lies in the processes, from the first step (or restored checkpoint) on."""
        limit = self.options.max_grad_norm
        return make_strategy(self.setup.strategy, self.model.module, self._make_optimizer, self._processes, limit)

    def _make_optimizer(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        optimizer, tuner = self.setup.optimizer, self.setup.tuner
        declared = tuner.parameter_groups(list(parameters)) if tuner else ()
        rate, decay = self.options.learning_rate, optimizer.weight_decay
        return optimizer.build(parameter_groups(parameters, rate, decay, self.model.learning_rate, declared))

    # Planning

    def steps_for(self, items: int, epochs: float) -> int:
        """Optimizer steps that `epochs` passes over so many items take."""
        return self.options.steps_for(items, epochs)

    def plan(self, total_steps: int) -> None:
        """Set the number of steps the learning-rate schedule runs over."""
        self.total_steps = total_steps
        self.log.plan(total_steps, "steps")
        if self.step:
            self.log.advance_plan(self.step)

    # Training

    def fit(
        self,
        items: Sequence[Item],
        *,
        steps: int,
        start: int | None = None,
        first_epoch: int = 0,
        checkpoints: bool = True,
        objective: Objective | None = None,
    ) -> float:
        """Take `steps` optimizer steps on `items`; returns the mean loss of those taken, per target or item.

        An item is a sequence, or a tuple of sequences: these come in one batch, one after the other in
        `batch.sequences`, so that an objective can compare them. Items are repeated where the steps take more than
        there are. The objective is the one of the setup unless another is given.

        `start` is the step this call began at in the original run (now, if None): after a resume the steps before the
        checkpoint are skipped without being read. `first_epoch` varies the shuffling between calls. With `checkpoints`
        the options' intervals apply, and an interrupt leaves a checkpoint.
        Raises TrainingError when the loss is not finite and where there is no step to take, Interrupted when the run
        was asked to stop.
        """
        first = self.step if start is None else start
        end = first + steps
        self._check_budget(items, steps, end)
        train_mode(self._strategy)
        losses = []
        if self._evaluate_if_due():
            self.checkpoint()
        with self.log.phase("training", end - self.step):
            chosen = self._steps(len(items), first, end, first_epoch)
            for groups, batches in prefetch(partial(self._read_step, items), chosen):
                losses.append(self._train_step(groups, batches, objective or self.setup.objective, checkpoints))
                self._after_step(checkpoints)
        eval_mode(self._strategy)
        self._rotation.end()
        return sum(losses) / len(losses) if losses else math.nan

    def _check_budget(self, items: Sequence[Item], steps: int, end: int) -> None:
        """Raise TrainingError for a call that takes no step, unless they were all taken before a resume."""
        if not items or steps < 1:
            raise TrainingError(f"trainer.fit was given {len(items)} items and {steps} steps, so it takes none.")
        if end <= self.step and self._restored_step < end:
            raise TrainingError(
                f"trainer.fit was asked for the steps up to {end}, and the trainer is at step {self.step} already; "
                "leave `start` out for steps that follow those taken."
            )

    def _steps(self, items: int, start: int, end: int, epoch: int) -> Iterator[list[int]]:
        """Indices of the items of each step from the current one to `end`, in the order fixed by (seed, epoch)."""
        position = start
        while position < end:
            for chosen in plan_epoch(items, self.options.batch_size, self.options.seed, epoch):
                if position >= end:
                    return
                if position >= self.step:
                    yield chosen
                position += 1
            epoch += 1

    def _read_step(self, items: Sequence[Item], chosen: Sequence[int]) -> tuple[list[Sequences], list[Batch]]:
        """The items of a step and this process's batches of them."""
        groups = [sequences_of(items[i]) for i in chosen]
        share = self._processes.shard(groups)
        batches = [self._idle_batch(groups)]
        if share:
            setup, pad = self.setup, self.model.pad_id
            batches = micro_batches(share, self.options, setup.packing, setup.max_length, pad)
        return groups, [each.pinned() for each in batches] if self.model.device.type == "cuda" else batches

    def _train_step(
        self, groups: Sequence[Sequences], batches: Sequence[Batch], objective: Objective, checkpoints: bool
    ) -> float:
        """One optimizer step over `groups`; returns the mean loss, in nats per target or item."""
        started = time.perf_counter()
        torch.manual_seed(self.options.seed * 1_000_003 + self.step * 1_009 + self._processes.rank)
        learning_rate = self._set_learning_rate()
        self._rotation.switch(self.step, self._strategy)
        targets = self._processes.sum(sum(batch.num_targets for batch in batches))
        if objective.per == "token" and not targets:
            raise TrainingError("A step has no trained token: " + ", ".join(g[0].source for g in groups[:5]))
        units = len(groups) if objective.per == "item" else targets
        sums = self._accumulate(groups, batches, objective, units)
        # The norm first: a GPU that still goes back finds what scales its gradient waiting when it is done.
        steps_when_clipping = self._strategy.steps_when_clipping
        gradient_norm = math.nan if steps_when_clipping else self._strategy.clip()
        means = self._means(sums, units)
        if steps_when_clipping and math.isfinite(means["loss"]):
            gradient_norm = self._strategy.clip()
        if not (math.isfinite(means["loss"]) and math.isfinite(gradient_norm)):
            self._refuse_non_finite(means["loss"], gradient_norm, groups, checkpoints)
        self._strategy.step()
        self.model.weights.changed()
        self.step += 1
        tokens = int(self._processes.sum(sum(batch.tokens for batch in batches)))
        self.tokens += tokens
        seconds = time.perf_counter() - started
        self.log.step(
            {
                "step": self.step,
                **means,
                "learning_rate": learning_rate,
                "grad_norm": gradient_norm,
                "tokens": self.tokens,
                "tokens_per_second": tokens / seconds,
                "seconds": seconds,
            }
        )
        return means["loss"]

    def _accumulate(
        self, groups: Sequence[Sequences], batches: Sequence[Batch], objective: Objective, units: float
    ) -> dict[str, Tensor]:
        """Forward and backward passes of a step; this process's sums of the loss and of the objective's metrics."""
        sums = {"loss": torch.zeros((), device=self.model.device)}
        passes = len(batches)
        if self._strategy.is_split:
            passes = int(self._processes.max(passes))
        for index in range(passes):
            idle = index >= len(batches) or self._processes.rank >= len(groups)
            batch = batches[index] if index < len(batches) else self._idle_batch(groups)
            with self._strategy.gradient_sync(index == passes - 1), self._compiled or nullcontext():
                with self.autocast():
                    found = objective(self._strategy.forward, self.model.module, batch.to(self.model.device))
                if idle:  # this process only takes part in what all do together
                    found = Loss(found.total * 0, dict.fromkeys(found.metrics, 0.0))
                # Data-parallel wrappers average over processes; the sum is what is wanted.
                self._strategy.backward(found.total * (self._processes.size / units))
            sums["loss"] += found.total.detach()
            for name, value in found.metrics.items():
                so_far = sums.get(name, torch.zeros((), device=self.model.device))
                sums[name] = so_far + torch.as_tensor(value, device=self.model.device).detach()
        return sums

    def _means(self, sums: Mapping[str, Tensor], units: float) -> dict[str, float]:
        """The sums of all processes by what they are divided by; names are those of any process."""
        names = list(sums)
        if self._processes.size > 1:
            names = list(dict.fromkeys(name for each in self._processes.gather(names) for name in each))
        zero = torch.zeros(())
        return {name: self._processes.sum(float(sums.get(name, zero))) / units for name in names}

    def _after_step(self, checkpoints: bool) -> None:
        self.log.advance()
        self.log.advance_plan()
        options = self.options
        every = options.evaluate_every if self.heldout else None
        self._evaluation_due = bool(every) and self.step % (every or 1) == 0
        try:
            improved = self._evaluate_if_due()
        except Interrupted:
            if checkpoints:
                self.checkpoint()  # says that this step is yet to be evaluated
            raise
        due = bool(options.checkpoint_every) and self.step % (options.checkpoint_every or 1) == 0
        if checkpoints and (due or improved or self.log.stop_signal):
            self.checkpoint()
        self.log.check_stop()

    def _idle_batch(self, groups: Sequence[Sequences]) -> Batch:
        """What adds nothing, for a process that must take part in the exchange of gradients all the same."""
        return collate([replace(idle, loss_mask=[False] * len(idle)) for idle in groups[0]], self.model.pad_id)

    def _set_learning_rate(self) -> float:
        rate = self.setup.schedule.rate(self.step, self.total_steps)
        for group in self._strategy.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        return self.options.learning_rate * rate

    def _refuse_non_finite(self, loss: float, norm: float, groups: Sequence[Sequences], checkpoints: bool) -> None:
        self._strategy.forget_gradients()
        kept = not (math.isfinite(loss) and self._strategy.steps_when_clipping)
        if checkpoints and self.step and kept:
            self.checkpoint()  # the weights are still those of the last good step
        which = "The weights of the step before are kept." if kept else "The last checkpoint is kept."
        names = ", ".join(group[0].source for group in groups[:5])
        raise TrainingError(
            f"The loss is not finite at step {self.step + 1} (loss {loss}, gradient norm {norm}), on samples {names}. "
            f"{which} Lower --training.learning_rate, lengthen --schedule.warmup, "
            "or use --training.precision fp32."
        )

    # Evaluation

    def _evaluate_if_due(self) -> bool:
        """Whether the step was evaluated and no checkpoint has a lower loss, where the best is wanted."""
        if not self._evaluation_due:
            return False
        found = self.validate(self.heldout)
        self._evaluation_due = False
        self._eval_loss = self.step, found["loss"]
        self.log.step({"step": self.step, **{f"eval_{name}": value for name, value in found.items()}})
        train_mode(self._strategy)
        return self.options.result == "best" and self._processes.on_rank0(lambda: self._is_best(found["loss"]))

    def _is_best(self, eval_loss: float) -> bool:
        """Whether no checkpoint has a lower loss on the held-out samples."""
        best = best_checkpoint(self._checkpoints)
        return best is None or eval_loss < read_state(best)[SCORE]

    def validate(self, items: Sequence[Item], objective: Objective | None = None) -> dict[str, float]:
        """Mean loss over `items`, as "loss", and the objective's metrics, dropout off; every process has to call it."""
        eval_mode(self.__dict__.get("_strategy"))
        return validate(
            self.model.module,
            items,
            objective or self.setup.objective,
            self.log,
            pad_id=self.model.pad_id,
            device=self.model.device,
            size=self.options.micro_batch_size,
            autocast=self.autocast(),
            together=self.setup.strategy != "ddp",
        )

    def evaluate(self, items: Sequence[Item], objective: Objective | None = None) -> float:
        """Mean loss over `items`; see `validate`."""
        return self.validate(items, objective)["loss"]

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the run's precision; use it around every forward pass, generation included."""
        if self.setup.precision == "bf16":
            return torch.autocast(self.model.device.type, torch.bfloat16)
        return nullcontext()

    @contextmanager
    def start_weights(self) -> Iterator[None]:
        """Within the context the model is the one training started from: the reference of KL and of preferences.

        Works with every tuner, because only trainable parameters ever differ. Needs `Aligner.compares_with_start`.
        """
        if self._start is None:
            raise TrainingError("start_weights() needs an aligner that sets compares_with_start.")
        now = dict(self.model.module.named_parameters())
        with replaced_weights({now[name]: value for name, value in self._start.items()}):
            self.model.weights.changed()
            yield
        self.model.weights.changed()

    # Checkpoints

    def remember(self, state: Mapping[str, Any]) -> None:
        """Keep the aligner's state (plain values) in every checkpoint from now on; it comes back as `restored`."""
        self._aligner_state = dict(state)

    def checkpoint(self) -> None:
        """Save what is needed to continue, the aligner's last state among it."""
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "aligner": dict(self._aligner_state),
            "metrics": dict(self.log.metrics),
            "evaluation_due": self._evaluation_due,
            SCORE: self._eval_loss[1] if self._eval_loss[0] == self.step else None,
        }
        saved = Checkpoint(self._strategy.weights(), self._strategy.optimizer_state(), state)
        keep, best = self.options.keep_checkpoints, self.options.result == "best"
        path = self._processes.on_rank0(
            lambda: save_checkpoint(self._checkpoints, self.step, saved, keep=keep, keep_best=best)
        )
        self.log.checkpoint_saved(path)

    def restore(self) -> None:
        """Continue from the newest checkpoint that is undamaged, if there is one."""
        found = newest_checkpoint(self._checkpoints, self.log.note)
        if found is None:
            self.log.forget_after(-1)  # steps before the first checkpoint
            return
        path, saved = found
        self._set_weights(path, saved.weights)
        self._strategy.set_optimizer_state(saved.optimizer)
        self.step = self._restored_step = saved.state["step"]
        self.tokens = saved.state["tokens"]
        self.restored = self._aligner_state = saved.state["aligner"]
        self._evaluation_due = saved.state["evaluation_due"]
        self.log.metrics.update(saved.state["metrics"])
        self.log.forget_after(self.step)

    def choose_result(self) -> None:
        """Take the weights that `training.result` asks for: the last are there already."""
        if self.options.result == "last":
            return
        best = best_checkpoint(self._checkpoints)
        if best is None:
            self.log.note("training.result: no checkpoint was evaluated, so the result is the last step")
            return
        score = read_state(best)[SCORE]
        self.log.note(f"the result is step {step_of(best):,}, whose held-out loss was lowest ({score:.4f})")
        self.log.metrics["result_step"] = step_of(best)
        self._set_weights(best, load_checkpoint(best).weights)

    def _set_weights(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        if weights.keys() != self._strategy.trainable.keys():
            raise TrainingError(f"{path} holds other parameters than this recipe trains; start a new run.")
        self._strategy.set_weights(weights)
        self.model.weights.changed()

    def full_model(self) -> LanguageModel:
        """The model with all of its weights in this process, to be saved; every process has to ask for it."""
        return self.model.with_module(self._strategy.full_module())


def check_setup(options: TrainingOptions, setup: Setup) -> None:
    """Raise RecipeError where the best step is wanted and nothing would find it."""
    if options.result == "best" and not (options.evaluate_every and setup.heldout):
        raise RecipeError(
            "training.result: best is chosen by the loss on held-out samples; set --training.evaluate_every, "
            "and --data.validation where nothing is held out"
        )


def train_mode(strategy: DDP) -> None:
    """Put the model in train mode, and the optimizer where it has modes, as schedule-free ones do."""
    strategy.forward.train()
    getattr(strategy.optimizer, "train", lambda: None)()


def eval_mode(strategy: DDP | None) -> None:
    """Put the model in eval mode, and the optimizer where it has modes; nothing before there is an optimizer."""
    if strategy is not None:
        strategy.forward.eval()
        getattr(strategy.optimizer, "eval", lambda: None)()
