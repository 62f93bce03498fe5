"""AlignerSuite: it passes aligners that keep every promise, and fails, for each promise, one that breaks it alone."""

import random
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
from pydantic import Field, PrivateAttr, field_serializer

from lmflow.builtin.sft import Sft
from lmflow.components import (
    AlignContext,
    Aligner,
    GenerateRequest,
    Head,
    Log,
    Need,
    PlanContext,
    RunContext,
    Workload,
)
from lmflow.data.sample import Dataset, Message, Sample, TokenSequence
from lmflow.errors import DataError, RecipeError
from lmflow.inference.types import Completion, Sampling
from lmflow.models.encoding import encode, prompts_with_room
from lmflow.models.heads import HeadLayers
from lmflow.models.language_model import LanguageModel
from lmflow.plugins import load_plugins
from lmflow.testing import AlignerSuite
from lmflow.training.heads import head_applied
from lmflow.training.loss import negative_log_likelihood
from lmflow.training.objective import FunctionObjective, Objective
from lmflow.training.trainer import Trainer


class Good(Aligner):
    """Supervised fine-tuning in rounds, each with a checkpoint."""

    name = "good"
    heldout_prompts: int = Field(0, description="Prompts answered before and after.")
    rounds: int = Field(3, description="How often it trains.")
    weight: float = Field(1.0, description="Of the loss.")

    def align(self, context: AlignContext) -> None:
        model, trainer = context.model, context.trainer
        sequences = self.read(model, context.data, context.log)
        self.plan(trainer, sequences)
        for number in range(self.first_round(trainer), self.rounds):
            if trainer.step >= trainer.total_steps:
                break
            trainer.fit(
                sequences,
                steps=self.budget(trainer, sequences),
                first_epoch=number,
                checkpoints=False,
                objective=FunctionObjective(self.loss),
            )
            self.finish(number, trainer, model)

    def read(self, model: LanguageModel, data: Dataset, log: Log) -> list[TokenSequence]:
        sequences, lengths = encode(model, data.train, data.options)
        log.note(lengths.describe())
        return sequences

    def plan(self, trainer: Trainer, sequences: list[TokenSequence]) -> None:
        trainer.plan(trainer.options.max_steps or self.rounds * trainer.steps_for(len(sequences), 1))

    def budget(self, trainer: Trainer, sequences: list[TokenSequence]) -> int:
        return min(trainer.steps_for(len(sequences), 1), trainer.total_steps - trainer.step)

    def first_round(self, trainer: Trainer) -> int:
        return int(trainer.restored.get("round", 0))

    def loss(self, forward: Any, unwrapped: Any, batch: Any) -> torch.Tensor:
        return negative_log_likelihood(forward, unwrapped, batch)

    def finish(self, number: int, trainer: Trainer, model: LanguageModel) -> None:
        trainer.remember({"round": number + 1})
        trainer.checkpoint()


class Ascends(Good):
    """Makes the answers less likely."""

    def loss(self, forward: Any, unwrapped: Any, batch: Any) -> torch.Tensor:
        return -0.1 * super().loss(forward, unwrapped, batch)


class TakesMeans(Good):
    """Divides by the targets of the batch, as the trainer will by those of the step."""

    def loss(self, forward: Any, unwrapped: Any, batch: Any) -> torch.Tensor:
        return super().loss(forward, unwrapped, batch) / batch.num_targets


class DrawsFromElsewhere(Good):
    """The order of the samples comes from the operating system."""

    def read(self, model: LanguageModel, data: Dataset, log: Log) -> list[TokenSequence]:
        sequences = super().read(model, data, log)
        random.SystemRandom().shuffle(sequences)
        return sequences


class HasItsOwnSeed(Good):
    """Whatever seed is asked for, it takes its own."""

    def plan(self, trainer: Trainer, sequences: list[TokenSequence]) -> None:
        super().plan(trainer, sequences)
        trainer.options = trainer.options.model_copy(update={"seed": 42})


class ForgetsItsPlace(Good):
    """A resumed run begins with the first round again."""

    def first_round(self, trainer: Trainer) -> int:
        return 0


class NeverSaves(Good):
    """No checkpoint before the end."""

    def finish(self, number: int, trainer: Trainer, model: LanguageModel) -> None:
        if number + 1 == self.rounds:
            super().finish(number, trainer, model)


