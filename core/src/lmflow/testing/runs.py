"""Small whole runs around a component under examination: what the suites of tuners and aligners stand on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import pytest
from pydantic import PrivateAttr

from lmflow.components import AlignContext, Aligner, Component, LoadRequest, Model, PlanContext, Tracker, Workload
from lmflow.errors import Interrupted, PluginError, RecipeError
from lmflow.hookspecs import hookimpl
from lmflow.plugins import CORE, GROUP, Plugins
from lmflow.plugins.in_process import load_plugins_with, slot_of
from lmflow.recipe.recipe import Recipe, ResolvedRecipe, dump
from lmflow.recipe.resolve import model_from_reference, resolve
from lmflow.recipe.settings import Origin, Setting
from lmflow.run import stages
from lmflow.run.before_after import generic_sequences
from lmflow.run.directory import RunDirectory
from lmflow.run.record import RunRecord, RunResult
from lmflow.run.run import run
from lmflow.run_files import CHECKPOINTS, METRICS, RECIPE
from lmflow.testing.comparing import all_tensors, different, file_hashes, heldout_loss, mean_loss, some
from lmflow.testing.watching import Watched, watch

if TYPE_CHECKING:
    from lmflow.data.sample import Dataset, TokenSequence
    from lmflow.models.language_model import LanguageModel
    from lmflow.run.log import RunLog
    from lmflow.training.trainer import Trainer

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
RECORDS = tuple({"prompt": f"Say {word} and stop", "answer": f"{word} {word}"} for word in NUMBERS)
"""Twelve questions with answers."""
HELD_OUT = 3
"""How many records, the last ones, are held out: named by path, so that the split does not depend on the seed."""

SETTINGS: Mapping[str, Any] = {
    "training.device": "cpu",
    "training.precision": "fp32",
    "reward.name": "python",
    "reward.function": "lmflow.testing.runs:count_vowels",
}
"""What every run is set to, by dotted path: arithmetic that repeats exactly, and a reward at hand."""

SMALL: Mapping[str, Any] = {"training.batch_size": 3, "training.epochs": 2}
"""Settings of a run on the few records: three steps an epoch."""

TIME = "second"
"""Part of the names of those metrics that differ between two runs of one recipe: seconds, tokens_per_second."""


def count_vowels(prompts: Sequence[str], completions: Sequence[str], records: Sequence[Any]) -> list[float]:
    """A reward that even a model of random weights can learn: the number of vowels in a completion."""
    return [float(sum(text.count(vowel) for vowel in "aeiou")) for text in completions]


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write one JSON object per line; return where."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def supply(suite: object, fixture: str) -> NoReturn:
    """Fail because the author of a suite has not written a fixture that has no default."""
    who = type(suite).__name__
    pytest.fail(f"{who} supplies no {fixture}: write a fixture `{fixture}` that returns it", pytrace=False)


# Plugins


COMPANIONS = ("lmflow-demo", "lmflow-lora", "lmflow-raft")
"""Distributions whose components the suites of tuners and aligners combine the one under examination with."""


def plugins_with(*components: type[Component], companions: Collection[str] = COMPANIONS) -> Plugins:
    """The core, the installed plugins that `components` come from, and the distributions `companions`: nothing else.

    What else is installed cannot matter then, broken or slow as it may be. Components that no plugin offers are offered
    by one more. Fails with the reason where a component breaks a rule for which its plugin would be left out.
    """
    packages = {component.__module__.partition(".")[0] for component in components}
    wanted = {CORE, *companions}
    points = [
        point
        for point in entry_points(group=GROUP)
        if point.module.partition(".")[0] in packages or (point.dist is not None and point.dist.name in wanted)
    ]
    try:
        return load_plugins_with(components, points)
    except PluginError as error:
        pytest.fail(f"lmflow would leave the plugin out: {str(error).removeprefix('components: ')}", pytrace=False)


def component_settings(plugins: Plugins, component: Component) -> dict[str, Any]:
    """The settings of a recipe that name `component` and its options, by dotted path."""
    slot = slot_of(type(component)).name
    offers = plugins.offers(slot).get(component.name, ())
    distribution = next((offer.distribution for offer in offers if offer.component is type(component)), None)
    if distribution is None:
        pytest.fail(f"the fixture `plugins` does not offer {slot} {component.name}; see plugins_with", pytrace=False)
    name = component.name if len(offers) == 1 else f"{distribution}:{component.name}"
    options = component.model_dump(mode="json")
    return {f"{slot}.name": name, **{f"{slot}.{key}": value for key, value in options.items()}}


def over(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with `changes`; where these name another component, the options of the one it replaces are dropped."""
    renamed = {path.removesuffix(".name") for path in changes if path.endswith(".name")}
    kept = {path: value for path, value in settings.items() if path.partition(".")[0] not in renamed}
    return {**kept, **changes}


