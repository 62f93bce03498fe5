"""The samples of one place: which records they come from, what is left out, and how each fault is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmflow.components import DataFormat
from lmflow.data import source as module
from lmflow.data.cache.record_index import SamplesOnDisk
from lmflow.data.dataset import load_dataset, read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.formats.recognising import LOOKED_AT
from lmflow.data.record import Record
from lmflow.data.source import (
    SHOWN,
    Source,
    count_records,
    folder_of,
    format_matcher,
    interpreted,
    peek,
    placed,
    places,
    read_source,
    scan_source,
    validation_source,
)
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions, Reading

Write = Callable[[str, Iterable[Any]], str]
BY_NAME: dict[str, type[DataFormat]] = {each.name: each for each in FORMATS}
EVERY = Formats(FORMATS)

# What is read, and what is left out


def test_fields_by_other_names(tmp_path: Path, write: Write):
    rows = [{"question": "q", "response_j": "good", "response_k": "bad", "prompt": "not this"}]
    write("a.jsonl", rows)
    columns = {"prompt": "question", "chosen": "response_j", "rejected": "response_k"}
    [sample] = read_samples(DataOptions(path=str(tmp_path / "a.jsonl"), columns=columns), Formats(FORMATS))
    assert [turn.content for turn in sample.messages] == ["q", "good"]
    assert [turn.content for turn in sample.rejected] == ["q", "bad"]
    with pytest.raises(DataError, match=r"a\.jsonl:1: answer: data\.columns names it; the record has question, resp"):
        read_samples(DataOptions(path=str(tmp_path / "a.jsonl"), columns={"output": "answer"}), Formats(FORMATS))


def test_bad_records_are_skipped_where_that_is_asked_for(tmp_path: Path):
    lines = [b'{"prompt": "a"}', b'{"prompt": 3}', b'{"prompt": "\xff"}', b"{", b"[]", b'{"prompt": "b"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    path = str(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"4 of 6 records do not fit format prompt:\na\.jsonl:2: prompt: expected text"):
        load_dataset(DataOptions(path=path, validation=0), Formats(FORMATS), 0)
    found, summary = load_dataset(DataOptions(path=path, validation=0, on_bad_record="skip"), Formats(FORMATS), 0)
    assert [sample.messages[0].content for sample in found.train] == ["a", "b"]
    assert (summary.records, summary.skipped, len(summary.problems)) == (6, 4, 4)
    assert "4 that cannot be used skipped, such as a.jsonl:2: prompt" in summary.describe()
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": 1}')
    with pytest.raises(DataError, match="1 of 1 records"):  # nothing is left
        load_dataset(DataOptions(path=str(tmp_path / "b.jsonl"), on_bad_record="skip"), Formats(FORMATS), 0)


def test_a_record_of_another_format_further_down_is_not_read_in_part(tmp_path: Path, write: Write):
    rows = [{"prompt": str(i)} for i in range(50)] + [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    write("a.jsonl", rows)
    path = str(tmp_path / "a.jsonl")
    with pytest.raises(
        DataError, match=r"a\.jsonl:51: has prompt, chosen, rejected, which does not look like the prompt"
    ):
        read_samples(DataOptions(path=path), Formats(FORMATS))
    assert len(read_samples(DataOptions(path=path), Formats(FORMATS, BY_NAME["prompt"]()))) == 51


def test_a_label_further_down_is_not_passed_over(write: Write):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = write("a.jsonl", [{"messages": turns}] * 40 + [{"messages": turns, "label": False}])
    with pytest.raises(DataError, match=r"a\.jsonl:41: has messages, label, .*keep records with a label in a file"):
        read_samples(DataOptions(path=path), Formats(FORMATS))
    assert len(read_samples(DataOptions(path=path, ignore=["label"]), Formats(FORMATS))) == 41


def test_half_a_character_is_no_text(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(rb'{"text": "one \ud83d two"}')
    with pytest.raises(DataError, match=r"a\.jsonl:1: text: holds half a character \(\\ud83d at 4\)"):
        read_samples(DataOptions(path=str(tmp_path / "a.jsonl")), Formats(FORMATS))


def test_a_field_that_no_format_reads_may_hold_half_a_character(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(rb'{"text": "one", "id": "\ud83d"}')
    for streaming in (False, True):
        [sample] = read_samples(DataOptions(path=str(tmp_path / "a.jsonl"), streaming=streaming), Formats(FORMATS))
        assert sample.record == {"text": "one", "id": "\ud83d"}


def test_a_declared_type_is_taken_at_its_word_or_refused(tmp_path: Path):
    def declare(name: str, kind: Any, *rows: Any) -> None:
        (tmp_path / name).write_text(json.dumps({"type": kind, "instances": rows}))

    declare("a.json", "text_only", {"text": "one"})
    declare("b.json", "text2text", {"text": "two", "input": "q", "output": "a"})
    with pytest.raises(DataError, match=r"b\.json: instance 1: is declared as text2text, which is not the text_only"):
        read_samples(DataOptions(path=str(tmp_path)), Formats(FORMATS))
    (tmp_path / "b.json").write_text('{"text": "two"}')
    assert len(read_samples(DataOptions(path=str(tmp_path)), Formats(FORMATS))) == 2
    for kind in ("text-only", 3):
        declare("a.json", kind, {"text": "one"})
        with pytest.raises(DataError, match=r"a\.json: instance 1: its file says type .*none of the installed formats"):
            read_samples(DataOptions(path=str(tmp_path)), Formats(FORMATS))


def test_an_empty_place_is_named(write: Write, tmp_path: Path):
    with pytest.raises(DataError, match=rf"^{tmp_path}/empty\.jsonl.*holds no record"):
        read_source(Reading(path=write("empty.jsonl", [])), EVERY)


def test_one_record(write: Write):
    path = write("one.jsonl", [{"prompt": "数据", "completion": "ä€"}])
    found = read_source(Reading(path=path), EVERY)
    assert (found.records, found.skipped, found.fields, found.problems) == (1, 0, ("prompt", "completion"), [])
    assert [turn.content for turn in found.samples[0].messages] == ["数据", "ä€"]
    assert found.samples[0].source == "one.jsonl:1"


@pytest.mark.parametrize("limit", [1, 3, 9])
def test_the_limit_counts_records_good_or_bad(limit: int, write: Write):
    path = write("a.jsonl", [{"prompt": 3}, *({"prompt": str(i)} for i in range(4))])
    found = read_source(Reading(path=path, limit=limit, on_bad_record="skip"), EVERY) if limit > 1 else None
    if found is None:
        with pytest.raises(DataError, match="1 of 1 records"):
            read_source(Reading(path=path, limit=limit, on_bad_record="skip"), EVERY)
    else:
        assert (found.records, len(found.samples), found.skipped) == (min(limit, 5), min(limit, 5) - 1, 1)


def test_large_files_stay_on_disk(write: Write, monkeypatch: pytest.MonkeyPatch):
    path = write("a.jsonl", [{"prompt": "a"}] * 3)
    assert isinstance(read_source(Reading(path=path), EVERY).samples, list)
    monkeypatch.setattr(module, "LARGE", Path(path).stat().st_size)
    assert isinstance(read_source(Reading(path=path), EVERY).samples, SamplesOnDisk)
    assert isinstance(read_source(Reading(path=path, streaming=False), EVERY).samples, list)


def test_all_faults_are_kept_where_all_are_wanted(write: Write):
    path = write("a.jsonl", [{"prompt": "a"}, *({"prompt": i} for i in range(SHOWN + 4))])
    assert len(scan_source(Reading(path=path), EVERY).problems) == SHOWN
    whole = scan_source(Reading(path=path), EVERY, shown=None)
    assert [each.partition(": ")[0] for each in whole.problems] == [f"a.jsonl:{i}" for i in range(2, SHOWN + 6)]
    assert whole.skipped == SHOWN + 4


def test_a_file_without_a_good_record_is_no_source_unless_all_faults_are_wanted(write: Write):
    path = write("a.jsonl", ['{"a": oops}', "[1]"])
    with pytest.raises(DataError, match=r"^a\.jsonl:1: not JSON"):
        scan_source(Reading(path=path), EVERY)
    found = scan_source(Reading(path=path), EVERY, shown=None)
    assert (found.format, list(found.samples), found.records, found.skipped) == (None, [], 2, 2)
    assert [each.partition(": ")[0] for each in found.problems] == ["a.jsonl:1", "a.jsonl:2"]


def test_what_is_mended_is_said_beside_what_is_bad(write: Write):
    path = write("a.jsonl", [{"prompt": "a"}, *[{"prompt": 1}] * 6])
    with pytest.raises(DataError) as caught:
        read_source(Reading(path=path), EVERY)
    lines = str(caught.value).splitlines()
    assert lines[0] == "6 of 7 records do not fit format prompt:"
    assert lines[1:6] == [f"a.jsonl:{i}: prompt: expected text, found a number 1" for i in range(2, 7)]
    assert lines[6:] == [
        "… and 1 more",
        "Mend them (lmflow data check lists them all), or leave them out with --data.on_bad_record skip.",
    ]


# Several places


def test_a_place_by_itself_needs_no_folder_before_its_names():
    data = Reading(path="x.jsonl")
    assert places(data) == [(data, "")]


def test_folders_tell_files_of_one_name_apart(write: Write, tmp_path: Path):
    paths = [
        write(name, [{"prompt": "a"}]) for name in ("one/train.jsonl", "two/train.jsonl", "two/other.jsonl", "c.jsonl")
    ]
    one, two, c = paths[0], str(tmp_path / "two"), paths[3]
    found = places(Reading(mix={one: 1.0, two: 2.0, c: 1.0}, limit=3))
    assert [(place.path, folder) for place, folder in found] == [(one, f"{tmp_path}/one/"), (two, f"{two}/"), (c, "")]
    assert all(not place.mix and place.limit == 3 for place, _ in found)


def test_data_is_named_once():
    with pytest.raises(DataError, match=r"data\.path and data\.mix both name data; use one of them"):
        places(Reading(path="x", mix={"y": 1.0}))


def test_the_folder_of_a_file_and_of_a_directory(tmp_path: Path):
    assert folder_of(str(tmp_path)) == f"{tmp_path}/"
    assert folder_of(str(tmp_path / "a.jsonl")) == f"{tmp_path}/"


@pytest.mark.parametrize("validation", [0, 0.0, 0.5, "0.25"])
def test_a_share_names_no_file(validation: Any):
    assert validation_source(DataOptions(validation=validation), EVERY) is None


def test_a_validation_file_is_read_with_the_same_options(write: Write):
    held = write("held.jsonl", [{"question": "q"}, {"question": 3}])
    data = DataOptions(path="x.jsonl", limit=1, columns={"prompt": "question"}, validation=held, on_bad_record="skip")
    found = validation_source(data, EVERY)
    assert found is not None
    assert [sample.messages[0].content for sample in found.samples] == ["q"]
    assert found.skipped == 1


# Records on their way


def records(*fields: Any) -> list[Record | DataError]:
    return [each if isinstance(each, DataError) else Record(each, f"f:{i}") for i, each in enumerate(fields, 1)]


def test_a_look_ahead_loses_nothing():
    many = records(*([{"a": 1}] * 3), DataError("f:4: bad"), *([{"a": 1}] * (LOOKED_AT + 5)))
    taken: list[int] = []

    def read() -> Iterator[Record | DataError]:
        for index, each in enumerate(many):
            taken.append(index)
            yield each

    good, rest = peek(read())
    assert (len(good), len(taken)) == (LOOKED_AT, LOOKED_AT + 1), "no further than it must"
    assert list(rest) == many


def test_a_look_ahead_at_nothing_good():
    bad = records(DataError("f:1: bad"), DataError("f:2: bad"))
    good, rest = peek(iter(bad))
    assert (good, list(rest)) == ([], bad)


def test_a_folder_stands_before_records_and_errors_alike():
    found = list(placed(records({"a": 1}, DataError("f:2: broken")), "one/"))
    assert isinstance(found[0], Record)
    assert (found[0].source, str(found[1])) == ("one/f:1", "one/f:2: broken")


def test_a_record_looks_like_the_format_or_one_that_it_includes():
    matches = format_matcher(BY_NAME["conversation"](), FORMATS)
    asked = [{"role": "user", "content": "q"}]
    assert matches(Record({"messages": asked, "system": "s"}, "f:1"))
    assert matches(Record({"messages": asked}, "f:2"))
    assert not matches(Record({"text": "q"}, "f:3"))
    assert matches(Record({"text": "q"}, "f:4", declared="messages")), "a declared type is taken at its word"
    assert not matches(Record({"messages": asked}, "f:5", declared="text_only"))


def test_what_a_format_cannot_use_is_counted_and_said():
    prompt = BY_NAME["prompt"]()
    source = Source(prompt, [], "", 0)
    every = [
        *records({"prompt": "a"}, {"prompt": 3}, DataError("f:3: broken"), {}),
        Record({"text": "x"}, "f:5", "text_only"),
    ]
    found = list(interpreted(every, prompt, source, format_matcher(prompt, FORMATS)))
    assert [record.source for _, record in found] == ["f:1"]
    assert (source.records, source.skipped) == (5, 4)
    assert source.problems == [
        "f:2: prompt: expected text, found a number 3",
        "f:3: broken",
        "f:4: has no field, which does not look like the prompt of the records before it; --data prompt reads it all "
        "the same",
        "f:5: is declared as text_only, which is not the prompt of the records before it; --data prompt reads it all "
        "the same",
    ]


def test_all_records_are_counted_where_that_is_quick(write: Write, monkeypatch: pytest.MonkeyPatch):
    path = write("a.jsonl", ["oops", *({"prompt": str(i)} for i in range(4))])
    assert count_records(Reading(path=path, limit=2)) == 5
    assert count_records(Reading(mix={path: 1.0, write("b.jsonl", [{"prompt": "a"}]): 0.5})) == 6
    monkeypatch.setattr(module, "LARGE", 1)
    assert count_records(Reading(path=path)) is None
    assert count_records(Reading()) is None
