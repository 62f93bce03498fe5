"""A tuner that names other layers every few steps: all of them train, and what rests stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from lmflow.components import Tuner
from lmflow.data.collate import Batch, collate
from lmflow.data.packing import plan_epoch
from lmflow.data.sample import TokenSequence
from lmflow.errors import Interrupted, RecipeError, TrainingError
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.testing.contexts import trainer_setup
from lmflow.training.loss import negative_log_likelihood
from lmflow.training.objective import FunctionObjective
from lmflow.training.rotation import Rotation, rotates
from lmflow.training.setup import check_setup
from lmflow.training.trainer import Trainer

Make = Callable[..., Trainer]
NORM = "model.norm.weight"


class Plain(Tuner):
    """Trains all parameters at all steps."""

    name = "plain"

    def prepare(self, model: nn.Module) -> nn.Module:
        """All of them."""
        return model.requires_grad_(True)


class Rotating(Plain):
    """The last norm at every step, and one of two layers in turn, the embeddings at none."""

    name = "rotating"
    every: int = Field(2, description="Steps after which it is the other layer's turn.")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Layers and norm."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".layers." in name or name == NORM)
        return model

    def active(self, step: int, names: Sequence[str], seed: int) -> Collection[str]:
        """Layer 0 first, then layer 1, then layer 0 again."""
        layer = step // self.every % 2
        return [name for name in names if name == NORM or f".layers.{layer}." in name]


class Naming(Rotating):
    """Names what it is told to."""

    name = "naming"
    named: tuple[str, ...] = Field((), description="The names.")

    def active(self, step: int, names: Sequence[str], seed: int) -> Collection[str]:
        """What it was told."""
        return self.named


@pytest.fixture
def rotate(make_trainer: Make, tiny_model: Any) -> Make:
    def build(directory: str = "run", tuner: Tuner | None = None, **settings: Any) -> Trainer:
        tuner = tuner or Rotating()
        model = copy.deepcopy(tiny_model).prepare(tuner)
        return make_trainer(directory, model=model, tuner=tuner, **settings)

    return build


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.module.named_parameters()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def layer(name: str) -> str:
    return name.split(".")[2] if ".layers." in name else name


def with_state(trainer: Trainer) -> set[str]:
    """Parameters that the optimizer keeps something of."""
    return set(trainer._strategy.optimizer_state())


def watch(trainer: Trainer, look: Callable[[], None]) -> None:
    """Have `look` called after each optimizer step, before anything else happens."""
    record = trainer.log.step

    def step(values: Any) -> None:
        record(values)
        look()

    trainer.log.step = step  # type: ignore[method-assign]


def test_only_tuners_with_an_active_of_their_own_rotate():
    assert not rotates(None)
    assert not rotates(Plain())
    assert rotates(Rotating())


def test_each_interval_moves_its_layer_and_the_norm_and_nothing_else(rotate: Make, few_sequences: list[TokenSequence]):
    trainer = rotate()
    seen = [weights(trainer)]
    watch(trainer, lambda: seen.append(weights(trainer)))
    trainer.plan(6)
    trainer.fit(few_sequences, steps=6)
    layers = [{layer(name) for name in moved(a, b)} for a, b in pairwise(seen)]
    assert layers == [{"0", NORM}] * 2 + [{"1", NORM}] * 2 + [{"0", NORM}] * 2
    trainable = {name for name, p in trainer.model.module.named_parameters() if p.requires_grad}
    assert moved(seen[0], seen[-1]) == trainable, "every parameter the tuner declared has trained"


def test_what_rests_has_no_gradient_and_no_optimizer_state(rotate: Make, few_sequences: list[TokenSequence]):
    trainer = rotate()
    found: list[tuple[set[str], set[str]]] = []

    def objective(forward: nn.Module, module: nn.Module, batch: Batch) -> Tensor:
        wanting = {layer(name) for name, p in module.named_parameters() if p.requires_grad}
        assert all(p.grad is None for p in module.parameters() if not p.requires_grad)
        found.append((wanting, {layer(name) for name in with_state(trainer)}))
        return negative_log_likelihood(forward, module, batch)

    trainer.plan(5)
    trainer.fit(few_sequences, steps=5, objective=FunctionObjective(objective))
    first, second = {"0", NORM}, {"1", NORM}
    assert [wanting for wanting, _ in found] == [first, first, second, second, first]
    # When the second interval begins, only the norm's state is left of the first.
    assert [state for _, state in found] == [set(), first, {NORM}, second, {NORM}]


def test_after_training_all_declared_parameters_want_gradients_again(rotate: Make, few_sequences: list[TokenSequence]):
    trainer = rotate()
    declared = {name for name, p in trainer.model.module.named_parameters() if p.requires_grad}
    trainer.plan(3)
    trainer.fit(few_sequences, steps=3)
    assert {name for name, p in trainer.model.module.named_parameters() if p.requires_grad} == declared


def test_it_equals_a_plain_loop_that_begins_the_optimizer_of_a_layer_anew(
    rotate: Make, few_sequences: list[TokenSequence]
):
    """Torch's AdamW by hand: one for the norm that lasts, and a fresh one for the layer of each interval."""
    trainer = rotate(max_grad_norm=None, learning_rate=3e-3)
    module = copy.deepcopy(trainer.model.module).train()
    trainer.plan(6)
    trainer.fit(few_sequences, steps=6)
    named = dict(module.named_parameters())
    lasting = torch.optim.AdamW([named[NORM]], lr=3e-3, weight_decay=0.0)
    order = [chosen for epoch in (0, 1) for chosen in plan_epoch(len(few_sequences), 4, 0, epoch)]
    for step in range(6):
        if step % 2 == 0:
            active = [p for name, p in named.items() if layer(name) == str(step // 2 % 2)]
            fresh = torch.optim.AdamW(active, lr=3e-3, weight_decay=0.0)
        batch = collate([few_sequences[i] for i in order[step]], 2)
        (negative_log_likelihood(module, module, batch) / batch.num_targets).backward()
        lasting.step()
        fresh.step()
        module.zero_grad()
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, named[name].detach(), rtol=0, atol=2e-6)


def test_a_checkpoint_holds_what_trains_now_and_what_rests(rotate: Make, few_sequences: list[TokenSequence], tmp_path):
    from safetensors.torch import load_file

    trainer = rotate(checkpoint_every=3, keep_checkpoints=9)
    trainer.plan(4)
    trainer.fit(few_sequences, steps=4)
    declared = {name for name, p in trainer.model.module.named_parameters() if p.requires_grad}
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-000003" / "trainable.safetensors")
    assert saved.keys() == declared


@pytest.mark.parametrize("stop", [2, 3], ids=["between two intervals", "in the midst of one"])
def test_resumed_it_ends_with_the_same_weights_to_the_bit(
    stop: int, rotate: Make, few_sequences: list[TokenSequence], metrics_of: Any
):
    whole = rotate("whole", checkpoint_every=2)
    whole.plan(7)
    whole.fit(few_sequences, steps=7)
    cut = rotate("cut")
    watch(cut, lambda: setattr(cut.log, "stop_signal", 2 if cut.step == stop else None))
    cut.plan(7)
    with pytest.raises(Interrupted):
        cut.fit(few_sequences, steps=7)
    resumed = rotate("cut", resume=True)
    assert resumed.step == stop
    resumed.plan(7)
    resumed.fit(few_sequences, steps=7, start=0)
    assert moved(weights(whole), weights(resumed)) == set()
    assert [line["loss"] for line in metrics_of("cut")] == [line["loss"] for line in metrics_of("whole")]
    assert with_state(resumed) == with_state(whole)


def test_one_call_a_step_equals_one_call(rotate: Make, few_sequences: list[TokenSequence]):
    """Aligners that sample between steps call `fit` again and again in the midst of an interval."""
    whole, pieces = rotate("whole"), rotate("pieces")
    for trainer in (whole, pieces):
        trainer.plan(6)
    whole.fit(few_sequences, steps=6)
    for steps in range(1, 7):
        pieces.fit(few_sequences, steps=steps, start=0)
    assert moved(weights(whole), weights(pieces)) == set()


def test_it_trains_with_gradient_checkpointing_and_small_micro_batches_alike(
    rotate: Make, few_sequences: list[TokenSequence]
):
    """The embeddings want no gradient, so that recomputed layers get inputs without one."""
    plain, other = rotate("plain"), rotate("other", gradient_checkpointing=True, micro_batch_size=1)
    for trainer in (plain, other):
        trainer.plan(4)
        trainer.fit(few_sequences, steps=4)
    expected = weights(plain)
    for name, value in weights(other).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (("model.layers.9.q",), r"tuner naming: active\(\) names model.layers.9.q at step 1, which is none of"),
        (
            (NORM, "model.embed_tokens.weight"),
            r"names model.embed_tokens.weight at step 1, .*requires_grad from prepare",
        ),
        ((), r"tuner naming: active\(\) names no parameter at step 1\."),
    ],
    ids=["unknown", "frozen", "empty"],
)
def test_names_that_cannot_train_are_an_error(
    named: tuple[str, ...], message: str, rotate: Make, few_sequences: list[TokenSequence]
):
    trainer = rotate(tuner=Naming(named=named))
    before = weights(trainer)
    trainer.plan(2)
    with pytest.raises(TrainingError, match=message):
        trainer.fit(few_sequences, steps=2)
    assert moved(before, weights(trainer)) == set()


