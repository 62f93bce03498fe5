"""The conformance suite for data formats: what every format promises to those who train on its records."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from lmflow.components import DataFormat
from lmflow.data.formats import Formats
from lmflow.data.record import Record
from lmflow.data.sample import Sample
from lmflow.errors import DataError
from lmflow.plugins import Plugins
from lmflow.testing.runs import plugins_with, supply

BadRecord = tuple[Mapping[str, Any], str]
"""A record that cannot be used, and the field an error must name."""

Dialogue = Sequence[tuple[str, str]]
"""Who says what, in order: ("user", "What is red?"), ("assistant", "Blood")."""

OTHERS: Mapping[str, Mapping[str, Any]] = {
    "text_only": {"text": "Once upon a time."},
    "text2text": {"input": "a question", "output": "an answer"},
    "alpaca": {"instruction": "Say yes.", "input": "", "output": "yes"},
    "conversation": {"conversation_id": 1, "system": "", "messages": [{"role": "user", "content": "hello"}]},
    "messages": {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "yes"}]},
    "prompt": {"prompt": "a question", "completion": "an answer"},
    "hh": {"chosen": "\n\nHuman: hello\n\nAssistant: yes", "rejected": "\n\nHuman: hello\n\nAssistant: no"},
    "text_to_textlist": {"input": "a question", "output": ["an answer", "another"]},
    "text_to_scored_textlist": {"input": "a question", "output": [{"score": 0.5, "text": "an answer"}]},
    "preference": {"prompt": "a question", "chosen": "an answer", "rejected": "another"},
    "paired_conversation": {
        "chosen": {"messages": [{"role": "user", "content": "hello"}]},
        "rejected": {"messages": [{"role": "user", "content": "hi"}]},
    },
    "kto": {"prompt": "a question", "completion": "an answer", "label": True},
    "completions": {"prompt": "a question", "completions": [{"text": "an answer", "finish_reason": "eos"}]},
}
"""A plain record of each of the core's formats."""

SOURCE = "records.jsonl:7"
ROLES = ("system", "user", "assistant", "tool")
ODD_VALUES: Sequence[Any] = (None, 3, -1.5, True, [], {}, [None], [[[]]], {"": None}, [{"role": "user"}], "")
"""What may stand where a field belongs, in files of unknown making."""