class NeverStops(Good):
    """Swallows the request to stop."""

    def plan(self, trainer: Trainer, sequences: list[TokenSequence]) -> None:
        super().plan(trainer, sequences)
        trainer.log.check_stop = lambda: None


class KnowsTheModel(Good):
    """Takes the module for a bare Llama, which a tuner may have wrapped."""

    def finish(self, number: int, trainer: Trainer, model: LanguageModel) -> None:
        assert model.module.model.norm.weight.isfinite().all()
        super().finish(number, trainer, model)


class KnowsTheAdapter(Good):
    """Takes the module for one that PEFT has wrapped."""

    def plan(self, trainer: Trainer, sequences: list[TokenSequence]) -> None:
        if not hasattr(trainer.model.module, "peft_config"):
            raise RecipeError(["it needs an adapter"])
        super().plan(trainer, sequences)


class MovesFrozenWeights(Good):
    """Changes weights that the tuner did not declare trainable, and that are not saved."""

    def finish(self, number: int, trainer: Trainer, model: LanguageModel) -> None:
        for parameter in model.module.parameters():
            if not parameter.requires_grad:
                parameter.data.mul_(1.05)
        super().finish(number, trainer, model)


class IgnoresMaxSteps(Good):
    """Takes as many steps as it likes."""

    def plan(self, trainer: Trainer, sequences: list[TokenSequence]) -> None:
        trainer.plan(self.rounds * trainer.steps_for(len(sequences), 1))


class TakesNoStep(Good):
    """Rounds a part of an epoch down to nothing."""

    def budget(self, trainer: Trainer, sequences: list[TokenSequence]) -> int:
        return len(sequences) // 100


class NeverTrains(Good):
    """Finds that all is well as it is."""

    def align(self, context: AlignContext) -> None:
        self.read(context.model, context.data, context.log)


class NeverTrainsTheEnd(Good):
    """Leaves special tokens out of the loss."""

    def read(self, model: LanguageModel, data: Dataset, log: Log) -> list[TokenSequence]:
        def without_end(sequence: TokenSequence) -> TokenSequence:
            pairs = zip(sequence.ids, sequence.loss_mask, strict=True)
            return replace(sequence, loss_mask=[each and token not in model.end_ids for token, each in pairs])

        return [without_end(sequence) for sequence in super().read(model, data, log)]


class CutsItsSamples(Good):
    """Trains on sampled texts, tokenised anew without what ends them."""

    def align(self, context: AlignContext) -> None:
        model, trainer = context.model, context.trainer
        samples = self.read_samples(context)
        prompts = [model.encode_prompt(sample) for sample in samples]
        found = context.inferencer.generate(GenerateRequest(model, prompts, Sampling(max_new_tokens=6, seed=3)))
        sequences = [
            self.sequence(model, sample, prompt.ids, each)
            for sample, prompt, [each] in zip(samples, prompts, found, strict=True)
        ]
        self.plan(trainer, sequences)
        trainer.fit(sequences, steps=trainer.total_steps, start=0)
        trainer.checkpoint()

    def read_samples(self, context: AlignContext) -> list[Sample]:
        return prompts_with_room(context.model, context.data.train, 6, context.data.options, context.log, "training")

    def sequence(self, model: LanguageModel, sample: Sample, prompt: Any, completion: Completion) -> TokenSequence:
        ids = model.tokenizer(completion.text + " ", add_special_tokens=False)["input_ids"]
        return TokenSequence([*prompt, *ids], [False] * len(prompt) + [True] * len(ids), sample.source)


class TrainsOnItsSamples(CutsItsSamples):
    """A good one, which takes the tokens that were sampled."""

    def sequence(self, model: LanguageModel, sample: Sample, prompt: Any, completion: Completion) -> TokenSequence:
        ids = completion.ids
        return TokenSequence([*prompt, *ids], [False] * len(prompt) + [True] * len(ids), sample.source)


class TrainsOnHeldOut(Good):
    """More data is better, and nobody need know where it is from."""

    def read(self, model: LanguageModel, data: Dataset, log: Log) -> list[TokenSequence]:
        found = super().read(model, replace(data, train=[*data.train, *data.heldout]), log)
        return [replace(sequence, source="data") for sequence in found] if data.heldout else found