def test_none_stands_for_all(few_sequences: list[TokenSequence], rotate: Make):
    """A tuner may rotate for a while, and then train everything."""

    class Later(Rotating):
        name = "later"

        def active(self, step: int, names: Sequence[str], seed: int) -> Collection[str] | None:
            return None if step else [NORM]

    trainer = rotate(tuner=Later())
    seen = [weights(trainer)]
    watch(trainer, lambda: seen.append(weights(trainer)))
    trainer.plan(2)
    trainer.fit(few_sequences, steps=2)
    assert moved(seen[0], seen[1]) == {NORM}
    assert {layer(name) for name in moved(seen[1], seen[2])} == {"0", "1", NORM}


def test_a_tuner_without_active_is_never_asked(rotate: Make, few_sequences: list[TokenSequence]):
    trainer = rotate(tuner=Plain())
    trainer._rotation.switch(0, None)  # type: ignore[arg-type]  # nothing to switch: no strategy is needed
    seen = weights(trainer)
    trainer.plan(1)
    trainer.fit(few_sequences, steps=1)
    assert moved(seen, weights(trainer)) == set(seen)


def test_active_is_given_the_step_the_names_and_the_seed(tiny_model: Any):
    asked: list[Any] = []

    class Asking(Rotating):
        name = "asking"

        def active(self, step: int, names: Sequence[str], seed: int) -> Collection[str]:
            asked.append((step, list(names), seed))
            return names

    class Strategy:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        wrapped = 0

        def rewrap(self) -> None:
            self.wrapped += 1

    trainable = {name: p for name, p in tiny_model.module.named_parameters() if ".layers.0." in name}
    rotation, strategy = Rotation(Asking(), trainable, seed=11), Strategy()
    for step in (0, 1, 2):
        rotation.switch(step, strategy)  # type: ignore[arg-type]
    assert asked == [(step, list(trainable), 11) for step in (0, 1, 2)]
    assert strategy.wrapped == 1, "nothing is set up anew while the same parameters train"


