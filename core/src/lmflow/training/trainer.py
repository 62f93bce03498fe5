"""The one optimizer loop: every aligner trains through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch, collate, collate_packed
from lmflow.data.packing import group_rows, pack_rows, plan_epoch, split_micro
from lmflow.data.prefetch import prefetch
from lmflow.data.sample import TokenSequence
from lmflow.distributed.processes import current_processes
from lmflow.distributed.strategies import make_strategy
from lmflow.distributed.strategies.base import trainable_parameters
from lmflow.distributed.strategies.ddp import DDP
from lmflow.errors import Interrupted, RecipeError, TrainingError
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.run.log import RunLog
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
from lmflow.training.loss import negative_log_likelihood
from lmflow.training.precision import replaced_weights
from lmflow.training.schedule import learning_rate_factor, warmup_steps

Objective = Callable[[nn.Module, nn.Module, Batch], Tensor]
"""(forward, unwrapped, batch) -> the sum of the loss over the batch's targets, in nats (or over its items)."""

Item = TokenSequence | tuple[TokenSequence, ...]
"""What is shuffled and counted as one sample: a sequence, or several that the objective must see together."""

ItemSequences = tuple[TokenSequence, ...]

MICRO_BATCH_SIZE, MICRO_BATCH_TOKENS = 8, 4096
"""Samples and padded tokens per forward pass where `micro_batch_size` does not say; memory grows with the latter."""


