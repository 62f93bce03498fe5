"""What a run will take, against what it took."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmflow.builtin.full import Full
from lmflow.cli.plan import plan_lines
from lmflow.data.dataset import load_dataset
from lmflow.data.formats import formats_of
from lmflow.errors import EstimateError, TrainingError
from lmflow.planning import machine_memory
from lmflow.planning import plan as planning
from lmflow.planning.machine_memory import MachineMemory, give_back_freed_memory
from lmflow.planning.plan import Plan, load_skeleton, make_plan
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.resolve import resolve
from lmflow.recipe.settings import Origin, Setting
from lmflow.run import stages
from lmflow.run.run import RunResult, run

MakePlan = Callable[..., Plan]


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


@pytest.fixture
def plan_of(plugins: Plugins) -> MakePlan:
    def make(**options: Any) -> Plan:
        recipe = resolve(plugins, None, settings(options)).recipe
        model = load_skeleton(recipe, plugins)
        data, _ = load_dataset(recipe.data, formats_of(recipe, plugins), recipe.training.seed)
        return make_plan(recipe, model, data, plugins)

    return make


def settings(options: dict[str, Any]) -> list[Setting]:
    """Options by dotted path, the dots written as two underscores."""
    return [
        Setting(path.replace("__", "."), str(value), Origin("option", f"--{path}")) for path, value in options.items()
    ]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the machine have so many bytes."""

    def limit(count: int) -> None:
        monkeypatch.setattr(planning, "machine_memory", lambda: MachineMemory(count, count, None))
        monkeypatch.setattr(machine_memory, "resident_memory", lambda: 0)

    return limit


def carried_out(plugins: Plugins, place: Path, **options: Any) -> RunResult:
    return run(resolve(plugins, None, settings(options)), plugins, output=place / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"aligner": "sft", "tuner": "full", "training__max_steps": 3},
        {"aligner": "sft", "tuner": "lora", "data__limit": 40, "training__batch_size": 8},
        {"aligner": "sft", "data__packing": "true", "data__limit": 40},
        {"aligner": "raft", "tuner": "lora", "aligner__iterations": 2, "aligner__prompts": 8, "aligner__samples": 2},
    ],
    ids=["full", "lora", "packed", "raft"],
)
def test_a_run_takes_the_steps_that_were_estimated(options, plugins, plan_of, tmp_path):
    plan = plan_of(**options)
    record = carried_out(plugins, tmp_path, **options, aligner__heldout_prompts=2).record
    metrics = record["metrics"]
    assert plan.steps.count == metrics["steps"]
    assert (plan.parameters, plan.trainable_parameters) == (metrics["parameters"], metrics["trainable_parameters"])
    if options["aligner"] == "sft":
        assert plan.steps.tokens * plan.steps.count == pytest.approx(metrics["tokens"])
    else:
        assert metrics["tokens"] <= plan.steps.tokens * plan.steps.count
    assert record["plan"]["steps"] == plan.as_dict()["steps"]


def test_packing_leaves_hardly_any_padding(plan_of):
    padded, packed = (plan_of(aligner="sft", data__packing=packing).steps.real for packing in ("false", "true"))
    assert padded < 0.9
    assert packed >= 0.97


def test_what_does_not_fit_has_its_remedies(plan_of, only):
    options = {"aligner": "sft", "tuner": "full", "training__batch_size": 64, "training__micro_batch_size": 64}
    roomy = plan_of(**options)
    assert roomy.fits
    assert not roomy.remedies
    only(roomy.memory.total - 30_000_000)
    plan = plan_of(**options)
    assert not plan.fits
    totals = [plan.memory.total, *(remedy.memory_total for remedy in plan.remedies)]
    assert totals == sorted(totals, reverse=True)
    assert plan.remedies[0].options == "--training.micro_batch_size 1"
    assert plan.remedies[-1].memory_total <= plan.available
    again = plan_of(**{**options, "training__micro_batch_size": 1})
    assert again.memory.total == pytest.approx(plan.remedies[0].memory_total, rel=0.02)


@pytest.mark.slow
def test_where_nothing_is_enough_all_are_named(plan_of, only):
    only(1_000_000)
    plan = plan_of(aligner="sft", tuner="full", training__batch_size=64, training__micro_batch_size=64)
    assert plan.remedies[-1].options.endswith("--tuner lora")
    text = "\n".join(plan_lines(plan))
    assert "too much    1 MB are available" in text
    assert "still too much" in text
    assert "a lower --data.max_length, a smaller model" in text


@pytest.mark.slow
def test_a_run_that_does_not_fit_says_so_and_goes_on(plugins, only, tmp_path):
    only(1_000_000)
    few = {"aligner": "sft", "data__limit": 20, "training__max_steps": 1, "aligner__heldout_prompts": 0}
    record = carried_out(plugins, tmp_path, **few).record
    assert record["status"] == "completed"
    assert any("1 MB are available; with --training" in note for note in record["notes"])
    assert record["plan"]["fits"] is False


@pytest.mark.slow
def test_a_tight_run_gives_freed_memory_back(plugins, plan_of, only, tmp_path, monkeypatch):
    given_back = []
    monkeypatch.setattr(stages, "give_back_freed_memory", lambda: given_back.append(True) or True)
    options = {"aligner": "sft", "training__max_steps": 1, "aligner__heldout_prompts": 0}
    options |= {"data__limit": 80, "training__batch_size": 64, "training__micro_batch_size": 64}
    found = plan_of(**options)
    only(2 * found.memory.total + found.memory.activations)
    carried_out(plugins, tmp_path / "roomy", **options)
    assert not given_back
    only(found.memory.total + found.memory.activations)
    record = carried_out(plugins, tmp_path / "tight", **options).record
    assert given_back
    assert any("memory is tight" in note for note in record["notes"])


