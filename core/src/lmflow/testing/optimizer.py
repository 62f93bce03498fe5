"""The conformance suite for optimizers: what every optimizer promises to the trainer and to checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from lmflow.components import Optimizer
from lmflow.testing.comparing import different, same_bits, some
from lmflow.testing.runs import supply

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 12
"""Steps of what is compared to the bit."""


class OptimizerSuite:
    """An examination of one optimizer; inherit from it in a class whose name begins with Test, and supply it.

        from lmflow.testing import OptimizerSuite

        class TestMyOptimizer(OptimizerSuite):
            learning_rate = 0.05

            @pytest.fixture
            def optimizer(self):
                return MyOptimizer(beta=0.9)

    Each test is one requirement, and its docstring says which. The optimizer moves a matrix and a vector of a
    least-squares problem, in groups as a trainer makes them; no model is needed.
    """

    learning_rate: ClassVar[float] = 0.05
    """A rate at which `steps` steps bring the loss of the problem down to a half."""
    steps: ClassVar[int] = 60
    """Steps in which the loss has to fall to a half."""
    moves_parts_alike: ClassVar[bool] = True
    """Whether a part of a parameter moves as it does within the whole, as when several processes split it; False for
    those that look at a whole matrix (Muon), which then go with `--launch.strategy ddp` alone."""

    @pytest.fixture
    def optimizer(self) -> Optimizer:
        """The optimizer under examination; every suite supplies its own."""
        supply(self, "optimizer")

    # What a step does

    def test_every_parameter_is_in_a_group(self, optimizer: Optimizer) -> None:
        """`build` takes groups with `params`, `names`, `lr`, `initial_lr`, `weight_decay`, and keeps all of them."""
        from lmflow.testing.regression import begin

        strategy = begin(optimizer, self.learning_rate, weight_decay=0.1)
        held = {id(parameter) for group in strategy.optimizer.param_groups for parameter in group["params"]}
        lost = sorted(name for name, parameter in strategy.trainable.items() if id(parameter) not in held)
        assert not lost, (
            f"expected every parameter in the optimizer's param_groups; found none for {some(lost)}. Usual cause: "
            "build() looks at the first group only."
        )
        without = [n for n, group in enumerate(strategy.optimizer.param_groups) if not {"lr", "initial_lr"} <= {*group}]
        assert not without, (
            f"expected `lr` and `initial_lr` in every group, by which a trainer sets the rate; found groups {without} "
            "without. Usual cause: groups made anew instead of copied with what they hold."
        )

    def test_it_moves_down_a_loss(self, optimizer: Optimizer) -> None:
        """`steps` steps at `learning_rate` at least halve a loss that any gradient method minimises."""
        from lmflow.testing.regression import begin, mean_loss, take_steps

        strategy = begin(optimizer, self.learning_rate)
        before = mean_loss(strategy)
        take_steps(strategy, 0, self.steps)
        after = mean_loss(strategy)
        assert after < before / 2, (
            f"expected {self.steps} steps at rate {self.learning_rate:g} to halve the loss of {before:.4f}; found "
            f"{after:.4f}. Usual cause: the wrong sign, state that is never updated, or a rate that does not suit the "
            "optimizer (set the suite's `learning_rate`)."
        )

    def test_it_repeats(self, optimizer: Optimizer) -> None:
        """Two trainings from one start end with the same parameters to the bit, and draw no numbers of torch's."""
        import torch

        torch.manual_seed(0)
        before = torch.random.get_rng_state()
        first = self._trained(optimizer)
        assert torch.equal(before, torch.random.get_rng_state()), (
            "expected a step to leave torch's random numbers alone; they moved on. Usual cause: noise or stochastic "
            "rounding from the global generator; use one of its own, seeded by the step."
        )
        torch.manual_seed(1)
        changed = different(self._trained(optimizer), first)
        assert not changed, (
            f"expected two trainings to end alike to the bit; found {some(changed)} different. Usual cause: random "
            "numbers without a fixed seed, or state shared between two optimizers of one component."
        )

    def test_the_rate_of_a_group_is_honoured(self, optimizer: Optimizer) -> None:
        """Setting `lr` in a group takes effect at the next step: at 0 nothing moves, at half of it less does."""
        from lmflow.testing.regression import begin, push

        distances = {}
        for share in (1.0, 0.5, 0.0):
            strategy = begin(optimizer, self.learning_rate, weight_decay=0.1)
            before = strategy.weights()["weight"].clone()
            for group in strategy.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
            push(strategy)
            distances[share] = float((strategy.weights()["weight"] - before).norm())
        assert distances[0.0] == 0 < distances[0.5] < distances[1.0], (
            f"expected no movement at rate 0 and less at half the rate; found {distances} by share of the rate. Usual "
            "cause: the rate is read in __init__, or is not multiplied with the update or the weight decay."
        )

    def test_groups_have_rates_of_their_own(self, optimizer: Optimizer) -> None:
        """A group whose `lr` is 0 stays while the other moves."""
        from lmflow.testing.regression import begin, push

        strategy = begin(optimizer, self.learning_rate, weight_decay=0.1)
        before = {name: tensor.clone() for name, tensor in strategy.weights().items()}
        for group in strategy.optimizer.param_groups:
            group["lr"] = 0.0 if "bias" in group["names"] else group["lr"]
        push(strategy)
        changed = different(strategy.weights(), before)
        assert changed == ["weight"], (
            f"expected the group with a rate to move and the one at 0 to stay; found {changed} moved. Usual cause: one "
            "group's rate is used for all (param_groups[0])."
        )

    def test_weight_decay_is_honoured(self, optimizer: Optimizer) -> None:
        """`weight_decay` of a group makes its parameters smaller than without, and leaves other groups alone."""
        from lmflow.testing.regression import begin, push

        found = {}
        for decay in (0.0, 0.5):
            strategy = begin(optimizer, self.learning_rate, weight_decay=decay)
            for _ in range(5):
                push(strategy, scale=0.01)
            found[decay] = {name: tensor.clone() for name, tensor in strategy.weights().items()}
        norms = {decay: float(weights["weight"].norm()) for decay, weights in found.items()}
        assert norms[0.5] < norms[0.0], (
            f"expected weight decay to make the matrix smaller; found norms {norms} by decay. Usual cause: the decay "
            "is read from the optimizer's own defaults instead of the group."
        )
        assert same_bits(found[0.0]["bias"], found[0.5]["bias"]), (
            "expected the vector, whose group has no decay, to move as without; it does not. Usual cause: one decay "
            "for all groups."
        )

    def test_a_parameter_without_gradient_is_left_alone(self, optimizer: Optimizer) -> None:
        """Where `grad` is None nothing moves, and state that was dropped meanwhile is made anew: `Tuner.active`."""
        import torch

        from lmflow.testing.regression import begin, push

        strategy = begin(optimizer, self.learning_rate, weight_decay=0.1)
        push(strategy)
        resting = strategy.trainable["weight"]
        resting.requires_grad_(False)
        strategy.optimizer.state.pop(resting, None)
        before = resting.detach().clone()
        for _ in range(2):
            strategy.trainable["bias"].grad = torch.ones_like(strategy.trainable["bias"])
            strategy.step()
        assert same_bits(resting.detach(), before), (
            "expected a parameter without gradient to stay as it is; it moved. Usual cause: weight decay or momentum "
            "applied before looking whether grad is None."
        )
        resting.requires_grad_(True)
        push(strategy)
        moved = resting.detach()
        holds = bool(moved.isfinite().all()) and not same_bits(moved, before)
        assert holds, (
            "expected a parameter whose state was dropped to move again once it has a gradient; it did not, or not to "
            "finite values. Usual cause: state made in __init__ instead of at a parameter's first step."
        )

    def test_gradients_of_every_size_are_taken(self, optimizer: Optimizer) -> None:
        """Float32 parameters stay float32 and finite under gradients of 0, of 1e-12 and of 1e4."""
        import torch

        from lmflow.testing.regression import begin, push

        for scale in (0.0, 1e-12, 1e4):
            strategy = begin(optimizer, self.learning_rate)
            for _ in range(3):
                push(strategy, scale)
            for name, tensor in strategy.weights().items():
                assert tensor.dtype == torch.float32, f"expected {name} to stay float32; found {tensor.dtype}"
                assert bool(tensor.isfinite().all()), (
                    f"expected {name} to be finite after gradients of {scale:g}; it is not. Usual cause: a division "
                    "without a term against zero."
                )

    # What is kept

    def test_state_is_tensors_and_numbers(self, optimizer: Optimizer) -> None:
        """A parameter's state is tensors of its shape, or of one number, and plain numbers: what checkpoints hold."""
        from lmflow.testing.regression import begin, take_steps

        strategy = begin(optimizer, self.learning_rate)
        take_steps(strategy, 0, 2)
        for name, parameter in strategy.trainable.items():
            for key, value in strategy.optimizer.state.get(parameter, {}).items():
                fine = isinstance(value, int | float | type(None)) or (
                    hasattr(value, "shape") and (value.shape == parameter.shape or value.numel() == 1)
                )
                what = f"a tensor of shape {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)[:80]
                holds = fine and isinstance(key, str) and "/" not in key
                assert holds, (
                    f"expected state[{key!r}] of {name} to be a tensor of shape {tuple(parameter.shape)}, one number, "
                    f"or None, under a name without a slash; found {what}. Usual cause: history kept in a list; keep "
                    "one tensor of the parameter's shape for each entry."
                )

    def test_a_resumed_training_equals_an_uninterrupted_one(self, optimizer: Optimizer, tmp_path: Path) -> None:
        """State written to a checkpoint of lmflow's and read into a new optimizer continues to the bit."""
        from lmflow.testing.regression import begin, take_steps
        from lmflow.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

        begun = begin(optimizer, self.learning_rate, weight_decay=0.1)
        take_steps(begun, 0, STEPS // 2)
        checkpoint = Checkpoint(begun.weights(), begun.optimizer_state(), {})
        try:
            saved = load_checkpoint(save_checkpoint(tmp_path, STEPS // 2, checkpoint, keep=1))
        except (TypeError, ValueError) as error:
            pytest.fail(
                f"expected the state to go into a checkpoint; found {type(error).__name__}: {error}", pytrace=False
            )
        resumed = begin(optimizer, self.learning_rate, weight_decay=0.1)
        resumed.set_weights(saved.weights)
        resumed.set_optimizer_state(saved.optimizer)
        take_steps(resumed, STEPS // 2, STEPS)
        changed = different(resumed.weights(), self._trained(optimizer, weight_decay=0.1))
        assert not changed, (
            f"expected training to go on from a checkpoint to the bit; found {some(changed)} different. Usual cause: "
            "state kept in param_groups or on the optimizer instead of state[parameter], such as a step count."
        )

    def test_bytes_per_parameter_is_what_it_takes(self, optimizer: Optimizer) -> None:
        """`bytes_per_parameter` is within a tenth of what the state of a matrix takes: `lmflow plan` adds it up."""
        import torch

        from lmflow.testing.regression import build_for, parameters_of

        built = build_for(optimizer, {"weight": torch.ones(128, 256)}, self.learning_rate)
        weight = parameters_of(built)["weight"]
        weight.grad = torch.ones_like(weight)
        built.step()
        tensors = [value for value in built.state.get(weight, {}).values() if isinstance(value, torch.Tensor)]
        measured = sum(value.numel() * value.element_size() for value in tensors) / weight.numel()
        declared = optimizer.bytes_per_parameter()
        assert math.isclose(declared, measured, rel_tol=0.1, abs_tol=0.01), (
            f"expected bytes_per_parameter() to be within a tenth of {measured:.2f}; found {declared:.2f}. Usual "
            "cause: the default of Adam (8) is not overridden."
        )

    def test_modes_can_be_switched(self, optimizer: Optimizer) -> None:
        """An optimizer with `train` has `eval` too; a look at the parameters in eval mode changes no later step."""
        from lmflow.testing.regression import begin, mean_loss, switch, take_steps

        strategy = begin(optimizer, self.learning_rate)
        modes = [mode for mode in ("train", "eval") if hasattr(strategy.optimizer, mode)]
        assert len(modes) != 1, f"expected both train() and eval() of an optimizer with modes; found {modes[0]}() only"
        take_steps(strategy, 0, STEPS // 2)
        for _ in range(2):
            switch(strategy, "eval")
        assert math.isfinite(mean_loss(strategy)), "expected finite parameters in eval mode; they are not"
        for _ in range(2):
            switch(strategy, "train")
        take_steps(strategy, STEPS // 2, STEPS)
        straight = self._trained(optimizer)
        off = max(float((tensor - straight[name]).abs().max()) for name, tensor in strategy.weights().items())
        assert off < 1e-5, (
            f"expected training to go on as if nobody had looked in eval mode; found a parameter off by {off:.3g}. "
            "Usual cause: eval() called twice moves the parameters twice; remember the mode."
        )

    def test_a_part_moves_as_within_the_whole(self, optimizer: Optimizer) -> None:
        """A flattened half of a matrix moves as it does in the whole; with `moves_parts_alike = False` it must not."""
        import torch

        from lmflow.testing.regression import build_for, parameters_of

        generator = torch.Generator().manual_seed(0)
        whole = torch.randn(8, 8, generator=generator)
        gradients = torch.randn(3, 8, 8, generator=generator)
        ends = []
        for shape in ((1, 8, 8), (2, 32)):
            named = {f"part{n}": part for n, part in enumerate(whole.reshape(shape))}
            built = build_for(optimizer, named, self.learning_rate)
            held = parameters_of(built)
            for gradient in gradients:
                for (_, parameter), part in zip(sorted(held.items()), gradient.reshape(shape)):
                    parameter.grad = part.clone()
                built.step()
            ends.append(torch.cat([held[name].detach().flatten() for name in sorted(held)]))
        off = float((ends[0] - ends[1]).abs().max())
        assert (off < 1e-6) == self.moves_parts_alike, (
            f"expected halves of a matrix to move {'as' if self.moves_parts_alike else 'otherwise than'} within the "
            f"whole, as the suite's `moves_parts_alike` says; found a difference of {off:.3g}. Usual cause: norms or "
            "factors over the whole parameter; such an optimizer declares moves_parts_alike = False."
        )

    def _trained(self, optimizer: Optimizer, weight_decay: float = 0.0) -> dict[str, Tensor]:
        """The parameters after some steps in a row."""
        from lmflow.testing.regression import begin, take_steps

        strategy = begin(optimizer, self.learning_rate, weight_decay=weight_decay)
        take_steps(strategy, 0, STEPS)
        return {name: tensor.clone() for name, tensor in strategy.weights().items()}
