"""The loop against a plain PyTorch loop, itself split differently, itself resumed, and itself in two processes."""

import copy
import json
import math
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmflow.data.packing import plan_epoch
from lmflow.data.sample import TokenSequence
from lmflow.distributed.strategies.base import trainable_parameters
from lmflow.errors import Interrupted, RecipeError, TrainingError
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.run.directory import RunDirectory
from lmflow.run.log import RunLog
from lmflow.testing.contexts import trainer_setup
from lmflow.training.compiling import CompiledLayers
from lmflow.training.objective import FunctionObjective
from lmflow.training.optimizer import parameter_groups
from lmflow.training.trainer import Trainer

Make = Callable[..., Trainer]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")


@pytest.fixture
def sequences() -> list[TokenSequence]:
    """30 sequences of 4 to 24 tokens, of which very different shares are trained."""
    made, draw = [], random.Random(0)
    for i in range(30):
        length = draw.randint(4, 24)
        prompt = draw.randint(1, length - 1)
        ids = [draw.randint(3, 300) for _ in range(length)]
        made.append(TokenSequence(ids, [False] * prompt + [True] * (length - prompt), f"s{i}"))
    return made


@pytest.fixture
def make(tmp_path: Path, tiny_model: Any) -> Make:
    def build(model: Any = None, directory: str = "run", resume: bool = False, **settings: Any) -> Trainer:
        names = (
            "packing",
            "max_length",
            "keep_start_weights",
            "precision",
            "heldout",
            "schedule",
            "warmup",
            "weight_decay",
        )
        extra = {"warmup": 2, **{name: settings.pop(name) for name in names if name in settings}}
        options = TrainingOptions(**{"batch_size": 6, "learning_rate": 1e-3, **settings})
        place = RunDirectory(tmp_path / directory, resume=resume)
        place.write_record({"status": "running"})
        log = RunLog(place, lambda *_, **__: None)
        trainer = Trainer(copy.deepcopy(model or tiny_model), options, log, place.checkpoints, trainer_setup(**extra))
        if resume:
            trainer.restore()
        place.close()
        return trainer

    return build


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.module.named_parameters()}


def assert_equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def plain_loop(module: nn.Module, sequences: list[TokenSequence], steps: int, trainer: Trainer) -> list[float]:
    """The textbook loop: every sample alone, every logit, torch's AdamW; nothing of lmflow's but the sample order."""
    options, setup = trainer.options, trainer.setup
    order = []
    epoch = 0
    while len(order) < steps:
        order += plan_epoch(len(sequences), options.batch_size, options.seed, epoch)
        epoch += 1
    matrices = [p for p in module.parameters() if p.dim() >= 2]
    vectors = [p for p in module.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": setup.optimizer.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    module.train()
    for step in range(steps):
        chosen = [sequences[i] for i in order[step]]
        targets = sum(sum(s.loss_mask[1:]) for s in chosen)
        total = torch.zeros(())
        for s in chosen:
            logits = module(torch.tensor([s.ids])).logits[0].log_softmax(-1)
            for position in range(1, len(s)):
                if s.loss_mask[position]:
                    total = total - logits[position - 1, s.ids[position]]
        (total / targets).backward()
        nn.utils.clip_grad_norm_(module.parameters(), options.max_grad_norm)
        factor = setup.schedule.rate(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total.detach()) / targets)
    return losses


def first_gradients(trainer: Trainer, sequences: list[TokenSequence]) -> dict[str, torch.Tensor]:
    """The gradient of the first step, as it is before it is clipped."""
    found = {}

    def keep() -> float:
        found.update({name: p.grad.clone() for name, p in trainer._strategy.trainable.items()})
        return 1.0

    trainer._strategy.clip = keep  # type: ignore[method-assign]
    trainer.plan(1)
    trainer.fit(sequences, steps=trainer.total_steps or trainer.steps_for(len(sequences), 1), start=0)
    return found


