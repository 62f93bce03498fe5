"""What is wrong with a data set: records, dialogues, tokens, and what two parts share."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from lmflow.data.dataset import read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.data.tools.check import (
    BINS,
    KINDS,
    ONE,
    Checker,
    CheckReport,
    Finding,
    check_data,
    digest_of,
    digest_of_prompt,
    empty_turns,
    end_faults,
    ends_well,
    faults,
    trained_stretches,
)
from lmflow.errors import DataError
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.data import DataOptions

from .turns import ADD, ANSWER, CALL, USER

Write = Callable[[str, Iterable[Any]], str]
Q, A = Message("user", "q"), Message("assistant", "a")


def check(model: LanguageModel | None = None, **data: Any) -> CheckReport:
    return check_data(DataOptions(**data), Formats(FORMATS), model)


Find = Callable[..., dict[str, list[str]]]


@pytest.fixture
def findings(write: Write) -> Find:
    """What is found in a file of these rows: where and what, by kind."""
    return lambda rows, model=None, **options: find(DataOptions(path=write("a.jsonl", rows), **options), model)


def find(data: DataOptions, model: LanguageModel | None) -> dict[str, list[str]]:
    checker = Checker(model, data)
    for sample in read_samples(data, Formats(FORMATS)):
        checker.train(sample)
    found: dict[str, list[str]] = {}
    for finding in checker.finish().findings:
        found.setdefault(finding.kind, []).append(f"{finding.source} {finding.detail}")
    return found


def test_dialogues_that_are_odd(findings: Find):
    system = {"role": "system", "content": "s"}
    rows = [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, USER, ANSWER]},
        {"messages": [ANSWER, USER, ANSWER]},
        {"messages": [USER, system, ANSWER]},
        {"messages": [USER, ANSWER, USER]},
        {"messages": [USER, {"role": "assistant", "content": " "}]},
        {"messages": [USER, ANSWER]},
    ]
    found = findings(rows)
    assert found == {
        "role_order": [
            "a.jsonl:2 two turns of user in a row",
            "a.jsonl:3 the dialogue begins with assistant",
            "a.jsonl:4 turn 2 is the system's, which comes first or not at all",
            "a.jsonl:5 the last turn is the user's; nothing answers it",
        ],
        "empty_turn": ["a.jsonl:6 turn 2 (assistant)"],
        "duplicate": ["a.jsonl:7 the same as a.jsonl:1"],
    }


def test_tokens_that_are_wrong(findings: Find, tiny_model: LanguageModel):
    rows = [
        {"prompt": "the fox", "completion": "jumps"},
        {"prompt": "the fox " * 90, "completion": "jumps"},
        {"prompt": "q"},
    ]
    found = findings(rows, tiny_model, max_length=40)
    assert [each.split()[0] for each in found["nothing_to_train"]] == ["a.jsonl:2", "a.jsonl:3"]
    tiny_model.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}{% generation %}{{ m['content'] | upper }}{% endgeneration %}{% endfor %}"
    found = findings(rows[:1], tiny_model)
    assert found["cannot_be_tokenised"][0].startswith(
        "a.jsonl:1 the model's chat template leaves out the text 'jumps' of"
    )


ENDS = {
    "none": "{{ m['content'] }}",
    "last": "{{ m['content'] }}{% if loop.last %}{{ eos_token }}{% endif %}",
    "each": "{{ m['content'] }}{{ eos_token }}",
    "spaced": "{{ m['content'] }}{{ eos_token }}\n",
}


@pytest.mark.parametrize("ends", ENDS)
def test_every_answer_ends(ends: str, findings: Find, tiny_model: LanguageModel):
    """Where the template gives an answer none it has its end from us."""
    tiny_model.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}a: {% generation %}"
        + ENDS[ends]
        + "{% endgeneration %}{% else %}u: {{ m['content'] }}{% endif %} x {% endfor %}"
    )
    turns = [USER, {**ANSWER, "content": "the lazy dog"}] * 2
    assert findings([{"messages": turns}], tiny_model) == {}


def test_an_end_that_the_model_does_not_know(findings: Find, write: Write, tiny_model: LanguageModel):
    row = {"prompt": "the fox", "completion": "the lazy dog"}
    assert findings([row], tiny_model, train_on="all") == {}
    [sample] = read_samples(DataOptions(path=write("b.jsonl", [row])), Formats(FORMATS))
    [sequence] = tiny_model.encode(sample)
    cut = sequence.cut(0, max(i for i, on in enumerate(sequence.loss_mask) if on))
    assert [kind for kind, _ in end_faults(tiny_model, sample, [cut])] == ["end_not_trained"]
    assert not list(end_faults(tiny_model, sample, [sequence]))


def test_tools_that_the_template_leaves_out(findings: Find, tiny_model: LanguageModel):
    found = findings([{"messages": [USER, ANSWER], "tools": [ADD]}], tiny_model)
    assert "leaves out the tool add" in found["cannot_be_tokenised"][0]


def test_only_what_says_the_same_is_a_duplicate(findings: Find):
    other = {**CALL, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]}
    assert findings([{"messages": [USER, CALL]}, {"messages": [USER, other]}]) == {}
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert findings([pair, {**pair, "rejected": "c"}]) == {}
    unwanted = {"prompt": "q", "completion": "a", "label": False}
    assert findings([unwanted, {**unwanted, "completion": "b"}]) == {}
    assert list(findings([pair, pair])) == ["duplicate"]


def test_preferences_that_show_nothing(findings: Find, tiny_model: LanguageModel):
    found = findings(
        [{"prompt": "q", "chosen": "a", "rejected": "a"}, {"prompt": "q", "chosen": "a", "rejected": " "}],
    )
    assert found == {
        "same_answers": ["a.jsonl:1 chosen and rejected are the same"],
        "empty_turn": ["a.jsonl:2 rejected turn 2 (assistant)"],
    }
    unwanted = [{"prompt": f"q{i}", "completion": "a", "label": False} for i in range(3)]
    assert findings(unwanted, tiny_model) == {}  # an aligner of preferences trains on them


# Turns


@pytest.mark.parametrize(
    ("roles", "details"),
    [
        ("user assistant user assistant", []),
        ("system user assistant", []),
        ("user assistant tool tool assistant", []),
        ("user", []),
        ("user user", ["two turns of user in a row"]),
        ("user assistant tool", ["the last turn is the tool's; nothing answers it"]),
        ("assistant", ["the dialogue begins with assistant"]),
        ("user system assistant system", ["turn 2 is the system's, which comes first or not at all"]),
        ("user user user assistant assistant", ["two turns of user in a row"]),  # once a sample
    ],
)
def test_roles_in_an_odd_order(roles: str, details: list[str]):
    turns = tuple(Message(role, "x") for role in roles.split())
    assert [detail for _, detail in faults(Sample(turns))] == details
    assert list(faults(Sample(turns, templated=False))) == [], "texts that are put together have no order"


def test_a_turn_is_empty_that_says_shows_and_calls_nothing():
    call = Message("assistant", "", tool_calls=({"function": {"name": "add"}},))
    turns = [Message("user", "\n "), Message("user", "", images=("a.jpg",)), call, A]
    assert list(empty_turns(turns)) == ["1 (user)"]


# Trained tokens


@pytest.mark.parametrize(
    ("mask", "expected"),
    [([0, 1, 1, 0, 1], [[11, 12], [14]]), ([1, 1], [[10, 11]]), ([0, 0], []), ([], []), ([1, 0, 1], [[10], [12]])],
)
def test_stretches_of_trained_tokens(mask: list[int], expected: list[list[int]]):
    sequence = TokenSequence([10 + i for i in range(len(mask))], [bool(on) for on in mask])
    assert trained_stretches(sequence) == expected


def test_empty_space_after_the_end_is_no_fault(tiny_model: LanguageModel):
    [end], [line] = tiny_model.end_ids, tiny_model.tokenizer("\n", add_special_tokens=False)["input_ids"]
    [letter] = tiny_model.tokenizer("d", add_special_tokens=False)["input_ids"]
    assert ends_well(tiny_model, [letter, end])
    assert ends_well(tiny_model, [letter, end, line, line])
    assert not ends_well(tiny_model, [end, letter])
    assert not ends_well(tiny_model, [line])
    assert not ends_well(tiny_model, [])


def test_a_prompt_has_no_end_to_learn(tiny_model: LanguageModel):
    assert list(end_faults(tiny_model, Sample((A, Q)), [TokenSequence([5, 6], [False, True])])) == []


# The same again


def test_what_two_samples_say_is_compared_whatever_they_were_read_from():
    one, other = (Sample((Q, A), record={"x": i}, source=f"f:{i}") for i in range(2))
    assert digest_of(one) == digest_of(other)
    apart = [
        Sample((Q,)),
        Sample((Q, A), rejected=(Q,)),
        Sample((Q, A), tools=(ADD,)),
        Sample((Q, A), label=True),
        Sample((Q, Message("assistant", "\ud83d"))),
    ]
    assert len({digest_of(each) for each in (one, *apart)}) == 6
    assert digest_of_prompt(one) == digest_of_prompt(Sample((Q, Message("assistant", "other")), label=False))
    assert digest_of_prompt(one) != digest_of_prompt(Sample((Q, A), tools=(ADD,)))


def test_a_plain_text_has_no_prompt_to_share(write: Write):
    data = write("a.jsonl", [{"text": "one"}, {"text": "two"}])
    held = write("h.jsonl", [{"text": "three"}, {"text": "two"}])
    assert check(path=data, validation=held).counts == {"leak": 1}


def test_chance_that_puts_a_sample_on_both_sides_wastes_no_run(write: Write):
    data = write("a.jsonl", [{"prompt": "q", "completion": "a"}] * 20)
    report = check(path=data, validation=0.5)
    assert report.counts == {"leak": 10, "duplicate": 9}
    assert report.wasteful == []
    assert check(path=data, validation=data).wasteful == ["20 of 20 validation samples are also trained on"]


# The report


@pytest.mark.parametrize(
    ("source", "detail", "expected"),
    [
        ("a.jsonl:12", "prompt: expected text", ("a.jsonl", 12, None, "prompt")),
        ("a.json: record 3", "messages[0].role: expected", ("a.json", None, 3, "messages[0].role")),
        ("b.json: instance 4", "expected an object", ("b.json", None, 4, None)),
        ("t.parquet: row 5", "text: holds", ("t.parquet", None, 5, "text")),
        ("one/two:3/a.jsonl:7", "text: x", ("one/two", 3, None, "text")),
        ("book.txt", "not UTF-8", ("book.txt", None, None, None)),
    ],
)
def test_where_a_finding_is(source: str, detail: str, expected: tuple[Any, ...]):
    found = Finding("bad_record", source, detail).as_dict()
    assert (found["file"], found["line"], found["record"], found["field"]) == expected
    assert Finding("leak", source, detail).as_dict()["field"] is None


@pytest.mark.parametrize("lengths", [[], [7], [3, 3, 3], list(range(1, 11)), [1, 1000], [5, 9, 5, 88, 41]])
def test_bins_hold_every_length_once(lengths: list[int]):
    bins = CheckReport(lengths=lengths).histogram()
    assert len(bins) <= BINS
    assert sum(count for _, _, count in bins) == len(lengths)
    for low, high, count in bins:
        assert sum(low <= length <= high for length in lengths) == count
    assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(bins))


def test_counts_are_in_the_order_of_how_bad_they_are():
    report = CheckReport(samples=9, findings=[Finding(kind, "f:1", "") for kind in reversed(KINDS)])
    assert list(report.counts) == list(KINDS)
    assert report.wasteful == [f"1 {ONE[kind]}" for kind, (wastes, _) in KINDS.items() if wastes]


@pytest.mark.parametrize(("untrained", "wasteful"), [(5, False), (6, True)])
def test_half_of_the_samples_may_have_nothing_to_train_on(untrained: int, wasteful: bool):
    report = CheckReport(samples=10, findings=[Finding("nothing_to_train", "f:1", "")] * untrained)
    assert bool(report.wasteful) is wasteful


def test_without_a_model_nothing_is_said_of_tokens(write: Write, tiny_model: LanguageModel):
    data = write("a.jsonl", [{"prompt": "the fox", "completion": "jumps"}, {"prompt": "数据", "completion": "🙂"}])
    report = check(path=data, validation=0)
    assert (report.tokens, report.num_targets, report.histogram(), report.rules) == (None, None, [], {})
    counted = check(tiny_model, path=data, validation=0)
    assert counted.tokens == sum(counted.lengths)
    assert counted.num_targets
    assert json.loads(json.dumps(counted.as_dict()))["turns"] == {"user": 2, "assistant": 2}


def test_both_sides_of_a_share_are_looked_at(write: Write):
    data = write("a.jsonl", [{"prompt": str(i), "completion": "" if i % 2 else "a"} for i in range(10)])
    report = check(path=data, validation=0.3)
    assert (report.samples, report.validation, report.own_validation) == (10, 3, False)
    assert report.counts == {"empty_turn": 5}


def test_data_that_a_format_brings_is_checked_without_a_path():
    report = CheckReport()
    with pytest.raises(DataError, match=r"There is no data: give a file with --data\.path"):
        check()
    assert report.wasteful == ["no sample at all"]


def test_every_finding_can_be_said_of_one():
    assert ONE.keys() == KINDS.keys()


def test_fields_that_are_not_read_are_reported(write: Write):
    report = check(path=write("a.jsonl", [{"prompt": "q", "answer": "a", "id": 1}, {"prompt": "p", "topic": "x"}]))
    assert (report.unread, report.as_dict()["unread"]) == (("id", "topic"), ["id", "topic"])


def test_one_bad_record_of_one_is_reported(write: Write):
    report = check(path=write("a.jsonl", [{"prompt": 3}]), validation=0)
    assert (report.records, report.samples, report.counts) == (1, 0, {"bad_record": 1})
    assert report.wasteful == ["1 record that cannot be used", "no sample at all"]