def test_the_c_library_is_told():
    assert give_back_freed_memory() in (True, False)  # true of glibc; nothing else can be seen from here


def test_an_unknown_aligner_tells_nothing(plan_of, monkeypatch):
    monkeypatch.setattr("lmflow.builtin.sft.Sft.workload", lambda *_: None)
    plan = plan_of(aligner="sft", data__limit=20)
    assert plan.steps.count is None
    assert plan.memory.total > 0
    assert "steps       as many as the aligner takes over" in "\n".join(plan_lines(plan))


def test_a_model_that_looks_at_values_cannot_be_estimated(plan_of, monkeypatch):
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def looks(self: Any, input_ids: Any, **others: Any) -> Any:
        assert int(input_ids.max()) >= 0
        return forward(self, input_ids=input_ids, **others)

    monkeypatch.setattr(LlamaForCausalLM, "forward", looks)
    plan = plan_of(aligner="sft", data__limit=20)
    assert plan.memory is None
    assert plan.fits
    assert "cannot be estimated for this model: DataDependentOutputException" in "\n".join(plan_lines(plan))


def test_several_processes_share(plan_of):
    one = plan_of(aligner="sft", tuner="full")
    two = plan_of(aligner="sft", tuner="full", launch__processes=2, launch__strategy="fsdp")
    assert two.steps.tokens == one.steps.tokens
    assert two.steps.rows <= one.steps.rows
    assert two.available == pytest.approx(one.available / 2, rel=0.05)
    assert two.memory.optimizer == one.memory.optimizer // 2


def test_everything_is_in_the_json(plan_of):
    plan = plan_of(aligner="sft", data__limit=20)
    found = json.loads(json.dumps(plan.as_dict()))
    assert found["memory_total"] == sum(found["memory"].values())
    assert found["fits"] is True
    assert replace(plan, available=0).as_dict()["fits"] is False


def test_a_tuner_that_needs_values_does_not_keep_a_run_from_going_on(plugins, plan_of, tmp_path, monkeypatch):
    from lmflow.builtin.full import Full

    whole = Full.prepare

    def looks(self: Any, model: Any) -> Any:
        assert float(next(model.parameters()).sum()) < 1e9
        return whole(self, model)

    monkeypatch.setattr(Full, "prepare", looks)
    options = {"tuner": "full", "aligner": "sft", "data__limit": 20, "training__max_steps": 1}
    with pytest.raises(EstimateError, match="tuner full prepares no model whose weights have no values"):
        plan_of(**options)
    record = carried_out(plugins, tmp_path, **options).record
    assert record["status"] == "completed"
    assert any("cannot be estimated" in note for note in record["notes"])


def test_long_held_out_samples_count_where_they_take_most(
    plan_of: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Short samples are trained one at a time, few parameters of them; the held-out text fills a pass of its own."""
    monkeypatch.setattr(planning, "resident_memory", lambda: 0)
    short, held = tmp_path / "short.jsonl", tmp_path / "held.jsonl"
    rows = [{"prompt": f"Say {i}", "answer": str(i)} for i in range(4)]
    short.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held.write_text(json.dumps({"prompt": "Say", "answer": "word " * 480}) + "\n")
    options = {"data__path": short, "model": "demo", "tuner": "lora"}
    options |= {"training__batch_size": 1, "training__micro_batch_size": 1}
    alone = plan_of(**options, data__validation="0")
    both = plan_of(**options, data__validation=held)
    assert alone.memory is not None
    assert both.memory is not None
    assert both.memory.total > 1.02 * alone.memory.total
    assert both.steps == alone.steps


class Lottery(Full):
    """One of the layers at a time, and all outside of them."""

    name = "lottery"

    def active(self, step, names, seed):
        layer = f".layers.{(step + seed) % 2}."
        return [name for name in names if ".layers." not in name or layer in name]


class Misnaming(Full):
    """Names a parameter that there is none of."""

    name = "misnaming"

    def active(self, step, names, seed):
        return ["model.nothing"]


def test_what_rests_takes_no_optimizer_state(plugins):
    plans = {}
    for name, tuner in (("full", Full), ("lottery", Lottery)):
        recipe = replace(resolve(plugins, None, []).recipe, tuner=tuner())
        data, _ = load_dataset(recipe.data, formats_of(recipe, plugins), recipe.training.seed)
        plans[name] = make_plan(recipe, load_skeleton(recipe, plugins), data, plugins)
    whole, drawn = plans["full"], plans["lottery"]
    assert whole.active_parameters == whole.trainable_parameters == drawn.trainable_parameters
    assert drawn.active_parameters < whole.active_parameters
    assert drawn.memory.optimizer == 8 * drawn.active_parameters < whole.memory.optimizer
    assert f"at most {drawn.active_parameters:,} in one step" in "\n".join(plan_lines(drawn))
    assert "in one step" not in "\n".join(plan_lines(whole))


def test_a_tuner_that_names_what_is_not_there_is_an_error_of_the_plan(plugins):
    recipe = replace(resolve(plugins, None, []).recipe, tuner=Misnaming())
    data, _ = load_dataset(recipe.data, formats_of(recipe, plugins), recipe.training.seed)
    with pytest.raises(TrainingError, match=r"active\(\) names model.nothing at step 1"):
        make_plan(recipe, load_skeleton(recipe, plugins), data, plugins)