def as_options(**values: Any) -> list[Setting]:
    """Settings as the command line gives them: `tuner__rank="4"` is --tuner.rank 4."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    return [Setting(path, value, Origin("option", f"--{path}")) for path, value in named.items()]


def resolve_settings(plugins: Plugins, settings: Mapping[str, Any]) -> ResolvedRecipe:
    """The recipe these settings make, by dotted path. Raises RecipeError, as for options on the command line."""
    return resolve(plugins, None, [Setting(path, value, Origin("suite", "here")) for path, value in settings.items()])


# Runs


@dataclass(frozen=True)
class Prepared:
    """What a run has at hand when its aligner begins; `context` is what the aligner is given."""

    recipe: Recipe
    context: AlignContext
    log: RunLog
    directory: Path
    plugins: Plugins

    @property
    def model(self) -> LanguageModel:
        """The model that the recipe's tuner made trainable."""
        return self.context.model

    @property
    def data(self) -> Dataset:
        """The samples."""
        return self.context.data

    @property
    def trainer(self) -> Trainer:
        """The trainer."""
        return self.context.trainer

    def sequences(self) -> list[TokenSequence]:
        """The training samples, tokenised."""
        from lmflow.models.encoding import encode

        return list(encode(self.model, self.data.train, self.data.options)[0])

    def tokens(self, model: LanguageModel) -> list[tuple[list[int], list[bool]]]:
        """The training samples as `model` tokenises them, and which tokens it would be trained on."""
        sequences = [each for sample in self.data.train for each in model.encode(sample)]
        return [(list(each.ids), list(each.loss_mask)) for each in sequences]

    def align(self) -> None:
        """Let the recipe's aligner do its work."""
        self.recipe.aligner.align(self.context)

    def take_steps(self, sequences: Sequence[TokenSequence], steps: int) -> None:
        """Train for so many steps with the trainer of the run; the model is in eval mode afterwards."""
        self.trainer.plan(steps)
        self.trainer.fit(sequences, steps=steps, checkpoints=False)

    def trainable(self) -> set[str]:
        """Names of the parameters that the tuner declared trainable."""
        return {name for name, parameter in self.model.module.named_parameters() if parameter.requires_grad}


def prepare(resolved: ResolvedRecipe, plugins: Plugins, output: Path, closing: ExitStack) -> Prepared:
    """Begin a run as `lmflow run` does, up to where the aligner takes over; `closing` gets what is to be closed."""
    from lmflow.run.log import RunLog

    recipe, directory = resolved.recipe, RunDirectory(output)
    log = RunLog(directory, plugins.emit)
    work = stages.Work(recipe, plugins, directory, log, RunRecord(recipe, plugins, directory, log, resumed=False))
    try:
        model = stages.load_model(work)
        models = stages.open_models(work)
        data = stages.read_data(work)
        packing = stages.choose_packing(work, model, data, None)
        model = stages.prepare(work, model)
        context = stages.make_context(work, model, data, models, packing)
        stages.open_inferencer(work, context)
        closing.push(work.closing.pop_all())
        return Prepared(recipe, context, log, output, plugins)
    finally:
        work.closing.close()
        directory.close()


