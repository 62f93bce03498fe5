"""The conformance suite for tuners: what every tuner promises to those who train with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from lmflow.builtin.merge import Merge
from lmflow.components import Component, LoadRequest, Tuner
from lmflow.errors import LmflowError
from lmflow.run.export import export
from lmflow.testing.comparing import (
    all_tensors,
    apart,
    changed_files,
    different,
    file_hashes,
    mean_loss,
    read_logits,
    some,
    state_of,
)
from lmflow.testing.runs import SMALL, Bench, Prepared, RunSuite, over

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = 5
"""Optimizer steps of what is trained without a whole run: the first one moves only a part of some adapters."""

SFT: Mapping[str, Any] = {"aligner.name": "sft", "aligner.heldout_prompts": 0}
"""Settings of a run with SFT that answers no prompts."""

RAFT: Mapping[str, Any] = {
    "aligner.name": "raft",
    "aligner.iterations": 2,
    "aligner.prompts": 6,
    "aligner.samples": 2,
    "aligner.max_new_tokens": 8,
    "aligner.heldout_prompts": 2,
}
"""Settings of a small run with RAFT."""


@dataclass(frozen=True)
class Saved:
    """A model whose trainable parameters have moved, its logits then, and where it was saved."""

    prepared: Prepared
    logits: Tensor
    path: Path


class TunerSuite(RunSuite):
    """An examination of one tuner; inherit from it in a class whose name begins with Test, and supply the tuner.

        from lmflow.testing import TunerSuite

        class TestMyTuner(TunerSuite):
            @pytest.fixture
            def tuner(self):
                return MyTuner(rank=4)

    Each test is one requirement, and its docstring says which. The tuner need not be installed as a plugin, but a
    model component of yours that reads what it saves must be (or be offered by the fixture `plugins`).

    What can be changed: the class attributes below, those of RunSuite (`records`, `settings`, `architecture`), and
    the fixtures `model` (the model component to start from; a tiny Llama of random weights) and `plugins` (the
    installed ones and your tuner).
    """

    learning_rate: ClassVar[float] = 1e-3
    """A rate at which a few steps on the tiny model reduce the loss."""
    tolerance: ClassVar[float] = 1e-4
    """Largest difference of a logit, and of a loss in nats, that rounding explains when weights are saved or merged."""
    rotation: ClassVar[int] = 50
    """Most steps that a tuner with `active` may need to train each of its parameters once, on two layers."""
    merges: ClassVar[bool] = True
    """Whether what the tuner saves can be merged into one plain model; if not, `lmflow export merge` must refuse."""

    @pytest.fixture
    def tuner(self) -> Tuner:
        """The tuner under examination; every suite supplies its own."""
        pytest.fail(f"{type(self).__name__} supplies no tuner: write a fixture `tuner` that returns one", pytrace=False)

    @pytest.fixture
    def component(self, tuner: Tuner) -> Component:
        """The tuner."""
        return tuner

    # What `prepare` does

    def test_some_parameter_is_trainable(self, bench: Bench) -> None:
        """After `prepare` at least one parameter has `requires_grad`: there is something to train."""
        model = bench.model.load(LoadRequest(plugins=bench.plugins)).prepare(bench.recipe(self._small({})).recipe.tuner)
        names = [name for name, parameter in model.module.named_parameters() if parameter.requires_grad]
        assert names, (
            "expected at least one parameter with requires_grad after prepare(), found none. Usual cause: everything "
            "is frozen first, and the new parameters are not given requires_grad, or are not part of the module."
        )

    def test_prepare_repeats_from_the_same_seed(self, bench: Bench) -> None:
        """Two calls of `prepare` after the same `torch.manual_seed` give the same tensors and the same declaration.

        A resumed run prepares the model anew and gets only the trainable parameters from the checkpoint.
        """
        first, second = (bench.prepare(self._small({})) for _ in range(2))
        changed = different(all_tensors(second.model), all_tensors(first.model))
        assert not changed, (
            f"expected the same tensors from two calls of prepare() with one seed; these differ: {some(changed)}. "
            "Usual cause: random numbers from elsewhere than torch's global generator (random, numpy, the time)."
        )
        declared, again = first.trainable(), second.trainable()
        assert declared == again, (
            f"expected two calls of prepare() to declare the same parameters; only one declared "
            f"{some(sorted(declared ^ again))}. Usual cause: a choice by random numbers that torch does not seed."
        )

    # What training does

    def test_only_declared_parameters_move(self, bench: Bench) -> None:
        """Training changes no parameter without `requires_grad` and no buffer, not by a bit.

        Nothing else is in a checkpoint, so anything else that moves is lost when a run is resumed.
        """
        prepared, before, after = self._train(bench)
        moved = sorted(set(different(after, before)) - prepared.trainable())
        assert not moved, (
            f"expected only parameters with requires_grad to change in training; {some(moved)} changed too. Usual "
            "cause: a forward pass that writes to a buffer (a running mean) or to a frozen weight."
        )

    def test_every_declared_parameter_moves(self, bench: Bench) -> None:
        """Training changes every parameter with `requires_grad`: what is declared trainable is trained.

        Where `active` names some at a time, as many steps are taken as it needs to name each once, up to `rotation`.
        """
        prepared, before, after = self._train(bench)
        still = sorted(prepared.trainable() - set(different(after, before)))
        assert not still, (
            f"expected every parameter with requires_grad to change in training; {some(still)} did not. Usual "
            "cause: the forward pass does not use it, or a detach() or no_grad() keeps its gradient away."
        )

    def test_a_few_steps_reduce_the_loss(self, bench: Bench) -> None:
        """A few steps on one batch at `learning_rate` reduce the loss on that batch."""
        prepared = bench.prepare(self._small({}))
        batch = prepared.sequences()[: prepared.trainer.options.batch_size]
        before = mean_loss(prepared.model, batch)
        prepared.take_steps(batch, STEPS)
        after = mean_loss(prepared.model, batch)
        assert after < before, (
            f"expected {STEPS} steps at learning rate {self.learning_rate:g} to reduce the loss on the batch they were "
            f"taken on; it went from {before:.5f} to {after:.5f} nats. Usual cause: a gradient of the wrong sign or "
            "scale, or a rate that does not suit the tuner (set the suite's `learning_rate`)."
        )

    # What trains when

    def test_active_depends_on_its_arguments_alone(self, bench: Bench) -> None:
        """`active` names the same parameters for a step whenever it is asked, and of a fresh copy: runs are resumed.

        They are among those that `prepare` declared, and at least one.
        """
        prepared = bench.prepare(self._small({}))
        names = [name for name, each in prepared.model.module.named_parameters() if each.requires_grad]
        tuner, steps, given = prepared.recipe.tuner, range(20), list(names)
        forwards = [active_names(tuner, step, given) for step in steps]
        again = type(tuner).model_validate(tuner.model_dump())
        backwards = [active_names(again, step, given) for step in reversed(steps)][::-1]
        assert given == names, "expected active() to leave the list of names alone; it changed it. Copy it first."
        differing = [step for step in steps if forwards[step] != backwards[step]]
        assert not differing, (
            f"expected active() to name the same parameters for a step however it is asked; it did not for steps "
            f"{differing[:3]}. Usual cause: a counter or generator kept on the tuner; seed one from (seed, step)."
        )
        for step, chosen in enumerate(forwards):
            unknown = sorted(chosen - set(names))
            assert not unknown, (
                f"expected active() to name parameters that prepare() declared; at step {step} it named {some(unknown)}"
            )
            assert chosen, f"expected active() to name at least one parameter; at step {step} it named none"

    def test_parameter_groups_name_trainable_parameters(self, bench: Bench) -> None:
        """`parameter_groups` names parameters that `prepare` declared, none twice, with rates and decays from 0 on."""
        prepared = bench.prepare(self._small({}))
        names, tuner = prepared.trainable(), prepared.recipe.tuner
        groups = tuner.parameter_groups(sorted(names))
        named = [name for group in groups for name in group.names]
        unknown = sorted(set(named) - names)
        assert not unknown, (
            f"expected parameter_groups() to name trainable parameters; it named {some(unknown)}. Usual cause: names "
            "of before prepare() wrapped the model; go by the names it is given."
        )
        twice = sorted({name for name in named if named.count(name) > 1})
        assert not twice, f"expected each parameter in one group at most; found {some(twice)} in several"
        numbers = [each for group in groups for each in (group.learning_rate, group.weight_decay) if each is not None]
        wrong = [each for each in numbers if not 0 <= each < math.inf]
        assert not wrong, f"expected rates and decays that are finite and not negative, or None; found {wrong}"

    # What is saved

    def test_saving_leaves_the_model_as_it_was(self, bench: Bench) -> None:
        """`save` changes nothing in the model it writes, nor what it answers: a run measures it after it was saved."""
        prepared = self._moved(bench)
        sequences, model = prepared.sequences(), prepared.model
        logits, before, state = read_logits(model, sequences), all_tensors(model), state_of(model)
        save_in_place(prepared)
        changed = [*different(all_tensors(model), before), *apart(state_of(model), state)]
        assert not changed, (
            f"expected save() to leave the model as it was; it changed {some(changed)}. Usual cause: adapters merged "
            "in place before writing; merge a copy."
        )
        off = float((read_logits(model, sequences) - logits).abs().max())
        assert off == 0, (
            f"expected the model to answer after save() as before; a logit is off by {off:.3g}. Usual cause: a scale "
            "or a switch of the wrapped modules that is set for writing and not set back."
        )

    def test_a_saved_result_gives_the_same_logits(self, bench: Bench) -> None:
        """What `save` wrote, loaded with `--model DIR`, has the logits of the model that was saved.

        Some installed model component must recognise the directory.
        """
        saved = self._saved(bench)
        self._expect_same_logits(bench, saved, saved.path, "loading what save() wrote")

    def test_a_saved_result_keeps_the_tokenizer(self, bench: Bench) -> None:
        """What `save` wrote brings the tokenizer and the chat template the model was trained with.

        That template is another than the base's, as with `--data.template`.
        """
        prepared = self._moved(bench)
        tokenizer = prepared.model.tokenizer
        tokenizer.chat_template = f"So it was trained. {tokenizer.chat_template}"
        found, expected = (prepared.tokens(model) for model in (bench.load(save_in_place(prepared)), prepared.model))
        assert found == expected, (
            "expected the saved result to tokenise the records as in training; it does not. Usual cause: save() does "
            "not write the tokenizer beside the weights (LanguageModel.save does), or the loader takes the base's."
        )

    def test_a_saved_result_can_be_tuned_again(self, bench: Bench) -> None:
        """What `save` wrote can be tuned once more; what is saved then, loaded, holds what was learnt both times.

        With `merges = False` saving may be refused instead, with an LmflowError.
        """
        saved = self._saved(bench)
        again = bench.load(saved.path).prepare(saved.prepared.recipe.tuner)
        move(again.module, seed=1)
        logits = read_logits(again, saved.prepared.sequences())
        try:
            path = again.save_tuned(saved.prepared.recipe.tuner, new_directory(saved.prepared.directory / "again"))
        except LmflowError:
            assert not self.merges, "expected a result that was tuned again to be saved; it was refused"
            return
        off = float((read_logits(bench.load(path), saved.prepared.sequences()) - logits).abs().max())
        allowed = 5 * self.tolerance  # rounded twice; what was learnt at first changed more, see `_saved`
        assert off <= allowed, (
            "expected a result that was tuned again to be saved and loaded with both trainings, up to "
            f"{allowed:g}; the largest difference of a logit is {off:.3g} (in {path}). Usual cause: the model "
            "loaded from a result has its base's `source`, so that the next result is read beside the wrong weights."
        )

    def test_a_merged_result_gives_the_same_logits(self, bench: Bench) -> None:
        """`lmflow export merge` makes one plain model of what was saved, with the logits of the unmerged one.

        With `merges = False` it must refuse instead, with an LmflowError.
        """
        saved = self._saved(bench)
        output = saved.prepared.directory / "merged"
        refusal = None
        try:
            export(Merge(dtype="float32"), bench.plugins, str(saved.path), output)
        except LmflowError as error:
            refusal = error
        assert (refusal is None) == self.merges, (
            f"expected merging to be {'possible' if self.merges else 'refused'}, as the suite's `merges` says; "
            f"{f'it was refused: {refusal}' if refusal else f'it wrote {output}'}"
        )
        if self.merges:
            self._expect_same_logits(bench, saved, output, "merging")

    # Whole runs

    def test_composes_with_sft(self, bench: Bench) -> None:
        """A run with `--aligner sft` completes, trains, and leaves a result that scores as the run said."""
        bench.check_sound(bench.run("sft", self._small({})), self.tolerance)

    def test_composes_with_raft(self, bench: Bench) -> None:
        """A run with `--aligner raft` (the distribution lmflow-raft) completes, and its result scores as it said."""
        bench.check_sound(bench.run("raft", self._small(RAFT)), self.tolerance)

    def test_a_resumed_run_equals_an_uninterrupted_one(self, bench: Bench) -> None:
        """A run interrupted twice and resumed ends with the weights and losses of one left alone, to the bit."""
        cause = "state of the tuner that is neither a trainable parameter nor made anew by prepare()"
        bench.check_same(bench.run_in_pieces("sft", self._small({})), bench.run("sft", self._small({})), cause)

    def test_the_base_on_disk_is_untouched(self, bench: Bench) -> None:
        """After a run, and a save, the directory of the base model holds what it held, byte for byte."""
        assert bench.base_files, f"{bench.base_directory} holds no file: start from a model on disk (fixture `model`)"
        bench.run("sft", self._small({}))
        save_in_place(self._moved(bench))
        changed = changed_files(file_hashes(bench.base_directory), bench.base_files)
        assert not changed, (
            f"expected a run to leave {bench.base_directory} alone; it changed or added {some(changed)}. Usual cause: "
            "something saved to `model.source` instead of the run's directory."
        )

    # How the suite goes about it

    def _small(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        own = {**SMALL, **SFT, "training.learning_rate": self.learning_rate}
        return over(over(own, self.settings), changes)

    def _train(self, bench: Bench) -> tuple[Prepared, dict[str, Tensor], dict[str, Tensor]]:
        """A prepared model that has taken a few steps, and all its tensors before and after."""
        prepared = bench.prepare(self._small({}))
        before = all_tensors(prepared.model)
        prepared.take_steps(prepared.sequences()[:3], steps_of_a_round(prepared, self.rotation))
        return prepared, before, all_tensors(prepared.model)

    def _moved(self, bench: Bench) -> Prepared:
        """A prepared model whose trainable parameters have all moved, further than a few steps would move them."""
        prepared = bench.prepare(self._small({}))
        move(prepared.model.module, seed=0)
        return prepared

    def _saved(self, bench: Bench) -> Saved:
        """A moved model, its logits, and where it was saved."""
        prepared = self._moved(bench)
        logits = read_logits(prepared.model, prepared.sequences())
        untrained = read_logits(bench.model.load(LoadRequest(plugins=bench.plugins)), prepared.sequences())
        assert (logits - untrained).abs().max() > 10 * self.tolerance, (
            "expected moving the trainable parameters to change the logits; it did not, so nothing can be said about "
            "saving them. Usual cause: the forward pass does not use the parameters declared trainable."
        )
        return Saved(prepared, logits, save_in_place(prepared))

    def _expect_same_logits(self, bench: Bench, saved: Saved, path: Path, what: str) -> None:
        """The model at `path` has the logits of the one that was saved."""
        found = read_logits(bench.load(path), saved.prepared.sequences())
        off = float((found - saved.logits).abs().max())
        assert off <= self.tolerance, (
            f"expected the same logits after {what}, up to {self.tolerance:g}; the largest difference is {off:.3g} "
            f"(in {path}). Usual cause: a trained tensor that is not written, or that the loader leaves unread or "
            "applies with another scale."
        )


def move(module: nn.Module, seed: int) -> None:
    """Move all trainable parameters, further than a few steps would."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def new_directory(path: Path) -> Path:
    """The directory, made."""
    path.mkdir()
    return path


def active_names(tuner: Tuner, step: int, names: list[str], seed: int = 0) -> set[str]:
    """The names that train at a step."""
    chosen = tuner.active(step, names, seed)
    return set(names if chosen is None else chosen)


def save_in_place(prepared: Prepared) -> Path:
    """Save as a run does; checks the place."""
    path = prepared.model.save_tuned(prepared.recipe.tuner, prepared.directory)
    assert path.parent == prepared.directory, (
        f"expected save() to write one entry directly in the directory it was given ({prepared.directory}) and to "
        f"return its path, because run.json keeps its name alone; it returned {path}"
    )
    return path


def steps_of_a_round(prepared: Prepared, most: int) -> int:
    """Steps until every trainable parameter has been active, `most` at most; at least a few."""
    names = [name for name, each in prepared.model.module.named_parameters() if each.requires_grad]
    resting = set(names)
    for step in range(most):
        resting -= active_names(prepared.recipe.tuner, step, names, prepared.trainer.options.seed)
        if not resting:
            return max(step + 1, STEPS)
    return most
