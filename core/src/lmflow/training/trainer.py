"""The one optimizer loop: every aligner trains through it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from lmflow.components.log import RunnerLog
from lmflow.data.collate import Batch
from lmflow.data.packing import plan_epoch
from lmflow.data.prefetch import prefetch
from lmflow.data.sample import Item
from lmflow.distributed.processes import current_processes
from lmflow.distributed.strategies import make_strategy
from lmflow.distributed.strategies.base import trainable_parameters
from lmflow.distributed.strategies.ddp import DDP
from lmflow.errors import Interrupted, TrainingError
from lmflow.models.language_model import LanguageModel, WeightCounter
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.training.accumulate import Passes, Sequences
from lmflow.training.batches import micro_batches, sequences_of
from lmflow.training.checkpoint import SCORE
from lmflow.training.checkpoints import Checkpoints
from lmflow.training.compiling import CompiledLayers
from lmflow.training.objective import Objective
from lmflow.training.optimizer import build_optimizer
from lmflow.training.precision import replaced_weights
from lmflow.training.rotation import Rotation
from lmflow.training.setup import Setup, check_budget, check_setup
from lmflow.training.validate import validate
from lmflow.training.weights import check_weights


class Trainer:
    """An optimizer over a model's trainable parameters, stepped by items, normalised by what the objective counts.

    The loss of a step is the sum over its targets divided by their number, over all micro-batches and all
    processes, so it does not depend on how the samples are split. Every source of randomness is a function of
    (seed, step), so a resumed run continues exactly.
    """

    def __init__(
        self, model: LanguageModel, options: TrainingOptions, log: RunnerLog, checkpoints: Path, setup: Setup
    ) -> None:
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
        self._processes = current_processes(model.device.type)
        check_setup(options, setup, self._processes.size)
        self._checkpoints = Checkpoints(checkpoints, options, self._processes, log)
        compiled = CompiledLayers(model.module) if options.compile else None
        self._passes = Passes(model.module, self._processes, model.pad_id, model.device, self.autocast, compiled)
        if options.gradient_checkpointing:
            model.module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        trainable = trainable_parameters(model.module)
        if not trainable:
            raise TrainingError("The tuner left no parameter to train.")
        for parameter in trainable.values():  # master weights; compute follows `precision`
            parameter.data = parameter.data.float()
        self._rotation = Rotation(setup.tuner, trainable, options.seed)
        self._start = {name: p.detach().clone() for name, p in trainable.items()} if setup.keep_start_weights else None

    @property
    def heldout(self) -> Sequence[Item]:
        """Held-out items, as the objective reads them."""
        return self.setup.heldout

    def hold_out(self, items: Sequence[Item]) -> None:
        """Validate on other held-out items from now on, such as the same ones with a reference's log-probabilities."""
        self.setup = replace(self.setup, heldout=items)

    @cached_property
    def _strategy(self) -> DDP:
        """The model as it lies in the processes, from the first step (or restored checkpoint) on."""
        setup, options = self.setup, self.options
        build = partial(build_optimizer, setup.optimizer, setup.tuner, self.model, options)
        return make_strategy(setup.strategy, self.model.module, build, self._processes, options.max_grad_norm)

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
        check_budget(len(items), steps, end, self.step, self._restored_step)
        train_mode(self._strategy, self.model.weights)
        losses = []
        if self._evaluate_if_due():
            self.checkpoint()
        with self.log.phase("training", end - self.step):
            chosen = self._steps(len(items), first, end, first_epoch)
            for groups, batches in prefetch(partial(self._read_step, items), chosen):
                losses.append(self._train_step(groups, batches, objective or self.setup.objective, checkpoints))
                self._after_step(checkpoints)
        eval_mode(self._strategy, self.model.weights)
        check_weights(self._strategy.trainable, self.step, self._processes)
        self._rotation.end()
        return sum(losses) / len(losses) if losses else math.nan

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
        batches = [self._passes.idle_batch(groups)]
        if share:
            setup, pad = self.setup, self.model.pad_id
            batches = micro_batches(share, self.options, setup.packing, setup.max_length, pad, setup.padding)
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
        sums = self._passes.accumulate(self._strategy, groups, batches, objective, units)
        # The norm first: a GPU that still goes back finds what scales its gradient waiting when it is done.
        steps_when_clipping = self._strategy.steps_when_clipping
        gradient_norm = math.nan if steps_when_clipping else self._strategy.clip()
        means = self._passes.means(sums, units)
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

    def _after_step(self, checkpoints: bool) -> None:
        self.log.advance()
        self.log.advance_plan()
        every = self.options.evaluate_every if self.heldout else None
        self._evaluation_due = bool(every) and self.step % (every or 1) == 0
        try:
            improved = self._evaluate_if_due()
        except Interrupted:
            if checkpoints:
                self.checkpoint()  # says that this step is yet to be evaluated
            raise
        due = checkpoints and self._checkpoints.due(self.step)
        if checkpoints and (due or improved or self.log.stop_signal):
            self.checkpoint()
        self.log.check_stop()

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
        train_mode(self._strategy, self.model.weights)
        return self.options.result == "best" and self._checkpoints.is_best(found["loss"])

    def validate(self, items: Sequence[Item], objective: Objective | None = None) -> dict[str, float]:
        """Mean loss over `items`, as "loss", and the objective's metrics, dropout off; every process has to call it."""
        eval_mode(self.__dict__.get("_strategy"), self.model.weights)
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
            try:
                yield
            finally:
                self.model.weights.changed()  # the weights from before come back at once

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
        self._checkpoints.save(self._strategy, state)

    def restore(self) -> None:
        """Continue from the newest checkpoint that is undamaged, if there is one."""
        state = self._checkpoints.restore(self._strategy)
        if state is None:
            self.log.forget_after(-1)  # steps before the first checkpoint
            return
        self.model.weights.changed()
        self.step = self._restored_step = state["step"]
        self.tokens = state["tokens"]
        self.restored = self._aligner_state = state["aligner"]
        self._evaluation_due = state["evaluation_due"]
        self.log.metrics.update(state["metrics"])
        self.log.forget_after(self.step)

    def choose_result(self) -> None:
        """Take the weights that `training.result` asks for: the last are there already."""
        if self.options.result == "best":
            self._checkpoints.take_best(self._strategy)
            self.model.weights.changed()

    def full_model(self) -> LanguageModel:
        """The model with all of its weights in this process, to be saved; every process has to ask for it."""
        return self.model.with_module(self._strategy.full_module())


def train_mode(strategy: DDP, weights: WeightCounter) -> None:
    """Put the model in train mode, and the optimizer where it has modes, as schedule-free ones do.

    These have other weights in each mode, so that their change counts.
    """
    strategy.forward.train()
    if hasattr(strategy.optimizer, "train"):
        strategy.optimizer.train()
        weights.changed()


def eval_mode(strategy: DDP | None, weights: WeightCounter) -> None:
    """Put the model in eval mode, and the optimizer where it has modes; nothing before there is an optimizer."""
    if strategy is not None:
        strategy.forward.eval()
        if hasattr(strategy.optimizer, "eval"):
            strategy.optimizer.eval()
            weights.changed()
