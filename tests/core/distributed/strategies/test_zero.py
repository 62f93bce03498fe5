"""What DeepSpeed is asked for, with a stand-in for it; test_parallel.py has the real one in two processes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmflow.distributed.processes import Processes
from lmflow.distributed.strategies.zero import ZeRO, quiet_building, torch_autocast
from lmflow.errors import RecipeError


class Inner:
    """The optimizer within DeepSpeed's: it moves flat parts, and has state of them."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.state: dict[Any, dict[str, Any]] = {}
        self.param_groups = optimizer.param_groups


class Engine:
    """A DeepSpeed engine that writes down what it is told."""

    device = torch.device("cpu")

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> None:
        self.module, self.config = model, config
        self.optimizer = SimpleNamespace(
            optimizer=Inner(optimizer),
            fp32_partitioned_groups_flat=["part of stage 3"],
            _lazy_init_hp_params_optimizer_state=lambda: self.told.append("linked"),
        )
        self.told: list[Any] = []
        self.norm: float | None = 1.5

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        """Where a step ends."""
        self.told.append(("boundary", last))

    def backward(self, loss: Tensor) -> None:
        """The gradient."""
        self.told.append(("backward", float(loss)))

    def step(self) -> None:
        """Clip and move."""
        self.told.append("step")

    def get_global_grad_norm(self) -> float | None:
        """Before clipping."""
        return self.norm


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the library, which keeps values of parameters whole."""

    def initialize(*, model: nn.Module, optimizer: Any, config: dict[str, Any], dist_init_required: bool) -> Any:
        print("compiling operations, which takes a while")
        assert dist_init_required is False, "the processes have met already"
        return Engine(model, optimizer, config), None, None, None

    @contextmanager
    def gathered(parameters: list[nn.Parameter], **_: Any) -> Iterator[None]:
        yield

    states: dict[tuple[int, str], Tensor] = {}
    made = SimpleNamespace(
        initialize=initialize,
        zero=SimpleNamespace(GatheredParameters=gathered),
        utils=SimpleNamespace(
            safe_get_full_fp32_param=lambda parameter: parameter.detach().flatten(),
            safe_set_full_fp32_param=lambda parameter, value: parameter.data.copy_(value),
            safe_get_full_optimizer_state=lambda parameter, key: states[id(parameter), key].flatten(),
            safe_set_full_optimizer_state=lambda parameter, value, key: states.__setitem__((id(parameter), key), value),
        ),
    )
    monkeypatch.setitem(sys.modules, "deepspeed", made)
    return made


def make(stage: int = 2, limit: float | None = 0.5, processes: Processes | None = None) -> ZeRO:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    module[1].weight.requires_grad_(False)
    build = lambda named: torch.optim.SGD(named.values(), lr=0.1)  # noqa: E731
    return ZeRO(module, build, processes or Processes(), limit, stage=stage)


def test_without_deepspeed_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(
        RecipeError, match=r"launch.strategy: zero3 needs DeepSpeed; pip install 'lmflow-core\[deepspeed\]'"
    ):
        make(stage=3)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("limit", "clipping"), [(0.5, 0.5), (None, 0.0)])
def test_what_deepspeed_is_configured_with(
    stage: int, limit: float | None, clipping: float, deepspeed: Any, capsys: pytest.CaptureFixture[str]
):
    config = make(stage, limit)._engine.config
    assert config["zero_optimization"] == {"stage": stage}
    assert config["gradient_clipping"] == clipping
    assert config["gradient_accumulation_steps"] == 1
    assert "torch_autocast" not in config
    assert capsys.readouterr().out == "", "what it prints is not shown"


def test_only_what_trains_is_optimized_and_kept(deepspeed: Any):
    strategy = make()
    assert list(strategy.trainable) == ["0.weight", "0.bias", "1.bias"]
    assert strategy.weights().keys() == strategy.trainable.keys()


def test_a_step_is_what_deepspeed_does_when_it_clips(deepspeed: Any):
    strategy = make()
    assert strategy.is_split
    assert strategy.steps_when_clipping
    with strategy.gradient_sync(False):
        strategy.backward(torch.tensor(2.0))
    with strategy.gradient_sync(True):
        strategy.backward(torch.tensor(3.0))
    assert strategy.clip() == 1.5
    strategy.step()
    assert strategy._engine.told == [
        ("boundary", False),
        ("backward", 2.0),
        ("boundary", True),
        ("backward", 3.0),
        "step",
    ]
    strategy._engine.norm = None
    assert strategy.clip() == 0.0


def test_weights_come_back_in_their_shapes(deepspeed: Any):
    strategy = make()
    kept = {name: value.clone() for name, value in strategy.weights().items()}
    assert {name: value.shape for name, value in kept.items()} == {
        "0.weight": (3, 2),
        "0.bias": (3,),
        "1.bias": (1,),
    }
    strategy.set_weights({name: torch.zeros_like(value) for name, value in kept.items()})
    assert all(not value.any() for value in strategy.weights().values())
    strategy.set_weights(kept)
    assert all(torch.equal(strategy.weights()[name], value) for name, value in kept.items())


def test_the_optimizer_s_state_is_whole_by_name(deepspeed: Any):
    strategy = make()
    assert strategy.optimizer_state() == {}, "before the first step there is none"
    given = {
        name: {"exp_avg": torch.full(parameter.shape, float(i)), "step": torch.tensor(4.0), "times": 2}
        for i, (name, parameter) in enumerate(strategy.trainable.items())
    }
    strategy.set_optimizer_state(given)
    found = strategy.optimizer_state()
    assert found.keys() == given.keys()
    for name, entries in given.items():
        assert torch.equal(found[name]["exp_avg"], entries["exp_avg"])
        assert (float(found[name]["step"]), found[name]["times"]) == (4.0, 2)
    assert strategy._engine.told.count("linked") == 2, "DeepSpeed looks for each parameter's part anew"
    before = dict(strategy._base.state)
    strategy.set_optimizer_state({})
    assert strategy._base.state == before


def test_parts_of_stage_three_are_deepspeed_s(deepspeed: Any):
    assert make(3)._parts() == ["part of stage 3"]
    assert [part.shape for part in make(2)._parts()] == [(3, 2), (3,), (1,)]


def test_up_to_stage_two_the_model_is_whole_in_every_process(deepspeed: Any):
    strategy = make(2)
    assert strategy.full_module() is strategy._module


def test_of_stage_three_the_main_process_has_a_copy(deepspeed: Any):
    strategy = make(3)
    full = strategy.full_module()
    assert full is not strategy._module
    for name, parameter in strategy._module.named_parameters():
        assert torch.equal(dict(full.named_parameters())[name], parameter)
    other = make(3, processes=Processes(1, 2)).full_module()
    assert all(parameter.is_meta for parameter in other.parameters()), "the others take no memory for it"


def test_building_is_quiet_and_puts_the_logger_back(capsys: pytest.CaptureFixture[str]):
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    with suppress(ValueError), quiet_building():
        print("noise")
        assert logger.level == logging.ERROR
        raise ValueError("failed")
    assert logger.level == before
    assert capsys.readouterr().out == ""


def test_autocast_is_told_to_deepspeed():
    module = nn.Linear(2, 2)
    assert torch_autocast(module) == {}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch_autocast(module) == {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
