"""The suite of data formats fails formats that are broken in one respect, and says in which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from lmflow.components import DataFormat
from lmflow.data.formats import text_of
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.testing import DataFormatSuite

RECORDS = [{"ask": "What is red?", "reply": "Blood"}, {"ask": "And white?", "reply": "Snow", "hint": "cold"}]
BAD = [({"ask": None, "reply": "Blood"}, "ask"), ({"ask": "What?", "reply": 3}, "reply")]


class Asked(DataFormat):
    """Questions and replies: a good format."""

    name = "asked"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        return {"ask", "reply"} <= record.keys()

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        turns = Message("user", text_of(record, "ask", source)), Message("assistant", text_of(record, "reply", source))
        return Sample(turns, True, record, source)


class WrongRole(Asked):
    def sample(self, record, source):
        first, last = super().sample(record, source).messages
        return Sample((first, Message("bot", last.content)), True, record, source)


class NoMessage(Asked):
    def sample(self, record, source):
        return replace(super().sample(record, source), messages=())


class DropsFields(Asked):
    def sample(self, record, source):
        sample = super().sample(record, source)
        return replace(sample, record={"ask": record["ask"], "reply": record["reply"]})


class ForgetsTheSource(Asked):
    def sample(self, record, source):
        return replace(super().sample(record, source), source="")


class TakesTheRecordApart(Asked):
    def sample(self, record, source):
        if not isinstance(record.get("ask"), str) or not isinstance(record.get("reply"), str):
            return super().sample(record, source)
        first, last = Message("user", record["ask"]), Message("assistant", record.pop("reply"))
        record["reply"] = last.content.upper()
        return Sample((first, last), True, record, source)


class UserAnswers(Asked):
    def sample(self, record, source):
        first, last = super().sample(record, source).messages
        return Sample((first, Message("assistant", ""), Message("user", last.content)), True, record, source)


class EmptyAnswer(Asked):
    def sample(self, record, source):
        sample = super().sample(record, source)
        return replace(sample, messages=(*sample.messages[:1], Message("assistant", "")), templated=False)


class Endless(Asked):
    def sample(self, record, source):
        sample = super().sample(record, source)
        return replace(sample, messages=(*sample.messages, Message("user", "")), templated=False)


class RecognisesNothing(Asked):
    @classmethod
    def recognises(cls, record):
        return False


class RecognisesTexts(Asked):
    @classmethod
    def recognises(cls, record):
        return super().recognises(record) or "text" in record


class RecognitionRaises(Asked):
    @classmethod
    def recognises(cls, record):
        return record["ask"].endswith("?")


class SaysNoPlace(Asked):
    def sample(self, record, source):
        try:
            return super().sample(record, source)
        except DataError as error:
            raise DataError(str(error).removeprefix(source)) from None


class SaysNoField(Asked):
    def sample(self, record, source):
        try:
            return super().sample(record, source)
        except DataError:
            raise DataError(f"{source}: this record is wrong") from None


class MakesTextOfAnything(Asked):
    def sample(self, record, source):
        turns = Message("user", str(record.get("ask"))), Message("assistant", str(record.get("reply")))
        return Sample(turns, True, record, source)


class Trusts(Asked):
    def sample(self, record, source):
        turns = Message("user", record["ask"].strip()), Message("assistant", text_of(record, "reply", source))
        return Sample(turns, True, record, source)


class PassesAnythingOn(Asked):
    def sample(self, record, source):
        reply = record.get("reply")
        if isinstance(reply, int) and not isinstance(reply, bool):
            return super().sample(record, source)
        return Sample(
            (Message("user", text_of(record, "ask", source)), Message("assistant", reply)), True, record, source
        )


class Writes(Asked):
    def record(self, sample):
        if len(sample.messages) != 2:
            raise DataError(f"{sample.source}: it holds one question and one reply")
        return {"ask": sample.messages[0].content, "reply": sample.messages[1].content}

    def embedded(self):
        return RECORDS[:1], RECORDS[1:]


class WritesFieldsExchanged(Asked):
    def record(self, sample):
        return {"ask": sample.messages[1].content, "reply": sample.messages[0].content}


class WritesOtherFields(Asked):
    def record(self, sample):
        return {"question": sample.messages[0].content}


class CannotWrite(Asked):
    def record(self, sample):
        return {"ask": sample.record["question"]}


class BringsBadRecords(Asked):
    def embedded(self):
        return RECORDS, [{"ask": "What?"}]


class HoldsOutWhatItTrains(Asked):
    def embedded(self):
        return RECORDS, RECORDS[:1]


def given(**more: Any) -> dict[str, Any]:
    records = [dict(record) for record in RECORDS]
    dialogues = [[("user", record["ask"]), ("assistant", record["reply"])] for record in RECORDS]
    return {"records": records, "dialogues": dialogues, "bad_records": BAD, **more}


def test_a_good_format_passes_everything(examine: Callable[..., dict[str, Any]]):
    reports = examine(DataFormatSuite, **given(data_format=Asked()))
    assert {name: report.message for name, report in reports.items() if report.outcome != "passed"} == {}


def test_a_good_format_that_writes_and_brings_records_passes_too(examine: Callable[..., dict[str, Any]]):
    reports = examine(DataFormatSuite, **given(data_format=Writes()), only="what_it")
    assert [report.outcome for report in reports.values()] == ["passed", "passed"]


def test_a_format_chosen_by_name_only_passes_too(examine: Callable[..., dict[str, Any]]):
    reports = examine(DataFormatSuite, recognised=False, **given(data_format=RecognisesNothing()))
    assert {report.outcome for report in reports.values()} == {"passed"}
    report = examine(DataFormatSuite, recognised=False, **given(data_format=Asked()), only="its_own")
    assert report["test_its_own_records_are_recognised"].outcome == "failed"


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (WrongRole, "test_every_record_becomes_a_sample", "found ['bot']"),
        (NoMessage, "test_every_record_becomes_a_sample", "expected at least one message"),
        (DropsFields, "test_nothing_a_record_says_is_lost", "expected sample.record to be the whole record"),
        (ForgetsTheSource, "test_the_source_is_kept", "expected sample.source to be 'records.jsonl:7'; found ''"),
        (TakesTheRecordApart, "test_reading_a_record_changes_nothing", "expected the record to be left alone"),
        (EmptyAnswer, "test_a_record_means_its_dialogue", "found [('user', 'What is red?'), ('assistant', '')]"),
        (UserAnswers, "test_a_record_means_its_dialogue", "('user', 'Blood')"),
        (EmptyAnswer, "test_answers_come_back_from_the_tokens", "expected the answers ['Blood'] to be trained"),
        (Endless, "test_answers_come_back_from_the_tokens", "expected an end of text after 'Blood'"),
        (WritesFieldsExchanged, "test_what_it_writes_means_the_same", "fields exchanged"),
        (WritesOtherFields, "test_what_it_writes_means_the_same", "missing"),
        (CannotWrite, "test_what_it_writes_means_the_same", "record raised KeyError"),
        (BringsBadRecords, "test_what_it_brings_can_be_read", "expected embedded record 3 to be a sample"),
        (HoldsOutWhatItTrains, "test_what_it_brings_can_be_read", "to be trained on and held out; 1 are"),
        (RecognisesNothing, "test_its_own_records_are_recognised", "expected asked to be recognised"),
        (RecognisesTexts, "test_records_of_others_are_left_to_them[text_only]", "not to be recognised"),
        (RecognitionRaises, "test_recognition_takes_any_record", "recognises raised KeyError"),
        (SaysNoPlace, "test_errors_name_place_and_field", "to name records.jsonl:7"),
        (SaysNoField, "test_errors_name_place_and_field", "to name ask"),
        (MakesTextOfAnything, "test_errors_name_place_and_field", "expected a DataError that names ask"),
        (Trusts, "test_whatever_stands_in_a_field_is_a_sample_or_an_error", "sample raised KeyError"),
        (PassesAnythingOn, "test_whatever_stands_in_a_field_is_a_sample_or_an_error", "to be texts"),
    ],
)
def test_a_broken_format_fails_its_check(
    broken: type[DataFormat], check: str, said: str, examine: Callable[..., dict[str, Any]]
):
    report = examine(DataFormatSuite, **given(data_format=broken()), only=check.partition("[")[0])[check]
    assert report.outcome == "failed"
    assert said in report.message
