"""The core's own inferencer, model, data formats and rewards through the conformance suites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lmflow.builtin.rewards import Classifier, PythonFunction
from lmflow.components import DataFormat, Inferencer, Model, Reward
from lmflow.data.formats import (
    Alpaca,
    Conversation,
    HhRlhf,
    Kto,
    Messages,
    PairedConversation,
    Preference,
    Prompts,
    ShareGpt,
    TextOnly,
    TextToScoredTextList,
    TextToText,
    TextToTextList,
)
from lmflow.data.sample import Sample
from lmflow.inference.hf import HuggingFace
from lmflow.models.pretrained import Pretrained
from lmflow.testing import DataFormatSuite, InferencerSuite, ModelSuite, RewardSuite
from lmflow.testing.data_format import OTHERS, BadRecord, Dialogue

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


class TestHuggingFace(InferencerSuite):
    draws = 5000

    @pytest.fixture
    def inferencer(self) -> Inferencer:
        return HuggingFace()


class TestHuggingFaceInSmallBatches(InferencerSuite):
    """So few tokens at a time that prompts wait for others to finish."""

    @pytest.fixture
    def inferencer(self) -> Inferencer:
        return HuggingFace(batch_tokens=64)


class TestPretrained(ModelSuite):
    @pytest.fixture
    def model_component(self, model_directory: Path) -> Model:
        return Pretrained(path=str(model_directory))


@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
class TestPretrainedOfAnotherArchitecture(ModelSuite):
    @pytest.fixture
    def model_component(self, architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Model:
        from lmflow.testing.tiny import tiny_model

        directory = tmp_path_factory.mktemp(architecture)
        tiny_model(architecture).save(directory)
        return Pretrained(path=str(directory))


@dataclass(frozen=True)
class Case:
    """A format, good records with what they mean, and bad ones with the field at fault."""

    kind: type[DataFormat]
    good: Sequence[tuple[Mapping[str, Any], Dialogue]]
    bad: Sequence[BadRecord]


HELLO = [("user", "hello"), ("assistant", "yes")]
ASKED = [("user", "q"), ("assistant", "a")]
CASES = (
    Case(
        TextOnly,
        [(OTHERS["text_only"], [("assistant", "Once upon a time.")])],
        [({"text": None}, "text"), ({"text": 3}, "text")],
    ),
    Case(
        TextToText,
        [(OTHERS["text2text"], [("user", "a question"), ("assistant", "an answer")])],
        [({"input": "q"}, "output"), ({"input": 1, "output": "a"}, "input")],
    ),
    Case(
        Alpaca,
        [
            (OTHERS["alpaca"], [("user", "Say yes."), ("assistant", "yes")]),
            (
                {"instruction": "c", "input": "it", "output": "d", "system": "s", "history": [["a", "b"]]},
                [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c\n\nit"), ("assistant", "d")],
            ),
        ],
        [
            ({"instruction": None, "output": "a"}, "instruction"),
            ({"instruction": "a", "output": 1}, "output"),
            ({"instruction": "a", "output": "b", "history": 3}, "history"),
        ],
    ),
    Case(
        Conversation,
        [({"conversation_id": 1, "system": "s", "messages": [USER, ANSWER]}, [("system", "s"), *ASKED])],
        [({"system": "s", "messages": []}, "messages"), ({"system": "s", "messages": [{"role": "x"}]}, "role")],
    ),
    Case(
        Messages,
        [
            ({"messages": [USER, ANSWER]}, ASKED),
            ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]}, ASKED),
        ],
        [({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"), ({"messages": "hi"}, "messages")],
    ),
    Case(
        ShareGpt,
        [
            (OTHERS["sharegpt"], HELLO),
            ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}}, ASKED),
        ],
        [({"conversations": [{"value": "q"}]}, "conversations[0].from"), ({"conversations": None}, "conversations")],
    ),
    Case(
        Prompts,
        [
            (OTHERS["prompt"], [("user", "a question"), ("assistant", "an answer")]),
            ({"prompt": [USER]}, ASKED[:1]),
            ({"prompt": "q", "answer": "a"}, ASKED),
        ],
        [({"prompt": None}, "prompt"), ({"prompt": "q", "completion": {"text": 3}}, "completion")],
    ),
    Case(HhRlhf, [(OTHERS["hh"], HELLO)], [({"chosen": "no marks"}, "chosen"), ({"chosen": None}, "chosen")]),
    Case(
        TextToTextList,
        [({"input": "q", "output": ["a", "b"]}, ASKED)],
        [({"input": "q", "output": []}, "output"), ({"input": 3, "output": ["a"]}, "input")],
    ),
    Case(
        TextToScoredTextList,
        [({"input": "q", "output": [{"score": 0.1, "text": "b"}, {"score": 2, "text": "a"}]}, ASKED)],
        [
            ({"input": "q", "output": [{"text": "a"}]}, "output[0].score"),
            ({"input": "q", "output": [{"score": float("nan"), "text": "a"}]}, "output[0].score"),
        ],
    ),
    Case(
        Preference,
        [
            ({"prompt": "q", "chosen": "a", "rejected": "b"}, ASKED),
            ({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, ASKED),
            ({"chosen": [USER, ANSWER], "rejected": [USER, USER]}, ASKED),
        ],
        [
            ({"prompt": "q", "chosen": 3, "rejected": "b"}, "chosen"),
            ({"prompt": "q", "chosen": "a", "rejected": [{"role": "x"}]}, "rejected[0].role"),
        ],
    ),
    Case(
        PairedConversation,
        [({"chosen": {"messages": [USER, ANSWER]}, "rejected": {"messages": [USER, USER]}}, ASKED)],
        [({"chosen": {"messages": []}, "rejected": {"messages": [USER]}}, "chosen"), ({"chosen": 3}, "chosen")],
    ),
    Case(
        Kto,
        [
            ({"prompt": "q", "completion": "a", "label": True}, ASKED),
            ({"prompt": "q", "completion": "a", "label": False}, ASKED[:1]),
            ({"messages": [USER, ANSWER], "label": True}, ASKED),
        ],
        [({"prompt": "q", "completion": "a", "label": 2}, "label"), ({"prompt": "q", "label": True}, "completion")],
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind.name)
class TestDataFormats(DataFormatSuite):
    @pytest.fixture
    def data_format(self, case: Case) -> DataFormat:
        return case.kind()

    @pytest.fixture
    def records(self, case: Case) -> Sequence[Mapping[str, Any]]:
        return [record for record, _ in case.good]

    @pytest.fixture
    def dialogues(self, case: Case) -> Sequence[Dialogue]:
        return [dialogue for _, dialogue in case.good]

    @pytest.fixture
    def bad_records(self, case: Case) -> Sequence[BadRecord]:
        return case.bad


def count_words(prompts: Sequence[str], completions: Sequence[str], records: Sequence[Any]) -> list[float]:
    return [float(len(text.split())) for text in completions]


class TestPythonFunction(RewardSuite):
    @pytest.fixture
    def reward(self, monkeypatch: pytest.MonkeyPatch) -> Reward:
        import sys
        import types

        module = types.ModuleType("words_of_mine")
        module.count_words = count_words  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "words_of_mine", module)
        return PythonFunction(function="words_of_mine:count_words")


class TestClassifier(RewardSuite):
    @pytest.fixture(scope="class")
    def reward(self, tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any]) -> Reward:
        import torch
        from transformers import LlamaConfig, LlamaForSequenceClassification

        tokenizer = make_tokenizer()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
        )
        directory = tmp_path_factory.mktemp("classifier")
        LlamaForSequenceClassification(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return Classifier(path=str(directory), batch_size=4)


def test_samples_of_the_reward_suite_have_an_answer() -> None:
    from lmflow.testing.reward import question

    assert isinstance(question(0), Sample)
    assert question(0).record["answer"] == "four"
