"""ZeRO by DeepSpeed (Rajbhandari et al., 2020): optimizer state, gradients and weights split over the processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.distributed.processes import Processes
from lmflow.distributed.strategies.base import MakeOptimizer, trainable_parameters, without_weights
from lmflow.distributed.strategies.ddp import DDP
from lmflow.errors import RecipeError


class ZeRO(DDP):
    """Stage 1 splits the optimizer's state, stage 2 the gradients too, stage 3 also the weights."""

    steps_when_clipping = True
    is_split = True

    def __init__(
        self, module: nn.Module, make_optimizer: MakeOptimizer, processes: Processes, limit: float | None, *, stage: int
    ) -> None:
        try:
            import deepspeed
        except ImportError as error:
            raise RecipeError(
                [f"launch.strategy: zero{stage} needs DeepSpeed; pip install 'lmflow-core[deepspeed]'"]
            ) from error
        self._stage = stage
        self._processes = processes
        self._skeleton = without_weights(module) if stage == 3 else None
        self.trainable = trainable_parameters(module)
        self._shapes = {name: parameter.shape for name, parameter in self.trainable.items()}
        self._module = module
        self._deepspeed = deepspeed
        with quiet_building():
            self._engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=make_optimizer(self.trainable),
                config={
                    "train_micro_batch_size_per_gpu": 1,  # DeepSpeed wants a number; batches are made by the trainer
                    "gradient_accumulation_steps": 1,  # where a step ends is said by `gradient_sync`
                    "zero_optimization": {"stage": stage},
                    "zero_allow_untested_optimizer": True,
                    "gradient_clipping": limit or 0.0,
                    "steps_per_print": 2**31,
                    **torch_autocast(module),
                },
                dist_init_required=False,
            )
        self.forward = self._engine
        self.optimizer = self._engine.optimizer

    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are summed up until the step's last micro-batch."""
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to the step's."""
        self._engine.backward(loss)

    def clip(self) -> float:
        """Clip and move the parameters, which DeepSpeed does in one; the norm before."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)

    def step(self) -> None:
        """Done by `clip`."""

    def weights(self) -> dict[str, Tensor]:
        """The trainable parameters, on the CPU."""
        get = self._deepspeed.utils.safe_get_full_fp32_param
        return {
            name: get(parameter).detach().cpu().reshape(self._shapes[name]).contiguous()
            for name, parameter in self.trainable.items()
        }

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """The inverse of `weights`: both what the optimizer moves and what the model computes with."""
        for name, parameter in self.trainable.items():
            self._deepspeed.utils.safe_set_full_fp32_param(parameter, weights[name].to(self._engine.device))
            with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3):
                if self._stage < 3 or self._processes.is_rank0:
                    parameter.data.copy_(weights[name])
        torch.clear_autocast_cache()

    def optimizer_state(self) -> dict[str, dict[str, Any]]:
        """What the optimizer keeps of each parameter: tensors, on the CPU, and the number of steps."""
        [kept, *_] = [*self._base.state.values(), {}]
        split = [key for key, value in kept.items() if isinstance(value, Tensor) and value.dim()]
        alike = {key: value for key, value in kept.items() if key not in split}
        if not kept:
            return {}
        self._link()
        get = self._deepspeed.utils.safe_get_full_optimizer_state
        return {
            name: {
                **{key: get(parameter, key).detach().cpu().reshape(self._shapes[name]) for key in split},
                **{key: value.clone().cpu() if isinstance(value, Tensor) else value for key, value in alike.items()},
            }
            for name, parameter in self.trainable.items()
        }

    def set_optimizer_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """The inverse of `optimizer_state`."""
        if not state:
            return
        example = next(iter(state.values()))
        split = [key for key, value in example.items() if isinstance(value, Tensor) and value.dim()]
        for part in self._parts():
            self._base.state[part] = {
                key: torch.zeros_like(part) if key in split else value.clone() if isinstance(value, Tensor) else value
                for key, value in example.items()
            }
        self._link()
        put = self._deepspeed.utils.safe_set_full_optimizer_state
        for name, parameter in self.trainable.items():
            for key in split:
                put(parameter, state[name][key].to(self._engine.device), key)

    def full_module(self) -> nn.Module:
        """The model with all of its weights; of stage 3 a copy on the CPU, whole on rank 0 alone."""
        if self._skeleton is None:
            return self._module
        state = {}
        for name, parameter in self._module.named_parameters():
            with self._deepspeed.zero.GatheredParameters([parameter]):
                if self._processes.is_rank0:
                    state[name] = parameter.detach().cpu().clone()
        if self._processes.is_rank0:
            state |= {name: buffer.detach().cpu() for name, buffer in self._module.named_buffers()}
            self._skeleton.load_state_dict(state, strict=False, assign=True)
        tie = getattr(self._skeleton, "tie_weights", None)
        if tie is not None:
            tie()
        return self._skeleton

    def _parts(self) -> list[Tensor]:
        """This process's flat parts of the parameters, which the optimizer within DeepSpeed's moves."""
        if self._stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [part for group in self._base.param_groups for part in group["params"]]

    def _link(self) -> None:
        """Let DeepSpeed find each parameter's part of the state, which it does for the first parameter group alone."""
        if self._stage < 3:
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def _base(self) -> torch.optim.Optimizer:
        """The optimizer within DeepSpeed's, whose parameters are flat parts of many."""
        base: torch.optim.Optimizer = self._engine.optimizer.optimizer
        return base


@contextmanager
def quiet_building() -> Iterator[None]:
    """DeepSpeed compiles operations for this machine the first time, and tells of it by any way there is."""
    compiler = logging.getLogger("torch.utils.cpp_extension")
    level = compiler.level
    compiler.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        compiler.setLevel(level)


def torch_autocast(module: nn.Module) -> dict[str, Any]:
    """DeepSpeed switches autocast off within the model unless its configuration has it on too."""
    kind = next(module.parameters()).device.type
    if not torch.is_autocast_enabled(kind):
        return {}
    return {"torch_autocast": {"enabled": True, "dtype": str(torch.get_autocast_dtype(kind)).removeprefix("torch.")}}
