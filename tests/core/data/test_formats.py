"""What records mean, how formats are recognised, and what malformed ones are told as."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from lmflow.components import DataFormat
from lmflow.data.containers import read_records
from lmflow.data.dataset import load_dataset, read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.record import Record
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError, RecipeError
from lmflow.recipe.sections.data import DataOptions, Reading

BY_NAME: dict[str, type[DataFormat]] = {each.name: each for each in FORMATS}

S, Q, A, B = (Message(*each) for each in (("system", "s"), ("user", "q"), ("assistant", "a"), ("assistant", "b")))
ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}

GOOD: list[tuple[str, dict[str, Any], list[tuple[str, str]], bool]] = [
    ("text_only", {"text": "once"}, [("assistant", "once")], False),
    ("text2text", {"input": "q", "output": "a"}, [("user", "q"), ("assistant", "a")], False),
    ("alpaca", {"instruction": "do", "input": "", "output": "done"}, [("user", "do"), ("assistant", "done")], True),
    (
        "alpaca",
        {"instruction": "do", "input": "it", "output": "done"},
        [("user", "do\n\nit"), ("assistant", "done")],
        True,
    ),
    (
        "alpaca",
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
        [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        True,
    ),
    (
        "conversation",
        {"conversation_id": 1, "system": "s", "messages": [{"role": "user", "content": "q"}]},
        [("system", "s"), ("user", "q")],
        True,
    ),
    (
        "messages",
        {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"}]},
        [("system", "s"), ("user", "q")],
        True,
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        [("user", "ab")],
        True,
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [("user", "q"), ("assistant", "a")],
        True,
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}},
        [("user", "q"), ("assistant", "a")],
        True,
    ),
    ("prompt", {"prompt": "q"}, [("user", "q")], True),
    ("prompt", {"prompt": "q", "completion": "a"}, [("user", "q"), ("assistant", "a")], True),
    ("prompt", {"prompt": [{"role": "user", "content": "q"}]}, [("user", "q")], True),
    (
        "hh",
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes\n\nmore\n\nHuman: ok\n\nAssistant: bye"},
        [("user", "hi"), ("assistant", "yes\n\nmore"), ("user", "ok"), ("assistant", "bye")],
        True,
    ),
    (
        "hh",
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant:"},
        [("user", "a\n\nb"), ("assistant", "")],
        True,
    ),
]


@pytest.mark.parametrize(("name", "record", "turns", "templated"), GOOD, ids=[g[0] for g in GOOD])
def test_records_become_samples_and_are_recognised(name: str, record: dict[str, Any], turns: Any, templated: bool):
    sample = BY_NAME[name]().sample(record, "f:1")
    assert [(m.role, m.content) for m in sample.messages] == turns
    assert sample.templated == templated
    assert sample.record == record
    assert Formats(FORMATS).resolve([Record(record, "f:1")]).name == name


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("text_only", {"text": 3}, "f:1: text: expected text, found a number 3"),
        ("text2text", {"input": "q"}, "f:1: output: expected text, it is missing"),
        ("alpaca", {"instruction": None, "output": "a"}, "f:1: instruction: expected text, found nothing"),
        ("alpaca", {"instruction": "a", "output": "b", "history": ["x"]}, r"history\[0\]: expected a pair of texts"),
        ("messages", {"messages": []}, "messages: expected a list of at least one turn, found a list"),
        ("messages", {"messages": ["hi"]}, r"messages\[0\]: expected an object with role and content, found text"),
        (
            "messages",
            {"messages": [{"role": "usr", "content": "q"}]},
            r"messages\[0\]\.role: expected one of .*user.*found text",
        ),
        ("messages", {"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]\.content: expected text"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"content\[0\]: expected a text part",
        ),
        ("sharegpt", {"conversations": [{"value": "q"}]}, r"conversations\[0\]\.from: expected one of .*it is missing"),
        ("messages", {"messages": [ASKED], "tools": [{"name": "a\ud83d"}]}, r"tools\[0\]: holds half a character"),
        (
            "messages",
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"name": "a", "arguments": {"day": date(2026, 1, 1)}}]}
                ]
            },
            r"messages\[0\]\.tool_calls\[0\]: Object of type date is not JSON",
        ),
        ("hh", {"chosen": "no marks"}, "chosen: expected text that begins with a blank line"),
    ],
)
def test_malformed_records(name: str, record: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        BY_NAME[name]().sample(record, "f:1")


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("prompt", {"system": "s", "prompt": "q", "completion": "a"}),
        ("prompt", {"system": "s", "prompt": [SYSTEM, ASKED], "completion": "a"}),
        ("preference", {"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"}),
        ("preference", {"system": "s", "chosen": [ASKED, SAID], "rejected": [ASKED, {**SAID, "content": "b"}]}),
        (
            "preference",
            {"prompt": "q", "chosen": [SYSTEM, ASKED, SAID], "rejected": [SYSTEM, ASKED, {**SAID, "content": "b"}]},
        ),
        ("preference", {"prompt": [SYSTEM, ASKED], "chosen": [ASKED, SAID], "rejected": "b"}),
        ("kto", {"system": "s", "prompt": "q", "completion": "a", "label": True}),
        ("kto", {"system": "s", "messages": [ASKED, SAID], "label": True}),
        ("messages", {"system": "s", "messages": [ASKED, SAID]}),
        ("conversation", {"system": "s", "messages": [SYSTEM, ASKED, SAID]}),
    ],
)
def test_a_system_text_beside_the_turns_is_never_lost_or_doubled(name: str, record: dict[str, Any]):
    sample = BY_NAME[name]().sample(record, "f:1")
    assert sample.messages == (S, Q, A)
    assert sample.rejected in ((), (S, Q, B))


@pytest.mark.parametrize(
    ("label", "wanted"), [(True, True), (False, False), (1, True), (0.0, False), ("True", True), ("false", False)]
)
def test_an_unwanted_answer_is_known_by_any_label(label: Any, wanted: bool):
    """Read as a prompt with its completion, it would be trained on."""
    for said in ({"prompt": "q", "completion": "a"}, {"messages": [ASKED, SAID]}):
        kind = Formats(FORMATS).resolve([Record({**said, "label": label}, "f:1")])
        sample = kind.sample({**said, "label": label}, "f:1")
        assert (kind.name, sample.label, sample.messages[-1]) == ("kto", wanted, A if wanted else Q)


def test_a_label_of_another_kind_is_a_field_like_any_other():
    record = {"prompt": "q", "completion": "a", "label": "sports"}
    assert Formats(FORMATS).resolve([Record(record, "f:1")]).name == "prompt"
    with pytest.raises(DataError, match=r'f:1: label: expected true or false, found text "sports"'):
        BY_NAME["kto"]().sample(record, "f:1")


def test_functions_in_the_older_form_of_openai_are_calls_and_answers():
    """LMFlow's role `function` is a call, OpenAI's is what the function answers, which is never trained."""
    call = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}}
    record = {"messages": [ASKED, call, {"role": "function", "name": "add", "content": "3"}, SAID]}
    turns = BY_NAME["messages"]().sample(record, "f:1").messages
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant"]
    assert turns[1].tool_calls == ({"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},)
    assert (turns[2].name, turns[2].content) == ("add", "3")
    lmflow = {"messages": [ASKED, {"role": "function", "content": '{"name": "add", "arguments": {"a": 1}}'}]}
    assert BY_NAME["conversation"]().sample(lmflow, "f:1").messages[1] == turns[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"reasoning_content": "1 + 1"},
            r"messages\[1\]\.reasoning_content: .* would be lost; write it into the content",
        ),
        ({"weight": 0}, r"messages\[1\]\.weight: single answers cannot be left untrained"),
        ({"function_call": "add"}, r"messages\[1\]\.function_call: expected a call"),
    ],
)
def test_what_an_answer_says_beside_its_content_is_not_lost(more: dict[str, Any], message: str):
    with pytest.raises(DataError, match=f"f:1: {message}"):
        BY_NAME["messages"]().sample({"messages": [ASKED, {**SAID, **more}]}, "f:1")
    kept = {"reasoning_content": None, "weight": 1, "thinking": ""}
    assert BY_NAME["messages"]().sample({"messages": [ASKED, {**SAID, **kept}]}, "f:1").messages == (Q, A)


class Shouted(DataFormat):
    """Texts in capitals."""

    name = "shouted"
    marks: int = Field(0, description="Exclamation marks behind each text.")
    folder: str | None = Field(None, description="Where they were heard.")

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        return "shout" in record

    def in_folder(self, folder: Path) -> DataFormat:
        return self if self.folder is not None else self.model_copy(update={"folder": str(folder)})

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        heard = f"{record['shout'].upper()}{'!' * self.marks}"
        return Sample((Message("assistant", heard),), False, {**record, "folder": self.folder}, source)


WITH_OPTIONS = [*FORMATS, Shouted]


def test_options_reach_the_format_that_is_recognised(tmp_path: Path):
    path = lines(tmp_path, ['{"shout": "fire"}', '{"shout": "water"}'])
    found, summary = load_dataset(DataOptions(path=path, validation=0), Formats(WITH_OPTIONS, options={"marks": 2}), 0)
    assert [sample.messages[0].content for sample in found.train] == ["FIRE!!", "WATER!!"]
    assert found.format == Shouted(marks=2, folder=str(tmp_path))
    assert found.options == DataOptions(path=path, validation=0)
    assert (summary.format, summary.recognised) == ("shouted", True)


def test_an_option_that_the_recognised_format_lacks(tmp_path: Path):
    path = lines(tmp_path, ['{"text": "fire"}'])
    message = (
        r"data\.marks: d\.jsonl:1 is recognised as text_only \(by text\), which has no such option; it is one of "
        r"shouted\. Leave it out, or name the format with --data NAME"
    )
    with pytest.raises(DataError, match=message):
        read_samples(Reading(path=path), Formats(WITH_OPTIONS, options={"marks": 2}))


def test_an_option_that_the_recognised_format_cannot_take(tmp_path: Path):
    path = lines(tmp_path, ['{"shout": "fire"}'])
    with pytest.raises(RecipeError, match=r"data\.marks: expected a whole number, got 'many'"):
        read_samples(Reading(path=path), Formats(WITH_OPTIONS, options={"marks": "many"}))


def test_a_format_is_told_the_folder_of_each_place(tmp_path: Path):
    places = {}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        places[lines(tmp_path / folder, ['{"shout": "fire"}'])] = 1.0
    samples = read_samples(Reading(mix=places), Formats(WITH_OPTIONS))
    assert [sample.record["folder"] for sample in samples] == [str(tmp_path / "one"), str(tmp_path / "two")]
    [sample] = read_samples(Reading(path=str(tmp_path / "one")), Formats(WITH_OPTIONS, Shouted()))
    assert sample.record["folder"] == str(tmp_path / "one")
    [sample] = read_samples(Reading(path=str(tmp_path / "one")), Formats(WITH_OPTIONS, Shouted(folder="here")))
    assert sample.record["folder"] == "here"


def test_a_declared_type_decides():
    record = Record({"messages": [{"role": "user", "content": "q"}]}, "f:1", declared="conversation")
    assert Formats(FORMATS).resolve([record]).name == "conversation"


def test_records_of_no_known_format():
    with pytest.raises(
        DataError, match=r"f:1: records with foo, bar are none of the installed formats \(alpaca.*--data NAME"
    ):
        Formats(FORMATS).resolve([Record({"foo": 1, "bar": 2}, "f:1")])


def test_a_named_format_is_taken_at_its_word():
    chosen = BY_NAME["text2text"]()
    assert Formats(FORMATS, chosen).resolve([Record({"foo": 1}, "f:1")]) is chosen


@pytest.mark.parametrize(
    ("file", "name", "count"),
    [
        ("alpaca_en_demo.json", "alpaca", 999),
        ("dpo_en_demo.json", "sharegpt", 300),
        ("hh_rlhf_harmless_test.jsonl.gz", "hh", 2312),
        ("tinyshakespeare.txt", "text_only", 1),
    ],
)
def test_real_files(file: str, name: str, count: int, shared_data: Path):
    records = read_records(shared_data / file)
    data = Formats(FORMATS).resolve(records)
    assert (data.name, len(records)) == (name, count)
    samples = [data.sample(record.fields, record.source) for record in records]
    assert all(isinstance(message, Message) for sample in samples for message in sample.messages)


# Reading whole data sets


def lines(tmp_path: Path, rows: list[str]) -> str:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows))
    return str(path)


def test_split_is_seeded_disjoint_and_complete(tmp_path: Path):
    path = lines(tmp_path, [f'{{"prompt": "{i}"}}' for i in range(40)])
    data = DataOptions(path=path, validation=0.25)
    dataset, summary = load_dataset(data, Formats(FORMATS), 0)
    train, heldout = ({s.messages[0].content for s in part} for part in (dataset.train, dataset.heldout))
    assert (len(train), len(heldout), len(train | heldout)) == (30, 10, 40)
    assert load_dataset(data, Formats(FORMATS), 0)[0] == dataset
    assert {s.messages[0].content for s in load_dataset(data, Formats(FORMATS), 1)[0].heldout} != heldout
    assert (summary.format, summary.records, summary.train, summary.heldout) == ("prompt", 40, 30, 10)


@pytest.mark.parametrize(("validation", "count"), [(0.0, 0), (0.01, 1), (0.99, 9), ("0.5", 5)])
def test_at_least_one_on_each_side(validation: Any, count: int, tmp_path: Path):
    data = DataOptions(path=lines(tmp_path, [f'{{"prompt": "{i}"}}' for i in range(10)]), validation=validation)
    assert len(load_dataset(data, Formats(FORMATS), 0)[0].heldout) == count


def test_validation_from_a_file(tmp_path: Path):
    (tmp_path / "held.jsonl").write_text('{"text": "other format"}\n')
    data = DataOptions(path=lines(tmp_path, ['{"prompt": "a"}']), validation=str(tmp_path / "held.jsonl"))
    dataset, _ = load_dataset(data, Formats(FORMATS), 0)
    assert [s.messages[0].content for s in dataset.heldout] == ["other format"]


def test_one_text_is_split_near_its_end(tmp_path: Path):
    (tmp_path / "book.txt").write_text("".join(f"Line number {i}.\n" for i in range(1000)))
    dataset, _ = load_dataset(DataOptions(path=str(tmp_path / "book.txt"), validation=0.1), Formats(FORMATS), 0)
    [train], [heldout] = dataset.train, dataset.heldout
    whole = train.messages[0].content + heldout.messages[0].content
    assert whole == (tmp_path / "book.txt").read_text()
    assert heldout.messages[0].content.startswith("Line number 90")


def test_every_malformed_record_is_counted(tmp_path: Path):
    rows = ['{"instruction": "a", "output": "b"}'] + ['{"instruction": "a", "output": 1}'] * 7
    with pytest.raises(DataError) as caught:
        load_dataset(DataOptions(path=lines(tmp_path, rows)), Formats(FORMATS), 0)
    text = str(caught.value)
    assert text.startswith("7 of 8 records do not fit format alpaca:\nd.jsonl:2: output: expected text")
    assert "… and 2 more\nMend them (lmflow data check" in text


def test_limit_and_bad_share(tmp_path: Path):
    path = lines(tmp_path, [f'{{"prompt": "{i}"}}' for i in range(10)])
    assert load_dataset(DataOptions(path=path, limit=4, validation=0), Formats(FORMATS), 0)[1].records == 4
    with pytest.raises(DataError, match=r"data.validation: 1\.5 is neither"):
        load_dataset(DataOptions(path=path, validation=1.5), Formats(FORMATS), 0)


def test_a_format_without_data_of_its_own():
    with pytest.raises(DataError, match=r"alpaca brings no data of its own.*--data.path"):
        load_dataset(DataOptions(), Formats(FORMATS, BY_NAME["alpaca"]()), 0)
    with pytest.raises(DataError, match=r"There is no data: give a file with --data.path"):
        load_dataset(DataOptions(), Formats(FORMATS), 0)


def test_a_format_that_includes_others_is_preferred_to_them():
    class Tagged(BY_NAME["messages"]):  # type: ignore[misc, name-defined]
        name = "tagged"
        includes = ("messages",)

        @classmethod
        def recognises(cls, record: Any) -> bool:
            return "tag" in record

    plain, tagged = ({"messages": [{"role": "user", "content": "q"}], **more} for more in ({}, {"tag": 1}))
    formats = [*FORMATS, Tagged]
    assert Formats(formats).resolve([Record(plain, "a:1"), Record(tagged, "a:2")]).name == "tagged"
    assert Formats(formats).resolve([Record(plain, "a:1")]).name == "messages"
