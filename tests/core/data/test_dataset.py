"""From the section `data` to samples: split, mixed by weight, and what is said of them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmflow.components import DataFormat
from lmflow.data.dataset import (
    Concatenated,
    DataSummary,
    chosen_of,
    is_text,
    load_dataset,
    names_of,
    read_samples,
    split,
    split_text,
    train_key,
    weighted,
)
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.sample import Message, Sample
from lmflow.data.source import Source
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions, Reading

Write = Callable[[str, Iterable[Any]], str]
BY_NAME: dict[str, type[DataFormat]] = {each.name: each for each in FORMATS}


class Greetings(DataFormat):
    """A format that brings data of its own."""

    name = "greetings"

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        return Sample((Message("user", record["hello"]),), record=record, source=source)

    def embedded(self) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
        return [{"hello": f"t{i}"} for i in range(5)], [{"hello": "h0"}, {"hello": "h1"}]


def said(samples: Iterable[Sample]) -> list[str]:
    return [sample.messages[0].content for sample in samples]


def ask(count: int) -> list[Sample]:
    return [Sample((Message("user", str(i)),), source=f"s:{i}") for i in range(count)]


# Splitting


def test_split_is_seeded_disjoint_and_complete(write: Write):
    path = write("d.jsonl", [f'{{"prompt": "{i}"}}' for i in range(40)])
    data = DataOptions(path=path, validation=0.25)
    dataset, summary = load_dataset(data, Formats(FORMATS), 0)
    train, heldout = ({s.messages[0].content for s in part} for part in (dataset.train, dataset.heldout))
    assert (len(train), len(heldout), len(train | heldout)) == (30, 10, 40)
    assert load_dataset(data, Formats(FORMATS), 0)[0] == dataset
    assert {s.messages[0].content for s in load_dataset(data, Formats(FORMATS), 1)[0].heldout} != heldout
    assert (summary.format, summary.records, summary.train, summary.heldout) == ("prompt", 40, 30, 10)


@pytest.mark.parametrize(("validation", "count"), [(0.0, 0), (0.01, 1), (0.99, 9), ("0.5", 5)])
def test_at_least_one_on_each_side(validation: Any, count: int, write: Write):
    data = DataOptions(path=write("d.jsonl", [f'{{"prompt": "{i}"}}' for i in range(10)]), validation=validation)
    assert len(load_dataset(data, Formats(FORMATS), 0)[0].heldout) == count


def test_validation_from_a_file(tmp_path: Path, write: Write):
    (tmp_path / "held.jsonl").write_text('{"text": "other format"}\n')
    data = DataOptions(path=write("d.jsonl", ['{"prompt": "a"}']), validation=str(tmp_path / "held.jsonl"))
    dataset, _ = load_dataset(data, Formats(FORMATS), 0)
    assert [s.messages[0].content for s in dataset.heldout] == ["other format"]


def test_one_text_is_split_near_its_end(tmp_path: Path):
    (tmp_path / "book.txt").write_text("".join(f"Line number {i}.\n" for i in range(1000)))
    dataset, _ = load_dataset(DataOptions(path=str(tmp_path / "book.txt"), validation=0.1), Formats(FORMATS), 0)
    [train], [heldout] = dataset.train, dataset.heldout
    whole = train.messages[0].content + heldout.messages[0].content
    assert whole == (tmp_path / "book.txt").read_text()
    assert heldout.messages[0].content.startswith("Line number 90")


def test_every_malformed_record_is_counted(write: Write):
    rows = ['{"instruction": "a", "output": "b"}'] + ['{"instruction": "a", "output": 1}'] * 7
    with pytest.raises(DataError) as caught:
        load_dataset(DataOptions(path=write("d.jsonl", rows)), Formats(FORMATS), 0)
    text = str(caught.value)
    assert text.startswith("7 of 8 records do not fit format alpaca:\nd.jsonl:2: output: expected text")
    assert "… and 2 more\nMend them (lmflow data check" in text


def test_limit_and_bad_share(write: Write):
    path = write("d.jsonl", [f'{{"prompt": "{i}"}}' for i in range(10)])
    assert load_dataset(DataOptions(path=path, limit=4, validation=0), Formats(FORMATS), 0)[1].records == 4
    with pytest.raises(DataError, match=r"data.validation: 1\.5 is neither"):
        load_dataset(DataOptions(path=path, validation=1.5), Formats(FORMATS), 0)


def test_a_share_that_is_none_is_refused_in_a_mix_too(write: Write):
    path = write("d.jsonl", [{"prompt": "a"}])
    for share in (1.0, -0.1, "1.5"):
        with pytest.raises(DataError, match=r"data\.validation: .* is neither a share of the records"):
            load_dataset(DataOptions(mix={path: 1.0}, validation=share), Formats(FORMATS), 0)


def test_the_limit_does_not_cut_a_validation_file(write: Write):
    path, held = write("d.jsonl", [{"prompt": str(i)} for i in range(5)]), write("h.jsonl", [{"prompt": "x"}] * 3)
    found, _ = load_dataset(DataOptions(path=path, limit=2, validation=held), Formats(FORMATS), 0)
    assert (len(found.train), len(found.heldout)) == (2, 3)


@pytest.mark.parametrize("streaming", [False, True])
def test_one_record_is_trained_on_whatever_the_share(streaming: bool, write: Write):
    """Nothing to train on is worse than nothing held out."""
    data = DataOptions(path=write("d.jsonl", [{"prompt": "a"}]), validation=0.4, streaming=streaming)
    found, summary = load_dataset(data, Formats(FORMATS), 0)
    assert (said(found.train), said(found.heldout), summary.records) == (["a"], [], 1)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.floats(0, 0.999), st.integers(0, 5))
def test_whatever_the_share_each_sample_is_on_one_side(count: int, share: float, seed: int):
    train, heldout = split(ask(count), None, DataOptions(validation=share), seed)
    assert sorted([*said(train), *said(heldout)], key=int) == [str(i) for i in range(count)]
    assert said(train) == sorted(said(train), key=int), "what is trained on stays in order"
    if share > 0 and count > 1:
        assert train
        assert heldout


def book(text: str) -> Sample:
    return Sample((Message("assistant", text),), False, {"text": text}, "book.txt")


@pytest.mark.parametrize(
    ("text", "share", "parts"),
    [
        ("one\ntwo\nthree\n", 0.3, ("one\ntwo\n", "three\n")),
        ("数据\n二\n", 0.4, ("数据\n", "二\n")),
        ("one\ntwo", 0.9, ("one\ntwo", None)),  # the last nine tenths begin within the first line
        ("no line ends here", 0.5, ("no line ends here", None)),
        ("", 0.5, ("", None)),
    ],
)
def test_a_text_is_split_where_a_line_begins(text: str, share: float, parts: tuple[str, str | None]):
    train, heldout = split_text(book(text), share)
    assert said(train) == [parts[0]]
    assert said(heldout) == ([] if parts[1] is None else [parts[1]])
    if heldout:
        assert [train[0].source, heldout[0].source] == ["book.txt (training part)", "book.txt (held-out part)"]


def test_only_a_single_untemplated_turn_is_text():
    assert is_text(book("x"))
    assert not is_text(Sample((Message("assistant", "x"),)))
    assert not is_text(Sample((Message("user", "q"), Message("assistant", "a")), False))


# What brings data of its own


def test_a_format_without_data_of_its_own():
    with pytest.raises(DataError, match=r"alpaca brings no data of its own.*--data.path"):
        load_dataset(DataOptions(), Formats(FORMATS, BY_NAME["alpaca"]()), 0)
    with pytest.raises(DataError, match=r"There is no data: give a file with --data.path"):
        load_dataset(DataOptions(), Formats(FORMATS), 0)


def test_embedded_records_are_held_out_as_the_format_says():
    found, summary = load_dataset(DataOptions(), Formats([Greetings], Greetings()), 0)
    assert (said(found.train), said(found.heldout)) == ([f"t{i}" for i in range(5)], ["h0", "h1"])
    assert (summary.path, summary.records, summary.train, summary.heldout) == (None, 5, 5, 2)
    assert summary.describe() == "5 embedded records read as greetings; 5 train, 2 are held out"
    assert found.train[0].source == "greetings: record 1"
    limited, summary = load_dataset(DataOptions(limit=1), Formats([Greetings], Greetings()), 0)
    assert said(limited.train) == ["t0"]
    assert summary.describe() == "1 embedded record read as greetings; 1 train, 2 are held out"


def test_without_training_the_held_out_part_is_read():
    formats = Formats([Greetings], Greetings())
    assert said(read_samples(Reading(), formats)) == ["h0", "h1"]
    assert said(read_samples(Reading(limit=1), formats)) == ["h0"]


def test_who_reads_all_is_told_of_what_was_skipped(write: Write):
    notes: list[str] = []
    path = write("d.jsonl", [{"prompt": "a"}, {"prompt": 3}, "{"])
    assert said(read_samples(Reading(path=path, on_bad_record="skip"), Formats(FORMATS), notes.append)) == ["a"]
    assert notes == ["2 that cannot be used skipped, such as d.jsonl:2: prompt: expected text, found a number 3"]
    notes.clear()
    good = write("e.jsonl", [{"prompt": "b"}])
    assert said(read_samples(Reading(path=good), Formats(FORMATS), notes.append)) == ["b"]
    mixed = read_samples(Reading(mix={good: 1.0, path: 9.0}, on_bad_record="skip"), Formats(FORMATS), notes.append)
    assert said(mixed) == ["b", "a"], "weights are for training"
    assert len(notes) == 1


# Memory and disk, mixes


def test_records_on_disk_are_split_as_those_in_memory(tmp_path: Path, write: Write):
    write("a.jsonl", [{"prompt": str(i)} for i in range(50)])
    data = DataOptions(path=str(tmp_path / "a.jsonl"), validation=0.2)
    memory, _ = load_dataset(data, Formats(FORMATS), 3)
    disk, _ = load_dataset(data.model_copy(update={"streaming": True}), Formats(FORMATS), 3)
    assert list(disk.train) == list(memory.train)
    assert list(disk.heldout) == list(memory.heldout)
    assert disk.fingerprint == memory.fingerprint


def test_a_mix_has_each_source_as_often_as_its_weight(tmp_path: Path, write: Write):
    for name, count in (("a", 20), ("b", 10)):
        write(f"{name}.jsonl", [{"prompt": f"{name}{i}"} for i in range(count)])
    (tmp_path / "c.csv").write_text("instruction,output\nc0,d\nc1,d\n")
    mix = {str(tmp_path / "a.jsonl"): 0.5, str(tmp_path / "b.jsonl"): 2.3, str(tmp_path / "c.csv"): 1}
    for streaming in (False, True):
        found, summary = load_dataset(DataOptions(mix=mix, validation=0, streaming=streaming), Formats(FORMATS), 0)
        names = [sample.messages[0].content for sample in found.train]
        assert len([name for name in names if name[0] == "a"]) == len({n for n in names if n[0] == "a"}) == 10
        assert sorted(names.count(f"b{i}") for i in range(10)) == [2] * 7 + [3] * 3
        assert [name for name in names if name[0] == "c"] == ["c0", "c1"]
        assert names == [
            sample.messages[0].content
            for sample in load_dataset(DataOptions(mix=mix, validation=0), Formats(FORMATS), 0)[0].train
        ]
        assert (summary.records, summary.train, summary.format) == (32, 35, "prompt, alpaca")
    with pytest.raises(DataError, match="both name data"):
        load_dataset(DataOptions(mix=mix, path="x"), Formats(FORMATS), 0)


def test_held_out_samples_are_never_trained_on(tmp_path: Path, write: Write):
    write("a.jsonl", [{"prompt": str(i)} for i in range(40)])
    found, _ = load_dataset(DataOptions(mix={str(tmp_path / "a.jsonl"): 3}, validation=0.25), Formats(FORMATS), 0)
    train = {sample.messages[0].content for sample in found.train}
    heldout = {sample.messages[0].content for sample in found.heldout}
    assert (len(found.train), len(train), len(heldout)) == (90, 30, 10)
    assert not train & heldout


def test_what_is_left_out_of_a_validation_file_is_counted(tmp_path: Path, write: Write):
    write("a.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    write("held.jsonl", [{"prompt": "c"}, {"prompt": 3}])
    path, held = str(tmp_path / "a.jsonl"), str(tmp_path / "held.jsonl")
    for where in ({"path": path}, {"mix": {path: 1.0}}):
        with pytest.raises(DataError, match=r"1 of 2 records do not fit format prompt:\nheld\.jsonl:2"):
            load_dataset(DataOptions(**where, validation=held), Formats(FORMATS), 0)
        found, summary = load_dataset(DataOptions(**where, validation=held, on_bad_record="skip"), Formats(FORMATS), 0)
        assert (len(found.train), len(found.heldout), summary.records, summary.skipped) == (2, 1, 2, 1)
        assert "such as held.jsonl:2: prompt: expected text, found a number 3" in summary.describe()


def test_folders_in_a_folder_are_told_of(tmp_path: Path):
    write = "".join(json.dumps({"prompt": str(n), "completion": "yes"}) + "\n" for n in range(3))
    (tmp_path / "all" / "eval").mkdir(parents=True)
    (tmp_path / "all" / "images").mkdir()
    (tmp_path / "all" / "images" / "1.jpg").write_bytes(b"")
    for place in ("all/train.jsonl", "all/eval/eval.jsonl"):
        (tmp_path / place).write_text(write)
    _, summary = load_dataset(DataOptions(path=str(tmp_path / "all"), validation=0.0), Formats(FORMATS), seed=0)
    assert (summary.records, summary.unread) == (3, ("eval",))
    assert summary.describe().endswith("not read: eval/; folders in a folder never are")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_a_number_above_nothing(weight: float, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    with pytest.raises(DataError, match="a weight must be a number above 0"):
        load_dataset(DataOptions(mix={str(tmp_path / "a.jsonl"): weight}), Formats(FORMATS), 0)


@pytest.mark.parametrize(
    ("weight", "counts"),
    [(1.0, [1] * 10), (3.0, [3] * 10), (0.5, [0] * 5 + [1] * 5), (2.3, [2] * 7 + [3] * 3), (0.01, [0] * 10)],
)
def test_how_often_a_weight_has_each_sample(weight: float, counts: list[int]):
    found = said(weighted(ask(10), weight, "0/a"))
    assert sorted(found.count(str(i)) for i in range(10)) == counts
    assert said(weighted(ask(10), weight, "0/a")) == found
    if weight == 0.5:
        assert said(weighted(ask(10), weight, "1/a")) != found


def test_several_sequences_as_one():
    parts = [ask(3), [], ask(2)]
    whole, plain = Concatenated(parts), [*ask(3), *ask(2)]
    assert len(whole) == 5
    assert list(whole) == plain
    for index in range(-5, 5):
        assert whole[index] == plain[index]
    for cut in (slice(1, 4), slice(None, None, -1), slice(-2, None), slice(9, 12)):
        assert whole[cut] == plain[cut]
    for index in (5, -6):
        with pytest.raises(IndexError):
            whole[index]
    assert list(Concatenated([])) == []


def test_samples_are_chosen_in_the_order_asked_for(write: Write):
    path = write("d.jsonl", [{"prompt": str(i)} for i in range(5)])
    for streaming in (False, True):
        samples = read_samples(Reading(path=path, streaming=streaming), Formats(FORMATS))
        again = chosen_of(chosen_of(samples, array("q", [4, 2, 2, 0])), array("q", [3, 0]))
        assert said(again) == ["0", "4"]


# What the tokens' cache goes by


def test_what_samples_depend_on_is_in_their_key(write: Write):
    path = write("d.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    options = DataOptions(path=path, validation=0)

    def key(data: DataOptions, seed: int = 0) -> Any:
        return load_dataset(data, Formats(FORMATS), seed)[0].fingerprint

    first = key(options)
    assert first == key(options) == key(options.model_copy(update={"streaming": True}))
    others = [key(options, 1), key(options.model_copy(update={"limit": 1}))]
    write("d.jsonl", [{"prompt": "a"}, {"prompt": "c"}])
    others.append(key(options))
    assert len({first, *others}) == 1 + len(others)


def test_a_format_whose_code_lies_in_no_file_has_no_key():
    made: dict[str, Any] = {"__name__": "notebook"}
    exec(
        "from lmflow.components import DataFormat\n"
        "class Cell(DataFormat):\n"
        "    'Of a notebook.'\n"
        "    name = 'cell'\n"
        "    def sample(self, record, source): ...\n",
        made,
    )
    known = Source(BY_NAME["prompt"](), [], "digest", 0)
    assert train_key([known], DataOptions(), 0)
    assert train_key([known, Source(made["Cell"](), [], "digest", 0)], DataOptions(), 0) is None


# What is said


def test_the_summary_says_which_fields_are_not_read(write: Write):
    path = write("d.jsonl", [{"prompt": "q", "completion": "a", "id": 1}, {"prompt": "q", "topic": "x"}])
    for formats, how in (
        (Formats(FORMATS), ", recognised by prompt, completion"),
        (Formats(FORMATS, BY_NAME["prompt"]()), ""),
    ):
        summary = load_dataset(DataOptions(path=path, validation=0.5), formats, 0)[1]
        said = f"2 records of {path} read as prompt{how}; not read: id, topic; 1 train, 1 is held out"
        assert summary.describe() == said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "q", "answer": "a"}, {"prompt": "q"}], "held-out record v.jsonl:2 has no answer: it is asked"),
        (
            [{"prompt": "q"}, {"prompt": "q"}],
            "2 held-out records have no answer (v.jsonl:1, v.jsonl:2): they are asked",
        ),
        ([{"prompt": "q", "answer": "a"}], ""),
    ],
)
def test_held_out_records_without_an_answer_are_named_as_such(rows: Any, said: str, write: Write):
    held = write("v.jsonl", rows)
    for row, expected in (({"prompt": "q", "answer": "a"}, said), ({"prompt": "q"}, "")):
        data = DataOptions(path=write("d.jsonl", [row]), validation=held)
        described = load_dataset(data, Formats(FORMATS), 0)[1].describe()
        assert (expected in described, "has no answer" in described or "have no answer" in described) == (
            True,
            bool(expected),
        )


def test_an_unwanted_answer_is_one(write: Write):
    rows = [{"prompt": "q", "completion": "a", "label": label} for label in (True, False, False)]
    data = DataOptions(path=write("d.jsonl", rows), validation=0.4)
    assert "no answer" not in load_dataset(data, Formats(FORMATS), 0)[1].describe()


def test_the_summary_says_how_records_were_recognised_and_what_was_left_out():
    summary = DataSummary(
        "d.jsonl",
        "prompt",
        1200,
        1000,
        198,
        "",
        2,
        ("d.jsonl:2: bad", "d.jsonl:7: bad"),
        ("prompt", "answer"),
        True,
        ("eval", "old"),
    )
    assert summary.describe().splitlines() == [
        "1,200 records of d.jsonl read as prompt, recognised by prompt, answer; 1,000 train, 198 are held out",
        "  2 that cannot be used skipped, such as d.jsonl:2: bad",
        "  not read: eval/, old/; folders in a folder never are",
    ]
    assert DataSummary("d.jsonl", "prompt", 1, 1, 0, "").describe() == (
        "1 record of d.jsonl read as prompt; 1 train, 0 are held out"
    )


def test_formats_of_several_places_are_named_once():
    kinds = [BY_NAME[name]() for name in ("prompt", "alpaca", "prompt")]
    assert names_of([*(Source(kind, [], "", 0) for kind in kinds), Source(None, [], "", 0)]) == "prompt, alpaca"
    assert names_of([]) == ""
