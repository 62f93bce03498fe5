"""Whole runs of aligners that add a head: it trains with any tuner, is saved, planned for, resumed, and gone on from."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmflow.components import LoadRequest
from lmflow.data.dataset import load_dataset
from lmflow.data.formats.recognising import formats_of
from lmflow.errors import LmflowError, TrainingError
from lmflow.models.language_model import LanguageModel
from lmflow.planning.plan import load_skeleton, make_plan
from lmflow.recipe.resolve import model_from_reference
from lmflow.run.export import export
from lmflow.run.record import RunResult
from lmflow.run.run import run
from lmflow.testing.runs import (
    RECORDS,
    interrupt,
    metrics_lines,
    over,
    plugins_with,
    resolve_settings,
    stored_recipe,
    write_records,
)
from lmflow.testing.tiny import tiny_model
from lmflow.training.checkpoint import best_checkpoint, list_checkpoints, load_checkpoint

ALIGNERS = Path(__file__).with_name("heads_aligners.py")


def made_plugin() -> Any:
    """The plugin beside this file, as a module of this process."""
    spec = importlib.util.spec_from_file_location(ALIGNERS.stem, ALIGNERS)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[ALIGNERS.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLUGIN = made_plugin()
PLUGINS = plugins_with(PLUGIN.Valued, PLUGIN.Rewarded, PLUGIN.Forgets, PLUGIN.Nothing, PLUGIN.LastBlock)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("heads")
    tiny_model(sharpness=6.0).save(place / "model")
    return {
        "model.name": str(place / "model"),
        "tuner.name": "full",
        "aligner.name": "valued",
        "aligner.heldout_prompts": 2,
        "aligner.max_new_tokens": 4,
        "data.path": str(write_records(place / "train.jsonl", RECORDS[:9])),
        "data.validation": str(write_records(place / "heldout.jsonl", RECORDS[9:])),
        "training.device": "cpu",
        "training.precision": "fp32",
        "training.batch_size": 3,
        "training.max_steps": 6,
        "training.learning_rate": 5e-3,
    }


@pytest.fixture(scope="module")
def train(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run with some settings changed, carried out once."""
    done: dict[str, RunResult] = {}

    def carry_out(**changes: Any) -> RunResult:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        if (key := repr(sorted(named.items()))) not in done:
            output = tmp_path_factory.mktemp("run") / "run"
            done[key] = run(resolve_settings(PLUGINS, over(settings, named)), PLUGINS, output=output, estimate=False)
        return done[key]

    return carry_out


def load(reference: Path | str, **request: Any) -> LanguageModel:
    return model_from_reference(PLUGINS, str(reference)).load(LoadRequest(plugins=PLUGINS, **request))


def weights(module: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in module.state_dict().items()}


def test_a_value_head_learns_beside_the_answers(train: Any):
    metrics = train().record["metrics"]
    assert metrics["eval_loss_after"] < metrics["eval_loss_before"]
    assert metrics["eval_value_error_after"] < 0.5 * metrics["eval_value_error_before"]
    assert metrics["trainable_parameters"] == metrics["parameters"]
    plain = sum(each.numel() for each in tiny_model().module.parameters())
    assert metrics["parameters"] == plain + 33


def test_a_reward_head_learns_the_order_of_a_pair(train: Any):
    found = train(aligner__name="rewarded", training__max_steps=18)
    assert found.metrics["eval_loss_after"] < found.metrics["eval_loss_before"]
    assert found.metrics["eval_loss_before"] == pytest.approx(0.69, abs=0.2)
    assert load(found.directory).heads.keys() == {"reward"}


def test_packed_training_equals_unpacked(train: Any):
    apart, together = train(), train(data__packing=True)
    lines, others = metrics_lines(apart.directory), metrics_lines(together.directory)
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in others], rel=1e-4)
    assert [line["value_error"] for line in lines] == pytest.approx([line["value_error"] for line in others], rel=1e-3)


@pytest.mark.parametrize(("tuner", "folder"), [("lora", "adapter"), ("last-block", "model"), ("nothing", "model")])
def test_it_trains_whatever_the_tuner_trains(train: Any, tuner: str, folder: str):
    found = train(tuner__name=tuner)
    assert found.record["result"] == folder
    assert found.metrics["eval_value_error_after"] < found.metrics["eval_value_error_before"]
    assert (found.metrics["trainable_parameters"] == 33) == (tuner == "nothing")
    assert (found.result / "heads" / "heads.safetensors").is_file()
    loaded = load(found.directory)
    [newest] = list_checkpoints(found.directory / "checkpoints")[-1:]
    saved = load_checkpoint(newest)
    for name, value in loaded.heads["value"].state_dict().items():
        assert torch.equal(value, saved.weights[f"aligner_heads.value.{name}"])
        assert saved.optimizer[f"aligner_heads.value.{name}"]["exp_avg"].any()
    if tuner == "nothing":
        assert found.metrics["generic_loss_after"] == found.metrics["generic_loss_before"]


def test_what_lies_beside_is_unknown_to_other_tools_and_keeps_the_model_as_it_is(train: Any):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    _, about = AutoModelForCausalLM.from_pretrained(train().result, output_loading_info=True)
    assert not any(about.values())
    adapter = AutoPeftModelForCausalLM.from_pretrained(train(tuner__name="lora").result)
    assert not [name for name, _ in adapter.named_parameters() if "aligner" in name]