class StopAfter(Tracker):
    """Interrupt the run, as Ctrl-C does, once it has written so many lines of metrics."""

    name = "stop-after"
    lines: int
    _written: int = PrivateAttr(0)

    @hookimpl
    def lmflow_step_finished(self) -> None:
        """One more line."""
        self._written += 1
        if self._written == self.lines:
            signal.raise_signal(signal.SIGINT)


def interrupt(resolved: ResolvedRecipe, plugins: Plugins, output: Path, *, after: int, resume: bool = False) -> None:
    """Begin (or resume) the run and interrupt it after so many lines of metrics; fails unless it stops then."""
    with plugins.with_trackers([StopAfter(lines=after)]):
        try:
            run(resolved, plugins, output=output, resume=resume, estimate=False)
        except Interrupted:
            return
    pytest.fail(f"expected {output.name} to be interrupted {after} lines into {METRICS}; it ran to its end", False)


def stored_recipe(plugins: Plugins, output: Path) -> ResolvedRecipe:
    """The recipe of the run at `output`, which is what `lmflow run --resume --output DIR` goes by."""
    return resolve(plugins, output / RECIPE)


def check_left_checkpoint(output: Path, when: str) -> None:
    """Fail unless there is a checkpoint in the run's directory."""
    from lmflow.training.checkpoint import list_checkpoints

    assert list_checkpoints(output / CHECKPOINTS), (
        f"expected a run {when} to leave a checkpoint; it left none, so that a resumed run begins anew. Usual cause: "
        "trainer.fit() is given checkpoints=False, and trainer.checkpoint() is not called between its calls."
    )


