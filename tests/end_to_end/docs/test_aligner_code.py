"""The aligners of the pages compute what they say: the code of the page itself, on tiny models."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lmflow.components import LoadRequest
from lmflow.data.collate import collate, collate_packed
from lmflow.data.sample import TokenSequence
from lmflow.models.pretrained import Pretrained
from lmflow.testing.runs import SMALL, Bench, Prepared, plugins_with
from lmflow.testing.tiny import tiny_model

from .pages import ROOT, blocks

PAIRS = tuple(
    {"prompt": f"{a} + 2 =", "chosen": str(a + 2), "rejected": f"{a + 3} it is", "margin": a / 2} for a in range(12)
)


def modules_of(page: str, place: Path) -> None:
    """Write the files of a page whose path begins with src/."""
    for block in blocks(ROOT / "docs" / "plugins" / page):
        if block.title and block.title.startswith("src/"):
            file = place / Path(block.title).relative_to("src")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
            (file.parent / "__init__.py").touch()


@pytest.fixture(scope="module")
def preference_pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    yield from imported("aligner.md", "preference_pairs", tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def group_relative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    yield from imported("grpo.md", "group_relative", tmp_path_factory.mktemp("page"))


def imported(page: str, package: str, place: Path) -> Iterator[ModuleType]:
    modules_of(page, place)
    sys.path.insert(0, str(place))
    try:
        yield importlib.import_module(f"{package}.aligner")
    finally:
        sys.path.remove(str(place))


@pytest.fixture
def bench(preference_pairs: ModuleType, tmp_path: Path) -> Bench:
    tiny_model(sharpness=6.0).save(tmp_path / "base")
    aligner = preference_pairs.PreferencePairs(heldout_prompts=0)
    (tmp_path / "bench").mkdir()
    return Bench(
        tmp_path / "bench", plugins_with(type(aligner)), aligner, Pretrained(path=str(tmp_path / "base")), PAIRS
    )


def summed(module: nn.Module, sequence: TokenSequence) -> torch.Tensor:
    """The log-probability of a sequence's targets, from every logit."""
    with torch.no_grad():
        logprobs = module(torch.tensor([sequence.ids])).logits[0].double().log_softmax(-1)
    picked = [logprobs[i - 1, sequence.ids[i]] for i in range(1, len(sequence)) if sequence.loss_mask[i]]
    return torch.stack(picked).sum()


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_dpo_begins_at_ln_2_whatever_the_tuner(tuner: str, bench: Bench):
    prepared = bench.prepare({**SMALL, "tuner.name": tuner})
    assert len(prepared.trainer.heldout) == 3
    found = prepared.trainer.validate(prepared.trainer.heldout)
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["margin"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_dpo_equals_the_formula_of_the_paper_after_some_steps(
    tuner: str, offset: float, bench: Bench, preference_pairs: ModuleType
):
    options = {"tuner.name": tuner, "aligner.offset": offset, "aligner.beta": 0.3, "training.learning_rate": 1e-2}
    bench.component = preference_pairs.PreferencePairs(heldout_prompts=0, offset=offset, beta=0.3)
    prepared = bench.prepare({**SMALL, **options})
    prepared.align()
    assert prepared.trainer.step == 6
    start = bench.model.load(LoadRequest()).module
    policy: Any = prepared.model.module
    losses, margins = [], []
    for chosen, rejected in prepared.trainer.heldout:
        gains = [float(summed(policy, each) - summed(start, each)) for each in (chosen, rejected)]
        difference = 0.3 * (gains[0] - gains[1])
        losses.append(math.log(1 + math.exp(-(difference - offset * chosen.objective_inputs["margin"]))))
        margins.append(difference)
    found = prepared.trainer.validate(prepared.trainer.heldout)
    assert max(map(abs, margins)) > 1e-3
    assert found["loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert found["margin"] == pytest.approx(sum(margins) / 3, rel=1e-3)
    assert found["accuracy"] == pytest.approx(sum(each > 0 for each in margins) / 3)


def test_the_plan_of_dpo_counts_both_answers(bench: Bench):
    workload = bench.workload(SMALL)
    assert workload is not None
    prepared: Prepared = bench.prepare({**SMALL, "tuner.name": "full"})
    prepared.align()
    assert workload.steps == prepared.trainer.step == 6
    assert 2 * sum(len(each) for pair in workload.items for each in pair) == prepared.trainer.tokens


@pytest.mark.parametrize("packed", [False, True])
def test_grpo_equals_the_formula_of_the_paper(packed: bool, group_relative: ModuleType):
    model = tiny_model(sharpness=6.0)
    draw = torch.Generator().manual_seed(0)
    sequences = []
    for length, advantage in ((7, 1.5), (12, -0.5), (4, 0.7)):
        ids = torch.randint(3, 250, (length,), generator=draw).tolist()
        numbers = {name: torch.rand(length - 2, generator=draw) * -6 - 1 for name in ("sampled", "reference")}
        mask = [False, False, *[True] * (length - 2)]
        sequences.append(TokenSequence(ids, mask, "s", objective_inputs={"advantage": advantage, **numbers}))
    sequences.append(TokenSequence([5, 6], [False, False], "idle", objective_inputs=sequences[0].objective_inputs))
    batch = collate_packed([sequences[:2], sequences[2:]], 2) if packed else collate(sequences, 2)
    found = group_relative.batch_loss(model.module, model.module, batch, clip=0.2, penalty=0.1)
    expected = divergence = 0.0
    for each in sequences[:3]:
        logprobs = model.module(torch.tensor([each.ids])).logits[0].log_softmax(-1)
        count = len(each) - 2
        for index in range(count):
            logprob = float(logprobs[index + 1, each.ids[index + 2]])
            ratio = math.exp(logprob - float(each.objective_inputs["sampled"][index]))
            advantage = each.objective_inputs["advantage"]
            apart = float(each.objective_inputs["reference"][index]) - logprob
            kl = math.exp(apart) - apart - 1
            clipped = min(max(ratio, 0.8), 1.2)
            expected += (-min(ratio * advantage, clipped * advantage) + 0.1 * kl) / count
            divergence += kl / count
    assert float(found.total) == pytest.approx(expected, rel=1e-4)
    assert float(found.metrics["kl"]) == pytest.approx(divergence, rel=1e-4)


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_the_example_of_a_head_learns_what_it_says(tuner: str, tmp_path: Path):
    from lmflow.testing.runs import RECORDS

    [text] = [each.text for each in blocks(ROOT / "docs" / "plugins" / "examples.md") if "class Progress" in each.text]
    (tmp_path / "progress_example.py").write_text(text, encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    try:
        aligner = importlib.import_module("progress_example").Progress(heldout_prompts=0)
    finally:
        sys.path.remove(str(tmp_path))
    tiny_model(sharpness=6.0).save(tmp_path / "base")
    (tmp_path / "bench").mkdir()
    base = Pretrained(path=str(tmp_path / "base"))
    bench = Bench(tmp_path / "bench", plugins_with(type(aligner)), aligner, base, RECORDS)
    settings = {**SMALL, "tuner.name": tuner, "training.epochs": 4, "training.learning_rate": 1e-2}
    found = bench.run("whole", settings)
    errors = [found.metrics[f"eval_value_error_{when}"] for when in ("before", "after")]
    assert errors[1] < 0.7 * errors[0]
    assert bench.load(found.directory).heads["value"](torch.zeros(2, 32)).shape == (2, 1)