class DataFormatSuite:
    """An examination of one data format; inherit from it in a class whose name begins with Test.

        from lmflow.testing import DataFormatSuite

        class TestMyFormat(DataFormatSuite):
            @pytest.fixture
            def data_format(self):
                return MyFormat()

            @pytest.fixture
            def records(self):
                return [{"question": "What is red?", "answer": "Blood"}]

            @pytest.fixture
            def dialogues(self):
                return [[("user", "What is red?"), ("assistant", "Blood")]]

            @pytest.fixture
            def bad_records(self):
                return [({"question": None, "answer": "Blood"}, "question")]

    Each test is one requirement, and its docstring says which. `records` are good ones, of every shape the format
    takes; `dialogues` says, for each of them, who says what; `bad_records` are pairs of a record that cannot be used
    and the field that an error must name.
    """

    recognised: ClassVar[bool] = True
    """Whether the format is found by looking at records; if not, `--data NAME` chooses it."""

    @pytest.fixture
    def data_format(self) -> DataFormat:
        """The format under examination; every suite supplies its own."""
        supply(self, "data_format")

    @pytest.fixture
    def records(self) -> Sequence[Mapping[str, Any]]:
        """Good records; every suite supplies its own."""
        supply(self, "records")

    @pytest.fixture
    def dialogues(self) -> Sequence[Dialogue]:
        """Roles and texts that each record means; every suite supplies its own."""
        supply(self, "dialogues")

    @pytest.fixture
    def bad_records(self) -> Sequence[BadRecord]:
        """Records that cannot be used, each with the field at fault; every suite supplies its own."""
        supply(self, "bad_records")

    @pytest.fixture
    def plugins(self, data_format: DataFormat) -> Plugins:
        """The core and the plugin of the format, which need not be installed."""
        return plugins_with(type(data_format), companions=())

    # Good records

    def test_every_record_becomes_a_sample(self, data_format: DataFormat, records: Sequence[Mapping[str, Any]]) -> None:
        """A sample has messages of known roles with texts, and a user or assistant speaks in it."""
        assert records, "expected the fixture `records` to hold at least one record"
        for record in records:
            sample = data_format.sample(record, SOURCE)
            assert isinstance(sample, Sample), f"expected a Sample of {record}; found {sample!r}"
            wrong = [turn.role for turn in sample.messages if turn.role not in ROLES]
            assert sample.messages, f"expected at least one message from {record}; found none"
            assert not wrong, f"expected messages with roles of {', '.join(ROLES)} from {record}; found {wrong}"
            assert all(isinstance(turn.content, str) for turn in sample.messages), (
                f"expected the content of every message to be text; found {sample.messages}"
            )

    def test_nothing_a_record_says_is_lost(self, data_format: DataFormat, records: Sequence[Mapping[str, Any]]) -> None:
        """`sample.record` is the record as read: rewards and evaluators see every field, known or not."""
        for record in records:
            kept = data_format.sample({**record, "note_of_mine": "kept"}, SOURCE).record
            assert {**record, "note_of_mine": "kept"} == dict(kept), (
                f"expected sample.record to be the whole record; found {dict(kept)}. Usual cause: Sample(…) is made "
                "without `record`, or with a part of it."
            )

    def test_the_source_is_kept(self, data_format: DataFormat, records: Sequence[Mapping[str, Any]]) -> None:
        """`sample.source` is the source given: later errors name file and line by it."""
        found = data_format.sample(records[0], SOURCE).source
        assert found == SOURCE, f"expected sample.source to be {SOURCE!r}; found {found!r}"

    def test_reading_a_record_changes_nothing(
        self, data_format: DataFormat, records: Sequence[Mapping[str, Any]]
    ) -> None:
        """`sample` leaves the record as it was, and gives the same sample when asked again."""
        for record in records:
            before = copy.deepcopy(record)
            first, second = (data_format.sample(record, SOURCE) for _ in range(2))
            assert record == before, f"expected the record to be left alone; {before} became {record}. Copy it first."
            assert first == second, "expected the same sample when a record is read again; found another"

    def test_a_record_means_its_dialogue(
        self, data_format: DataFormat, records: Sequence[Mapping[str, Any]], dialogues: Sequence[Dialogue]
    ) -> None:
        """The messages of each sample are the dialogue that the author says its record means."""
        assert len(dialogues) == len(records), f"expected a dialogue for each of {len(records)} records"
        for record, dialogue in zip(records, dialogues, strict=True):
            found = [(turn.role, turn.content) for turn in data_format.sample(record, SOURCE).messages]
            assert found == list(dialogue), f"expected {record} to mean {list(dialogue)}; found {found}"

    def test_answers_come_back_from_the_tokens(
        self, data_format: DataFormat, records: Sequence[Mapping[str, Any]], dialogues: Sequence[Dialogue]
    ) -> None:
        """Tokenised and decoded again, what is trained holds every answer, and the end of the text after the last.

        Records with images are left to the suite of the model that sees them.
        """
        from lmflow.testing.tiny import tiny_model

        model = tiny_model()
        for record, dialogue in zip(records, dialogues, strict=True):
            sample = data_format.sample(record, SOURCE)
            answers = [content for role, content in dialogue if role == "assistant"]
            if sample.images or not answers:
                continue
            sequences = model.encode(sample)
            trained = [[i for i, on in zip(s.ids, s.loss_mask, strict=True) if on] for s in sequences]
            text = "".join(model.decode(ids) for ids in trained)
            lost = [answer for answer in answers if answer not in text]
            assert not lost, f"expected the answers {answers} to be trained; found {text!r}"
            if dialogue[-1][0] == "assistant":
                assert trained[-1][-1] in model.end_ids, f"expected an end of text after {answers[-1]!r}; found none"

    # What it writes and what it brings

    def test_what_it_writes_means_the_same(
        self, data_format: DataFormat, records: Sequence[Mapping[str, Any]], dialogues: Sequence[Dialogue]
    ) -> None:
        """Where the format can be written, the record that `record` makes of a sample is read as its dialogue again.

        A DataError says that a sample cannot be held; `lmflow data convert` shows it.
        """
        if type(data_format).record is DataFormat.record:
            return
        for given, dialogue in zip(records, dialogues, strict=True):
            try:
                written = data_format.record(data_format.sample(given, SOURCE))
            except DataError:
                continue
            except Exception as error:
                pytest.fail(f"expected a record or a DataError of {given}; record raised {error!r}", pytrace=False)
            outcome = read(data_format, written)
            found = outcome if isinstance(outcome, str) else [(turn.role, turn.content) for turn in outcome.messages]
            assert found == list(dialogue), (
                f"expected record() to write {given} so that it means {list(dialogue)}; it wrote {dict(written)}, "
                f"which means {found}. Usual cause: fields exchanged, or what `sample` adds to a text left in it."
            )

    def test_what_it_brings_can_be_read(self, data_format: DataFormat) -> None:
        """Records that `embedded` brings are samples, those held out as well, and no record is in both parts."""
        brought = data_format.embedded()
        if brought is None:
            return
        train, heldout = brought
        for number, record in enumerate([*train, *heldout], start=1):
            outcome = read(data_format, record)
            assert isinstance(outcome, Sample), f"expected embedded record {number} to be a sample; found: {outcome}"
        both = [record for record in heldout if record in train]
        assert not both, f"expected no record to be trained on and held out; {len(both)} are, such as {both[0]}"

    # Recognition

    def test_its_own_records_are_recognised(
        self, data_format: DataFormat, records: Sequence[Mapping[str, Any]], plugins: Plugins
    ) -> None:
        """Among all installed formats its records mean this one: `--data.path FILE` alone is enough."""
        if not self.recognised:
            seen = [record for record in records if data_format.recognises(record)]
            assert not seen, f"expected a format with `recognised = False` to recognise nothing; it recognises {seen}"
            return
        for record in records:
            try:
                found = Formats(plugins.classes("data")).resolve([Record(record, SOURCE)])
            except DataError as error:
                pytest.fail(f"expected {data_format.name} to be recognised; found: {error}", pytrace=False)
            assert found.name == data_format.name, (
                f"expected {record} to be recognised as {data_format.name}; it is taken for {found.name}"
            )

    @pytest.mark.parametrize("name", OTHERS)
    def test_records_of_others_are_left_to_them(self, data_format: DataFormat, name: str, plugins: Plugins) -> None:
        """A plain record of another format is not recognised as this one; one of a format it includes is read by it,
        or refused for a field that it lacks.

        Otherwise installing the plugin makes files ambiguous that were read before.
        """
        if name == data_format.name:
            assert data_format.recognises(OTHERS[name]), f"expected it to recognise {OTHERS[name]}, which is its own"
            return
        if name in data_format.includes:
            outcome = read(data_format, OTHERS[name])
            assert isinstance(outcome, Sample) or "it is missing" in outcome, (
                f"expected it to read {OTHERS[name]}, which it includes, or to name what it lacks; found: {outcome}"
            )
            return
        assert not data_format.recognises(OTHERS[name]), (
            f"expected {OTHERS[name]}, a record of format {name}, not to be recognised. Usual cause: `recognises` asks "
            "for a field that other formats have too; ask for what only this one has."
        )

    def test_recognition_takes_any_record(self, data_format: DataFormat, records: Sequence[Mapping[str, Any]]) -> None:
        """`recognises` answers True or False for whatever a file holds, and never raises."""
        for record in [{}, {"": None}, *mutations(records)]:
            try:
                found: Any = data_format.recognises(record)
            except Exception as error:
                pytest.fail(f"expected True or False for {record}; recognises raised {error!r}", pytrace=False)
            assert found in (True, False), f"expected True or False for {record}; found {found!r}"

    # Bad records

    def test_errors_name_place_and_field(self, data_format: DataFormat, bad_records: Sequence[BadRecord]) -> None:
        """A record that cannot be used is a DataError that names file and line, and the field at fault."""
        assert bad_records, "expected the fixture `bad_records` to hold at least one record"
        for record, field in bad_records:
            outcome = read(data_format, record)
            if isinstance(outcome, str):
                for wanted in (SOURCE, field):
                    assert wanted in outcome, f"expected the error of {record} to name {wanted}; it says: {outcome}"
            else:
                pytest.fail(
                    f"expected a DataError that names {field}; {record} became {outcome.messages}", pytrace=False
                )

    def test_whatever_stands_in_a_field_is_a_sample_or_an_error(
        self, data_format: DataFormat, records: Sequence[Mapping[str, Any]]
    ) -> None:
        """Fields that are missing, null, or hold something else give a sample or a DataError, no other exception."""
        for record in mutations(records):
            outcome = read(data_format, record)
            if isinstance(outcome, str):
                assert SOURCE in outcome, f"expected the error of {record} to name {SOURCE}; it says: {outcome}"
                continue
            texts = [turn.content for turn in outcome.messages]
            assert all(isinstance(text, str) for text in texts), (
                f"expected the contents of {record} to be texts; found {texts}: a wrong value became training data"
            )


def read(data_format: DataFormat, record: Mapping[str, Any]) -> Sample | str:
    """The sample of a record, or what its DataError says; fails for any other exception."""
    try:
        return data_format.sample(record, SOURCE)
    except DataError as error:
        return str(error)
    except Exception as error:
        pytest.fail(
            f"expected a sample or a DataError of {record}; sample raised {error!r}. Usual cause: a field is used "
            "before its type is looked at; lmflow.data.formats.fields.text_of does that.",
            pytrace=False,
        )


def mutations(records: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Records spoilt in one field, at the top or in the first element of a list: left out, or another kind of value."""
    for record in records:
        for field in record:
            yield {key: value for key, value in record.items() if key != field}
            yield from ({**record, field: odd} for odd in ODD_VALUES)
            value = record[field]
            if isinstance(value, list) and value:
                yield from ({**record, field: [odd, *value[1:]]} for odd in ODD_VALUES)
                if isinstance(value[0], dict):
                    yield from ({**record, field: [inner, *value[1:]]} for inner in mutations(value[:1]))
