"""What the component of each slot must do: one small abstract class per slot.

A component is one pydantic class. Its fields are its options (command line, YAML, JSON schema), its docstring's
first line is its help, and one or two methods do the work. Heavy imports belong inside those methods, so that
listing plugins and showing help never loads torch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from lmflow.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from lmflow.data.sample import Dataset, Prompt, Sample, TokenSequence
    from lmflow.inference.types import Completion, Sampling
    from lmflow.models.language_model import LanguageModel
    from lmflow.plugins import Plugins
    from lmflow.recipe.sections.training import TrainingOptions
    from lmflow.run.log import RunLog
    from lmflow.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Need:
    """The component works only when `slot` is filled, by one of `names` if any are given."""

    slot: str
    because: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conflict:
    """The component cannot work with any of `names` in `slot` (with nothing in it, if `names` is empty)."""

    slot: str
    because: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Requirement:
    """The component works only where Python can import `module`; `pip install INSTALL` brings it."""

    module: str
    install: str


class Component(BaseModel):
    """A named part that fills a slot. Instances are immutable and fully validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, protected_namespaces=())

    name: ClassVar[str]
    """What chooses it on the command line and in recipes; unique in its slot, in small letters and dashes."""
    shorthand: ClassVar[str | None] = None
    """Field set by `--slot NAME:VALUE`, as in `--reward python:module:function`."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """What other slots must hold, checked before anything is loaded."""
    conflicts: ClassVar[tuple[Conflict, ...]] = ()
    """What other slots must not hold, checked before anything is loaded."""
    requires: ClassVar[tuple[Requirement, ...]] = ()
    """Optional dependencies of its distribution that this component cannot do without."""
    one_process: ClassVar[str | None] = None
    """Why a run with it cannot be several processes (`--launch.processes`); None where it can."""
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults of the `training` section this component prefers; what the user writes wins."""

    @classmethod
    def missing(cls) -> list[Requirement]:
        """Those of its requirements that are not installed; nothing is imported to find out."""
        return [each for each in cls.requires if find_spec(each.module.partition(".")[0]) is None]


@dataclass(frozen=True, slots=True)
class Workload:
    """What an aligner will train on, as far as it can be known before: for `lmflow plan`."""

    items: Sequence[TokenSequence | tuple[TokenSequence, ...]]
    """What `Trainer.fit` will be given; what is yet to be sampled stands here at its longest."""
    steps: int | None
    """Optimizer steps of the whole run; None where that is not known."""


class Model(Component):
    """Slot `model`: where weights and tokenizer come from."""

    @classmethod
    def recognises(cls, reference: str) -> bool:
        """Whether `--model REFERENCE` (a directory, a file, a hub name) is for this component."""
        return False

    @abstractmethod
    def load(self, dtype: str, device: str, context: Context | None = None) -> LanguageModel:
        """Return model and tokenizer, weights in `dtype` ("float32", "bfloat16") on `device`, in eval mode.

        `context` changes the model's configuration before the model is built with it.
        Raises LmflowError with what is missing and how to get it.
        """

    def skeleton(self, context: Context | None = None) -> LanguageModel:
        """The model for those who need its tokenizer and configuration alone; its weights may have no values.

        The default loads the whole of it.
        """
        return self.load("float32", "cpu", context)


class Context(Component):
    """Slot `context`: how far a model's positions reach, and what they mean."""

    @abstractmethod
    def configure(self, config: Any) -> None:
        """Change a Transformers configuration in place, so that a model built with it reads longer texts.

        Raises LmflowError naming the model type and the reason when that cannot be done.
        """


