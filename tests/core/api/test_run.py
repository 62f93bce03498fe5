"""`lmflow.run`: recipes in Python, what it leaves, what it does to the process, how it fails and goes on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import Field

import lmflow
from lmflow.recipe.mapping import read_mapping


def test_it_leaves_what_the_command_leaves(carried_out, tmp_path, capfd):
    result = carried_out()
    assert (result.directory, result.status) == (tmp_path / "out", "completed")
    assert result.metrics["steps"] == 2
    assert result.result.is_dir()
    assert result.report.is_file()
    assert json.loads((result.directory / "run.json").read_text())["metrics"] == result.metrics
    assert "metrics" not in repr(result)
    assert capfd.readouterr() == ("", "")


def test_its_recipe_repeats_it(carried_out, tmp_path):
    first = carried_out("first", tuner={"name": "lora", "rank": 2})
    again = lmflow.run(first.directory / "recipe.yaml", output=tmp_path / "again")
    assert again.metrics["eval_loss_after"] == first.metrics["eval_loss_after"]
    assert (again.directory / "recipe.yaml").read_text() == (first.directory / "recipe.yaml").read_text()


def test_sections_by_keyword_win_over_a_file(small, tmp_path):
    file = tmp_path / "recipe.yaml"
    small["data"]["path"] = str(small["data"]["path"])
    file.write_text(yaml.safe_dump(small))
    result = lmflow.run(file, output=tmp_path / "out", training={"max_steps": 1})
    assert result.metrics["steps"] == 1


MISTAKES = {
    "tuner": {"name": "lora", "rnak": 3},
    "tunr": "x",
    "training": {"learning_rate": -1},
    "training.lerning_rate": 3,
    "aligner": "ratf",
    "launch": 3,
}


def test_mistakes_are_those_of_a_file_all_at_once(tmp_path):
    with pytest.raises(lmflow.RecipeError) as caught:
        lmflow.run(MISTAKES, output=tmp_path / "out")
    text = "\n".join(sorted(caught.value.problems))
    file = tmp_path / "recipe.yaml"
    nested = {**MISTAKES, "training": {"learning_rate": -1, "lerning_rate": 3}}
    del nested["training.lerning_rate"], nested["launch"]
    file.write_text(yaml.safe_dump(nested))
    with pytest.raises(lmflow.RecipeError) as of_file:
        lmflow.run(file, output=tmp_path / "out")
    of_file_lines = [line.partition(": ")[2] for line in of_file.value.problems]
    assert sorted(text.splitlines()) == sorted([*of_file_lines, "launch: expected options by name, got 3"])
    assert "tuner.rnak: unknown option; did you mean tuner.rank?" in text
    assert not (tmp_path / "out").exists()


def test_a_section_given_twice_is_refused(tmp_path):
    with pytest.raises(lmflow.RecipeError, match="tuner: given twice, in the recipe and by keyword"):
        lmflow.run({"tuner": "lora"}, tuner="full")
    with pytest.raises(lmflow.RecipeError, match=r"tuner\.rank: given twice"):
        lmflow.run({"tuner": {"name": "lora", "rank": 1}, "tuner.rank": 2})


def settings(recipe: object) -> dict[str, object]:
    problems: list[str] = []
    found = {each.path: each.value for each in read_mapping(recipe, problems)}
    assert problems == []
    return found


def test_a_mapping_means_what_its_yaml_means(tmp_path):
    from lmflow.recipe.yaml import read_settings

    recipe = {
        "tuner": {"name": "lora", "rank": 4},
        "aligner": "raft",
        "context": None,
        "data": {"mix": {"a.jsonl": 1.0}},
        "training": {"learning_rate": 1e-4},
        "trackers": {"tensorboard": {"every": 3}, "mlflow": None},
    }
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert settings(recipe) == {each.path: each.value for each in read_settings(file, [])}
    file.write_text("data: demo\n")
    assert (
        settings({"data": "demo"})
        == {each.path: each.value for each in read_settings(file, [])}
        == {"data.name": "demo"}
    )
    assert settings({"trackers": ["a", "b"]}) == {"trackers.name": ["a", "b"]}
    assert settings({"data.path": Path("a/b")}) == {"data.path": "a/b"}


# What it does to the process


def test_progress_is_shown_when_asked_for_on_standard_error(carried_out, capfd):
    carried_out(display=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "training" in err


def test_random_numbers_and_modes_are_left_as_they_were(carried_out):
    torch.manual_seed(7)
    random.seed(7)
    expected = torch.random.get_rng_state(), random.getstate(), torch.is_grad_enabled(), os.getcwd()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    carried_out()
    assert torch.equal(torch.random.get_rng_state(), expected[0])
    assert (random.getstate(), torch.is_grad_enabled(), os.getcwd()) == expected[1:]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_libraries_are_quiet_and_the_users_warnings_come_back(carried_out, capfd):
    def chatty(prompts, completions, records):
        print("a print")
        warnings.warn("a warning", stacklevel=1)
        return [0.0] * len(prompts)

    carried_out(reward=chatty)
    out, err = capfd.readouterr()
    assert out == ""
    assert "a warning" not in err
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)


def test_it_runs_where_an_event_loop_does_and_in_a_thread(carried_out):
    async def cell() -> str:
        return carried_out("in-loop").status

    assert asyncio.run(cell()) == "completed"
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(carried_out("in-thread").status))
    thread.start()
    thread.join()
    assert found == ["completed"]


class StopsAtStep(lmflow.Tracker):
    """Press Ctrl-C after a step."""

    name = "stops-at-step"

    @lmflow.hookimpl
    def lmflow_step_finished(self, step: int) -> None:
        """After the first."""
        if step == 1:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_end(carried_out, tmp_path):
    whole = carried_out("whole")
    with pytest.raises(lmflow.Interrupted, match="lmflow run --resume") as caught:
        carried_out("cut", trackers=[StopsAtStep])
    assert caught.value.signal_number == signal.SIGINT
    record = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert record["status"] == "interrupted"
    resumed = lmflow.run(output=tmp_path / "cut", resume=True, components=[StopsAtStep])
    assert resumed.status == "completed"
    assert resumed.metrics["eval_loss_after"] == whole.metrics["eval_loss_after"]


def test_an_output_that_holds_a_run_is_refused(carried_out):
    carried_out()
    with pytest.raises(lmflow.RunDirectoryError, match="already holds a run"):
        carried_out()
    assert carried_out(overwrite=True).status == "completed"
    with pytest.raises(lmflow.RunDirectoryError, match="resume needs output"):
        lmflow.run(resume=True)


def test_a_failure_is_an_exception_and_recorded(carried_out, tmp_path):
    def broken(prompts, completions, records):
        raise ValueError("no idea")

    with pytest.raises(lmflow.RewardError, match="no idea"):
        carried_out(reward=broken)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"


# Components as Python objects


class Twice(lmflow.Aligner):
    """Go over the data twice."""

    name = "twice"
    passes: int = Field(2, gt=0, description="Optimizer steps.")

    def align(self, context: lmflow.AlignContext) -> None:
        """Train on everything, `passes` times."""
        from lmflow.models.encoding import encode_answered

        items = encode_answered(context.model, context.data.train, context.data.options)
        context.log.metrics["passes"] = self.passes
        context.trainer.plan(self.passes)
        context.trainer.fit(items, steps=self.passes)
        context.trainer.checkpoint()


def vowels(prompts, completions, records):
    return [float(sum(text.count(each) for each in "aeiou")) for text in completions]


def test_a_class_given_is_registered_for_the_call_alone(small, tmp_path):
    lmflow.run({**small, "aligner": Twice}, output=tmp_path / "out")
    with pytest.raises(lmflow.RecipeError, match="no aligner is called twice"):
        lmflow.run({"aligner": "twice"})
    recipe = tmp_path / "out" / "recipe.yaml"
    with pytest.raises(lmflow.RecipeError, match="aligner twice came from the Python program that ran it"):
        lmflow.run(recipe, output=tmp_path / "again")
    assert lmflow.run(recipe, output=tmp_path / "again", components=[Twice]).metrics["passes"] == 2


class Cell(lmflow.DataFormat):
    """A question and an answer, as a notebook defines it."""

    name = "cell"

    def sample(self, record, source):
        """The two turns."""
        from lmflow.data.sample import Message, Sample

        turns = Message("user", record["prompt"]), Message("assistant", record["answer"])
        return Sample(turns, True, record, source)


def test_a_data_format_whose_code_lies_in_no_file(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Cell, "__module__", "a_cell_of_a_notebook")
    data = {"name": "cell", **small["data"]}
    result = lmflow.run({**small, "data": data}, output=tmp_path / "out", components=[Cell])
    assert result.record["data"]["format"] == "cell"


@pytest.mark.parametrize(
    ("aligner", "passes"), [(Twice, 2), (Twice(passes=3), 3), ({"name": "twice", "passes": 1}, 1)], ids=str
)
def test_a_class_an_instance_or_a_name_of_ones_own(small, tmp_path, aligner, passes):
    result = lmflow.run({**small, "aligner": aligner}, output=tmp_path / "out", components=[Twice])
    assert result.metrics["passes"] == result.metrics["steps"] == passes
    recipe = yaml.safe_load((result.directory / "recipe.yaml").read_text())
    assert recipe["aligner"]["name"].endswith("twice")
    assert recipe["aligner"]["passes"] == passes


def test_a_reward_function(carried_out):
    result = carried_out("local", reward=lambda prompts, completions, records: [1.0] * len(prompts))
    assert result.metrics["heldout_greedy_reward_after"] == 1.0
    result = carried_out("named", reward="vowels", components=[vowels])
    assert yaml.safe_load((result.directory / "recipe.yaml").read_text())["reward"]["name"].endswith("vowels")


def test_a_reward_function_that_can_be_imported_stands_in_the_recipe_by_its_module(carried_out):
    from lmflow.testing.runs import count_vowels

    recipe = yaml.safe_load((carried_out(reward=count_vowels).directory / "recipe.yaml").read_text())
    assert recipe["reward"]["function"] == "lmflow.testing.runs:count_vowels"


def test_what_is_no_component_is_refused():
    with pytest.raises(lmflow.PluginError, match="expected component classes and reward functions, got 3"):
        lmflow.run(components=[3])

    class Nothing(lmflow.Component):
        """Fill no slot."""

        name = "nothing"

    with pytest.raises(lmflow.PluginError, match="Nothing derives from none of Model"):
        lmflow.run(components=[Nothing])

    class Unnamed(lmflow.Aligner):
        """Have no name."""

        def align(self, context):
            pass

    with pytest.raises(lmflow.PluginError, match="Unnamed"):
        lmflow.run(components=[Unnamed])


def test_python_objects_do_not_reach_other_processes(small):
    with pytest.raises(lmflow.RecipeError, match=r"launch\.processes: components and functions given as Python"):
        lmflow.run(small, reward=lambda p, c, r: [0.0] * len(p), launch={"processes": 2})


@pytest.mark.slow
def test_two_processes_carry_out_what_one_does(small, carried_out, tmp_path):
    alone = carried_out("alone")
    both = lmflow.run(small, output=tmp_path / "both", launch={"processes": 2})
    assert both.record["processes"] == 2
    assert both.metrics["eval_loss_after"] == pytest.approx(alone.metrics["eval_loss_after"], abs=1e-5)
    with pytest.raises(lmflow.LmflowError, match="already holds a run"):
        lmflow.run(small, output=tmp_path / "both", launch={"processes": 2})


def test_the_program_is_never_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "exit", lambda *_: pytest.fail("sys.exit was called"))
    with pytest.raises(lmflow.LmflowError):
        lmflow.run(model=str(tmp_path / "nothing"))


# Stages


STAGES = {"sft": {"tuner": {"name": "lora", "rank": 2}}, "more": {"model": "stage:sft", "tuner": "full"}}


def test_stages_end_with_the_result_of_the_last(carried_out, tmp_path):
    result = carried_out(stages=STAGES, **{"training.max_steps": 1})
    assert list(result.record["stages"]) == ["sft", "more"]
    assert result.result == tmp_path / "out" / "stages" / "more" / "model"
    assert result.metrics == result.record["stages"]["more"]["metrics"]
    assert result.metrics["steps"] == 1
    with lmflow.load_model(result, device="cpu") as loaded:
        assert loaded.model.source == str(result.result)
    again = lmflow.run(output=tmp_path / "out", resume=True)
    assert (again.status, again.metrics) == ("completed", result.metrics)


def length(prompts, completions, records):
    return [float(len(each)) for each in completions]


def test_sections_beside_stages_are_below_them_and_those_by_keyword_on_top():
    from lmflow.api.components import plugins_for
    from lmflow.api.run import resolve_named

    class Mine(lmflow.Reward):
        """Mine."""

        name = "mine"

        def score(self, samples, completions):
            return [0.0 for _ in completions]

    stages = [{"name": "a", "training": {"seed": 5}}, {"name": "b", "reward": Mine, "training": {"batch_size": 1}}]
    named, plugins = plugins_for({"training": {"seed": 3}, "stages": stages, "reward": length}, ())
    below = resolve_named(plugins, None, named, {})
    assert [each.resolved.recipe.training.seed for each in below.stages] == [5, 3]
    assert [each.resolved.recipe.reward.name for each in below.stages] == ["python", "mine"]
    above = resolve_named(plugins, None, named, {"training.seed": 9, "stages.b.training.batch_size": 2})
    assert [each.resolved.recipe.training.seed for each in above.stages] == [9, 9]
    assert [each.resolved.recipe.training.batch_size for each in above.stages] == [8, 2]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ({}, "stages: expected recipes by name, got {}"),
        ("sft", "stages: expected recipes by name, got 'sft'"),
        ({"a/b": {}}, "stages: 'a/b' cannot be the name of a stage"),
        ([{"name": "a"}, {"name": "a"}], "stages: a is given twice"),
        ([{"tuner": "lora"}], "stages: each stage of a list needs a name"),
        ([{"name": ["a"], "tuner": "lora"}], "stages: ['a'] is no name: it has to be text"),
        ({1: {"tuner": "lora"}}, "stages: 1 is no name: it has to be text"),
        ({"a": "lora"}, "stages.a: expected sections by name, got 'lora'"),
        ({"a": {"training": {"seed": 1}, "training.seed": 2}}, "stages.a.training.seed: given twice"),
        ({"a": {"tuner": {"rnak": 2}}}, "tuner.rnak: unknown option"),
    ],
)
def test_mistakes_in_stages(stages, expected, tmp_path):
    with pytest.raises(lmflow.RecipeError) as caught:
        lmflow.run(stages=stages, output=tmp_path / "out")
    assert any(problem.startswith(expected) for problem in caught.value.problems), caught.value.problems
    assert not (tmp_path / "out").exists()
