"""Labels that say whether an answer is wanted, and records of formats that do not read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from lmflow.components import DataFormat
from lmflow.data.dataset import read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.formats.labels import UNWANTED, WANTED, label_of, labelled, labelled_dialogue, verdict
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.recipe.sections.data import Reading

Write = Callable[[str, Iterable[Any]], str]
BY_NAME: dict[str, type[DataFormat]] = {each.name: each for each in FORMATS}
Q, A = Message("user", "q"), Message("assistant", "a")


@pytest.mark.parametrize(
    ("label", "expected"),
    [(True, True), (False, False), (1, True), (0, False), (1.0, True), (" TRUE ", True), ("false", False)]
    + [("Good", True), ("thumbs_up", True), ("Thumbs  Down", False), ("thumbs-up", True), ("👎", False)]
    + [(each, None) for each in (2, -1, 0.5, "sports", "not good", None, [], {}, float("nan"))],
)
def test_labels(label: Any, expected: bool | None):
    assert verdict(label) is expected


def test_no_word_is_both():
    assert not WANTED & UNWANTED


def test_a_label_by_either_name():
    assert label_of({}, "f:1") is label_of({"label": None, "kto_tag": ""}, "f:1") is None
    assert label_of({"label": "good", "kto_tag": True}, "f:1") is True
    assert label_of({"label": "good"}, "f:1", ("kto_tag",)) is None
    with pytest.raises(DataError, match=r"^f:1: kto_tag and label do not agree"):
        label_of({"label": "good", "kto_tag": False}, "f:1")
    with pytest.raises(DataError, match=r"^f:1: kto_tag: expected true or false, .*found a number 3.*--data\.ignore"):
        label_of({"kto_tag": 3}, "f:1")


def test_what_is_unwanted_is_never_learnt():
    whole = Sample((Q, A), source="f:1")
    assert labelled(whole, None) is whole
    for label, learnt in ((True, (Q, A)), (False, (Q,))):
        found = labelled(whole, label)
        assert (found.label, found.messages, labelled_dialogue(found)) == (label, learnt, (Q, A))


# Records of formats that read no label


BESIDE_ANSWERS: list[tuple[str, dict[str, Any]]] = [
    ("alpaca", {"instruction": "q", "output": "a"}),
    ("text2text", {"input": "q", "output": "a"}),
    ("text_to_textlist", {"input": "q", "output": ["a", "b"]}),
    ("hh", {"chosen": "\n\nHuman: q\n\nAssistant: a"}),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}),
]


@pytest.mark.parametrize(("name", "said"), BESIDE_ANSWERS)
@pytest.mark.parametrize("label", [True, False, 0, "good", "rejected"], ids=str)
def test_a_label_that_would_be_passed_over_is_refused(name: str, said: Any, label: Any, write: Write):
    path = write("d.jsonl", [{**said, "label": label}])
    with pytest.raises(DataError, match=rf"d\.jsonl:1: label: .* which {name} does not read.*--data\.ignore label"):
        read_samples(Reading(path=path), Formats(FORMATS))
    [sample] = read_samples(Reading(path=path, ignore=["label"]), Formats(FORMATS))
    assert sample.label is None


@pytest.mark.parametrize(("name", "said"), BESIDE_ANSWERS)
def test_a_label_of_a_topic_is_a_field_like_any_other(name: str, said: Any, write: Write):
    [sample] = read_samples(Reading(path=write("d.jsonl", [{**said, "label": "sports"}])), Formats(FORMATS))
    assert sample.record["label"] == "sports"


@pytest.mark.parametrize(("name", "said"), [*BESIDE_ANSWERS, ("text_only", {"text": "a"})])
def test_a_tag_of_kto_is_read_or_refused_everywhere(name: str, said: Any, write: Write):
    path = write("d.jsonl", [{**said, "kto_tag": False}])
    if name in ("alpaca", "text2text"):
        [sample] = read_samples(Reading(path=path), Formats(FORMATS))
        assert (sample.label, sample.messages) == (False, (Q,))
        return
    with pytest.raises(DataError, match=r"d\.jsonl:1: kto_tag: "):
        read_samples(Reading(path=path), Formats(FORMATS))


@pytest.mark.parametrize("name", ["prompt", "messages", "sharegpt", "conversation"])
def test_naming_a_format_does_not_make_it_pass_over_labels(name: str, write: Write):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    record = {"prompt": "q", "completion": "a", "messages": turns, "conversations": turns, "label": False}
    with pytest.raises(DataError, match=rf"d\.jsonl:1: label: .* which {name} does not read"):
        read_samples(Reading(path=write("d.jsonl", [record])), Formats(FORMATS, BY_NAME[name]()))


@pytest.mark.parametrize(
    ("field", "value"), [("loss", False), ("train", 0), ("weight", 0), ("masked", True), ("mask", 1), ("mask", 0)]
)
@pytest.mark.parametrize(
    ("name", "said"), [*BESIDE_ANSWERS, ("text_only", {"text": "a"}), ("prompt", {"prompt": "q", "answer": "a"})]
)
def test_a_record_that_is_not_to_be_learnt_is_refused(name: str, said: Any, field: str, value: Any, write: Write):
    path = write("d.jsonl", [{**said, field: value}])
    with pytest.raises(DataError, match=rf"d\.jsonl:1: {field}: .* {name} does not read.*--data\.ignore {field}"):
        read_samples(Reading(path=path), Formats(FORMATS))
    assert len(read_samples(Reading(path=path, ignore=[field]), Formats(FORMATS))) == 1
    others = (None, 0.5, "text") if field == "mask" else (None, not value, 0.5, "text")
    for other in others:
        assert read_samples(Reading(path=write("d.jsonl", [{**said, field: other}])), Formats(FORMATS))


def test_labels_of_texts_and_of_prompts_judge_no_answer(write: Write):
    [text] = read_samples(Reading(path=write("a.jsonl", [{"text": "t", "label": 0}])), Formats(FORMATS))
    [prompt] = read_samples(Reading(path=write("b.jsonl", [{"prompt": "q", "label": True}])), Formats(FORMATS))
    assert (text.messages[0].content, prompt.messages, prompt.label) == ("t", (Q,), None)


def test_a_format_may_have_a_label_of_its_own(write: Write):
    class Sentiment(DataFormat):
        """A text and its class, which is learnt."""

        name = "sentiment"

        def sample(self, record: Any, source: str) -> Sample:
            return Sample(
                (Message("user", record["review"]), Message("assistant", record["label"])), True, record, source
            )

    path = write("d.jsonl", [{"review": "fine", "label": "positive"}])
    [sample] = read_samples(Reading(path=path), Formats(FORMATS, Sentiment()))
    assert sample.messages[-1].content == "positive"
