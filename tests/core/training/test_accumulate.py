"""A step's passes: gradients of the sum over micro-batches and processes, divided once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch, collate
from lmflow.data.sample import TokenSequence
from lmflow.distributed.processes import Processes
from lmflow.training.accumulate import Passes
from lmflow.training.loss import negative_log_likelihood
from lmflow.training.objective import FunctionObjective, Loss, NextToken


class Strategy:
    """What a strategy does in the passes, written down."""

    def __init__(self, module: nn.Module, *, is_split: bool = False) -> None:
        self.forward = module
        self.is_split = is_split
        self.synced: list[bool] = []
        self.losses: list[float] = []

    def gradient_sync(self, last: bool) -> Any:
        """Whether gradients are exchanged after this pass."""
        self.synced.append(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """The gradient."""
        self.losses.append(float(loss))
        loss.backward()  # type: ignore[no-untyped-call]


@pytest.fixture
def passes(tiny_model: Any) -> Any:
    def make(processes: Processes | None = None, compiled: Any = None) -> Passes:
        device = tiny_model.device
        return Passes(tiny_model.module, processes or Processes(), tiny_model.pad_id, device, nullcontext, compiled)

    return make


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def test_micro_batches_add_up_to_the_gradient_of_the_mean(passes: Any, tiny_model: Any, few_sequences: Any):
    module, groups = tiny_model.module, [(each,) for each in few_sequences]
    whole = collate(few_sequences, 2)
    (negative_log_likelihood(module, module, whole) / whole.num_targets).backward()
    expected = gradients(module)
    strategy = Strategy(module)
    batches = [collate(few_sequences[start : start + 5], 2) for start in (0, 5, 10)]
    sums = passes().accumulate(strategy, groups, batches, NextToken(), whole.num_targets)
    found = gradients(module)
    assert strategy.synced == [False, False, True]
    assert float(sums["loss"]) == pytest.approx(float(negative_log_likelihood(module, module, whole)), rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_wrappers_average_over_processes_so_the_loss_is_multiplied_by_them(passes: Any, tiny_model: Any, few_sequences):
    strategy = Strategy(tiny_model.module)
    batch = collate(few_sequences[:2], 2)
    sums = passes(Processes(0, 4)).accumulate(strategy, [(each,) for each in few_sequences], [batch], NextToken(), 10)
    assert strategy.losses == [pytest.approx(float(sums["loss"]) * 4 / 10, rel=1e-6)]


def test_metrics_are_added_up_and_carry_no_gradient(passes: Any, tiny_model: Any, few_sequences: Any):
    def objective(forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
        loss = negative_log_likelihood(forward, module, batch)
        rows = batch.input_ids.shape[0]
        return Loss(loss, {"twice": loss * 2, "rows": float(rows), **({"rare": 1.0} if rows == 2 else {})})

    batches = [collate(few_sequences[:3], 2), collate(few_sequences[3:5], 2)]
    groups = [(each,) for each in few_sequences[:5]]
    made = passes()
    sums = made.accumulate(Strategy(tiny_model.module), groups, batches, FunctionObjective(objective, "item"), 5)
    assert not any(value.requires_grad for value in sums.values())
    means = made.means(sums, 5)
    assert means["twice"] == pytest.approx(2 * means["loss"], rel=1e-6)
    assert (means["rows"], means["rare"]) == (1.0, 0.2)


class Two(Processes):
    """This process and another one, which found what it is told."""

    theirs: dict[str, float]

    def gather(self, value: Any) -> list[Any]:
        """Names of both."""
        return [value, list(self.theirs)]

    def max(self, value: float) -> float:
        """The other one has three passes."""
        return max(value, 3)


def test_means_have_the_names_of_every_process(passes: Any, monkeypatch: pytest.MonkeyPatch):
    asked: list[float] = []
    monkeypatch.setattr(Two, "theirs", {"loss": 0.0, "elsewhere": 0.0}, raising=False)
    monkeypatch.setattr(Two, "sum", lambda self, value: asked.append(value) or value + 1)
    means = passes(Two(0, 2)).means({"loss": torch.tensor(3.0), "here": torch.tensor(5.0)}, 2)
    assert means == {"loss": 2.0, "here": 3.0, "elsewhere": 0.5}
    assert asked == [3.0, 5.0, 0.0]


def test_where_the_model_is_split_a_process_makes_as_many_passes_as_the_others(
    passes: Any, tiny_model: Any, few_sequences: Any
):
    """The passes beyond its own add nothing to loss or gradient, but take part in the exchange."""
    groups, batch = [(each,) for each in few_sequences], collate(few_sequences[:2], 2)
    alone = Strategy(tiny_model.module)
    expected_sums = passes(Processes(0, 2)).accumulate(alone, groups, [batch], NextToken(), 9)
    expected = gradients(tiny_model.module)
    split = Strategy(tiny_model.module, is_split=True)
    sums = passes(Two(0, 2)).accumulate(split, groups, [batch], NextToken(), 9)
    found = gradients(tiny_model.module)
    assert split.synced == [False, False, True]
    assert split.losses[1:] == [0.0, 0.0]
    assert float(sums["loss"]) == float(expected_sums["loss"])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_process_without_items_adds_nothing_but_takes_part(passes: Any, tiny_model: Any, few_sequences: Any):
    made, groups = passes(Processes(3, 4)), [(each,) for each in few_sequences[:3]]

    def objective(forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
        return Loss(negative_log_likelihood(forward, module, collate(few_sequences, 2)), {"rows": 7.0})

    strategy = Strategy(tiny_model.module)
    sums = made.accumulate(strategy, groups, [made.idle_batch(groups)], FunctionObjective(objective), 5)
    assert {name: float(value) for name, value in sums.items()} == {"loss": 0.0, "rows": 0.0}
    assert strategy.losses == [0.0]
    found = gradients(tiny_model.module)
    assert found.keys() == dict(tiny_model.module.named_parameters()).keys()
    assert all(not gradient.any() for gradient in found.values())


def test_an_idle_batch_is_a_whole_item_without_targets(passes: Any, few_sequences: list[TokenSequence]):
    pair = (few_sequences[0], few_sequences[1])
    batch = passes().idle_batch([pair, (few_sequences[2], few_sequences[3])])
    assert [list(each.ids) for each in batch.sequences] == [list(each.ids) for each in pair]
    assert batch.num_targets == 0


def test_each_pass_is_made_in_the_context_of_compiled_layers(passes: Any, tiny_model: Any, few_sequences: Any):
    entered: list[str] = []

    class Compiled:
        def __enter__(self) -> None:
            entered.append("in")

        def __exit__(self, *_: object) -> None:
            entered.append("out")

    batches = [collate(few_sequences[:2], 2), collate(few_sequences[2:4], 2)]
    groups = [(each,) for each in few_sequences[:4]]
    passes(compiled=Compiled()).accumulate(Strategy(tiny_model.module), groups, batches, NextToken(), 4)
    assert entered == ["in", "out"] * 2