@pytest.mark.parametrize(
    "split",
    [
        {"micro_batch_size": 1},
        {"micro_batch_size": 3},
        {"packing": True, "max_length": 64},
        {"gradient_checkpointing": True},
        pytest.param({"compile": True}, marks=[pytest.mark.slow, needs_compiler]),
        pytest.param({"compile": True, "gradient_checkpointing": True}, marks=[pytest.mark.slow, needs_compiler]),
    ],
    ids=str,
)
def test_loss_and_gradients_do_not_depend_on_how_a_step_is_computed(split, make: Make, sequences, tmp_path: Path):
    """To 1e-6 of their size, in float32: eight passes of one sample against one of eight, and so on."""
    expected = first_gradients(make(directory="one", batch_size=8, micro_batch_size=8), sequences)
    found = first_gradients(make(directory="other", batch_size=8, **split), sequences)
    losses = [metrics(tmp_path / each)[0]["loss"] for each in ("one", "other")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-6 * float(gradient.norm()), name


@needs_compiler
@pytest.mark.slow
def test_compiled_layers_train_as_the_others_do_and_are_seen_by_nothing_else(make: Make, sequences, tmp_path: Path):
    runs = {name: make(directory=name, compile=name == "compiled") for name in ("plain", "compiled")}
    for trainer in runs.values():
        trainer.plan(6)
        trainer.fit(sequences, steps=trainer.total_steps or trainer.steps_for(len(sequences), 2), start=0)
    both = [[m["loss"] for m in metrics(tmp_path / name)] for name in runs]
    assert both[0] == pytest.approx(both[1], abs=1e-5)
    assert_equal_weights(*map(weights, runs.values()), tolerance=1e-4)
    layers = runs["compiled"].model.module.model.layers
    assert all("forward" not in vars(layer) for layer in layers)
    assert weights(runs["compiled"]).keys() == weights(runs["plain"]).keys()


def test_a_model_without_named_layers_is_not_compiled():
    with pytest.raises(RecipeError, match=r"training.compile: a model of type Linear does not"):
        CompiledLayers(nn.Linear(2, 2))


def test_bf16_trains_close_to_fp32_and_keeps_float32_weights(make: Make, sequences, tmp_path: Path):
    """The computation is in bfloat16, whose steps are of 1/256; weights and the optimizer's state are not."""
    runs = {precision: make(directory=precision, precision=precision) for precision in ("fp32", "bf16")}
    for trainer in runs.values():
        trainer.plan(20)
        trainer.fit(sequences, steps=trainer.total_steps or trainer.steps_for(len(sequences), 4), start=0)
    exact, short = ([m["loss"] for m in metrics(tmp_path / name)] for name in runs)
    assert short == pytest.approx(exact, rel=0.02)
    assert short != exact
    assert short[-1] < short[0]
    trainer = runs["bf16"]
    state = trainer._strategy.optimizer_state()
    kept = [*weights(trainer).values(), *(v for each in state.values() for v in each.values())]
    assert {value.dtype for value in kept} == {torch.float32}


@pytest.mark.parametrize(
    "split",
    [
        {"micro_batch_size": 6},
        {"micro_batch_size": 1},
        {"micro_batch_size": 4},
        {"packing": True, "max_length": 40},
        {"gradient_checkpointing": True},
    ],
)
def test_twenty_steps_equal_a_plain_loop(split, make: Make, sequences, tiny_model, tmp_path: Path):
    reference = copy.deepcopy(tiny_model.module)
    trainer = make(weight_decay=0.1, max_grad_norm=0.5, **split)
    expected = plain_loop(reference, sequences, 20, trainer)
    trainer.plan(20)
    trainer.fit(sequences, steps=trainer.total_steps or trainer.steps_for(len(sequences), 4), start=0)
    losses = [m["loss"] for m in metrics(tmp_path / "run")]
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < losses[0]
    assert_equal_weights(weights(trainer), dict(reference.named_parameters()))


def test_a_mean_per_micro_batch_would_be_wrong(make: Make, sequences):
    """The trap this loop avoids is real on this data: means of micro-batches differ from the mean over tokens."""
    trainer = make()
    batches = [sequences[:1], sequences[1:6]]
    means = [trainer.evaluate(batch) for batch in batches]
    assert abs(sum(means) / 2 - trainer.evaluate(sequences[:6])) > 1e-3


def test_evaluation_is_the_mean_over_tokens(make: Make, sequences):
    trainer = make()
    each = [(trainer.evaluate([s]), s.num_targets) for s in sequences]
    expected = sum(loss * count for loss, count in each) / sum(count for _, count in each)
    assert trainer.evaluate(sequences) == pytest.approx(expected, rel=1e-6)


def test_resume_repeats_nothing_and_skips_nothing(make: Make, sequences, tmp_path: Path):
    whole = make(directory="whole")
    whole.plan(12)
    whole.fit(sequences, steps=whole.total_steps or whole.steps_for(len(sequences), 3), start=0)

    first = make(directory="cut", checkpoint_every=5)
    first.plan(12)
    stop_at(first, 7)
    with pytest.raises(Interrupted):
        first.fit(sequences, steps=first.total_steps or first.steps_for(len(sequences), 3), start=0)
    second = make(directory="cut", resume=True, checkpoint_every=5)
    assert second.step == 7
    second.plan(12)
    second.fit(sequences, steps=second.total_steps or second.steps_for(len(sequences), 3), start=0)

    assert [m["loss"] for m in metrics(tmp_path / "cut")] == [m["loss"] for m in metrics(tmp_path / "whole")]
    assert_equal_weights(weights(second), weights(whole), tolerance=0)


def test_resume_after_a_kill_between_checkpoints(make: Make, sequences, tmp_path: Path):
    whole = make(directory="whole")
    whole.plan(9)
    whole.fit(sequences, steps=whole.total_steps or whole.steps_for(len(sequences), 3), start=0)

    killed = make(directory="cut", checkpoint_every=4)
    killed.plan(9)
    with pytest.raises(ZeroDivisionError):
        killed.fit(
            sequences,
            steps=killed.total_steps or killed.steps_for(len(sequences), 3),
            start=0,
            objective=FunctionObjective(failing_at(killed, 6)),
        )
    second = make(directory="cut", resume=True, checkpoint_every=4)
    assert second.step == 4
    second.plan(9)
    second.fit(sequences, steps=second.total_steps or second.steps_for(len(sequences), 3), start=0)
    assert [m["step"] for m in metrics(tmp_path / "cut")] == list(range(1, 10))
    assert_equal_weights(weights(second), weights(whole), tolerance=0)


def stop_at(trainer: Trainer, step: int) -> None:
    """Have the run asked to stop, as Ctrl-C would, once `step` is done."""
    original = trainer.log.step

    def record(values: dict[str, Any]) -> None:
        original(values)
        if values["step"] == step:
            trainer.log.stop_signal = signal.SIGINT

    trainer.log.step = record  # type: ignore[method-assign]


def failing_at(trainer: Trainer, step: int) -> Any:
    from lmflow.training.loss import negative_log_likelihood

    def objective(*args: Any) -> torch.Tensor:
        if trainer.step == step:
            raise ZeroDivisionError
        return negative_log_likelihood(*args)

    return objective


def test_dropout_is_the_same_after_resume(make: Make, sequences, tiny_model, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj"], init_lora_weights="gaussian")
    model = tiny_model.with_module(get_peft_model(tiny_model.module, config))
    whole = make(model, directory="whole")
    whole.plan(6)
    whole.fit(sequences, steps=whole.total_steps or whole.steps_for(len(sequences), 2), start=0)
    first = make(model, directory="cut")
    first.plan(6)
    stop_at(first, 3)
    with pytest.raises(Interrupted):
        first.fit(sequences, steps=first.total_steps or first.steps_for(len(sequences), 2), start=0)
    second = make(model, directory="cut", resume=True)
    second.plan(6)
    second.fit(sequences, steps=second.total_steps or second.steps_for(len(sequences), 2), start=0)
    assert_equal_weights(weights(second), weights(whole), tolerance=0)


def test_same_seed_same_losses_other_seed_others(make: Make, sequences, tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = make(directory=name, seed=seed)
        trainer.plan(5)
        trainer.fit(sequences, steps=trainer.total_steps or trainer.steps_for(len(sequences), 1), start=0)
    losses = {name: [m["loss"] for m in metrics(tmp_path / name)] for name in "abc"}
    assert losses["a"] == losses["b"]
    assert losses["a"] != losses["c"]


def test_max_steps_below_and_above_the_epochs(make: Make, sequences, tmp_path: Path):
    for name, steps in (("few", 2), ("many", 13)):  # 30 samples in sixes: an epoch is 5 steps
        trainer = make(directory=name)
        trainer.plan(steps)
        trainer.fit(sequences, steps=trainer.total_steps or trainer.steps_for(len(sequences), 1), start=0)
        assert len(metrics(tmp_path / name)) == steps


def test_a_non_finite_loss_stops_and_keeps_the_step_before(make: Make, sequences, tmp_path: Path):
    trainer = make()
    trainer.plan(5)

    def objective(forward: nn.Module, unwrapped: nn.Module, batch: Any) -> torch.Tensor:
        from lmflow.training.loss import negative_log_likelihood

        loss = negative_log_likelihood(forward, unwrapped, batch)
        return loss * math.nan if trainer.step == 3 else loss

    with pytest.raises(TrainingError, match=r"not finite at step 4 .*samples s\d+.*learning_rate"):
        trainer.fit(
            sequences,
            steps=trainer.total_steps or trainer.steps_for(len(sequences), 1),
            start=0,
            objective=FunctionObjective(objective),
        )
    assert all(torch.isfinite(w).all() for w in weights(trainer).values())
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]


@pytest.mark.parametrize("last", [3, 5])
def test_weights_that_an_update_made_infinite_are_never_saved(last: int, make: Make, sequences, tmp_path: Path):
    """After the last update no loss would show it; before it, the checkpoint of the step before is kept."""
    trainer = make(checkpoint_every=1)
    trainer.plan(5)

    def damage(*_: Any) -> None:
        if trainer.step == last - 1:
            next(iter(trainer._strategy.trainable.values())).data.view(-1)[0] = math.inf

    trainer._strategy.optimizer.register_step_post_hook(damage)
    with pytest.raises(TrainingError, match=rf"weights are not finite numbers after step {last} \(in .*learning_rate"):
        trainer.fit(sequences, steps=5, start=0)
    newest = max(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert newest == f"step-{last - 1:06}"


def test_start_weights_are_those_training_started_from(make: Make, sequences, tiny_model):
    start = {name: p.clone() for name, p in tiny_model.module.named_parameters()}
    trainer = make(keep_start_weights=True)
    trainer.plan(3)
    trainer.fit(sequences, steps=trainer.steps_for(len(sequences), 1))
    trained = weights(trainer)
    with trainer.start_weights():
        assert_equal_weights(weights(trainer), start, tolerance=0)
    assert_equal_weights(weights(trainer), trained, tolerance=0)
    assert any(not torch.equal(start[name], trained[name]) for name in start)


def test_start_weights_are_computed_with_in_bf16_too(make: Make, sequences, tiny_model):
    """Autocast keeps casts of the weights; a KL computed with stale ones would be zero."""
    trainer = make(keep_start_weights=True, precision="bf16")
    trainer.plan(3)
    trainer.fit(sequences, steps=trainer.steps_for(len(sequences), 1))
    ids = torch.tensor([sequences[0].ids])
    module = trainer.model.module.eval()

    def logits() -> torch.Tensor:
        with trainer.autocast():
            return module(input_ids=ids).logits.float()

    with torch.no_grad(), trainer.autocast():
        trained = logits()
        with trainer.start_weights():
            start = logits()
        again = logits()
    assert not torch.equal(trained, start)
    assert torch.equal(trained, again)


def test_bf16_trains_float32_masters(make: Make, sequences, tiny_model, tmp_path: Path):
    trainer = make(tiny_model.with_module(copy.deepcopy(tiny_model.module).bfloat16()), precision="bf16")
    assert {p.dtype for p in trainer.model.module.parameters()} == {torch.float32}
    trainer.plan(10)
    trainer.fit(sequences, steps=trainer.total_steps or trainer.steps_for(len(sequences), 2), start=0)
    losses = [m["loss"] for m in metrics(tmp_path / "run")]
    assert losses[-1] < losses[0]


def test_a_model_may_name_learning_rates_of_its_own(tiny_model):
    named = trainable_parameters(tiny_model.module)
    groups = parameter_groups(named, 0.1, 0.5, lambda name: 0.7 if "mlp" in name else None)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 0.5), (0.7, 0.5), (0.1, 0.0)]
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in named.values())
    assert {id(p) for p in groups[1]["params"]} == {id(p) for name, p in named.items() if "mlp" in name}


