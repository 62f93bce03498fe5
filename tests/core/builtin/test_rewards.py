"""Rewards, and what happens when they misbehave."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from lmflow.builtin.rewards import Classifier, PythonFunction
from lmflow.components import Reward
from lmflow.data.sample import Message, Sample
from lmflow.errors import LmflowError, RecipeError, RewardError
from lmflow.inference.rewards import score_completions

SAMPLES = [
    Sample((Message("user", "first"),), record={"answer": "1"}, source="p.jsonl:1"),
    Sample((Message("user", "a"), Message("assistant", "b"), Message("user", "c")), source="p.jsonl:2"),
]


class Fixed(Reward):
    """Return what it was told to."""

    name = "fixed"
    values: Any

    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> Any:
        if isinstance(self.values, Exception):
            raise self.values
        return self.values


@pytest.fixture
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [n for n in sys.modules if n.startswith("my_rewards")]:
        del sys.modules[name]
    return tmp_path


def test_a_function_sees_prompts_completions_and_records(in_directory: Path):
    (in_directory / "my_rewards_a.py").write_text(
        "def score(prompts, completions, records):\n"
        "    assert prompts == ['first', 'user: a\\nassistant: b\\nuser: c'], prompts\n"
        "    assert records == [{'answer': '1'}, {}]\n"
        "    return [len(c) for c in completions]\n"
    )
    reward = PythonFunction(function="my_rewards_a:score")
    assert score_completions(reward, SAMPLES, ["xy", ""]) == [2.0, 0.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my_missing:score", "ModuleNotFoundError"),
        ("my_rewards_b:nothing", "AttributeError"),
        ("my_rewards_b:VALUE", "not a function but int"),
        ("my_rewards_c:score", "SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_loaded(in_directory: Path, function: str, message: str):
    (in_directory / "my_rewards_b.py").write_text("VALUE = 3\n")
    (in_directory / "my_rewards_c.py").write_text("def score(:\n")
    with pytest.raises(RecipeError, match=message):
        PythonFunction(function=function).score(SAMPLES, ["a", "b"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (ValueError("boom"), r"raised ValueError: boom\n.*p.jsonl:1\n  prompt: 'first'\n  completion: 'a'"),
        ([1.0], r"returned 1 scores for 2 completions.*p.jsonl:1"),
        ([1.0, math.nan], r"returned nan, not a finite number, for p.jsonl:2"),
        ([math.inf, 1.0], r"returned inf, not a finite number, for p.jsonl:1"),
        ([1.0, "good"], r"returned 'good', not a finite number"),
        ([1.0, None], r"returned None, not a finite number"),
        (None, r"raised TypeError"),
    ],
)
def test_misbehaviour_ends_the_run_with_the_sample_shown(values: Any, message: str):
    with pytest.raises(RewardError, match=message):
        score_completions(Fixed(values=values), SAMPLES, ["a", "b"])


def test_tensors_and_integers_are_numbers():
    assert score_completions(Fixed(values=torch.tensor([0.5, 2.0])), SAMPLES, ["a", "b"]) == [0.5, 2.0]
    assert score_completions(Fixed(values=[True, 3]), SAMPLES, ["a", "b"]) == [1.0, 3.0]


@pytest.fixture
def make_classifier(tmp_path: Path, make_tokenizer: Any) -> Any:
    def make(labels: int) -> Path:
        tokenizer = make_tokenizer()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=labels,
            pad_token_id=2,
        )
        directory = tmp_path / f"classifier{labels}"
        LlamaForSequenceClassification(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    return make


def test_classifier_equals_one_text_at_a_time(make_classifier: Any):
    path = make_classifier(1)
    reward = Classifier(path=str(path), batch_size=2)
    answers = ["short", "a much longer answer that needs padding beside it"]
    scores = reward.score(SAMPLES, answers)
    model = LlamaForSequenceClassification.from_pretrained(path)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    for sample, answer, score in zip(SAMPLES, answers, scores):
        messages = [{"role": m.role, "content": m.content} for m in sample.messages]
        text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        assert score == pytest.approx(model(ids).logits.item(), abs=1e-5)


def test_classifier_with_labels(make_classifier: Any):
    path = str(make_classifier(3))
    scores = [Classifier(path=path, label=f"LABEL_{i}").score(SAMPLES, ["a", "b"]) for i in range(3)]
    for column in range(2):
        assert sum(math.exp(row[column]) for row in scores) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(RecipeError, match="labels LABEL_0, LABEL_1, LABEL_2; name one"):
        Classifier(path=path).score(SAMPLES, ["a", "b"])


def test_not_a_classifier(tmp_path: Path):
    with pytest.raises(LmflowError, match=rf"--reward\.path: {tmp_path} is a directory without config\.json"):
        Classifier(path=str(tmp_path)).score(SAMPLES, ["a", "b"])
