"""What is wrong with a data set: records, dialogues, tokens, and what two parts share."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from lmflow.data.findings import KINDS, Findings
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.tools.check import BINS, CheckReport, check_data
from lmflow.errors import DataError
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.data import DataOptions

from .turns import ADD, ANSWER, CALL, USER

Write = Callable[[str, Iterable[Any]], str]
Find = Callable[..., dict[str, list[str]]]


def check(model: LanguageModel | None = None, **data: Any) -> CheckReport:
    return check_data(DataOptions(**data), Formats(FORMATS), model)


@pytest.fixture
def findings(write: Write) -> Find:
    """What is found in a file of these rows, none held out: where and what, by kind."""

    def find(rows: Iterable[Any], model: LanguageModel | None = None, **options: Any) -> dict[str, list[str]]:
        found = check(model, path=write("a.jsonl", rows), validation=0, **options).findings
        return {
            kind: [f"{each.source} {each.detail}" for each in found.examples_of(kind)] for kind in sorted(found.counts)
        }

    return find


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
    assert findings(rows) == {
        "duplicate": ["a.jsonl:7 the same as a.jsonl:1"],
        "empty_turn": ["a.jsonl:6 turn 2 (assistant)"],
        "role_order": [
            "a.jsonl:2 two turns of user in a row",
            "a.jsonl:3 the dialogue begins with assistant",
            "a.jsonl:4 turn 2 is the system's, which comes first or not at all",
        ],
        "unanswered": ["a.jsonl:5 the last turn is the user's; nothing answers it"],
    }


def test_tokens_that_are_wrong(findings: Find, tiny_model: LanguageModel):
    rows = [
        {"prompt": "the fox", "completion": "jumps"},
        {"prompt": "the fox " * 90, "completion": "jumps"},
        {"prompt": "q"},
        {"prompt": "what is <|im_end|>?", "completion": "an end"},
    ]
    found = findings(rows, tiny_model, max_length=40)
    assert [each.split()[0] for each in found["nothing_to_train"]] == ["a.jsonl:2", "a.jsonl:3"]
    assert found["control_token"] == ["a.jsonl:4 turn 1 (user) contains '<|im_end|>' at character 9"]
    tiny_model.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}{% generation %}{{ m['content'] | upper }}{% endgeneration %}{% endfor %}"
    found = findings(rows[:1], tiny_model)
    assert found["cannot_be_tokenised"][0].startswith(
        "a.jsonl:1 the model's chat template leaves out the text 'jumps' of"
    )


def test_white_space_that_a_template_changes_is_no_loss(findings: Find, tiny_model: LanguageModel):
    tiny_model.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% generation %}{{ m['content'].split() | join('\n\n') }}{{ eos_token }}"
        "{% endgeneration %}{% endfor %}"
    )
    rows = [{"prompt": "q", "completion": "<think>\n\nthe fox\n</think>  jumps "}]
    assert findings(rows, tiny_model) == {}


ENDS = {
    "none": "{{ m['content'] }}",
    "last": "{{ m['content'] }}{% if loop.last %}{{ eos_token }}{% endif %}",
    "each": "{{ m['content'] }}{{ eos_token }}",
    "spaced": "{{ m['content'] }}{{ eos_token }}\n",
}


@pytest.mark.parametrize(
    ("ends", "earlier"),
    [
        ("none", ["a.jsonl:1 the last trained token of answer 1 of 2 is 'Ġdog'"]),
        ("last", []),
        ("each", []),
        ("spaced", []),
    ],
)
def test_answers_that_would_not_end(ends: str, earlier: list[str], findings: Find, tiny_model: LanguageModel):
    """The end of every answer is looked for; the last one has its end from us where the template gives none."""
    tiny_model.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}a: {% generation %}"
        + ENDS[ends]
        + "{% endgeneration %}{% else %}u: {{ m['content'] }}{% endif %} x {% endfor %}"
    )
    turns = [USER, {**ANSWER, "content": "the lazy dog"}] * 2
    assert findings([{"messages": turns}], tiny_model) == {}


def test_where_all_is_trained_an_end_is_enough(findings: Find, tiny_model: LanguageModel):
    assert findings([{"prompt": "the fox", "completion": "the lazy dog"}], tiny_model, train_on="all") == {}


def test_tools_that_the_template_leaves_out(findings: Find, tiny_model: LanguageModel):
    found = findings([{"messages": [USER, ANSWER], "tools": [ADD]}], tiny_model)
    assert "leaves out the tool add" in found["cannot_be_tokenised"][0]


def test_a_broken_template_is_an_error_of_its_own(write: Write, tiny_model: LanguageModel):
    tiny_model.tokenizer.chat_template = "{% for m in %}"
    with pytest.raises(DataError, match="The chat template is not valid Jinja"):
        check(tiny_model, path=write("a.jsonl", [{"prompt": "q", "completion": "a"}]), validation=0)


def test_only_what_says_the_same_is_a_duplicate(findings: Find):
    other = {**CALL, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]}
    assert findings([{"messages": [USER, CALL]}, {"messages": [USER, other]}]) == {}
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert findings([pair, {**pair, "rejected": "c"}]) == {}
    unwanted = {"prompt": "q", "completion": "a", "label": False}
    assert findings([unwanted, {**unwanted, "completion": "b"}]) == {}
    assert list(findings([pair, pair])) == ["duplicate"]


def test_answers_that_are_not_wanted_are_no_loss(findings: Find, tiny_model: LanguageModel):
    unwanted = [{"prompt": f"q{i}", "completion": "a", "label": False} for i in range(3)]
    assert findings(unwanted, tiny_model) == {}  # an aligner of preferences trains on them


# What stops a run


def test_prompts_alone_are_sound_and_answers_that_are_all_cut_off_are_not(write: Write, tiny_model: LanguageModel):
    prompts = check(tiny_model, path=write("a.jsonl", [{"prompt": "q"}, {"prompt": "p"}]), validation=0)
    assert (prompts.errors, prompts.warnings) == ([], ["2 samples without a trained token"])
    rows = [{"prompt": "the fox " * 90, "completion": "jumps"}]
    [error] = check(tiny_model, path=write("b.jsonl", rows), validation=0, max_length=40).errors
    assert error.startswith("No token would be trained in the one sample (b.jsonl:1)")
    skipped = check(tiny_model, path=write("b.jsonl", rows), validation=0, max_length=40, too_long="skip")
    assert skipped.errors[0].startswith("The one sample is longer than 40 tokens")


def test_what_is_to_be_skipped_is_no_error(write: Write):
    path = write("a.jsonl", [{"prompt": 3}, {"prompt": "q"}])
    assert check(path=path, validation=0).errors == ["1 record that cannot be used"]
    skipping = check(path=path, validation=0, on_bad_record="skip")
    assert (skipping.errors, skipping.warnings) == ([], ["1 record that cannot be used"])


def test_chance_that_puts_a_sample_on_both_sides_stops_no_run(write: Write):
    data = write("a.jsonl", [{"prompt": "q", "completion": "a"}] * 20)
    report = check(path=data, validation=0.5)
    assert report.findings.counts == {"leak": 10, "duplicate": 9}
    assert report.errors == []
    assert check(path=data, validation=data).warnings[0] == "20 held-out samples that are also trained on"


def test_a_plain_text_has_no_prompt_to_share(write: Write):
    data = write("a.jsonl", [{"text": "one"}, {"text": "two"}])
    held = write("h.jsonl", [{"text": "three"}, {"text": "two"}])
    assert check(path=data, validation=held).findings.counts == {"leak": 1}


# The report


@pytest.mark.parametrize("lengths", [[], [7], [3, 3, 3], list(range(1, 11)), [1, 1000], [5, 9, 5, 88, 41]])
def test_bins_hold_every_length_once(lengths: list[int]):
    bins = CheckReport(tokens_of_each=lengths).histogram()
    assert len(bins) <= BINS
    assert sum(count for _, _, count in bins) == len(lengths)
    for low, high, count in bins:
        assert sum(low <= length <= high for length in lengths) == count
    assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(bins))


def test_errors_warnings_and_notes_are_told_apart():
    findings = Findings(kept=None)
    for kind in reversed(KINDS):
        findings.add(kind, "f:1", "")
    report = CheckReport(samples=9, findings=findings)
    for severity, told in (("error", report.errors), ("warning", report.warnings)):
        assert told == [kind.counted(1) for kind in KINDS.values() if kind.severity == severity]
    severities = [each["severity"] for each in report.as_dict()["findings"]]
    assert {kind: severities.count(kind) for kind in severities} == {"error": 4, "warning": 12, "note": 3}


def test_without_a_model_nothing_is_said_of_tokens(write: Write, tiny_model: LanguageModel):
    data = write("a.jsonl", [{"prompt": "the fox", "completion": "jumps"}, {"prompt": "数据", "completion": "🙂"}])
    report = check(path=data, validation=0)
    assert (report.lengths, report.histogram()) == (None, [])
    assert [report.as_dict()[name] for name in ("tokens", "num_targets", "lengths")] == [None, None, {}]
    counted = check(tiny_model, path=data, validation=0).as_dict()
    assert counted["tokens"] == counted["lengths"]["tokens"] > 0
    assert counted["num_targets"]
    assert json.loads(json.dumps(counted))["turns"] == {"user": 2, "assistant": 2}


def test_both_sides_of_a_share_are_looked_at(write: Write, tiny_model: LanguageModel):
    data = write("a.jsonl", [{"prompt": str(i), "completion": "" if i % 2 else "a"} for i in range(10)])
    report = check(tiny_model, path=data, validation=0.3)
    assert (report.samples, report.validation) == (10, 3)
    assert report.findings.counts == {"empty_turn": 5}
    assert len(report.tokens_of_each) == 10
    assert report.lengths is not None
    assert report.lengths.samples == 7, "what a run would say of what it trains on"


def test_data_that_a_format_brings_is_checked_without_a_path():
    with pytest.raises(DataError, match=r"There is no data: give a file with --data\.path"):
        check()


def test_fields_that_are_not_read_are_reported(write: Write):
    report = check(path=write("a.jsonl", [{"prompt": "q", "answer": "a", "id": 1}, {"prompt": "p", "topic": "x"}]))
    assert (report.unread, report.as_dict()["unread"]) == (("id", "topic"), ["id", "topic"])


def test_one_bad_record_of_one_is_reported(write: Write):
    report = check(path=write("a.jsonl", [{"prompt": 3}]), validation=0)
    assert (report.records, report.samples, report.findings.counts) == (1, 0, {"bad_record": 1})
    assert report.errors == ["1 record that cannot be used", "no sample at all"]