class EditsSamples(Good):
    """Writes into the records it was given."""

    def read(self, model: LanguageModel, data: Dataset, log: Log) -> list[TokenSequence]:
        for sample in data.train:
            sample.record["prompt"] = sample.record["prompt"].lower()
        return super().read(model, data, log)


class EditsHeldOutAnswers(Good):
    """Tidies answers up, where they lie."""

    def finish(self, number: int, trainer: Trainer, model: LanguageModel) -> None:
        super().finish(number, trainer, model)
        for sample in self._heldout:
            object.__setattr__(sample, "messages", (*sample.messages[:-1], Message("assistant", "tidy")))

    def read(self, model: LanguageModel, data: Dataset, log: Log) -> list[TokenSequence]:
        self._heldout = list(data.heldout)
        return super().read(model, data, log)

    _heldout: list[Sample] = PrivateAttr(default_factory=list)


class ReordersSamples(Good):
    """Sorts the list it was given."""

    def read(self, model: LanguageModel, data: Dataset, log: Log) -> list[TokenSequence]:
        data.train.sort(key=lambda sample: sample.source, reverse=True)
        return super().read(model, data, log)


class EstimatesTooFew(Good):
    """Tells `lmflow plan` of one round, and takes several."""

    def workload(self, context: PlanContext) -> Workload:
        sequences, _ = encode(context.model, context.data.train, context.data.options)
        return Workload(sequences, context.options.steps_for(len(sequences), 1))


class UsesAReward(Good):
    """Scores with a reward that it does not say it needs."""

    def align(self, context: AlignContext) -> None:
        super().align(context)
        samples = context.data.train
        scores = context.reward.score(samples, [sample.messages[-1].content for sample in samples])
        context.log.metrics["answers_reward"] = scores[0]


class NeedsARewrad(UsesAReward):
    """Says that it needs a reward, and misspells it."""

    needs = (Need("rewrad", "it scores the answers"),)


class NeedsAReward(UsesAReward):
    """A good one."""

    needs = (Need("reward", "it scores the answers"),)


class NeedsAnotherInferencer(Good):
    """A good one that goes only with inferencer hf."""

    needs = (Need("inferencer", "it reads what hf alone tells", names=("hf",)),)


class DropsInSilence(Good):
    """Leaves samples out without a word, and names them only when none is left."""

    def read(self, model: LanguageModel, data: Dataset, log: Log) -> list[TokenSequence]:
        every = [(sample, sequence) for sample in data.train for sequence in model.encode(sample)]
        sequences = [sequence for _, sequence in every if len(sequence) <= 256]
        if not sequences:
            raise DataError(f"nothing to train on: {every[0][0].source}")
        return sequences


class TellsNothing(DropsInSilence):
    """Leaves samples out, and does not say which even when none is left."""

    def read(self, model: LanguageModel, data: Dataset, log: Log) -> list[TokenSequence]:
        try:
            return super().read(model, data, log)
        except DataError:
            raise DataError("nothing to train on") from None


class StumblesOverThem(Good):
    """A mistake in the data becomes a mistake in the code."""

    def read(self, model: LanguageModel, data: Dataset, log: Log) -> list[TokenSequence]:
        every = [sequence for sample in data.train for sequence in model.encode(sample)]
        sources = ", ".join(sequence.source for sequence in every)
        if any(len(sequence) > 256 for sequence in every):
            raise IndexError(f"index out of range in self: {sources}")
        return every


class HasAHead(Good):
    """A good one, which learns a number beside the answers."""

    def heads(self, model: LanguageModel) -> dict[str, Head]:
        return {"value": Head()}

    def objective(self, context: RunContext) -> Objective:
        self._heads.append(context.model.heads["value"])
        return FunctionObjective(self.loss)

    def loss(self, forward: Any, unwrapped: Any, batch: Any) -> torch.Tensor:
        with head_applied(unwrapped, self._heads[-1], batch.target_positions) as found:
            loss = super().loss(forward, unwrapped, batch)
        return loss + (found[0] - 1).square().sum()

    _heads: list[HeadLayers] = PrivateAttr(default_factory=list)