@pytest.mark.parametrize("strategy", ["fsdp", "zero1", "zero2", "zero3"])
def test_strategies_that_split_parameters_refuse_it(strategy: str):
    setup = trainer_setup(tuner=Rotating(), strategy=strategy)
    with pytest.raises(RecipeError, match=rf"launch.strategy: .*other steps, which {strategy} cannot switch; use ddp"):
        check_setup(TrainingOptions(), setup, 2)
    check_setup(TrainingOptions(), setup, 1)
    check_setup(TrainingOptions(), trainer_setup(tuner=Plain(), strategy=strategy), 2)


def test_a_whole_run_with_such_a_tuner_completes(tmp_path, model_directory):
    from lmflow.run.run import run
    from lmflow.testing.runs import plugins_with, resolve_settings, write_records

    rows = [{"prompt": f"Say {i}", "answer": f"{i} {i}"} for i in range(9)]
    settings = {
        "model.name": "pretrained",
        "model.path": str(model_directory),
        "data.path": str(write_records(tmp_path / "rows.jsonl", rows)),
        "tuner.name": "rotating",
        "tuner.every": 1,
        "training.device": "cpu",
        "training.precision": "fp32",
        "training.batch_size": 3,
        "training.epochs": 1,
        "aligner.max_new_tokens": 2,
    }
    plugins = plugins_with(Rotating)
    result = run(resolve_settings(plugins, settings), plugins, output=tmp_path / "run", estimate=False)
    assert result.status == "completed"
    assert result.record["metrics"]["steps"] == 3

    from transformers import AutoModelForCausalLM

    before, after = (
        dict(AutoModelForCausalLM.from_pretrained(place).named_parameters())
        for place in (model_directory, tmp_path / "run" / "model")
    )
    assert {layer(name) for name in moved(before, after)} == {"0", "1", NORM}
