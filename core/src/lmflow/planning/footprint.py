"""How much memory training takes, found by going through a step with tensors that have shapes and no values.

Forward and backward pass run as they would, on torch's fake tensors, while every storage is counted from when it is
made until it is freed. So the figure holds for any architecture, with adapters, frozen layers and recomputed
activations, and needs neither the weights nor the device.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmflow.data.collate import Batch
from lmflow.distributed.strategies.base import blocks, trainable_parameters
from lmflow.models.heads import HEADS
from lmflow.training.chunked_loss import (
    LogitTransform,
    checkpointed_logprobs,
    chunked_logprobs,
    chunked_map,
    chunked_nll,
)
from lmflow.training.distributions import kl_divergence
from lmflow.training.loss import forward_inputs
from lmflow.training.output_head import configured_cap, in_place_of_logits

MASTER = 4
"""Bytes of a trainable parameter, and of each number AdamW keeps of it: they are float32 whatever computes."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that one process takes when it takes most, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    models: int = 0
    """Weights of further models that the aligner uses."""
    libraries: int = 0
    """Python, torch and what else lies in the main memory; not counted on a GPU."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.as_dict().values())

    def as_dict(self) -> dict[str, int]:
        """Bytes by part."""
        return asdict(self)


@dataclass(frozen=True)
class StepSettings:
    """What beside the model and the batch decides how much memory a step takes."""

    passes: int = 1
    """Micro-batches of a step: from the second on there are gradients already."""
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    keeps_start: bool = False
    """Whether a copy of the trainable weights is kept as they were at the start."""
    strategy: str = "ddp"
    processes: int = 1
    device: str = "cpu"
    optimizer_bytes: float = 8.0
    """Bytes of state that the optimizer keeps of each parameter."""
    active: Collection[str] | None = None
    """Names of the trainable parameters that move at the step looked at (`Tuner.active`); None for all of them."""


def predict_footprint(
    module: nn.Module, batch: Batch, setting: StepSettings, teachers: Sequence[nn.Module] = ()
) -> Footprint:
    """The peak of training `module` on micro-batches like `batch`.

    `teachers` are frozen models that the objective asks in each pass, and whose logits it compares; their weights are
    not counted here. The modules may be on the meta device; they are left as they are. The peak lies in the backward
    pass or, for short batches, in the optimizer's step. Raises what a model does where its forward pass depends on
    values.
    """
    trainable = moving_parameters(module, setting)
    moving = master_bytes(trainable)
    targets = batch.num_targets  # outside of the mode, in which nothing has a value
    ledger = Ledger()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = without_values(module)
        let_rest(fake, setting)
        if setting.gradient_checkpointing:
            fake.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        fake.train()
        asked = [without_values(each).eval() for each in teachers]
        with ledger:
            ledger.watch(fake)
            for each in asked:
                ledger.note_weights(each, "models")
            for _ in range(min(setting.passes, 2)):
                with autocast(setting.precision):
                    answers = [fake_states(each, batch, targets) for each in asked]
                    loss = fake_loss(fake, batch, targets, ledger, answers)
                loss.backward()  # type: ignore[no-untyped-call]
                del loss, answers
    weights = ledger.held["weights"] + start_bytes(module, setting)
    state = round(moving / MASTER * setting.optimizer_bytes)
    passing = Footprint(weights, ledger.at["gradients"], state, ledger.at["activations"], ledger.at["logits"])
    # Adam's denominator and step: of all parameters at once where they are moved together, as on a GPU.
    largest = moving if setting.device == "cuda" else 2 * MASTER * max(each.numel() for each in trainable)
    stepping = Footprint(weights, moving, state + largest, 0, 0)
    return max(
        (split_over(each, setting, module) for each in (passing, stepping)), key=lambda footprint: footprint.total
    )


def predict_validation(module: nn.Module, batch: Batch, setting: StepSettings) -> Footprint:
    """The peak of a pass without gradients over `batch`, between steps of training: weights and optimizer state stay.

    Raises what the model does where its forward pass depends on values.
    """
    ledger = pass_without_gradients(module, batch, setting)
    return replace(between_steps(module, setting), **passing(ledger))


def predict_other(module: nn.Module, other: nn.Module, batch: Batch, setting: StepSettings) -> Footprint:
    """The peak of a pass of another model, which is frozen, over `batch` while `module` is trained.

    Its own weights are not counted here. An objective may ask it within a step, when there are gradients of the
    micro-batches before. Raises what the model does where its forward pass depends on values.
    """
    ledger = pass_without_gradients(other, batch, setting, chunked_logprobs)
    gradients = master_bytes(moving_parameters(module, setting)) if setting.passes > 1 else 0
    return replace(between_steps(module, setting, gradients), **passing(ledger))


def pass_without_gradients(
    module: nn.Module, batch: Batch, setting: StepSettings, chunked: Callable[..., Tensor] = chunked_nll
) -> Ledger:
    """A forward pass in eval mode, as it was counted."""
    targets = batch.num_targets
    ledger = Ledger()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = without_values(module).eval()
        with ledger, torch.no_grad():
            ledger.watch(fake)
            with autocast(setting.precision):
                fake_loss(fake, batch, targets, ledger, chunked=chunked)
    return ledger


def passing(ledger: Ledger) -> dict[str, int]:
    """What a pass held at its peak."""
    return {part: ledger.at[part] for part in ("activations", "logits")}


def between_steps(module: nn.Module, setting: StepSettings, gradients: int = 0) -> Footprint:
    """What is held while no pass is made: one process's part of weights, optimizer state and so many gradients."""
    moving = master_bytes(moving_parameters(module, setting))
    weights = sum(size_when_trained(each) for each in (*module.parameters(), *module.buffers()))
    state = round(moving / MASTER * setting.optimizer_bytes)
    held = Footprint(weights + start_bytes(module, setting), gradients, state, 0, 0)
    return split_over(held, setting, module)


