"""An aligner with a model of its own, a teacher: opened once and frozen, planned for, and its metrics everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from lmflow.components import AlignContext, Aligner, Model, RunContext, Tracker
from lmflow.data.dataset import load_dataset
from lmflow.data.formats.recognising import formats_of
from lmflow.errors import RecipeError
from lmflow.hookspecs import hookimpl
from lmflow.models.encoding import items_of
from lmflow.planning.plan import load_skeleton, make_plan
from lmflow.run.run import RunResult, run
from lmflow.testing.runs import RECORDS, plugins_with, resolve_settings, write_records
from lmflow.testing.tiny import tiny_model
from lmflow.training.distributions import entropy, kl_divergence
from lmflow.training.loss import target_map, target_states
from lmflow.training.objective import FunctionObjective, Loss, Objective

CONTEXTS: list[AlignContext] = []


class Distil(Aligner):
    """Learn the distribution of a teacher."""

    name = "distil"
    teacher: str = Field(description="The model to learn from.")
    critic: str | None = Field(None, description="Another model, which is the teacher.")

    def models(self) -> dict[str, str | Model]:
        return {"teacher": self.teacher} | ({"critic": self.critic} if self.critic else {})

    def objective(self, context: RunContext) -> Objective:
        teacher = context.models["teacher"].module

        def loss(forward: Any, module: Any, batch: Any) -> Loss:
            states, head = target_states(teacher, batch)

            def both(ours: Tensor, theirs: Tensor) -> Tensor:
                return torch.stack([kl_divergence(head(theirs), ours), entropy(ours)], dim=-1)

            found = target_map(forward, module, batch, both, states)
            return Loss(found[:, 0].sum(), {"entropy": found[:, 1].detach().sum()})

        return FunctionObjective(loss)

    def align(self, context: AlignContext) -> None:
        CONTEXTS.append(context)
        items: Any = items_of(self, context.model, context.data.train, context.data)
        steps = context.trainer.options.total_steps(len(items))
        context.trainer.plan(steps)
        context.trainer.fit(self.annotate(context, items), steps=steps, start=0)
        context.trainer.checkpoint()

    def annotate(self, context: AlignContext, items: Any) -> Any:
        self._annotated.append(len(items))
        return items

    _annotated: list[int] = PrivateAttr(default_factory=list)


class Listens(Tracker):
    """Keeps every line of metrics."""

    name = "listens"
    _lines: list[Any] = PrivateAttr(default_factory=list)

    @hookimpl
    def lmflow_step_finished(self, metrics: Any) -> None:
        self._lines.append(dict(metrics))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("distil")
    for name, seed in (("student", 0), ("teacher", 1)):
        tiny_model(seed=seed, sharpness=6.0).save(place / name)
    return {
        "model.name": str(place / "student"),
        "tuner.name": "full",
        "aligner.name": "distil",
        "aligner.teacher": str(place / "teacher"),
        "data.path": str(write_records(place / "train.jsonl", RECORDS[:9])),
        "data.validation": str(write_records(place / "heldout.jsonl", RECORDS[9:])),
        "training.max_steps": 4,
        "training.evaluate_every": 2,
        "training.learning_rate": 3e-3,
        "training.device": "cpu",
    }


@pytest.fixture(scope="module")
def result(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Distil, Listens]:
    plugins = plugins_with(Distil)
    changes = {"aligner.critic": settings["aligner.teacher"]}
    resolved = resolve_settings(plugins, {**settings, **changes})
    listener = Listens()
    with plugins.with_trackers([listener]):
        done = run(resolved, plugins, output=tmp_path_factory.mktemp("runs") / "run")
    aligner: Any = resolved.recipe.aligner
    return done, aligner, listener


def test_the_teacher_is_opened_once_frozen_and_learnt_from(result: Any):
    done, aligner, _ = result
    models = CONTEXTS[-1].models
    assert models["teacher"] is models["critic"]
    assert not models["teacher"].module.training
    assert not any(each.requires_grad for each in models["teacher"].module.parameters())
    metrics = done.record["metrics"]
    assert metrics["eval_loss_after"] < metrics["eval_loss_before"]
    assert aligner._annotated == [3, 8, 9]  # held-out items, then probes, then what is trained on


def test_its_metrics_reach_the_file_the_trackers_the_record_and_the_report(result: Any):
    done, _, listener = result
    lines = [json.loads(line) for line in (done.directory / "metrics.jsonl").read_text().splitlines()]
    assert [sorted({"entropy", "eval_entropy"} & line.keys()) for line in lines] == [
        *(["entropy"], ["entropy"], ["eval_entropy"], ["entropy"], ["entropy"], ["eval_entropy"]),
    ]
    assert listener._lines == lines
    assert {"eval_entropy_before", "eval_entropy_after"} <= done.record["metrics"].keys()
    assert done.record["metrics"]["eval_entropy_after"] == pytest.approx(lines[-1]["eval_entropy"], rel=1e-5)
    report = (done.directory / "report.html").read_text()
    for title in ("entropy", "eval_entropy"):
        assert f"<figcaption>{title}" in report or f">{title}<" in report


def test_the_plan_counts_its_weights_once(settings: dict[str, Any]):
    plugins = plugins_with(Distil)

    def plan(**changes: Any) -> Any:
        recipe = resolve_settings(plugins, {**settings, **changes}).recipe
        data, _ = load_dataset(recipe.data, formats_of(recipe, plugins), 0)
        return make_plan(recipe, load_skeleton(recipe, plugins), data, plugins)

    parameters = sum(p.numel() for p in tiny_model().module.parameters())
    found = plan()
    assert found.memory.models == 4 * parameters
    assert found.memory.total == sum(found.memory.as_dict().values())
    assert plan(**{"aligner.critic": settings["aligner.teacher"]}).memory.models == 4 * parameters
    assert plan(**{"training.precision": "bf16"}).memory.models == 2 * parameters
    assert plan(**{"aligner.critic": settings["model.name"]}).memory.models == 8 * parameters


def test_a_model_that_means_nothing_is_told_before_anything_is_read(settings: dict[str, Any], tmp_path: Path):
    plugins = plugins_with(Distil)
    resolved = resolve_settings(plugins, {**settings, "aligner.teacher": "dmeo", "data.path": "not-there.jsonl"})
    with pytest.raises(RecipeError, match=r"the teacher model of aligner distil: .*dmeo"):
        run(resolved, plugins, output=tmp_path / "run")