class FreezesItsHead(HasAHead):
    """Uses its head, and does not train it."""

    def align(self, context: AlignContext) -> None:
        self._heads[-1].requires_grad_(False)
        super().align(context)


class StartsItsHeadAnew(HasAHead):
    """Gives its head first weights when it begins, in a resumed run too."""

    def align(self, context: AlignContext) -> None:
        start_anew(self._heads[-1])
        super().align(context)


class ForgetsTheSavedHead(HasAHead):
    """Gives its head first weights before it begins, though the model came with one."""

    def objective(self, context: RunContext) -> Objective:
        start_anew(context.model.heads["value"])
        return super().objective(context)


def start_anew(head: HeadLayers) -> None:
    for each in head.parameters():
        each.data.fill_(0.01)


class LosesAnOption(Good):
    """Writes fewer digits of an option than it computes with."""

    @field_serializer("weight", when_used="json")
    def _round(self, weight: float) -> float:
        return round(weight, 1)


IMPROVES, OPTIONS = "test_improves_its_objective_on_the_embedded_task", "test_options_survive_the_recipe_file"
SAME, OTHER = "test_the_same_seed_gives_the_same_run", "test_another_seed_gives_other_weights"
RESUMED, STEPS = "test_a_resumed_run_equals_an_uninterrupted_one", "test_takes_no_more_steps_than_asked_for"
FULL, LORA, NEEDS = "test_trains_with_tuner_full", "test_trains_with_tuner_lora", "test_needs_are_declared_and_enforced"
HEADS, FURTHER = "test_its_heads_train_and_are_saved", "test_trains_the_heads_of_an_earlier_run_further"
ESTIMATED = "test_estimates_the_steps_it_takes"
MICRO = "test_micro_batches_change_no_step"
STEPPING, ENDS = "test_every_fit_takes_a_step", "test_trains_the_token_that_ends_an_answer"
HELD_OUT, EDITED = "test_trains_on_no_held_out_record", "test_leaves_the_samples_as_they_are"
BAD, MIXED = "test_an_error_names_the_bad_record", "test_a_bad_record_among_good_ones_is_named"
ALL = {
    IMPROVES,
    OPTIONS,
    SAME,
    OTHER,
    RESUMED,
    STEPS,
    ESTIMATED,
    MICRO,
    FULL,
    LORA,
    NEEDS,
    BAD,
    MIXED,
    STEPPING,
    ENDS,
    HELD_OUT,
    EDITED,
    HEADS,
    FURTHER,
}

NOT_OF_SAMPLES = {IMPROVES, OTHER, RESUMED, SAME, FULL, LORA, STEPS, MIXED, BAD}
"""What an aligner that trains on the few words of a random model may fail, beside what it is looked at for."""

# An aligner, the check that is there to catch it, and what it is told.
BROKEN: list[tuple[Aligner, str, str]] = [
    (Ascends(), IMPROVES, "expected eval_loss to fall by at least 0.02"),
    (TakesMeans(), MICRO, "an objective that returns a mean over the batch"),
    (DrawsFromElsewhere(), SAME, "expected again and whole to write the same metrics.jsonl"),
    (HasItsOwnSeed(), OTHER, "a seed written into the aligner"),
    (ForgetsItsPlace(), RESUMED, "the first lines that differ"),
    (NeverSaves(), RESUMED, "it left none"),
    (NeverStops(), RESUMED, "it ran to its end"),
    (KnowsTheModel(), LORA, "norm"),
    (KnowsTheAdapter(), FULL, "it needs an adapter"),
    (MovesFrozenWeights(), LORA, "training changed something that is not saved"),
    (IgnoresMaxSteps(), STEPS, "it took 9"),
    (TakesNoStep(), STEPPING, "9 items and 0 steps, so it takes none. Usual cause"),
    (NeverTrains(), STEPPING, "it never called it"),
    (NeverTrainsTheEnd(), ENDS, "expected the end-of-text token after an answer to be a target"),
    (CutsItsSamples(), ENDS, "expected the end-of-text token after an answer to be a target"),
    (TrainsOnHeldOut(), HELD_OUT, "trainer.fit was given heldout.jsonl:1"),
    (EditsSamples(), EDITED, "data.train has other samples than before at records.jsonl:1"),
    (EditsHeldOutAnswers(), EDITED, "data.heldout has other samples than before at heldout.jsonl:1"),
    (ReordersSamples(), EDITED, "data.train is in another order"),
    (EstimatesTooFew(), ESTIMATED, "steps that workload() told; it took"),
    (UsesAReward(), NEEDS, "'NoneType' object has no attribute 'score'"),
    (NeedsARewrad(), NEEDS, "needs names 'rewrad', which is no slot"),
    (DropsInSilence(), MIXED, "names mixed.jsonl:13"),
    (TellsNothing(), BAD, "names bad.jsonl:1"),
    (StumblesOverThem(), BAD, "IndexError"),
    (FreezesItsHead(), HEADS, "; value ended as it had started"),
    (StartsItsHeadAnew(), RESUMED, "the first lines that differ"),
    (ForgetsTheSavedHead(), FURTHER, "; value started anew"),
    (LosesAnOption(weight=0.123), OPTIONS, "'weight': 0.123} to come back"),
]
SHORT = {"data.limit": 96, "training.max_steps": 12}