def test_no_parameter_to_train(make: Make, tiny_model):
    tiny_model.module.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter to train"):
        make()


def test_the_best_step_becomes_the_result(make: Make, sequences, tmp_path: Path):
    """The rate is so high that the loss on held-out samples rises again."""
    trainer = make(
        learning_rate=0.05, warmup=1, evaluate_every=1, result="best", keep_checkpoints=1, heldout=sequences[24:]
    )
    trainer.plan(12)
    trainer.fit(sequences[:24], steps=trainer.total_steps or trainer.steps_for(len(sequences[:24]), 3), start=0)
    trainer.checkpoint()
    found = {m["step"]: m["eval_loss"] for m in metrics(tmp_path / "run") if "eval_loss" in m}
    best = min(found, key=found.__getitem__)
    assert 0 < best < 12, "the case does not show anything"
    trainer.choose_result()
    assert trainer.log.metrics["result_step"] == best
    assert trainer.evaluate(sequences[24:]) == pytest.approx(found[best], abs=1e-6)


@pytest.mark.parametrize("result", ["last", "best"])
def test_a_step_whose_evaluation_was_stopped_is_kept_and_evaluated_later(
    make: Make, sequences, tmp_path: Path, result: str
):
    settings = {"evaluate_every": 2, "heldout": sequences[20:], "result": result}
    whole = make(directory="whole", **settings)
    whole.plan(6)
    whole.fit(sequences[:20], steps=whole.total_steps or whole.steps_for(len(sequences[:20]), 2), start=0)
    first = make(directory="cut", **settings)
    first.plan(6)
    validate = first.validate

    def stopped(heldout: Any) -> dict[str, float]:
        if first.step == 4:
            raise Interrupted(2)
        return validate(heldout)

    first.validate = stopped  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        first.fit(sequences[:20], steps=first.total_steps or first.steps_for(len(sequences[:20]), 2), start=0)
    second = make(directory="cut", resume=True, **settings)
    assert second.step == 4
    second.plan(6)
    second.fit(sequences[:20], steps=second.total_steps or second.steps_for(len(sequences[:20]), 2), start=0)
    timeless = [
        [{name: value for name, value in line.items() if "second" not in name} for line in metrics(tmp_path / each)]
        for each in ("cut", "whole")
    ]
    assert timeless[0] == timeless[1]
    assert_equal_weights(weights(second), weights(whole), tolerance=0)


