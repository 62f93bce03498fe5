"""The embedded model, tasks and reward: small, honest, and imperfect enough to have something to learn."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from lmflow.components import GenerateRequest, LoadRequest
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Sampling
from lmflow.models.language_model import LanguageModel
from lmflow.run.before_after import generic_sequences
from lmflow_demo.demo import Demo, DemoReward, DemoTasks
from lmflow_demo.tasks import FAMILIES, make_tasks

PACKAGE = Path(str(files("lmflow_demo")))
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return Demo().load(LoadRequest())


@pytest.fixture(scope="module")
def records():
    return DemoTasks().embedded()


def samples_of(records) -> list[Sample]:
    return [DemoTasks().sample(record, "tasks.jsonl") for record in records]


def test_the_model_in_the_package_is_small():
    assert sum(path.stat().st_size for path in (PACKAGE / "model").iterdir()) < 6 * MEGABYTE


def test_an_answer_is_trained_with_its_end_and_nothing_else_is(model):
    sample = Sample((Message("user", "Sort the numbers: 3 1"), Message("assistant", "1 3")))
    [tokens] = model.encode(sample)
    trained = [i for i, wanted in zip(tokens.ids, tokens.loss_mask) if wanted]
    assert model.tokenizer.decode(trained) == "1 3<|im_end|>"
    assert trained[-1] == model.end_ids[0]
    asked = model.encode_prompt(sample).ids
    assert list(tokens.ids[: len(asked)]) == list(asked)


def test_no_held_out_task_is_trained_on(records):
    train, heldout = records
    assert len(train) == 512
    assert len(heldout) == 64
    prompts = [record["prompt"] for record in [*train, *heldout]]
    assert len(set(prompts)) == len(prompts)


def test_every_answer_is_right(records):
    """Computed again from the question's words alone."""
    solve = {
        "Sort the numbers": lambda words: " ".join(sorted(words)),
        "Largest number": max,
        "Reverse the list": lambda words: " ".join(words[::-1]),
        "Last word of": lambda words: words[-1],
        "Count the words": lambda words: str(len(words)),
    }
    for record in [*records[0], *records[1]]:
        kind, _, rest = record["prompt"].partition(": ")
        assert record["answer"] == solve[kind](rest.split()), record


def test_tasks_are_the_same_on_every_machine_and_as_packaged(records):
    assert make_tasks(50, 7) == make_tasks(50, 7)
    assert make_tasks(50, 7) != make_tasks(50, 8)
    assert {task.family for task in make_tasks(50, 7)} == {record["family"] for record in records[1]}
    assert len(FAMILIES) == 5


def test_a_careless_answer_is_wrong():
    for task in make_tasks(200, 1):
        sample = Sample((Message("user", task.prompt),), record={"answer": task.answer})
        assert DemoReward().score([sample, sample], [task.careless, task.answer]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("completion", "score"),
    [("1 3", 1.0), (" 1  3\n", 1.0), ("1 3 4", 0.0), ("", 0.0), ("13", 0.0), ("The answer: 1 3", 0.0)],
)
def test_the_reward_forgives_case_and_spaces_only(completion: str, score: float):
    sample = Sample((Message("user", "Sort the numbers: 3 1"),), record={"answer": "1 3"})
    assert DemoReward().score([sample], [completion]) == [score]


def test_a_record_without_an_answer_is_refused_by_name():
    with pytest.raises(DataError, match=r"p\.jsonl:3.*answer"):
        DemoReward().score([Sample((Message("user", "x"),), source="p.jsonl:3")], ["x"])


def test_the_model_follows_the_format_and_is_often_wrong(model, records):
    """It must be good enough to sample right answers and bad enough to be improved."""
    samples = samples_of(records[1])
    prompts = [model.encode_prompt(sample) for sample in samples]
    drawn = HuggingFace().generate(
        GenerateRequest(model, prompts, Sampling(temperature=1.0, n=4, max_new_tokens=32, seed=0))
    )
    ended = [completion.finish_reason == "eos" for each in drawn for completion in each]
    assert sum(ended) / len(ended) > 0.95
    scores = [
        score
        for sample, each in zip(samples, drawn)
        for score in DemoReward().score([sample] * 4, [completion.text for completion in each])
    ]
    assert 0.2 < sum(scores) / len(scores) < 0.6


def test_the_model_has_read_english(model):
    """Loss on text it never saw, far below the 6.9 nats of guessing among 1,024 tokens."""
    import torch

    total = count = 0.0
    for sequence in generic_sequences(model):
        ids = torch.tensor([sequence.ids])
        with torch.no_grad():
            total += float(model.module(input_ids=ids, labels=ids).loss) * (len(sequence) - 1)
        count += len(sequence) - 1
    assert 3.0 < total / count < 4.2