def failed(reports: dict[str, Any]) -> set[str]:
    assert not any(report.outcome == "skipped" for report in reports.values())
    return {name for name, report in reports.items() if report.outcome == "failed"}


@pytest.mark.parametrize("aligner", [Good(rounds=4), HasAHead(rounds=4)], ids=["plain", "with a head"])
def test_a_good_aligner_passes(examine: Callable[..., dict[str, Any]], aligner: Aligner):
    reports = examine(AlignerSuite, aligner=aligner, task_settings=SHORT)
    assert reports.keys() == ALL
    assert not failed(reports), reports


@pytest.mark.parametrize("aligner", [NeedsAReward(), NeedsAnotherInferencer()])
def test_needs_that_are_declared_pass(examine, aligner: Aligner):
    assert not failed(examine(AlignerSuite, aligner=aligner, only="needs"))


@pytest.mark.parametrize(("aligner", "check", "message"), BROKEN, ids=[type(row[0]).__name__ for row in BROKEN])
def test_a_broken_aligner_fails(examine, aligner: Aligner, check: str, message: str):
    """It fails the check of the promise it breaks, which says so."""
    reports = examine(AlignerSuite, aligner=aligner, task_settings=SHORT, only=check)
    assert failed(reports) == {check}
    assert message in reports[check].message


def test_an_aligner_broken_in_one_respect_passes_all_other_checks(examine):
    assert failed(examine(AlignerSuite, aligner=IgnoresMaxSteps(), task_settings=SHORT)) == {STEPS}


def test_an_aligner_that_trains_on_what_was_sampled_passes(examine):
    assert not failed(examine(AlignerSuite, aligner=TrainsOnItsSamples(), only="ends_an_answer"))


def test_an_unenforced_need_fails(examine, monkeypatch):
    """A recipe that leaves a need unmet must be refused; here the check of recipes is taken out."""
    monkeypatch.setattr("lmflow.recipe.resolve._incompatibilities", lambda *_: [])
    reports = examine(AlignerSuite, aligner=NeedsAReward(), only="needs")
    assert failed(reports) == {NEEDS}
    assert "the recipe was accepted" in reports[NEEDS].message


def test_a_metric_nobody_measures_is_told_from_those_there_are(examine):
    reports = examine(AlignerSuite, aligner=Good(), metric="eval_los", task_settings=SHORT, only="improves")
    assert "it has those of eval_loss, generic_loss. Usual" in reports[IMPROVES].message


def test_a_missing_plugin_is_a_failure_that_says_what_to_install(examine):
    def without_lora() -> Any:
        return load_plugins([point for point in entry_points(group="lmflow") if point.dist.name != "lmflow-lora"])

    reports = examine(AlignerSuite, aligner=Sft(heldout_prompts=0), plugins=without_lora, only="trains_with")
    assert reports.keys() == {FULL, LORA}
    assert failed(reports) == {LORA}
    assert "lmflow plugins install lmflow-lora" in reports[LORA].message


def test_a_suite_without_an_aligner_says_what_to_write(examine):
    reports = examine(AlignerSuite)
    assert failed(reports) == ALL
    assert "write a fixture `aligner` that returns one" in reports[SAME].message
