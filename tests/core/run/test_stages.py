"""The stages of a run, each by itself."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.components import AlignContext, Aligner, LoadRequest, Model, RunContext
from lmflow.data.sample import Dataset, Message, Sample
from lmflow.errors import DataError, EstimateError, Interrupted, TrainingError
from lmflow.models.encoding import items_of
from lmflow.models.language_model import LanguageModel
from lmflow.plugins import load_plugins
from lmflow.run import stages
from lmflow.run.directory import RunDirectory
from lmflow.run.log import RunLog
from lmflow.run.record import RunRecord
from lmflow.training.objective import FunctionObjective, NextToken
from lmflow.training.packing import Packing

MakeWork = Callable[..., stages.Work]


@pytest.fixture
def make_work(small_recipe: Any, tmp_path: Path) -> Iterator[MakeWork]:
    opened = []

    def make(**options: Any) -> stages.Work:
        plugins = load_plugins()
        directory = RunDirectory(tmp_path / f"run-{len(opened)}")
        opened.append(directory)
        log = RunLog(directory, lambda *_, **__: None)
        recipe = small_recipe(plugins, **options).recipe
        record = RunRecord(recipe, plugins, directory, log, resumed=False)
        record.begin()
        return stages.Work(recipe, plugins, directory, log, record)

    yield make
    for directory in opened:
        directory.close()


def with_part(work: stages.Work, **parts: Any) -> stages.Work:
    """The same work with another component."""
    return replace(work, recipe=replace(work.recipe, **parts))


def made(work: stages.Work, model: LanguageModel, data: Dataset) -> AlignContext:
    """The context of the aligner, which uses no other models."""
    return stages.make_context(work, model, data, {}, stages.choose_packing(work, model, data, None))


class Scoring(Aligner):
    """Compare pairs."""

    name = "scoring"

    def align(self, context: Any) -> None:
        """Nothing."""

    def objective(self, context: Any) -> Any:
        """A function of its own."""
        return FunctionObjective(lambda *_: torch.zeros(()), "item")

    def items(self, model: Any, samples: Sequence[Sample], data: Any) -> Any:
        """Each sample twice."""
        return [(sequence, sequence) for [sequence] in model.encode_all(samples)]


# Data and model


def test_data_is_read_and_recorded(make_work: MakeWork):
    work = make_work()
    data = stages.read_data(work)
    assert (len(data.train), len(data.heldout)) == (9, 3)
    assert work.record.values["data"]["train"] == 9
    assert work.log.seconds["reading data"] > 0


def test_what_was_guessed_of_the_data_is_said(make_work: MakeWork, tmp_path: Path):
    (tmp_path / "some.jsonl").write_text("".join(f'{{"prompt": "{i}", "answer": "b"}}\n' for i in range(4)))
    work = make_work(data__name=None, data__path=str(tmp_path / "some.jsonl"))
    stages.read_data(work)
    [note] = work.log.notes
    assert note.startswith(f"4 records of {tmp_path / 'some.jsonl'} read as prompt, recognised by prompt, answer")


def test_what_is_odd_about_the_samples_is_said(make_work: MakeWork, tmp_path: Path):
    (tmp_path / "some.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4 + '{"prompt": " "}\n')
    work = make_work(data__name="prompt", data__path=str(tmp_path / "some.jsonl"), data__validation="0")
    stages.read_data(work)
    assert work.log.notes == [
        "warning: 1 turn without text: some.jsonl:5: turn 1 (user)",
        "warning: 3 samples that occur before, such as some.jsonl:2: the same as some.jsonl:1",
    ]
    assert {kind: each["count"] for kind, each in work.log.tables["findings"].items()} == {
        "empty_turn": 1,
        "duplicate": 3,
    }


def test_the_model_is_loaded_as_the_recipe_says(make_work: MakeWork):
    work = make_work(data__template="chatml")
    seen: list[LoadRequest] = []
    load = type(work.recipe.model).load
    model = work.recipe.model

    class Watching(type(model)):  # type: ignore[misc]
        def load(self, request: LoadRequest) -> Any:
            seen.append(request)
            return load(self, request)

    loaded = stages.load_model(with_part(work, model=Watching(**model.model_dump())))
    [request] = seen
    assert (request.dtype, request.device, request.plugins) == ("float32", "cpu", work.plugins)
    assert (request.context, request.attention) == (None, None)
    assert "<|im_start|>" in loaded.tokenizer.chat_template
    assert work.record.values["device"] == "cpu"
    assert work.record.values["precision"] == "fp32"


# Before anything is loaded


def test_a_plan_is_recorded(make_work: MakeWork):
    work = make_work()
    stages.estimate(work, stages.read_data(work))
    assert work.record.values["plan"]["steps"]["count"] == 3
    assert work.log.notes == []


def test_a_plan_that_does_not_fit_is_said(make_work: MakeWork, monkeypatch: pytest.MonkeyPatch):
    class Plan:
        fits = False
        tight = False

        def as_dict(self) -> dict[str, Any]:
            return {"steps": 1}

        def warning(self) -> str:
            return "it will not fit"

    monkeypatch.setattr("lmflow.planning.plan.make_plan", lambda *_: Plan())
    work = make_work()
    stages.estimate(work, stages.read_data(work))
    assert work.log.notes == ["it will not fit"]


def test_what_cannot_be_estimated_is_said_and_no_error(make_work: MakeWork, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> Any:
        raise EstimateError("the model depends on values")

    monkeypatch.setattr("lmflow.planning.plan.make_plan", fail)
    work = make_work()
    stages.estimate(work, stages.read_data(work))
    assert work.log.notes == ["the model depends on values"]
    assert "plan" not in work.record.values


def test_a_model_without_a_skeleton_is_not_loaded_twice(make_work: MakeWork, monkeypatch: pytest.MonkeyPatch):
    class Whole(Model):
        """Has no skeleton."""

        name = "whole"

        def load(self, request: LoadRequest) -> Any:
            """Never in this test."""
            raise AssertionError

    work = with_part(make_work(), model=Whole())
    stages.estimate(work, stages.read_data(work))
    assert "plan" not in work.record.values


# Context


def test_samples_longer_than_the_model_reads_are_told_of(make_work: MakeWork):
    work = make_work(data__max_length=900)
    data = stages.read_data(work)
    model = stages.load_model(work)
    stages.compare_context(work, model, data)
    assert work.log.notes == ["data.max_length 900 is more than the model's context, which is the limit: 256"]


def test_a_context_longer_than_any_sample_is_told_of(make_work: MakeWork):
    work = make_work(context__name="linear", context__factor=4)
    data = stages.read_data(work)
    stages.compare_context(work, stages.load_model(work), data)
    [note] = work.log.notes
    assert note.startswith("the context linear reaches 1,024 tokens, but what is trained on has at most ")
    assert note.endswith("positions beyond are not trained")


def test_a_context_that_is_needed_is_no_matter_for_a_note(make_work: MakeWork):
    work = make_work()
    data = stages.read_data(work)
    stages.compare_context(work, stages.load_model(work), data)
    assert work.log.notes == []


# Training


def test_adapters_begin_with_the_recipe_s_seed(make_work: MakeWork):
    found = []
    for seed in (0, 0, 1):
        work = make_work(tuner__name="lora", training__seed=seed)
        torch.manual_seed(99)
        model = stages.prepare(work, stages.load_model(work))
        found.append(next(p for name, p in model.module.named_parameters() if "lora_A" in name).detach())
        metrics = work.log.metrics
        assert 0 < metrics["trainable_parameters"] < metrics["parameters"]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_trainer_has_what_the_recipe_says(make_work: MakeWork):
    work = make_work(data__packing="true", optimizer__weight_decay=0.5, schedule__name="linear", tuner__name="lora")
    data = stages.read_data(work)
    model = stages.prepare(work, stages.load_model(work))
    setup = made(work, model, data).trainer.setup
    recipe = work.recipe
    assert (setup.optimizer, setup.schedule, setup.tuner) == (recipe.optimizer, recipe.schedule, recipe.tuner)
    assert (setup.precision, setup.packing, setup.max_length, setup.strategy) == ("fp32", True, 256, "ddp")
    assert isinstance(setup.objective, NextToken)
    assert len(setup.heldout) == 3
    assert not setup.keep_start_weights


def test_packing_is_chosen_as_it_was_planned_and_recorded(make_work: MakeWork):
    work = make_work(aligner="sft")
    data, model = stages.read_data(work), stages.load_model(work)
    plan = stages.estimate(work, data)
    assert plan is not None
    chosen = stages.choose_packing(work, model, data, plan)
    assert chosen == plan.packing == stages.choose_packing(make_work(aligner="sft"), model, data, None)
    assert chosen.describe() in work.log.notes
    assert Packing(**work.directory.read_record()["packing"]) == chosen


def test_a_run_that_is_resumed_packs_as_before(make_work: MakeWork):
    """Whatever it would choose now, as in another number of processes."""
    work = make_work(aligner="sft")
    before = Packing(True, "padding was a lot", 17, 0.2)
    work.record.values["packing"] = asdict(before)
    work.record.write()
    again = RunRecord(work.recipe, work.plugins, work.directory, work.log, resumed=True)
    again.begin()
    work = replace(work, record=again)
    data, model = stages.read_data(work), stages.load_model(work)
    plan = stages.estimate(work, data)
    assert plan is not None
    assert plan.packing == before
    setup = made(work, model, data).trainer.setup
    assert (setup.packing, setup.max_length, setup.padding) == (True, 17, 0.2)
    assert work.directory.read_record()["packing"] == asdict(before)


def test_an_aligner_says_what_is_minimised_and_what_it_reads(make_work: MakeWork):
    work = with_part(make_work(), aligner=Scoring())
    data = stages.read_data(work)
    model = stages.load_model(work)
    setup = made(work, model, data).trainer.setup
    assert setup.objective.per == "item"
    assert all(isinstance(item, tuple) and len(item) == 2 for item in setup.heldout)


def test_by_default_items_are_the_samples_that_end_with_an_answer(make_work: MakeWork):
    work = make_work()
    model = stages.load_model(work)
    asked, answered = Message("user", "a"), Message("assistant", "b")
    samples = [Sample((asked,), source="open"), Sample((asked, answered), source="closed")]
    items = items_of(work.recipe.aligner, model, samples, Dataset(samples, [], work.recipe.data))
    assert [item.source for item in items] == ["closed"]  # type: ignore[union-attr]


def test_errors_about_held_out_records_say_that_they_are(make_work: MakeWork):
    work = make_work()
    model = stages.load_model(work)
    nothing = [Sample((Message("user", "a"), Message("assistant", "b")), source="v:1")]
    data = Dataset(nothing, list(nothing), work.recipe.data.model_copy(update={"max_length": 2}))
    with pytest.raises(DataError, match=r"^held-out records: No token would be trained in the one sample \(v:1\)"):
        items_of(work.recipe.aligner, model, data.heldout, data)
    with pytest.raises(DataError, match=r"^No token would be trained"):
        items_of(work.recipe.aligner, model, data.train, data)


def test_the_self_test_asks_the_run_s_objective(make_work: MakeWork):
    work = with_part(make_work(), aligner=Scoring())
    data = stages.read_data(work)
    context = made(work, stages.load_model(work), data)
    with pytest.raises(TrainingError, match="objective's loss has no gradient"):
        stages.self_test(context, work.recipe.aligner)
    assert work.log.seconds["self-test"] > 0


def test_the_inferencer_is_given_the_run(make_work: MakeWork, monkeypatch: pytest.MonkeyPatch):
    given: list[RunContext] = []
    work = make_work()
    monkeypatch.setattr(type(work.recipe.inferencer), "open", lambda self, context: given.append(context))
    data = stages.read_data(work)
    context = made(work, stages.load_model(work), data)
    stages.open_inferencer(work, context)
    assert given == [context]
    assert (context.data, context.log, context.plugins) == (data, work.log, work.plugins)


def test_the_result_is_what_the_tuner_writes(make_work: MakeWork):
    work = make_work(tuner__name="lora")
    data = stages.read_data(work)
    trainer = made(work, stages.prepare(work, stages.load_model(work)), data).trainer
    trainer.plan(1)
    result = stages.save(work, trainer)
    assert result == work.directory.path / "adapter"
    assert (result / "adapter_config.json").is_file()


def test_a_signal_between_stages_stops_the_run(make_work: MakeWork):
    work = make_work()
    with work.log.handle_signals():
        signal.raise_signal(signal.SIGINT)
        stages.read_data(work)
        with pytest.raises(Interrupted):
            work.log.sync_and_check_stop()