def size_when_trained(tensor: Tensor) -> int:
    """Bytes of a parameter or buffer, as the trainer has it."""
    return tensor.numel() * (MASTER if tensor.requires_grad else tensor.element_size())


def moving_parameters(module: nn.Module, setting: StepSettings) -> list[nn.Parameter]:
    """Those that have gradients and optimizer state at the step looked at."""
    trainable = trainable_parameters(module)
    return [each for name, each in trainable.items() if setting.active is None or name in setting.active]


def start_bytes(module: nn.Module, setting: StepSettings) -> int:
    """What a copy of all trainable weights takes, where one is kept."""
    return master_bytes(trainable_parameters(module).values()) if setting.keeps_start else 0


def master_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """What trainable parameters take, whatever computes."""
    return MASTER * sum(each.numel() for each in parameters)


def let_rest(fake: nn.Module, setting: StepSettings) -> None:
    """Freeze what does not move at the step looked at: it has no gradient, and its layers keep less for one."""
    if setting.active is not None:
        for name, parameter in trainable_parameters(fake).items():
            parameter.requires_grad_(name in setting.active)


def split_over(footprint: Footprint, setting: StepSettings, module: nn.Module) -> Footprint:
    """One process's part of a footprint, under the strategy that several are arranged by."""
    count = setting.processes
    if count == 1 or setting.strategy == "ddp":
        return footprint
    gathered = max((sum(p.numel() for p in each.parameters()) * MASTER for each in blocks(module)), default=0)
    optimizer = footprint.optimizer // count
    if setting.strategy == "zero1":
        return replace(footprint, optimizer=optimizer)
    gradients = footprint.gradients // count
    if setting.strategy == "zero2":
        return replace(footprint, optimizer=optimizer, gradients=gradients)
    # A layer's weights are together while it computes, and the next one's are fetched meanwhile.
    weights = footprint.weights // count + min(2 * gathered, footprint.weights)
    return replace(footprint, optimizer=optimizer, gradients=gradients, weights=weights)


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the context: what all tensors take together, by what they are for, and the most it has been."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = dict.fromkeys((each.name for each in fields(Footprint)), 0)
        """Bytes held now."""
        self.at = dict(self.held)
        """Bytes held when they were most."""
        self._most = 0
        self._part = "activations"
        self._known: dict[int, tuple[str, int, weakref.ref[Any]]] = {}

    def watch(self, module: nn.Module) -> None:
        """Count the module's parameters and buffers as weights, and from now on what autograd leaves with them."""
        self.note_weights(module, "weights")
        for parameter in trainable_parameters(module).values():
            parameter.register_post_accumulate_grad_hook(self._note_gradient)  # type: ignore[no-untyped-call]

    def note_weights(self, module: nn.Module, part: str) -> None:
        """Count the module's parameters and buffers as `part`."""
        with self.counting(part):
            for each in (*module.parameters(), *module.buffers()):
                self._note(each)

    @contextmanager
    def counting(self, part: str) -> Iterator[None]:
        """Within the context what is made is for `part`."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry out an operation of torch's, and note what it made."""
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._note(each)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = self._part, size, weakref.ref(storage, lambda _: self._forget(key))
        self.held[self._part] += size
        if (total := sum(self.held.values())) > self._most:
            self._most, self.at = total, dict(self.held)

    def _note_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        part, size, reference = self._known[key]
        self.held[part] -= size
        self.held["gradients"] += size
        self._known[key] = "gradients", size, reference

    def _forget(self, key: int) -> None:
        part, size, _ = self._known.pop(key)
        self.held[part] -= size