def test_an_interrupted_run_goes_on_to_the_bit(settings: dict[str, Any], train: Any, tmp_path: Path):
    whole, output = train(tuner__name="lora"), tmp_path / "run"
    interrupt(resolve_settings(PLUGINS, over(settings, {"tuner.name": "lora"})), PLUGINS, output, after=3)
    resumed = run(stored_recipe(PLUGINS, output), PLUGINS, output=output, resume=True, estimate=False)
    assert metrics_lines(resumed.directory) == metrics_lines(whole.directory)
    assert weights(load(resumed.directory).heads["value"]) == weights(load(whole.directory).heads["value"])
    assert resumed.metrics["eval_value_error_after"] == whole.metrics["eval_value_error_after"]


def test_another_seed_begins_with_another_head(train: Any):
    one, other = train(), train(training__seed=1)
    assert one.metrics["eval_value_error_before"] != other.metrics["eval_value_error_before"]


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_next_run_trains_it_further(train: Any, tuner: str):
    first = train(tuner__name=tuner)
    second = train(model__name=str(first.directory), tuner__name=tuner)
    assert second.metrics["eval_value_error_before"] == pytest.approx(first.metrics["eval_value_error_after"], rel=1e-4)
    assert second.metrics["eval_value_error_after"] < second.metrics["eval_value_error_before"]
    assert any("the head value of" in note and "trained further" in note for note in second.record["notes"])


def test_an_aligner_without_it_leaves_it_out_and_says_so(train: Any):
    found = train(model__name=str(train().directory), aligner__name="sft")
    assert any("aligner sft does not train the head value" in note for note in found.record["notes"])
    assert load(found.directory).heads == {}
    assert not (found.result / "heads").exists()


def test_one_of_another_shape_stops_before_training(train: Any):
    with pytest.raises(LmflowError, match=r"its head value has the shape .*'hidden': \[\].*wants .*\[8\]"):
        train(model__name=str(train().directory), aligner__width=8)


def test_a_head_that_the_objective_forgets_is_named(train: Any):
    with pytest.raises(TrainingError, match=r"gives no gradient to the head value, which the aligner adds"):
        train(aligner__name="forgets")


def test_the_best_step_brings_its_head_back(train: Any):
    found = train(training__result="best", training__evaluate_every=2, training__learning_rate=0.3)
    best = best_checkpoint(found.directory / "checkpoints")
    assert best is not None
    saved = load_checkpoint(best)
    [*_, newest] = list_checkpoints(found.directory / "checkpoints")
    head = load(found.directory).heads["value"]
    assert all(torch.equal(value, saved.weights[f"aligner_heads.value.{n}"]) for n, value in head.state_dict().items())
    assert newest != best  # else this shows nothing
    evaluated = [line for line in metrics_lines(found.directory) if "eval_loss" in line]
    assert found.metrics["eval_loss_after"] == pytest.approx(min(line["eval_loss"] for line in evaluated), rel=1e-5)


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_merged_model_carries_it_and_says_so(train: Any, tuner: str, tmp_path: Path, capsys: Any):
    from transformers import AutoModelForCausalLM

    from lmflow.builtin.merge import Merge
    from lmflow.run.terminal import PlainDisplay

    found = train(tuner__name=tuner)
    written = export(Merge(), PLUGINS, str(found.directory), tmp_path / "merged", PlainDisplay())
    assert "the head value, which the aligner had added, lies in" in capsys.readouterr().err
    _, about = AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
    assert not any(about.values())
    assert weights(load(written).heads["value"]) == weights(load(found.directory).heads["value"])


def test_the_plan_counts_it(settings: dict[str, Any]):
    def plan(**changes: Any) -> Any:
        recipe = resolve_settings(PLUGINS, over(settings, changes)).recipe
        data, _ = load_dataset(recipe.data, formats_of(recipe, PLUGINS), 0)
        return make_plan(recipe, load_skeleton(recipe, PLUGINS), data, PLUGINS)

    without, small, large = plan(**{"aligner.name": "sft"}), plan(), plan(**{"aligner.width": 1000})
    assert small.trainable_parameters == without.trainable_parameters + 33
    added = 32 * 1000 + 1000 + 1000 + 1
    assert large.parameters == large.trainable_parameters == without.parameters + added
    assert large.memory.weights == without.memory.weights + 4 * added
    assert large.memory.optimizer >= without.memory.optimizer + 8 * added
    assert large.steps.count == 6
    frozen = plan(**{"tuner.name": "nothing", "aligner.width": 1000, "training.micro_batch_size": 1})
    assert frozen.trainable_parameters == added
    assert frozen.memory.gradients == 4 * added


def test_python_gets_it_with_the_model(train: Any):
    import lmflow

    with lmflow.load_model(train().directory, device="cpu", components=[PLUGIN.Valued]) as loaded:
        head = loaded.model.heads["value"]
        assert tuple(head(torch.zeros(3, 32)).shape) == (3, 1)
        assert loaded.generate("Say one and stop", max_new_tokens=2, temperature=0.0).ids


def test_the_command_runs_the_demo(tmp_path: Path, capsys: Any):
    """`lmflow run` with the embedded model, a plugin's aligner and an adapter, from start to report."""
    resolved = resolve_settings(
        PLUGINS,
        {
            "model.name": "demo",
            "data.name": "demo",
            "reward.name": "demo",
            "tuner.name": "lora",
            "aligner.name": "valued",
            "aligner.heldout_prompts": 4,
            "training.max_steps": 8,
            "training.device": "cpu",
        },
    )
    found = run(resolved, PLUGINS, output=tmp_path / "run")
    assert found.status == "completed"
    assert found.metrics["eval_value_error_after"] < found.metrics["eval_value_error_before"]
    assert found.record["plan"]["trainable_parameters"] == found.metrics["trainable_parameters"]
    assert "value_error" in (found.directory / "report.html").read_text()
    names = json.loads((found.result / "heads" / "heads.json").read_text())
    assert names["value"]["outputs"] == 1