class Trainer:
    """AdamW over a model's trainable parameters, stepped by samples, normalised by trained tokens.

    The loss of a step is the sum over its targets divided by their number, over all micro-batches and all
    processes, so it does not depend on how the samples are split. Every source of randomness is a function of
    (seed, step), so a resumed run continues exactly.
    """

    def __init__(
        self,
        model: LanguageModel,
        options: TrainingOptions,
        log: RunLog,
        checkpoints: Path,
        *,
        precision: str = "fp32",
        packing: bool = False,
        max_length: int | None = None,
        heldout: Sequence[TokenSequence] = (),
        keep_start_weights: bool = False,
        strategy: str = "ddp",
    ) -> None:
        self.model = model
        self.options = options
        self.log = log
        self.heldout = heldout
        self.step = 0
        self.total_steps = 0
        self.tokens = 0
        self.restored: Mapping[str, Any] = {}
        self._eval_loss = -1, math.nan  # the step of the last evaluation, and what it found
        self._evaluation_due = False  # the run was stopped before it had evaluated its last step
        if options.result == "best" and not (options.evaluate_every and heldout):
            raise RecipeError(
                [
                    "training.result: best is chosen by the loss on held-out samples; set --training.evaluate_every, "
                    "and --data.validation where nothing is held out"
                ]
            )
        self._checkpoints = checkpoints
        self._precision = precision
        self._packing = packing
        self._max_length = max_length
        self._strategy = strategy
        self._processes = current_processes(model.device.type)
        self._compiled = CompiledLayers(model.module) if options.compile else None
        if options.gradient_checkpointing:
            model.module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        trainable = trainable_parameters(model.module)
        if not trainable:
            raise TrainingError("The tuner left no parameter to train.")
        for parameter in trainable.values():  # master weights; compute follows `precision`
            parameter.data = parameter.data.float()
        if keep_start_weights and strategy != "ddp" and self._processes.size > 1:
            raise RecipeError(
                [
                    f"launch.strategy: this aligner compares with the weights training started from, which {strategy} "
                    "splits over the processes; use ddp"
                ]
            )
        self._start = {name: p.detach().clone() for name, p in trainable.items()} if keep_start_weights else None

    @cached_property
    def _parallel(self) -> DDP:
        """The model as it lies in the processes, from the first step (or restored checkpoint) on."""
        return make_strategy(
            self._strategy, self.model.module, self._make_optimizer, self._processes, self.options.max_grad_norm
        )

    def _make_optimizer(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        options = self.options
        return torch.optim.AdamW(
            parameter_groups(parameters, self.model.learning_rate, options),
            lr=options.learning_rate,
            betas=(options.beta1, options.beta2),
            eps=options.epsilon,
        )

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self._processes.size

    # Planning

    def steps_for(self, samples: int, epochs: float) -> int:
        """Optimizer steps that `epochs` passes over `samples` take."""
        return self.options.steps_for(samples, epochs)

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
        epochs: float,
        first_step: int | None = None,
        first_epoch: int = 0,
        checkpoints: bool = True,
        objective: Objective = negative_log_likelihood,
        per: Literal["token", "item"] = "token",
    ) -> float:
        """Train on `items` and return the mean loss of the steps taken, in nats per trained token (or per item).

        An item is a sequence, or a tuple of sequences: these come in one batch, one after the other in
        `batch.sequences`, so that an objective can compare them. The sum an objective gives is divided by the step's
        trained tokens, or with `per="item"` by its items.

        `first_step` is the step this call began at in the original run (now, if None): after a resume the steps
        before the checkpoint are skipped without being read. `first_epoch` varies the shuffling between calls.
        With `checkpoints` the options' intervals apply, and an interrupt leaves a checkpoint.
        Raises TrainingError when the loss is not finite, Interrupted when the run was asked to stop.
        """
        start = self.step if first_step is None else first_step
        end = start + self.steps_for(len(items), epochs)
        if self.total_steps:
            # --training.max_steps may ask for more than the epochs hold (the data is repeated) or for less.
            end = self.total_steps if first_step is not None else min(end, self.total_steps)
        self._parallel.forward.train()
        losses = []
        if self._evaluate_if_due():
            self.checkpoint({})
        with self.log.phase("training", end - self.step):
            steps = self._steps(len(items), start, end, first_epoch)
            for groups, batches in prefetch(lambda chosen: self._read_step(items, chosen), steps):
                losses.append(self._train_step(groups, batches, objective, per, checkpoints))
                self._after_step(checkpoints)
        self._parallel.forward.eval()
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

    def _read_step(self, items: Sequence[Item], chosen: Sequence[int]) -> tuple[list[ItemSequences], list[Batch]]:
        """The items of a step and this process's batches of them."""
        groups = [sequences_of(items[i]) for i in chosen]
        batches = self._micro_batches(groups)
        return groups, [each.pinned() for each in batches] if self.model.device.type == "cuda" else batches

    def _train_step(
        self,
        groups: Sequence[ItemSequences],
        micro_batches: Sequence[Batch],
        objective: Objective,
        per: str,
        checkpoints: bool,
    ) -> float:
        """One optimizer step over `groups`; returns the mean loss, in nats `per` what it says."""
        started = time.perf_counter()
        torch.manual_seed(self.options.seed * 1_000_003 + self.step * 1_009 + self._processes.rank)
        learning_rate = self._set_learning_rate()
        targets = self._processes.sum(sum(batch.num_targets for batch in micro_batches))
        if not targets:
            raise TrainingError("A step has no trained token: " + ", ".join(g[0].source for g in groups[:5]))
        share_of = len(groups) if per == "item" else targets
        total = torch.zeros((), device=self.model.device)
        passes = len(micro_batches)
        if self._parallel.is_split:
            passes = int(self._processes.max(passes))
        for index in range(passes):
            idle = index >= len(micro_batches) or self._processes.rank >= len(groups)
            batch = micro_batches[index] if index < len(micro_batches) else self._idle_batch(groups)
            with self._parallel.gradient_sync(index == passes - 1), self._compiled or nullcontext():
                with self.autocast():
                    loss = objective(self._parallel.forward, self.model.module, batch.to(self.model.device))
                if idle:
                    loss = loss * 0  # this process only takes part in what all do together
                # Data-parallel wrappers average over processes; the sum is what is wanted.
                self._parallel.backward(loss * (self._processes.size / share_of))
            total += loss.detach()
        # The norm first: a GPU that still goes back finds what scales its gradient waiting when it is done.
        steps_when_clipping = self._parallel.steps_when_clipping
        gradient_norm = math.nan if steps_when_clipping else self._parallel.clip()
        mean = self._processes.sum(total.item()) / share_of
        if steps_when_clipping and math.isfinite(mean):
            gradient_norm = self._parallel.clip()
        if not (math.isfinite(mean) and math.isfinite(gradient_norm)):
            self._refuse_non_finite(mean, gradient_norm, groups, checkpoints)
        self._parallel.step()
        self.step += 1
        tokens = int(self._processes.sum(sum(batch.tokens for batch in micro_batches)))
        self.tokens += tokens
        seconds = time.perf_counter() - started
        self.log.step(
            {
                "step": self.step,
                "loss": mean,
                "learning_rate": learning_rate,
                "grad_norm": gradient_norm,
                "tokens": self.tokens,
                "tokens_per_second": tokens / seconds,
                "seconds": seconds,
            }
        )
        return mean

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
                self.checkpoint({})  # says that this step is yet to be evaluated
            raise
        due = bool(options.checkpoint_every) and self.step % (options.checkpoint_every or 1) == 0
        if checkpoints and (due or improved or self.log.stop_signal):
            self.checkpoint({})
        self.log.check_stop()

    def _evaluate_if_due(self) -> bool:
        """Whether the step was evaluated and no checkpoint has a lower loss, where the best is wanted."""
        if not self._evaluation_due:
            return False
        loss = self.evaluate(self.heldout)
        self._evaluation_due = False
        self._eval_loss = self.step, loss
        self.log.step({"step": self.step, "eval_loss": loss})
        self._parallel.forward.train()
        return self.options.result == "best" and self._processes.on_rank0(lambda: self._is_best(loss))

    def _is_best(self, eval_loss: float) -> bool:
        """Whether no checkpoint has a lower loss on the held-out samples."""
        best = best_checkpoint(self._checkpoints)
        return best is None or eval_loss < read_state(best)[SCORE]

    def _micro_batches(self, groups: Sequence[ItemSequences]) -> list[Batch]:
        """This process's share of a step's groups in micro-batches."""
        share = groups[self._processes.rank :: self._processes.size]
        if not share:
            return [self._idle_batch(groups)]
        return micro_batches(share, self.options, self._packing, self._max_length, self.model.pad_id)

    def _idle_batch(self, groups: Sequence[ItemSequences]) -> Batch:
        """What adds nothing, for a process that must take part in the exchange of gradients all the same."""
        return collate([replace(idle, loss_mask=[False] * len(idle)) for idle in groups[0]], self.model.pad_id)

    def _set_learning_rate(self) -> float:
        options = self.options
        factor = learning_rate_factor(
            self.step,
            total_steps=self.total_steps,
            warmup=warmup_steps(options.warmup, self.total_steps),
            schedule=options.schedule,
            minimum=options.min_learning_rate_ratio,
        )
        for group in self._parallel.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return options.learning_rate * factor

    def _refuse_non_finite(self, loss: float, norm: float, groups: Sequence[ItemSequences], checkpoints: bool) -> None:
        self._parallel.forget_gradients()
        kept = not (math.isfinite(loss) and self._parallel.steps_when_clipping)
        if checkpoints and self.step and kept:
            self.checkpoint({})  # the weights are still those of the last good step
        which = "The weights of the step before are kept." if kept else "The last checkpoint is kept."
        names = ", ".join(group[0].source for group in groups[:5])
        raise TrainingError(
            f"The loss is not finite at step {self.step + 1} (loss {loss}, gradient norm {norm}), on samples {names}. "
            f"{which} Lower --training.learning_rate, lengthen --training.warmup, "
            "or use --training.precision fp32."
        )

    # Evaluation

    @torch.no_grad()
    def evaluate(self, sequences: Sequence[TokenSequence]) -> float:
        """Mean loss over `sequences` in nats per trained token, dropout off."""
        self.model.module.eval()
        size = self.options.micro_batch_size or 8
        lengths = [len(sequence) for sequence in sequences]
        order = sorted(range(len(sequences)), key=lengths.__getitem__)
        loss, targets = 0.0, 0
        with self.log.phase("evaluating", len(sequences)), self.autocast():
            for start in range(0, len(order), size):
                chosen = [sequences[i] for i in order[start : start + size]]
                batch = collate(chosen, self.model.pad_id).to(self.model.device)
                loss += negative_log_likelihood(self.model.module, self.model.module, batch).item()
                targets += batch.num_targets
                self.log.advance(len(chosen))
                self.log.check_stop()
        return loss / targets

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the run's precision; use it around every forward pass, generation included."""
        if self._precision == "bf16":
            return torch.autocast(self.model.device.type, torch.bfloat16)
        return nullcontext()

    def start_weights(self) -> AbstractContextManager[None]:
        """Within the context the model is the one training started from: the reference of KL and of preferences.

        Works with every tuner, because only trainable parameters ever differ. Needs `Aligner.compares_with_start`.
        """
        if self._start is None:
            raise TrainingError("start_weights() needs an aligner that sets compares_with_start.")
        now = trainable_parameters(self.model.module)
        return replaced_weights({now[name]: value for name, value in self._start.items()})

    # Checkpoints

    def checkpoint(self, aligner_state: Mapping[str, Any]) -> None:
        """Save what is needed to continue; `aligner_state` (plain values) comes back as `restored`."""
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "aligner": dict(aligner_state),
            "metrics": dict(self.log.metrics),
            "evaluation_due": self._evaluation_due,
            SCORE: self._eval_loss[1] if self._eval_loss[0] == self.step else None,
        }
        saved = Checkpoint(self._parallel.weights(), self._parallel.optimizer_state(), state)
        best = self.options.result == "best"
        path = self._processes.on_rank0(
            lambda: save_checkpoint(
                self._checkpoints, self.step, saved, keep=self.options.keep_checkpoints, keep_best=best
            )
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
        self._parallel.set_optimizer_state(saved.optimizer)
        self.step = saved.state["step"]
        self.tokens = saved.state["tokens"]
        self.restored = saved.state["aligner"]
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
        if weights.keys() != self._parallel.trainable.keys():
            raise TrainingError(f"{path} holds other parameters than this recipe trains; start a new run.")
        self._parallel.set_weights(weights)

    def whole_model(self) -> LanguageModel:
        """The model with all of its weights in this process, to be saved; every process has to ask for it."""
        return self.model.with_module(self._parallel.whole_module())


def sequences_of(item: Item) -> ItemSequences:
    """The sequences of an item."""
    return (item,) if isinstance(item, TokenSequence) else item


def flat(groups: Iterable[ItemSequences]) -> list[TokenSequence]:
    """The sequences of several groups, one group after the other."""
    return [sequence for group in groups for sequence in group]


def micro_batches(
    groups: Sequence[ItemSequences], options: TrainingOptions, packing: bool, max_length: int | None, pad_id: int
) -> list[Batch]:
    """Groups as batches of at most `micro_batch_size` rows, which a group of several sequences stays together in."""
    size = options.micro_batch_size or min(options.batch_size, MICRO_BATCH_SIZE)
    if packing:
        lengths = [sum(map(len, group)) for group in groups]
        rows = pack_rows(lengths, max_length or max(lengths))
        batches = group_rows([sum(lengths[i] for i in row) for row in rows], size)
        return [collate_packed([flat(groups[i] for i in rows[r]) for r in batch], pad_id) for batch in batches]
    most = max(map(len, groups))
    tokens = None if options.micro_batch_size else MICRO_BATCH_TOKENS // most
    longest = [max(map(len, group)) for group in groups]
    chosen = split_micro(longest, max(1, size // most), tokens)
    return [collate(flat(groups[i] for i in batch), pad_id) for batch in chosen]


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], learning_rate: Callable[[str], float | None], options: TrainingOptions
) -> list[dict[str, Any]]:
    """AdamW groups: weight decay on matrices, none on biases and norm weights (one dimension); one rate in each.

    `learning_rate` gives a parameter's own highest rate by name, None for that of `options`.
    """
    rates = {name: learning_rate(name) or options.learning_rate for name in parameters}
    groups = []
    for rate in dict.fromkeys(rates.values()):
        chosen = [parameter for name, parameter in parameters.items() if rates[name] == rate]
        for members, decay in (
            ([p for p in chosen if p.dim() >= 2], options.weight_decay),
            ([p for p in chosen if p.dim() < 2], 0.0),
        ):
            if members:
                groups.append({"params": members, "weight_decay": decay, "lr": rate, "initial_lr": rate})
    return groups
