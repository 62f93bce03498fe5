"""How much memory training takes, found by going through a step with tensors that have shapes and no values.

Forward and backward pass run as they would, on torch's fake tensors, while every storage is counted from when it is
made until it is freed. So the figure holds for any architecture, with adapters, frozen layers and recomputed
activations, and needs neither the weights nor the device.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
from lmflow.training.chunked_loss import LogitTransform, checkpointed_logprobs, chunked_nll
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


def predict_footprint(module: nn.Module, batch: Batch, setting: StepSettings) -> Footprint:
    """The peak of training `module` on micro-batches like `batch`.

    The module may be on the meta device; it is left as it is. The peak lies in the backward pass or, for short batches,
    in the optimizer's step. Raises what the model does where its forward pass depends on values.
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
        with ledger:
            ledger.watch(fake)
            for _ in range(min(setting.passes, 2)):
                with autocast(setting.precision):
                    loss = fake_loss(fake, batch, targets, ledger)
                loss.backward()  # type: ignore[no-untyped-call]
                del loss
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
    moving = master_bytes(moving_parameters(module, setting))
    targets = batch.num_targets
    ledger = Ledger()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = without_values(module).eval()
        with ledger, torch.no_grad():
            ledger.watch(fake)
            with autocast(setting.precision):
                fake_loss(fake, batch, targets, ledger)
    weights = ledger.held["weights"] + start_bytes(module, setting)
    state = round(moving / MASTER * setting.optimizer_bytes)
    return split_over(Footprint(weights, 0, state, ledger.at["activations"], ledger.at["logits"]), setting, module)


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
        with self.counting("weights"):
            for each in (*module.parameters(), *module.buffers()):
                self._note(each)
        for parameter in trainable_parameters(module).values():
            parameter.register_post_accumulate_grad_hook(self._note_gradient)  # type: ignore[no-untyped-call]

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


def fake_loss(module: nn.Module, batch: Batch, targets: int, ledger: Ledger) -> Tensor:
    """The loss of `lmflow.training.loss`, for so many targets in place of those of the batch."""
    head: nn.Module = module.get_output_embeddings()  # type: ignore[operator]  # every causal language model has it
    transform = LogitTransform(cap=configured_cap(module))
    wanted = torch.zeros(targets, dtype=torch.long)

    def compute(hidden: Tensor, own: Callable[[Tensor], Tensor]) -> Tensor:
        with ledger.counting("logits"):
            chosen = hidden.flatten(0, -2).index_select(0, wanted)
            if type(head) is nn.Linear:
                return chunked_nll(chosen, head.weight, head.bias, wanted, transform)
            return -checkpointed_logprobs(chosen, own, wanted, transform).sum()

    with in_place_of_logits(head, compute) as results:
        module(**forward_inputs(batch))
    return results[0]


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
