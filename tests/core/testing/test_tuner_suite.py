"""TunerSuite: it passes a tuner that keeps every promise, and fails, for each promise, one that breaks it alone."""

import copy
import itertools
import os
import random
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field, field_serializer
from torch import nn
from transformers import AutoTokenizer

from lmflow.components import LoadRequest, Model, Need, ParameterGroup, Tuner
from lmflow.errors import LmflowError
from lmflow.models.language_model import LanguageModel
from lmflow.models.pretrained import Pretrained
from lmflow.plugins import load_plugins
from lmflow.recipe.resolve import model_from_reference
from lmflow.testing import TunerSuite
from lmflow.testing.runs import plugins_with


class Good(Tuner):
    """Train every parameter."""

    name = "good"
    scale: float = Field(0.5, description="Of nothing.")

    def prepare(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(True)


class Rotating(Good):
    """LISA (arXiv 2403.17919): embeddings and head always train, and one layer at a time, another every second step."""

    name = "rotating"
    interval: int = Field(2, description="Steps until another layer trains.")

    def active(self, step: int, names: Sequence[str], seed: int) -> Collection[str]:
        layers = sorted({name.split(".")[2] for name in names if ".layers." in name})
        chosen = random.Random(f"{seed}/{step // self.interval}").choice(layers)
        return {name for name in names if ".layers." not in name or name.split(".")[2] == chosen}

    def parameter_groups(self, names: Sequence[str]) -> Sequence[ParameterGroup]:
        return [ParameterGroup([name for name in names if "embed" in name], learning_rate=1e-4, weight_decay=0.0)]


class Scaled(nn.Module):
    """A linear layer whose outputs are multiplied by a learnt vector."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.ones(inner.out_features))
        self.strength = 1.0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs) * (1 + self.strength * (self.gain - 1))


class Scaling(Good):
    """IA3 (arXiv 2205.05638): learnt vectors rescale keys, values and what goes through the MLP; the rest is frozen."""

    name = "scaling"

    def prepare(self, model: nn.Module) -> nn.Module:
        model.requires_grad_(False)
        for layer in model.model.layers:
            for part, name in ((layer.self_attn, "k_proj"), (layer.self_attn, "v_proj"), (layer.mlp, "up_proj")):
                setattr(part, name, Scaled(getattr(part, name)))
        return model

    def save(self, model: LanguageModel, directory: Path) -> Path:
        folded: Any = copy.deepcopy(model.module)
        for part in list(folded.modules()):
            for name, child in list(part.named_children()):
                if isinstance(child, Scaled):
                    with torch.no_grad():
                        child.inner.weight.mul_(child.gain[:, None])
                    setattr(part, name, child.inner)
        return super().save(model.with_module(folded), directory)


class TestRotating(TunerSuite):
    @pytest.fixture
    def tuner(self) -> Tuner:
        return Rotating()


class TestScaling(TunerSuite):
    learning_rate = 1e-2

    @pytest.fixture
    def tuner(self) -> Tuner:
        return Scaling()


def test_layers_at_rest_stay_while_others_move(tmp_path: Path):
    """What the suite relies on: a step moves the parameters that `active` names for it, and no other."""
    from lmflow.testing.comparing import all_tensors, different
    from lmflow.testing.runs import RECORDS as SOME_RECORDS
    from lmflow.testing.runs import SETTINGS, component_settings, prepare, resolve_settings, write_records
    from lmflow.testing.tiny import tiny_model

    tiny_model(sharpness=6.0).save(tmp_path / "model")
    plugins = plugins_with(Rotating)
    settings = {
        **SETTINGS,
        "model": str(tmp_path / "model"),
        "data.path": str(write_records(tmp_path / "records.jsonl", SOME_RECORDS)),
        **component_settings(plugins, Rotating(interval=1)),
    }
    with ExitStack() as closing:
        prepared = prepare(resolve_settings(plugins, settings), plugins, tmp_path / "run", closing)
        names, seed = sorted(prepared.trainable()), prepared.trainer.options.seed
        prepared.trainer.plan(100)
        for step in range(3):
            before = all_tensors(prepared.model)
            prepared.trainer.fit(prepared.sequences()[:3], steps=1, checkpoints=False)
            moved = set(different(all_tensors(prepared.model), before))
            assert moved == set(Rotating(interval=1).active(step, names, seed))


def norm(module: nn.Module) -> nn.Parameter:
    return module.get_parameter("model.norm.weight")


# In `prepare`


class TrainsNothing(Good):
    def prepare(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(False)


class DrawsFromElsewhere(Good):
    """What it adds at the start comes from the operating system, not from the seed."""

    def prepare(self, model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))
        with torch.no_grad():
            norm(model).add_(0.01 * torch.randn(norm(model).shape, generator=generator))
        return super().prepare(model)


class DeclaresByChance(Good):
    """Which parameter it leaves out depends on how often it was asked."""

    calls: ClassVar[Any] = itertools.count()

    def prepare(self, model: nn.Module) -> nn.Module:
        super().prepare(model)
        left_out = list(model.parameters())[-1 - next(self.calls) % 2]
        left_out.requires_grad_(False)
        return model


# In training


def in_training(model: nn.Module, work: Callable[[], Any]) -> None:
    """Do `work` before every forward pass of training."""

    def hook(module: nn.Module, _: Any) -> None:
        if module.training:
            work()

    model.register_forward_pre_hook(hook)


class CountsInABuffer(Good):
    """Counts forward passes of training where a checkpoint does not look."""

    def prepare(self, model: nn.Module) -> nn.Module:
        model.register_buffer("passes", torch.zeros(()), persistent=False)
        in_training(model, lambda: model.get_buffer("passes").add_(1))
        return super().prepare(model)


class MovesAFrozenWeight(Good):
    """A frozen weight is changed by every forward pass of training."""

    def prepare(self, model: nn.Module) -> nn.Module:
        super().prepare(model)
        frozen = norm(model).requires_grad_(False)
        in_training(model, lambda: frozen.mul_(1.001))
        return model


class DeclaresTooMuch(Good):
    """No gradient gets to a parameter it declares."""

    def prepare(self, model: nn.Module) -> nn.Module:
        super().prepare(model)
        norm(model).register_hook(torch.zeros_like)
        return model


class Ascends(Good):
    """The gradient has the wrong sign."""

    def prepare(self, model: nn.Module) -> nn.Module:
        super().prepare(model)
        for parameter in model.parameters():
            parameter.register_hook(torch.neg)
        return model


class ForgetsItsPlace(Good):
    """Gradients of one weight fade with the passes since the process began, which no checkpoint holds."""

    def prepare(self, model: nn.Module) -> nn.Module:
        super().prepare(model)
        passes = iter(range(10**6))
        norm(model).register_hook(lambda gradient: gradient / (1 + next(passes)) ** 2)
        return model


# In `save`


class DropsATensor(Good):
    """One trained tensor is written as it was before."""

    def save(self, model: LanguageModel, directory: Path) -> Path:
        written: Any = copy.deepcopy(model.module)
        nn.init.ones_(norm(written))
        return super().save(model.with_module(written), directory)


class RoundsInPlace(Good):
    """Saves in bfloat16 by rounding the weights of the model itself."""

    def save(self, model: LanguageModel, directory: Path) -> Path:
        for parameter in model.module.parameters():
            parameter.data = parameter.data.bfloat16().float()
        return super().save(model, directory)


class LosesTheTemplate(Good):
    """The tokenizer is saved with another chat template than it trained with."""

    def save(self, model: LanguageModel, directory: Path) -> Path:
        saved = super().save(model, directory)
        tokenizer = copy.deepcopy(model.tokenizer)
        tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        tokenizer.save_pretrained(saved)
        return saved


class SavesTooDeep(Good):
    """The result is not where run.json can name it."""

    def save(self, model: LanguageModel, directory: Path) -> Path:
        return super().save(model, directory / "results")


class WritesToTheBase(Good):
    """Leaves a note beside the base model."""

    def save(self, model: LanguageModel, directory: Path) -> Path:
        (Path(model.source) / "tuned.txt").write_text(str(directory))
        return super().save(model, directory)


class LosesAnOption(Good):
    """Writes fewer digits of an option than it computes with."""

    @field_serializer("scale", when_used="json")
    def _round(self, scale: float) -> float:
        return round(scale, 1)


class ScalesWhileSaving(Scaling):
    """Turns its vectors off to write the base, and leaves them half on."""

    def save(self, model: LanguageModel, directory: Path) -> Path:
        saved = super().save(model, directory)
        for part in model.module.modules():
            if isinstance(part, Scaled):
                part.strength = 0.5
        return saved


class SwitchesModes(Good):
    def save(self, model: LanguageModel, directory: Path) -> Path:
        model.module.train()
        return super().save(model, directory)


# In `active` and `parameter_groups`


class ChoosesByCounter(Rotating):
    calls: ClassVar[Any] = itertools.count()

    def active(self, step, names, seed):
        return super().active(next(self.calls), names, seed)


class NamesFrozen(Rotating):
    def active(self, step, names, seed):
        return {*super().active(step, names, seed), "model.layers.7.mlp.up_proj.weight"}


class SortsTheNames(Rotating):
    def active(self, step, names, seed):
        names.sort(reverse=True)
        return super().active(step, names, seed)


class NeverTrainsALayer(Rotating):
    def active(self, step, names, seed):
        return {name for name in names if ".layers.1." not in name}


class GroupsWithOldNames(Good):
    def parameter_groups(self, names):
        return [ParameterGroup(["transformer.wte.weight"], learning_rate=1e-4)]


class GroupsTwice(Good):
    def parameter_groups(self, names):
        return [ParameterGroup(names[:3], learning_rate=1e-4), ParameterGroup(names[2:5], weight_decay=0.1)]


class GroupsWithNan(Good):
    def parameter_groups(self, names):
        return [ParameterGroup(names[:1], learning_rate=float("nan"))]


# In what reads the result


class OwnFormat(Good):
    """Saves whole models that only the model component of its own plugin reads."""

    def save(self, model: LanguageModel, directory: Path) -> Path:
        inner = super().save(model, directory / "model")
        assert inner == directory / "model" / "model"
        return directory / "model"


class OwnModel(Model):
    """What OwnFormat saved."""

    name = "own"
    shorthand = "path"
    path: str = Field(description="Where it was saved.")

    @classmethod
    def recognises(cls, reference: str) -> bool:
        return (Path(reference) / "model" / "config.json").is_file()

    def load(self, request: LoadRequest) -> LanguageModel:
        loaded = Pretrained(path=str(Path(self.path) / "model")).load(request)
        return self.kind()(loaded.module, loaded.tokenizer, self.path)

    def kind(self) -> type[LanguageModel]:
        return LanguageModel


class Added(OwnFormat):
    """Learns what the last norm is multiplied by, and saves that beside the name of the base."""

    def prepare(self, model: nn.Module) -> nn.Module:
        model.requires_grad_(False)
        last: Any = model.get_submodule("model.norm")
        last.gain = nn.Parameter(torch.ones_like(last.weight))
        last.register_forward_hook(lambda module, _, output: output * module.gain)
        return model

    def save(self, model: LanguageModel, directory: Path) -> Path:
        (directory / "added").mkdir()
        torch.save(
            [model.source, model.module.get_parameter("model.norm.gain").detach()], directory / "added" / "norm.pt"
        )
        model.tokenizer.save_pretrained(directory / "added")
        return directory / "added"


class AddedModel(Model):
    """What Added saved, beside its base."""

    name = "added"
    shorthand = "path"
    path: str = Field(description="Where it was saved.")

    @classmethod
    def recognises(cls, reference: str) -> bool:
        return (Path(reference) / "norm.pt").is_file()

    def load(self, request: LoadRequest) -> LanguageModel:
        source, learnt = torch.load(Path(self.path) / "norm.pt")
        base = model_from_reference(request.plugins, source).load(request)
        norm(base.module).data.mul_(learnt)
        return LanguageModel(base.module, self.tokenizer(base), self.origin(base))

    def tokenizer(self, base: LanguageModel) -> Any:
        return AutoTokenizer.from_pretrained(self.path)

    def origin(self, base: LanguageModel) -> str:
        return self.path


class TokenizerOfTheBase(AddedModel):
    def tokenizer(self, base: LanguageModel) -> Any:
        return base.tokenizer


class NamesTheBase(AddedModel):
    def origin(self, base: LanguageModel) -> str:
        return base.source


class RoughlyMerged(LanguageModel):
    def save(self, directory: Path) -> None:
        rough: Any = copy.deepcopy(self.module).to(torch.bfloat16)
        LanguageModel(rough, self.tokenizer, self.source).save(directory)


class MergesRoughly(OwnModel):
    """Gives the right logits, and loses precision where it is written as one model."""

    def kind(self) -> type[LanguageModel]:
        return RoughlyMerged


class NeverMerged(LanguageModel):
    def save(self, directory: Path) -> None:
        raise LmflowError("this kind of model cannot be written as one")


class RefusesToMerge(OwnModel):
    """Cannot be merged, and says so."""

    def kind(self) -> type[LanguageModel]:
        return NeverMerged


# In whole runs


class CannotSample(Good):
    """The wrapped model fails in every way of sampling, of which those without a cache are the last."""

    def prepare(self, model: nn.Module) -> nn.Module:
        def refuse(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if kwargs.get("use_cache") is not None and not module.training:
                raise RuntimeError("no sampling, please")

        model.register_forward_pre_hook(refuse, with_kwargs=True)
        return super().prepare(model)


class OnlyForRaft(Good):
    """Goes with no other aligner."""

    needs = (Need("aligner", "it was written for raft", names=("raft",)),)


SAVED, MERGED = "test_a_saved_result_gives_the_same_logits", "test_a_merged_result_gives_the_same_logits"
TOKENIZER, UNTOUCHED = "test_a_saved_result_keeps_the_tokenizer", "test_the_base_on_disk_is_untouched"
AGAIN = "test_a_saved_result_can_be_tuned_again"
LEAVES = "test_saving_leaves_the_model_as_it_was"
SFT, RAFT = "test_composes_with_sft", "test_composes_with_raft"
RESUMED = "test_a_resumed_run_equals_an_uninterrupted_one"
SOME, REPEATS = "test_some_parameter_is_trainable", "test_prepare_repeats_from_the_same_seed"
ONLY, EVERY = "test_only_declared_parameters_move", "test_every_declared_parameter_moves"
REDUCES, OPTIONS = "test_a_few_steps_reduce_the_loss", "test_options_survive_the_recipe_file"
ACTIVE, GROUPS = "test_active_depends_on_its_arguments_alone", "test_parameter_groups_name_trainable_parameters"
ALL = {
    ACTIVE,
    GROUPS,
    SAVED,
    MERGED,
    TOKENIZER,
    AGAIN,
    UNTOUCHED,
    LEAVES,
    SFT,
    RAFT,
    RESUMED,
    SOME,
    REPEATS,
    ONLY,
    EVERY,
    REDUCES,
    OPTIONS,
}


# A tuner, the check that is there to catch it, and what it is told.
BROKEN: list[tuple[Tuner, str, str]] = [
    (TrainsNothing(), SOME, "found none"),
    (DrawsFromElsewhere(), REPEATS, "these differ: model.norm.weight"),
    (DeclaresByChance(), REPEATS, "only one declared lm_head.weight, model.norm.weight"),
    (CountsInABuffer(), ONLY, "passes changed too"),
    (MovesAFrozenWeight(), ONLY, "model.norm.weight changed too"),
    (DeclaresTooMuch(), EVERY, "model.norm.weight did not"),
    (Ascends(), REDUCES, "reduce the loss"),
    (ForgetsItsPlace(), RESUMED, "first lines that differ"),
    (DropsATensor(), SAVED, "the largest difference is"),
    (RoundsInPlace(), LEAVES, "it changed"),
    (LosesTheTemplate(), TOKENIZER, "does not write the tokenizer"),
    (SavesTooDeep(), SAVED, "returned"),
    (WritesToTheBase(), UNTOUCHED, "tuned.txt"),
    (LosesAnOption(scale=0.123), OPTIONS, "'scale': 0.123} to come back"),
    (CannotSample(), RAFT, "no sampling, please"),
    (OnlyForRaft(), SFT, "it was written for raft"),
]


def failed(reports: dict[str, Any]) -> set[str]:
    assert not any(report.outcome == "skipped" for report in reports.values())
    return {name for name, report in reports.items() if report.outcome == "failed"}


def test_a_good_tuner_passes(examine: Callable[..., dict[str, Any]]):
    reports = examine(TunerSuite, tuner=Good(scale=0.25))
    assert reports.keys() == ALL
    assert not failed(reports), reports


@pytest.mark.parametrize(("tuner", "check", "message"), BROKEN, ids=[type(row[0]).__name__ for row in BROKEN])
def test_a_broken_tuner_fails(examine, tuner: Tuner, check: str, message: str):
    """It fails the check of the promise it breaks, which says so."""
    reports = examine(TunerSuite, tuner=tuner, only=check)
    assert failed(reports) == {check}
    assert message in reports[check].message


def test_a_tuner_broken_in_one_respect_passes_all_other_checks(examine):
    assert failed(examine(TunerSuite, tuner=CountsInABuffer())) == {ONLY}


@pytest.mark.parametrize(
    ("tuner", "check", "message"),
    [
        (ScalesWhileSaving(), LEAVES, "a logit is off by"),
        (SwitchesModes(), LEAVES, "the mode of"),
        (ChoosesByCounter(), ACTIVE, "the same parameters for a step however it is asked"),
        (NamesFrozen(), ACTIVE, "it named model.layers.7.mlp.up_proj.weight"),
        (SortsTheNames(), ACTIVE, "to leave the list of names alone"),
        (NeverTrainsALayer(), EVERY, "model.layers.1"),
        (GroupsWithOldNames(), GROUPS, "it named transformer.wte.weight"),
        (GroupsTwice(), GROUPS, "in one group at most"),
        (GroupsWithNan(), GROUPS, "found [nan]"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Tuner) else None,
)
def test_a_tuner_with_one_fault_fails_its_check(examine, tuner: Tuner, check: str, message: str):
    report = examine(TunerSuite, tuner=tuner, only=check)[check]
    assert report.outcome == "failed"
    assert message in report.message


def test_a_merge_that_loses_precision_fails(examine):
    def merging() -> Any:
        return plugins_with(OwnFormat, MergesRoughly)

    reports = examine(TunerSuite, tuner=OwnFormat(), plugins=merging, only="logits")
    assert failed(reports) == {MERGED}
    assert reports.keys() == {SAVED, MERGED}
    assert "after merging" in reports[MERGED].message


def test_a_tuner_that_cannot_be_merged_says_so(examine):
    def refusing() -> Any:
        return plugins_with(OwnFormat, RefusesToMerge)

    reports = examine(TunerSuite, tuner=OwnFormat(), plugins=refusing, only="merged")
    assert failed(reports) == {MERGED}
    assert "it was refused: this kind of model cannot be written as one" in reports[MERGED].message
    assert not failed(examine(TunerSuite, tuner=OwnFormat(), plugins=refusing, merges=False))
    assert failed(examine(TunerSuite, tuner=Good(), merges=False, only="merged")) == {MERGED}


@pytest.mark.parametrize(
    ("model", "expected"), [(AddedModel, set()), (TokenizerOfTheBase, {TOKENIZER}), (NamesTheBase, {AGAIN})]
)
def test_a_loader_that_takes_too_much_of_the_base_fails(examine, model: type[Model], expected: set[str]):
    def reading() -> Any:
        return plugins_with(Added, model)

    reports = examine(TunerSuite, tuner=Added(), plugins=reading, only="tokenizer or again")
    assert reports.keys() == {TOKENIZER, AGAIN}
    assert failed(reports) == expected, {name: each.message[-800:] for name, each in reports.items()}


class ForgetsTheBias(Good):
    """Learns what keys, queries and values of GPT-2 are multiplied by, and multiplies their matrix alone."""

    def prepare(self, model: nn.Module) -> nn.Module:
        model.requires_grad_(False)
        for layer in model.transformer.h:
            layer.attn.c_attn.gain = nn.Parameter(torch.ones_like(layer.attn.c_attn.bias))
            layer.attn.c_attn.register_forward_hook(lambda module, _, output: output * module.gain)
        return model

    def save(self, model: LanguageModel, directory: Path) -> Path:
        plain: Any = copy.deepcopy(model.module)
        for layer in plain.transformer.h:
            layer.attn.c_attn.weight.data.mul_(layer.attn.c_attn.gain)
            layer.attn.c_attn.bias.data.mul_(layer.attn.c_attn.gain if self.scale else 1.0)
            del layer.attn.c_attn.gain
            layer.attn.c_attn._forward_hooks.clear()
        return super().save(model.with_module(plain), directory)


def test_a_bias_that_is_left_out_in_merging_shows(examine):
    for scale, expected in ((1.0, set()), (0.0, {SAVED})):
        reports = examine(TunerSuite, tuner=ForgetsTheBias(scale=scale), architecture="gpt2", only=SAVED)
        assert failed(reports) == expected


def test_a_result_nobody_reads_fails(examine):
    reports = examine(TunerSuite, tuner=OwnFormat())
    assert failed(reports) == {SAVED, TOKENIZER, AGAIN, MERGED, SFT, RAFT, RESUMED}


def test_a_missing_plugin_is_a_failure_that_says_what_to_install(examine):
    def without_raft() -> Any:
        points = [point for point in entry_points(group="lmflow") if point.dist.name != "lmflow-raft"]
        return load_plugins(points)

    from lmflow.builtin.full import Full

    reports = examine(TunerSuite, tuner=Full(), plugins=without_raft, only="composes")
    assert reports.keys() == {SFT, RAFT}
    assert failed(reports) == {RAFT}
    assert "lmflow plugins install lmflow-raft" in reports[RAFT].message


def test_a_suite_without_a_tuner_says_what_to_write(examine):
    reports = examine(TunerSuite)
    assert failed(reports) == ALL
    assert "write a fixture `tuner` that returns one" in reports[SFT].message


def test_a_name_that_an_installed_tuner_has_is_no_obstacle(examine):
    class Lora(Good):
        """Another tuner of that name."""

        name = "lora"

    assert not failed(examine(TunerSuite, tuner=Lora(), only="options or sft or resumed"))


def test_several_tuners_of_one_class_have_runs_of_their_own(examine):
    class Several(TunerSuite):
        @pytest.fixture(params=[Good(), Ascends()], ids=["good", "ascends"])
        def tuner(self, request: pytest.FixtureRequest) -> Tuner:
            return request.param

    reports = examine(Several, only="sft or reduce")
    assert reports.keys() == {f"{name}[{tuner}]" for name in (SFT, REDUCES) for tuner in ("good", "ascends")}
    assert failed(reports) == {f"{REDUCES}[ascends]"}


def test_a_component_that_breaks_a_rule_fails_with_the_rule(examine):
    class Undescribed(Good):
        """Has an option that nobody describes."""

        name = "undescribed"
        depth: int = 3

    reports = examine(TunerSuite, tuner=Undescribed(), only="options")
    [message] = {report.message for report in reports.values()}
    assert "tuner undescribed: option depth has no description; write Field(" in message