@dataclass(frozen=True)
class FakeStates:
    """What a frozen model knows of the targets: hidden states (N, H), and what makes logits of them."""

    states: Tensor
    logits: Callable[[Tensor], Tensor] | None
    """None of a model that scores whole sequences."""
    vocabulary: int = 0


@torch.no_grad()
def fake_states(module: nn.Module, batch: Batch, targets: int) -> FakeStates:
    """What `target_states` of `lmflow.training.loss` gives, for so many targets in place of those of the batch."""
    head = output_embeddings(module)
    if head is None:
        return FakeStates(module(**forward_inputs(batch)).logits, None)

    def select(hidden: Tensor, _: Callable[[Tensor], Tensor]) -> Tensor:
        return hidden.flatten(0, -2).index_select(0, torch.zeros(targets, dtype=torch.long))

    with in_place_of_logits(head, select) as results:
        module(**forward_inputs(batch))
    return FakeStates(results[0], head, vocabulary_of(head))


def fake_loss(
    module: nn.Module,
    batch: Batch,
    targets: int,
    ledger: Ledger,
    teachers: Sequence[FakeStates] = (),
    chunked: Callable[..., Tensor] = chunked_nll,
) -> Tensor:
    """The loss of `lmflow.training.loss`, for so many targets in place of those of the batch; or a scorer's scores.

    Heads that an aligner added are applied where the targets are predicted. With teachers it is the divergence from
    them, as far as they have the same tokens.
    """
    head = output_embeddings(module)
    if head is None:
        scores: Tensor = module(**forward_inputs(batch)).logits
        return scores.sum()
    transform = LogitTransform(cap=configured_cap(module))
    wanted = torch.zeros(targets, dtype=torch.long)
    added: Any = getattr(module, HEADS, {})
    alike = [each for each in teachers if each.vocabulary == vocabulary_of(head)]

    def compute(hidden: Tensor, own: Callable[[Tensor], Tensor]) -> Tensor:
        with ledger.counting("logits"):
            chosen = hidden.flatten(0, -2).index_select(0, wanted)
            values = [each(chosen.float()).float().sum() for each in added.values()]
            if alike:
                loss = divergence(chosen, lambda part: transform.apply(own(part).float()), alike)
            elif type(head) is nn.Linear:
                loss = chunked(chosen, head.weight, head.bias, wanted, transform).sum()
            else:
                loss = -checkpointed_logprobs(chosen, own, wanted, transform).sum()
            return sum(values, loss)

    with in_place_of_logits(head, compute) as results:
        module(**forward_inputs(batch))
    return results[0]


def divergence(chosen: Tensor, logits: Callable[[Tensor], Tensor], teachers: Sequence[FakeStates]) -> Tensor:
    """The sum of divergences from the teachers over all targets, a chunk of logits at a time."""

    def compare(ours: Tensor, *theirs: Tensor) -> Tensor:
        pairs = zip(teachers, theirs, strict=True)
        found = [kl_divergence(each.logits(part).float(), ours) for each, part in pairs if each.logits]
        return torch.stack(found).sum(0)

    return chunked_map(chosen, logits, compare, *(each.states for each in teachers)).sum()


def vocabulary_of(head: Any) -> int:
    """Number of logits that output embeddings make."""
    return int(head.weight.shape[0])


def output_embeddings(module: nn.Module) -> nn.Module | None:
    """The layer that makes logits; None of a model that scores whole sequences."""
    get: Callable[[], nn.Module | None] | None = getattr(module, "get_output_embeddings", None)
    return get() if get else None


def without_values(module: nn.Module) -> nn.Module:
    """A copy of the module on fake tensors of the CPU; call it within a FakeTensorMode.

    Trainable parameters are float32, as the trainer makes them.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        dtype = torch.float32 if parameter.requires_grad else parameter.dtype
        empty = torch.empty_like(parameter, device="cpu", dtype=dtype)
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="cpu")
    return copy.deepcopy(module, memo)


def autocast(precision: str) -> AbstractContextManager[Any]:
    """The run's dtype; the CPU's rules stand for those of any device."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