class DataFormat(Component):
    """Slot `data`: what a record means. The fields here are common to all formats."""

    reward: ClassVar[str | None] = None
    """Name of the reward that belongs to this data, used when the recipe names none."""
    includes: ClassVar[tuple[str, ...]] = ()
    """Formats whose records this one reads too: a file of both is its own, and it is preferred to them."""

    path: str | None = Field(
        None, description="File or directory of records (JSON, JSON lines, CSV, Parquet, text), or a hub name."
    )
    mix: dict[str, float] = Field(
        {},
        description="Several of them, each with how often its records come in an epoch: a.jsonl=1,b.csv=0.5.",
    )
    columns: dict[str, str] = Field(
        {}, description="Fields that are called otherwise in the file: OURS=THEIRS,OURS=THEIRS."
    )
    on_bad_record: Literal["error", "skip"] = Field(
        "error", description="What to do with records that cannot be used: stop, or leave them out and count them."
    )
    streaming: bool | None = Field(
        None, description="Read samples from disk when they are needed; if unset, those of more than 256 MB."
    )
    max_length: int | None = Field(None, gt=1, description="Longest sample, in tokens; the model's context if unset.")
    too_long: Literal["auto", "error", "truncate", "skip", "split"] = Field(
        "auto", description="What becomes of longer samples; auto splits plain text and truncates everything else."
    )
    packing: bool = Field(False, description="Fill each row with several samples; none sees another.")
    validation: float | str = Field(
        0.05, description="Share of the records held out for evaluation, or the path of a file that holds them."
    )
    limit: int | None = Field(None, gt=0, description="Use only the first so many records.")
    template: str | None = Field(
        None, description="Chat template, by name (chatml, llama3, …) or a Jinja file; the model's own if unset."
    )
    train_on: str = Field(
        "assistant", pattern="^(assistant|last|all)$", description="Tokens with a loss: answers, the last one, or all."
    )

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Whether a record looks like this format; used when the recipe names no format."""
        return False

    @abstractmethod
    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """Turn one record into a sample. Raises DataError naming `source`, the field and what was expected."""

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """The record that `sample` reads as this one, for `lmflow data convert`.

        What it leaves out is noticed: the record is read again and compared. Raises DataError naming the sample where
        the format cannot hold it; the default cannot be written at all.
        """
        raise DataError(f"{sample.source}: format {self.name} can be read, not written")

    def embedded(self) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]] | None:
        """Training and held-out records that the format itself brings, used when no path is given."""
        return None


class Tuner(Component):
    """Slot `tuner`: which parameters move, and how they are stored."""

    @abstractmethod
    def prepare(self, model: nn.Module) -> nn.Module:
        """Make `model` trainable: exactly the parameters to be trained have `requires_grad` afterwards.

        Returns the model to train, which may wrap the one given.
        """

    def save(self, model: LanguageModel, directory: Path) -> Path:
        """Write the result below the run's `directory` in a format other tools load; return where.

        The default writes the whole model to `model/`, as Transformers does. A tuner whose `prepare` adds or renames
        parameters overrides it: it brings what was learnt into a copy of the model as it was, and calls
        `super().save(model.with_module(copy), directory)`, or writes a format of its own, as adapters have.
        """
        target = directory / "model"
        model.save(target)
        return target


class Aligner(Component):
    """Slot `aligner`: the objective, and the loop around the trainer. The fields here are common to all aligners."""

    compares_with_start: ClassVar[bool] = False
    """Whether `align` uses `trainer.start_weights()`, which costs a copy of the trainable parameters."""

    max_new_tokens: int = Field(64, gt=0, description="Longest completion when sampling and evaluating, in tokens.")
    heldout_prompts: int = Field(64, ge=0, description="Held-out prompts answered before and after.")

    @abstractmethod
    def align(
        self,
        model: LanguageModel,
        data: Dataset,
        trainer: Trainer,
        inferencer: Inferencer,
        reward: Reward | None,
        log: RunLog,
    ) -> None:
        """Train `model` through `trainer` until done.

        What it puts into `log.metrics` stands in run.json; `NAME_before` and `NAME_after` are also a row of the
        closing table. `model` has the weights to go on from: on a resumed run those of the checkpoint, not those that
        training started with (`trainer.start_weights()`), and `trainer.restored` holds the state last given to
        `trainer.checkpoint`.

        In a run of several processes each calls it with the same samples and has to take the same steps: it calls
        `trainer.fit` with the same items, and what each makes a share of comes from `log.processes.map_shares`.
        """

    def workload(self, model: LanguageModel, data: Dataset, options: TrainingOptions) -> Workload | None:
        """What `align` will train on, told before anything is trained; `model` may have weights without values.

        The default tells nothing: `lmflow plan` then goes by the samples themselves, and names no number of steps.
        """
        return None


PROMPTS_AT_A_TIME = 16
"""Prompts that `Inferencer.generate_each` gives to `generate` together: few, so that little is lost by stopping."""


class Inferencer(Component):
    """Slot `inferencer`: how tokens are drawn from a model."""

    @abstractmethod
    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw `sampling.n` completions for each prompt, in the order of the prompts.

        A prompt's completions depend on the prompt, the options and the seed, never on its neighbours.
        `progress` is called after every forward pass with the number of tokens just drawn; it may raise to stop.
        """

    def generate_each(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield a prompt's index and completions as soon as they are drawn, in any order: what `generate` returns.

        The default draws a few prompts at a time; an inferencer whose prompts finish one by one does better.
        """
        for start in range(0, len(prompts), PROMPTS_AT_A_TIME):
            some = prompts[start : start + PROMPTS_AT_A_TIME]
            yield from enumerate(self.generate(model, some, sampling, progress), start)

    def figures(self) -> Mapping[str, float]:
        """What it counted in all calls so far, by name, to stand among a run's metrics; the default counts nothing."""
        return {}

    def stream(self, model: LanguageModel, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """Yield the text of the first completion `generate` gives, piece by piece; the default yields it whole."""
        [[completion]] = self.generate(model, [prompt], sampling.model_copy(update={"n": 1}))
        yield completion.text


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluator found: figures by name, and one row per sample (or length, or depth) they come from."""

    metrics: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]] = ()


class Evaluator(Component):
    """Slot `evaluator`: one way to measure a model, used by `lmflow eval`."""

    reads_data: ClassVar[bool] = True
    """Whether it measures on the user's records; if not, `samples` is empty and no data is asked for."""

    @abstractmethod
    def evaluate(
        self, model: LanguageModel, samples: Sequence[Sample], inferencer: Inferencer, log: RunLog
    ) -> Evaluation:
        """Measure `model` on `samples`. Raises LmflowError where the samples lack what is measured."""

    def plot(self, evaluation: Evaluation, directory: Path) -> list[Path]:
        """Write pictures of what was found below `directory`; returns their paths. The default draws none."""
        return []


class Reward(Component):
    """Slot `reward`: how good a completion is."""

    verifiable: ClassVar[bool] = False
    """Whether 1.0 means correct, so that the share of such scores is an accuracy."""

    @abstractmethod
    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> Sequence[float]:
        """One number per completion, higher is better; `samples[i]` is the prompt of `completions[i]`."""


class Tracker(Component):
    """Slot `tracker`: a record of runs kept elsewhere; a run may have any number of them, chosen with --trackers.

    Its methods are events: those marked `@hookimpl`, with names and arguments of `lmflow.hookspecs`, are called in the
    runs it is chosen for. What it keeps between them goes into pydantic's private attributes.
    """


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a plugin's own, called as `lmflow NAME`; the core's commands keep their names."""

    name: str
    """What follows `lmflow` to call it."""
    help: str
    """One sentence, for `lmflow plugins`."""
    make: Callable[[Plugins, Sequence[str]], tuple[Callable[..., None], list[str]] | None]
    """Given the plugins and the arguments after the name: a function for Typer to call, and the arguments left for it
    to parse; None if help was all they asked for, and was shown."""