def test_the_best_needs_evaluations(make: Make):
    with pytest.raises(RecipeError, match=r"training.result: .*evaluate_every"):
        make(result="best")


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(make: Make, sequences, tmp_path: Path):
    whole = make(directory="whole")
    whole.plan(9)
    whole.fit(sequences, steps=whole.total_steps or whole.steps_for(len(sequences), 2), start=0)
    first = make(directory="cut", checkpoint_every=3)
    first.plan(9)
    stop_at(first, 7)
    with pytest.raises(Interrupted):
        first.fit(sequences, steps=first.total_steps or first.steps_for(len(sequences), 2), start=0)
    damaged = tmp_path / "cut" / "checkpoints" / "step-000007" / "trainable.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    second = make(directory="cut", resume=True, checkpoint_every=3)
    assert second.step == 6
    assert "step-000007" in second.log.notes[0]
    second.plan(9)
    second.fit(sequences, steps=second.total_steps or second.steps_for(len(sequences), 2), start=0)
    assert [m["loss"] for m in metrics(tmp_path / "cut")] == [m["loss"] for m in metrics(tmp_path / "whole")]
    assert_equal_weights(weights(second), weights(whole), tolerance=0)


def test_the_version_tells_when_weights_changed(make: Make, sequences: list[TokenSequence]) -> None:
    """It is another after steps, a restored checkpoint and the weights of the start; the same between."""
    trainer = make(keep_start_weights=True, checkpoint_every=2)
    versions = [trainer.model.version]

    def changed() -> bool:
        versions.append(trainer.model.version)
        return versions[-1] not in versions[:-1]

    trainer.plan(4)
    trainer.fit(sequences, steps=2)
    assert changed()
    trainer.validate(sequences[:2])
    trainer.checkpoint()
    assert not changed()
    assert trainer.model.with_module(trainer.model.module).version == trainer.model.version
    with trainer.start_weights():
        assert changed()
    assert changed()
    with pytest.raises(TrainingError, match="0 items"), trainer.start_weights():
        trainer.fit([], steps=1)
    assert changed()
    again = make(keep_start_weights=True, checkpoint_every=2, resume=True)
    assert again.step == 2
    assert again.model.version != make(directory="other", keep_start_weights=True).model.version


def test_an_optimizer_with_modes_changes_the_version(
    make: Make, sequences: list[TokenSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule-free optimizer has other weights for training than for sampling."""
    trainer = make()
    trainer.plan(1)
    trainer.fit(sequences, steps=1)
    before = trainer.model.version
    for mode in ("train", "eval"):
        monkeypatch.setattr(type(trainer._strategy.optimizer), mode, lambda self: None, raising=False)
    trainer.validate(sequences[:2])
    assert trainer.model.version != before
