"""What turns say beside their content: whether they are learnt, and what was thought before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest

from lmflow.components import DataFormat
from lmflow.data.dataset import read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.formats.targets import LEARNT, MASKED, REASONING, WEIGHTS, is_target, not_learnt, thinking_of
from lmflow.errors import DataError
from lmflow.recipe.sections.data import Reading

Write = Callable[[str, Iterable[Any]], str]

BY_NAME: dict[str, type[DataFormat]] = {each.name: each for each in FORMATS}
YES: list[Any] = [True, 1, 1.0, "true", " TRUE ", "yes", "1"]
NO: list[Any] = [False, 0, 0.0, "false", "No", "0"]


def learnt(turn: dict[str, Any], role: str = "assistant") -> bool:
    return is_target(turn, role, "f:1", "messages[1]")


@pytest.mark.parametrize("field", [*LEARNT, *WEIGHTS, *MASKED])
def test_a_flag_in_each_form(field: str):
    turned = field in MASKED
    assert {learnt({field: value}) for value in YES} == {not turned}
    assert {learnt({field: value}) for value in NO} == {turned}
    assert learnt({field: None}) is learnt({}) is True, "an answer is learnt where nothing is said"


@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_only_answers_are_learnt(role: str):
    for turn in ({}, {"loss": False}, {"weight": 0}, {"masked": True}, {"train": None}):
        assert learnt(turn, role) is True, "of other turns it says nothing"
    for turn in ({"loss": True}, {"weight": 1}, {"masked": False}):
        with pytest.raises(
            DataError, match=rf"^f:1: messages\[1\]\.{next(iter(turn))}: says that a turn of the {role}"
        ):
            learnt(turn, role)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"weight": 0.5}, r"\.weight: expected 0 or 1, as a single answer cannot be weighted, found a number 0\.5"),
        ({"weight": -1}, r"\.weight: expected 0 or 1"),
        ({"loss": "maybe"}, r'\.loss: expected true or false, found text "maybe"'),
        ({"masked": [1, 0]}, r"\.masked: expected true or false, found a list"),
        ({"train": float("nan")}, r"\.train: expected true or false, found a number NaN"),
        (
            {"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]},
            r"\.train_detail: an answer is learnt",
        ),
        ({"loss": True, "weight": 0}, r": loss and weight do not agree"),
    ],
)
def test_a_flag_that_says_neither_is_refused(turn: dict[str, Any], message: str):
    with pytest.raises(DataError, match=rf"^f:1: messages\[1\]{message}"):
        learnt(turn)


@pytest.mark.parametrize("field", REASONING)
def test_thoughts_by_each_name(field: str):
    assert thinking_of({field: "hm\n"}, "assistant", "f:1", "m") == "hm\n"
    assert thinking_of({field: None}, "assistant", "f:1", "m") is thinking_of({field: ""}, "user", "f:1", "m") is None
    with pytest.raises(DataError, match=rf"^f:1: m\.{field}: expected text, found a number 3"):
        thinking_of({field: 3}, "assistant", "f:1", "m")
    with pytest.raises(DataError, match=rf"^f:1: m\.{field}: only an answer has thoughts"):
        thinking_of({field: "hm"}, "user", "f:1", "m")


def test_two_fields_of_thoughts_are_the_same_or_refused():
    assert thinking_of({"thinking": "hm", "reasoning": "hm"}, "assistant", "f:1", "m") == "hm"
    with pytest.raises(DataError, match=r"^f:1: m: reasoning and thinking are not the same thoughts"):
        thinking_of({"thinking": "hm", "reasoning": "no"}, "assistant", "f:1", "m")


ASKED = {"role": "user", "content": "q"}
FLAGGED = {"role": "assistant", "content": "a", "train": False, "thinking": "hm"}


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("messages", {"messages": [ASKED, FLAGGED]}),
        ("conversation", {"messages": [ASKED, FLAGGED], "system": None}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {**FLAGGED, "from": "gpt", "value": "a"}]}),
        ("sharegpt", {"conversations": [ASKED], "chosen": FLAGGED, "rejected": FLAGGED}),
        ("prompt", {"prompt": [ASKED, FLAGGED]}),
        ("prompt", {"prompt": "q", "completion": [FLAGGED]}),
        ("preference", {"prompt": "q", "chosen": [FLAGGED], "rejected": FLAGGED}),
        ("paired_conversation", {side: {"messages": [ASKED, FLAGGED]} for side in ("chosen", "rejected")}),
        ("kto", {"messages": [ASKED, FLAGGED], "label": True}),
    ],
)
def test_every_dialogue_reads_them(name: str, record: dict[str, Any]):
    found = BY_NAME[name]().sample(record, "f:1")
    for dialogue in filter(None, (found.messages, found.rejected)):
        assert (dialogue[-1].is_target, dialogue[-1].thinking) == (False, "hm")


def test_whole_records_that_are_not_to_be_learnt():
    assert not_learnt({"loss": False, "weight": 0.0, "masked": True, "mask": 1}) == ["loss", "weight", "masked", "mask"]
    assert not_learnt({"loss": True, "weight": 0.5, "masked": False, "train": None, "mask": "true", "learn": []}) == []
    assert not_learnt({"mask": 0}) == not_learnt({"mask": True}) == ["mask"], "it means one thing here, another there"


def dialogue(*masks: Any) -> dict[str, Any]:
    roles = ("user", "assistant", "user", "assistant")
    turns = [{"role": role, "content": "x"} for role in roles]
    return {"messages": [t if mask is None else {**t, "mask": mask} for t, mask in zip(turns, masks, strict=True)]}


@pytest.mark.parametrize(
    ("masks", "learnt"),
    [
        ((None, None, None, None), [True, True]),
        ((True, False, True, False), [True, True]),
        ((1, 1, 1, 0), [False, True]),
        ((True, None, True, True), [True, False]),
    ],
)
def test_a_mask_over_what_is_never_learnt_keeps_from_learning(masks: Any, learnt: list[bool]):
    turns = BY_NAME["messages"]().sample(dialogue(*masks), "f:1").messages
    assert [turn.is_target for turn in turns if turn.role == "assistant"] == learnt


@pytest.mark.parametrize(
    "masks", [(0, 1, 0, 1), (None, True, None, None), (False, False, False, False), (True, 0, None, 0)]
)
def test_a_mask_that_may_mean_either_is_refused_with_both_ways_to_read_it(masks: Any, write: Write):
    path = write("d.jsonl", [dialogue(*masks)])
    with pytest.raises(DataError, match=r"d\.jsonl:1: messages\[\d\]\.mask: means in some sets") as caught:
        read_samples(Reading(path=path), Formats(FORMATS))
    found = []
    for way in ("messages.masked=messages.mask", "messages.train=messages.mask"):
        assert f"{way} where true is" in str(caught.value)
        given = Reading(path=path, columns=dict([way.split("=")]))
        with suppress(DataError):  # that a turn of the user is to be learnt
            [sample] = read_samples(given, Formats(FORMATS))
            found.append([turn.is_target for turn in sample.messages if turn.role == "assistant"])
    assert found, "one of the two reads it"
    assert len(read_samples(Reading(path=path, ignore=["messages.mask"]), Formats(FORMATS))) == 1