def metrics_lines(directory: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the figures of time."""
    lines = (json.loads(line) for line in (directory / METRICS).read_text().splitlines())
    return [{key: value for key, value in line.items() if TIME not in key} for line in lines]


# What the suites share


class Bench:
    """A place to try one component: a base model and records on disk, and whole runs, each carried out once."""

    def __init__(
        self,
        folder: Path,
        plugins: Plugins,
        component: Component,
        model: Model,
        records: Sequence[Mapping[str, Any]],
    ) -> None:
        self.folder = folder
        self.data = {
            "data.path": str(write_records(folder / "records.jsonl", records[:-HELD_OUT])),
            "data.validation": str(write_records(folder / "heldout.jsonl", records[-HELD_OUT:])),
        }
        self.plugins = plugins
        self.component = component
        self.model = model
        self.base_directory = Path(model.load(LoadRequest(plugins=plugins)).source)
        self.base_files = file_hashes(self.base_directory)
        self.closing = ExitStack()
        """What has to be closed after the last test."""
        self._done: dict[str, RunResult | BaseException] = {}
        self._watched: Watched | None = None

    @property
    def slot(self) -> str:
        """What kind of component is tried."""
        return slot_of(type(self.component)).name

    def settings_with(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Every setting of a recipe around the component, by dotted path; `changes` win."""
        parts = component_settings(self.plugins, self.model) | component_settings(self.plugins, self.component)
        return over({**SETTINGS, **self.data, **parts}, changes)

    def recipe(self, changes: Mapping[str, Any]) -> ResolvedRecipe:
        """A recipe around a fresh copy of the component, as a new process would make it.

        Fails with what to install where another part of it is missing.
        """
        try:
            resolved = resolve_settings(self.plugins, self.settings_with(changes))
        except RecipeError as error:
            pytest.fail(f"This {self.slot} and what the test combines it with make no recipe:\n{error}", pytrace=False)
        fresh: Any = {self.slot: self.component.model_copy(deep=True)}
        return replace(resolved, recipe=replace(resolved.recipe, **fresh))

    def run(self, name: str, changes: Mapping[str, Any]) -> RunResult:
        """The whole run of that name, carried out at the first call; where it failed, every call fails alike."""
        return self._once(name, lambda output: run(self.recipe(changes), self.plugins, output=output, estimate=False))

    def workload(self, changes: Mapping[str, Any]) -> Workload | None:
        """What the aligner tells `lmflow plan` of the run."""
        from lmflow.data.dataset import load_dataset
        from lmflow.data.formats import formats_of
        from lmflow.planning.plan import load_skeleton

        recipe = self.recipe(changes).recipe
        data, _ = load_dataset(recipe.data, formats_of(recipe, self.plugins), recipe.training.seed)
        model = load_skeleton(recipe, self.plugins)
        return recipe.aligner.workload(PlanContext(model=model, data=data, options=recipe.training))

    def run_in_pieces(self, name: str, changes: Mapping[str, Any]) -> RunResult:
        """The run of that name again, interrupted past its half, resumed, interrupted again and resumed again."""

        def carry_out(output: Path) -> RunResult:
            lines = len(metrics_lines(self.run(name, changes).directory))
            assert lines >= 4, f"expected a run of at least 4 steps, to be interrupted twice; it took {lines}"
            interrupt(self.recipe(changes), self.plugins, output, after=lines // 2 + 1)
            check_left_checkpoint(output, f"interrupted {lines // 2 + 1} lines into the {lines} of {METRICS}")
            interrupt(stored_recipe(self.plugins, output), self.plugins, output, after=lines // 4, resume=True)
            return run(stored_recipe(self.plugins, output), self.plugins, output=output, resume=True, estimate=False)

        return self._once(f"{name}-in-pieces", carry_out)

    def _once(self, name: str, carry_out: Callable[[Path], RunResult]) -> RunResult:
        if name not in self._done:
            try:
                self._done[name] = carry_out(self.folder / name)
            except (Exception, pytest.fail.Exception) as error:  # the latter is no Exception
                self._done[name] = error
        done = self._done[name]
        if isinstance(done, BaseException):
            raise done
        return done

    def prepare(self, changes: Mapping[str, Any]) -> Prepared:
        """What a run has at hand when its aligner begins, made anew at each call."""
        output = self.folder / f"prepared-{len(list(self.folder.glob('prepared-*')))}"
        return prepare(self.recipe(changes), self.plugins, output, self.closing)

    def watch(self, changes: Mapping[str, Any]) -> Watched:
        """What the aligner does when it is called by itself; done at the first call."""
        if self._watched is None:
            prepared = self.prepare(changes)
            self._watched = watch(prepared.context, prepared.recipe.aligner)
        return self._watched

    def load(self, reference: Path) -> LanguageModel:
        """The model that `--model REFERENCE` means, on the CPU in float32."""
        return model_from_reference(self.plugins, str(reference)).load(LoadRequest(plugins=self.plugins))

    def check_sound(self, result: RunResult, tolerance: float) -> None:
        """Fail unless the run took steps, changed the model, and `--model RUN` gives the model it ended with."""
        metrics, name = result.record["metrics"], result.directory.name
        assert metrics["steps"] > 0, f"expected the run {name} to take optimizer steps; it took none"
        recipe = stored_recipe(self.plugins, result.directory).recipe
        # Of an objective of its own (a preference's, which compares with the start) a model alone cannot tell the loss.
        loss = "eval_loss" if has_default_objective(recipe.aligner) else "generic_loss"
        assert f"{loss}_after" in metrics, "the suite's `records` need answers, by which a run is measured"
        before, after = metrics[f"{loss}_before"], metrics[f"{loss}_after"]
        assert before != after, f"expected the run {name} to change its {loss}; it stayed at {before}"
        model = self.load(result.directory)
        sequences = generic_sequences(model)
        found = heldout_loss(self.plugins, model, recipe) if loss == "eval_loss" else mean_loss(model, sequences)
        assert abs(found - after) <= tolerance, (
            f"expected `--model {result.directory}` to give the model the run ended with, whose {loss}_after was "
            f"{after:.6f} nats; its loss is {found:.6f}. Usual cause: training changed something that is not saved."
        )

    def check_same(self, found: RunResult, expected: RunResult, cause: str) -> None:
        """Fail unless two runs wrote the same metrics, times aside, and the same weights to the bit."""
        both = f"{found.directory.name} and {expected.directory.name}"
        lines, wanted = metrics_lines(found.directory), metrics_lines(expected.directory)
        apart = next((f"  {one}\n  {other}" for one, other in zip_longest(lines, wanted) if one != other), "")
        assert not apart, (
            f"expected {both} to write the same {METRICS}; the first lines that differ are\n{apart}\n"
            f"Usual cause: {cause}."
        )
        weights, right = (all_tensors(self.load(result.directory)) for result in (found, expected))
        changed = different(weights, right)
        assert not changed, (
            f"expected {both} to end with the same weights to the bit; these differ: {some(changed)}. "
            f"Usual cause: {cause}."
        )


def has_default_objective(aligner: Aligner) -> bool:
    """Whether an aligner's held-out loss is the next-token loss of the answers."""
    kind = type(aligner)
    return kind.objective is Aligner.objective and kind.items is Aligner.items


BENCHES = pytest.StashKey[dict[str, Bench]]()


class RunSuite:
    """What the suites of tuners and aligners vary in: a base model, records, further settings, the plugins."""

    records: ClassVar[Sequence[Mapping[str, Any]]] = RECORDS
    """What the small runs train on, each with an answer, as lines of a .jsonl file that some format recognises."""
    settings: ClassVar[Mapping[str, Any]] = {}
    """Further settings of the small runs, by their dotted path in a recipe: {"training.epochs": 3}."""
    architecture: ClassVar[str] = "llama"
    """The tiny model's architecture, one of lmflow.testing.tiny.ARCHITECTURES."""

    @pytest.fixture
    def component(self) -> Component:
        """The component under examination, whatever its kind."""
        raise NotImplementedError

    companions: ClassVar[Collection[str]] = COMPANIONS
    """Distributions whose components the tests combine it with, where they are installed."""

    @pytest.fixture
    def plugins(self, component: Component, model: Model) -> Plugins:
        """The core, the plugins of the component and the model, and the suite's companions; see `plugins_with`."""
        return plugins_with(type(component), type(model), companions=self.companions)

    @pytest.fixture
    def model(self, tmp_path_factory: pytest.TempPathFactory) -> Model:
        """The model component to start from: a tiny one of random weights in a directory of its own."""
        from lmflow.models.pretrained import Pretrained
        from lmflow.testing.tiny import fill_biases, tiny_model

        directory = tmp_path_factory.mktemp("model")
        tiny = tiny_model(self.architecture, sharpness=6.0)
        fill_biases(tiny.module)
        tiny.save(directory)
        return Pretrained(path=str(directory))

    @pytest.fixture
    def bench(
        self, request: pytest.FixtureRequest, component: Component, tmp_path_factory: pytest.TempPathFactory
    ) -> Bench:
        """Where the component is tried; one for all tests of the class, so that they share its runs."""
        of_class = request.node.getparent(pytest.Class)
        benches: dict[str, Bench] = of_class.stash.setdefault(BENCHES, {})
        if repr(component) not in benches:
            plugins, model = request.getfixturevalue("plugins"), request.getfixturevalue("model")
            folder = tmp_path_factory.mktemp("bench")
            bench = benches[repr(component)] = Bench(folder, plugins, component, model, self.records)
            of_class.addfinalizer(bench.closing.close)
        return benches[repr(component)]

    def test_options_survive_the_recipe_file(self, bench: Bench, tmp_path: Path) -> None:
        """The component's options, written to a recipe's YAML and read again, are the same options."""
        text = dump(bench.recipe(self._small({})).recipe)
        (tmp_path / RECIPE).write_text(text, encoding="utf-8")
        again = resolve(bench.plugins, tmp_path / RECIPE).recipe
        written, found = bench.component.model_dump(), getattr(again, bench.slot).model_dump()
        assert found == written, (
            f"expected the options {written} to come back from the recipe file; found {found}. Usual cause: a field "
            "whose serialised form loses something, or a validator that changes what it has changed before."
        )
        assert dump(again) == text, "expected a recipe read from its YAML to be written as the same YAML; it was not"

    def _small(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a small run; `changes` win over those of the suite's author, these over the suite's own."""
        raise NotImplementedError
