"""The conformance suite for aligners: what every aligner promises to those who train with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lmflow.components import Aligner, Component, Need
from lmflow.errors import LmflowError, RecipeError, TrainingError
from lmflow.plugins import RECIPE_SLOTS
from lmflow.recipe.choices import OPTIONAL
from lmflow.run.record import RunResult
from lmflow.testing.comparing import all_tensors, different, some, tensors_of
from lmflow.testing.runs import SMALL, Bench, RunSuite, metrics_lines, over, resolve_settings, write_records
from lmflow.testing.watching import check_error

TOO_LONG = {"prompt": "word " * 400, "answer": "no room for it"}
"""A record whose prompt fills the context of the tiny model, so that no answer can be trained on or sampled."""

WITHOUT_REWARD = {"reward.name": "none"}
ONE_STEP = {"training.max_steps": 1}


class AlignerSuite(RunSuite):
    """An examination of one aligner; inherit from it in a class whose name begins with Test, and supply the aligner.

        from lmflow.testing import AlignerSuite

        class TestMyAligner(AlignerSuite):
            metric = "heldout_reward"
            higher_is_better = True

            @pytest.fixture
            def aligner(self):
                return MyAligner(rounds=3)

    Each test is one requirement, and its docstring says which. Give the aligner options with which it takes several
    steps and still ends soon: nearly all runs are of a tiny model on nine records, with `--tuner full`, and one is of
    the embedded model on the embedded task (the distribution lmflow-demo).

    What can be changed: the class attributes below, those of RunSuite (`records`, `settings`, `architecture`), and
    the fixtures `model` (the model component the small runs start from; a tiny Llama of random weights) and `plugins`
    (the installed ones and your aligner). Metrics that hold times must have "second" in their names, as the core's do:
    all others are compared between runs.
    """

    metric: ClassVar[str] = "eval_loss"
    """What the aligner improves: run.json has it with `_before` and with `_after` at its end."""
    higher_is_better: ClassVar[bool] = False
    """Whether a higher metric is the better one."""
    improvement: ClassVar[float] = 0.02
    """The smallest improvement of the metric that counts as one, on the embedded task."""
    task_settings: ClassVar[Mapping[str, Any]] = {}
    """Settings of the run on the embedded task, by dotted path: {"training.max_steps": 40}.

    Without them its model, data and reward are all `demo`."""
    task_records: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Records that the embedded model is to learn from, where those of the embedded task are of no use.

    Every eighth is held out."""
    bad_records: ClassVar[Sequence[Mapping[str, Any]]] = (TOO_LONG,)
    """Records the aligner cannot use, with the fields of `records`; with one of them it must not go on in silence.

    By default one whose prompt is longer than the 256 tokens of the tiny model."""
    tolerance: ClassVar[float] = 1e-4
    """Largest difference of a loss, in nats, that rounding explains when weights are saved and loaded."""

    @pytest.fixture
    def aligner(self) -> Aligner:
        """The aligner under examination; every suite supplies its own."""
        who = type(self).__name__
        pytest.fail(f"{who} supplies no aligner: write a fixture `aligner` that returns one", pytrace=False)

    @pytest.fixture
    def component(self, aligner: Aligner) -> Component:
        """The aligner."""
        return aligner

    # The objective

    def test_improves_its_objective_on_the_embedded_task(self, bench: Bench) -> None:
        """A run on the embedded model and task improves `metric` by at least `improvement`."""
        task: dict[str, Any] = {"model.name": "demo", "data.name": "demo", "reward.name": "demo"}
        if self.task_records:
            task = {"model.name": "demo", **split_records(bench.folder, self.task_records)}
        metrics = bench.run("task", {**task, **self.task_settings}).record["metrics"]
        before, after = (metrics.get(f"{self.metric}_{when}") for when in ("before", "after"))
        known = sorted(name.removesuffix("_before") for name in metrics if name.endswith("_before"))
        assert None not in (before, after), (
            f"expected run.json to have the metrics {self.metric}_before and {self.metric}_after; it has those of "
            f"{', '.join(known)}. Usual cause: the suite's `metric` is misspelt, or align() does not put it into "
            "context.log.metrics."
        )
        gain = after - before if self.higher_is_better else before - after
        assert gain >= self.improvement, (
            f"expected {self.metric} to {'rise' if self.higher_is_better else 'fall'} by at least {self.improvement:g} "
            f"on the embedded task; it went from {before:.4f} to {after:.4f}. Usual cause: a loss of the wrong sign, "
            "too few steps (the aligner's options, `task_settings`), or another metric is what it improves (`metric`)."
        )

    def test_micro_batches_change_no_step(self, bench: Bench) -> None:
        """A step taken one item at a time has the loss, the metrics and the gradient of one taken at once."""
        # The default may hold no two items: it counts rows, of which a pair takes two.
        whole, apart = (
            metrics_lines(bench.run(name, self._small({**ONE_STEP, "training.micro_batch_size": rows})).directory)
            for name, rows in (("at-once", 64), ("apart", 1))
        )
        unlike = [
            f"{key} {value:g} and {other.get(key)}"
            for line, other in zip(whole, apart, strict=True)
            for key, value in line.items()
            if value != pytest.approx(other.get(key), rel=1e-3, abs=1e-4)
        ]
        assert not unlike, (
            f"expected a step the same with training.micro_batch_size 64 and 1; found {', '.join(unlike)}. Usual "
            "cause: an objective that returns a mean over the batch, where the trainer divides sums (Loss), or that "
            "compares items of a batch with each other."
        )

    # Repeating a run

    def test_the_same_seed_gives_the_same_run(self, bench: Bench) -> None:
        """Two runs of one recipe write the same metrics and end with the same weights, to the bit."""
        cause = "random numbers that do not come from the seed (random, numpy, the time), or the order of a set"
        bench.check_same(bench.run("again", self._small({})), self._whole(bench), cause)

    def test_another_seed_gives_other_weights(self, bench: Bench) -> None:
        """A run with another `training.seed`, all else equal, ends with other weights."""
        other = bench.run("other-seed", self._small({"training.seed": 1}))
        weights, others = (all_tensors(bench.load(result.directory)) for result in (self._whole(bench), other))
        assert different(others, weights), (
            "expected another training.seed to give other weights; they are the same to the bit. Usual cause: a seed "
            "written into the aligner, where trainer.options.seed belongs."
        )

    def test_a_resumed_run_equals_an_uninterrupted_one(self, bench: Bench) -> None:
        """A run interrupted twice and resumed writes the metrics and weights of one left alone, to the bit.

        Past its half it must leave a checkpoint behind, so that no more than half of the work is ever lost.
        """
        cause = (
            "state that is not given to trainer.remember() and read from trainer.restored, or random numbers that "
            "are not a function of the seed and the step"
        )
        resumed, whole = bench.run_in_pieces("whole", self._small({})), self._whole(bench)
        bench.check_same(resumed, whole, cause)

    # Parameters of its own

    def test_its_heads_train_and_are_saved(self, bench: Bench) -> None:
        """Each head that `heads` names lies beside the result, with other weights than it started with."""
        start = bench.prepare(self._small({})).model.heads
        found = bench.load(self._whole(bench).directory).heads
        assert found.keys() == start.keys(), (
            f"expected the result to have the heads {sorted(start)}; it has {sorted(found)}. Usual cause: heads() "
            "depends on more than the aligner's options and the model."
        )
        still = [name for name in start if not different(tensors_of(found[name]), tensors_of(start[name]))]
        assert not still, (
            f"expected each head to move while the aligner trains; {some(still)} ended as it had started. Usual cause: "
            "an objective that uses it without a gradient, or in no step, or requires_grad switched off in align()."
        )

    def test_trains_the_heads_of_an_earlier_run_further(self, bench: Bench) -> None:
        """In a run from the result of another, each head starts with the weights that it ended with there."""
        ended = self._whole(bench)
        found = bench.load(ended.directory).heads
        if not found:
            return
        begun = bench.prepare(self._small({"model.name": str(ended.directory)})).model.heads
        moved = [name for name in found if different(tensors_of(begun[name]), tensors_of(found[name]))]
        assert not moved, (
            f"expected a run from {ended.directory.name} to go on from its heads; {some(moved)} started anew. Usual "
            "cause: align() or objective() gives it first weights of its own, where `Head` says how a new one starts."
        )

    # Composition

    def test_trains_with_tuner_full(self, bench: Bench) -> None:
        """A run with `--tuner full` completes, takes steps, and leaves a result that scores as the run said."""
        bench.check_sound(self._whole(bench), self.tolerance)

    def test_trains_with_tuner_lora(self, bench: Bench) -> None:
        """So does a run with `--tuner lora` (the distribution lmflow-lora): no parameter is taken for granted."""
        bench.check_sound(bench.run("lora", self._small({"tuner.name": "lora"})), self.tolerance)

    def test_takes_no_more_steps_than_asked_for(self, bench: Bench) -> None:
        """`--training.max_steps 1` ends after one optimizer step, whatever the aligner's own options say."""
        steps = bench.run("one-step", self._small(ONE_STEP)).record["metrics"]["steps"]
        assert steps == 1, (
            f"expected a run with training.max_steps 1 to take one optimizer step; it took {steps}. Usual cause: "
            "trainer.plan() is not given trainer.options.max_steps where that is set, or trainer.fit() is given more "
            "steps than trainer.total_steps leaves."
        )

    def test_every_fit_takes_a_step(self, bench: Bench) -> None:
        """`align` calls `trainer.fit`, and each call takes at least one step: an empty budget is an error."""
        watched = bench.watch(self._small({}))
        told = str(watched.error) if isinstance(watched.error, TrainingError) else ""
        assert not told.startswith("trainer.fit was"), (
            f"expected every call of trainer.fit to take a step; {told} Usual cause: `steps` worked out from other "
            "items than those given, no step left of trainer.total_steps, or a `start` that lies behind."
        )
        check_error(watched)
        assert watched.fits, "expected align() to train through trainer.fit(); it never called it"

    def test_estimates_the_steps_it_takes(self, bench: Bench) -> None:
        """What `workload` tells `lmflow plan` is what a run does, where it tells anything."""
        workload = bench.workload(self._small({}))
        told = workload and workload.steps
        taken = self._whole(bench).record["metrics"]["steps"]
        assert told in (None, taken), (
            f"expected the run to take the {told} steps that workload() told; it took {taken}. Usual cause: workload() "
            "counts samples otherwise than align(), or leaves options.max_steps out."
        )

    def test_needs_are_declared_and_enforced(self, bench: Bench) -> None:
        """A recipe without what the attribute `needs` names is refused; without a reward it runs, if that names none.

        So an aligner that uses a reward says so, and its users learn of it before anything is loaded.
        """
        for need in bench.component.needs:
            assert need.slot in RECIPE_SLOTS, (
                f"expected each Need to name a slot of a recipe ({', '.join(RECIPE_SLOTS)}); found {need.slot!r}"
            )
            for changes in violations(bench, need):
                check_refused(bench, need, self._small(changes))
        if not any(need.slot == "reward" for need in bench.component.needs):
            bench.run("without-reward", self._small({**WITHOUT_REWARD, "training.max_steps": 1}))

    # What it trains on

    def test_trains_the_token_that_ends_an_answer(self, bench: Bench) -> None:
        """Among the targets is the end-of-text token, so that the model learns to stop.

        Answers sampled here end with one, as those of a trained model do; so do those of the records.
        """
        watched = bench.watch(self._small({}))
        check_error(watched)
        if watched.context.model.kind != "scorer":
            assert watched.trains_an_end, (
                "expected the end-of-text token after an answer to be a target; it is one nowhere in what trainer.fit "
                "was given. Usual cause: a completion's text is tokenised anew instead of taking its `ids`, which hold "
                "it, or a mask that leaves special tokens out."
            )

    def test_trains_on_no_held_out_record(self, bench: Bench) -> None:
        """No sequence given to `trainer.fit` begins with the prompt of a held-out record."""
        watched = bench.watch(self._small({}))
        check_error(watched)
        found = watched.heldout_sources
        assert not found, (
            f"expected the held-out records to stay out of training; trainer.fit was given {some(found)}. Usual cause: "
            "data.heldout is trained on with data.train, so that what is measured on it means nothing."
        )

    def test_leaves_the_samples_as_they_are(self, bench: Bench) -> None:
        """`data.train` and `data.heldout` are after `align` what they were: other parts of a run read them too."""
        watched = bench.watch(self._small({}))
        edited = watched.edited
        assert not edited, (
            f"expected align() to leave the samples as they are; {'; '.join(edited)}. Usual cause: a list or record "
            "changed in place, where dataclasses.replace() or a copy belongs."
        )
        check_error(watched)

    # Bad data

    def test_an_error_names_the_bad_record(self, bench: Bench) -> None:
        """Given a bad record and nothing else, the aligner raises an LmflowError that names it, as file:line."""
        for record in self.bad_records:
            error, _ = self._align_on(bench, "bad.jsonl", [record])
            assert names(error, "bad.jsonl:1"), (
                f"expected an LmflowError that names bad.jsonl:1 (its sample's `source`), where the only record is "
                f"{shown(record)}; found {error!r}. Usual cause: records are dropped without a word, or used before "
                "they are looked at."
            )

    def test_a_bad_record_among_good_ones_is_named(self, bench: Bench) -> None:
        """A bad record among good ones is named in an LmflowError or in a note, never left out in silence."""
        place = f"mixed.jsonl:{len(self.records) + 1}"
        for record in self.bad_records:
            error, notes = self._align_on(bench, "mixed.jsonl", [*self.records, record])
            noted = error is None and any(place in note for note in notes)
            assert noted or names(error, place), (
                f"expected an LmflowError or a context.log.note() that names {place} (its sample's `source`), which is "
                f"{shown(record)}; found {error!r} and the notes {notes}. Usual cause: a filter that says nothing of "
                "what it drops."
            )

    # How the suite goes about it

    def _small(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        return over(over(SMALL, self.settings), {"tuner.name": "full", **changes})

    def _whole(self, bench: Bench) -> RunResult:
        """The run the others are compared with."""
        return bench.run("whole", self._small({}))

    def _align_on(
        self, bench: Bench, name: str, records: Sequence[Mapping[str, Any]]
    ) -> tuple[Exception | None, list[str]]:
        """Let the aligner train on `records` alone: what it raised, and the notes it made.

        It is called directly, because a whole run looks at the first records itself before the aligner does.
        """
        path = write_records(bench.folder / name, records)
        notes: list[str] = []
        try:
            data = {"data.path": str(path), "data.validation": 0, "data.packing": False}
            prepared = bench.prepare(self._small(data))
            notes = prepared.log.notes
            prepared.align()
        except Exception as error:
            return error, notes
        return None, notes


def split_records(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of a run on `records`, every eighth of them held out."""
    heldout = [record for index, record in enumerate(records) if index % 8 == 7]
    train = [record for index, record in enumerate(records) if index % 8 != 7]
    return {
        "data.path": str(write_records(folder / "task.jsonl", train)),
        "data.validation": str(write_records(folder / "task-heldout.jsonl", heldout)),
    }


def violations(bench: Bench, need: Need) -> list[dict[str, Any]]:
    """Changes to a recipe, each of which leaves `need` unmet."""
    empty = ["none"] if need.slot in OPTIONAL else []
    others = sorted(bench.plugins.offers(need.slot).keys() - set(need.names)) if need.names else []
    return [{f"{need.slot}.name": name} for name in [*empty, *others[:1]]]


def check_refused(bench: Bench, need: Need, changes: Mapping[str, Any]) -> None:
    """Fail unless a recipe with these changes is refused for the reason that `need` gives."""
    try:
        resolve_settings(bench.plugins, bench.settings_with(changes))
    except RecipeError as error:
        told = str(error)
    else:
        told = "nothing: the recipe was accepted"
    assert need.because in told, (
        f"expected a recipe whose {need.slot} is not what the aligner needs to be refused because {need.because!r}; "
        f"found {told}"
    )


def names(error: Exception | None, place: str) -> bool:
    """Whether `error` is one for users, and tells them of the record at `place`."""
    return isinstance(error, LmflowError) and place in str(error)


def shown(record: Mapping[str, Any]) -> str:
    """A record, shortened."""
    text = repr(dict(record))
    return text if len(text) <= 100 else f"{text[:97]}..."
