"""Findings: how bad each kind is, how they are counted, and what a run says of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmflow.data.findings import ENOUGH, EXAMPLES, KINDS, Finding, Findings
from lmflow.errors import DataError


def found(**counts: int) -> Findings:
    findings = Findings()
    for kind, count in counts.items():
        for number in range(1, count + 1):
            findings.add(kind, f"a.jsonl:{number}", f"what is wrong in {number}")
    return findings


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


def test_the_worst_are_counted_first():
    findings = found(**dict.fromkeys(reversed(KINDS), 2))
    severities = [findings.severity(kind) for kind in findings.counts]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert set(findings.counts) == set(KINDS)
    assert [kind for severity in ("error", "warning", "note") for kind in findings.of(severity)] == list(
        findings.counts
    )


def test_a_kind_may_be_less_bad_in_a_data_set():
    findings = found(bad_record=2, leak=1)
    findings.changed["bad_record"] = "warning"
    assert findings.of("error") == {}
    findings.check()
    assert list(findings.of("warning")) == ["bad_record", "leak"]


def test_what_is_found_again_in_the_same_place_is_counted_once():
    findings = found(leak=2)
    findings.add("leak", "a.jsonl:1", "what is wrong in 1")
    findings.add("leak", "a.jsonl:1", "something else")
    assert findings.counts == {"leak": 3}
    for _ in range(2):
        findings.add("leak", "", "samples without a source cannot be told apart")
    assert findings.counts == {"leak": 5}


def test_the_first_of_each_kind_are_kept():
    findings = found(leak=EXAMPLES + 2, empty_turn=1)
    assert findings.counts == {"leak": EXAMPLES + 2, "empty_turn": 1}
    assert [each.source for each in findings.examples_of("leak")] == [f"a.jsonl:{n}" for n in range(1, EXAMPLES + 1)]
    everything = Findings(kept=None)
    for number in range(EXAMPLES + 2):
        everything.add("leak", f"a:{number}", "")
    assert len(everything.examples) == EXAMPLES + 2


def test_a_line_for_each_kind():
    findings = found(leak=1200, empty_turn=1, duplicate=3)
    assert list(findings.lines("warning")) == [
        "warning: 1,200 held-out samples that are also trained on, such as a.jsonl:1: what is wrong in 1",
        "warning: 1 turn without text: a.jsonl:1: what is wrong in 1",
    ]
    assert len(list(findings.lines("note"))) == 1


def test_errors_stop_with_one_message():
    findings = found(over_length=7, end_not_trained=1, leak=3)
    with pytest.raises(DataError) as error:
        findings.check()
    lines = str(error.value).splitlines()
    assert lines[0] == (
        "The data cannot be trained on as it is: 7 sequences longer than the limit, which --data.too_long error "
        "refuses; 1 answer whose end the model would not learn."
    )
    assert lines[1] == "  a.jsonl:1: what is wrong in 1"
    assert lines[EXAMPLES + 1] == "  … and 3 more"
    assert lines[-3].startswith("Raise --data.max_length")
    assert lines[-2].startswith("Choose a template")
    assert lines[-1] == "lmflow data check, with the same options, lists all findings."
    found(leak=3, duplicate=4).check()


def test_after_many_samples_that_cannot_be_tokenised_no_more_are_read():
    findings, complete = Findings(), Findings(kept=None)
    for number in range(ENOUGH - 1):
        findings.add_untokenised(f"a:{number}", DataError(f"a:{number}: no"))
    with pytest.raises(DataError, match=r"at least 1,000 samples that the model cannot be given"):
        findings.add_untokenised("a:1000", DataError("a:1000: no"))
    for number in range(ENOUGH + 1):
        complete.add_untokenised(f"a:{number}", DataError(f"a:{number}: no"))
    assert complete.counts == {"cannot_be_tokenised": ENOUGH + 1}
    assert complete.examples[0] == Finding("cannot_be_tokenised", "a:0", "no")


def test_findings_are_read_again_as_they_were_written():
    findings = found(leak=8, duplicate=2)
    findings.changed["duplicate"] = "warning"
    again = Findings.from_dict(json.loads(json.dumps(findings.as_dict())))
    assert again == findings
    assert again.as_dict()["duplicate"] == {
        "severity": "warning",
        "count": 2,
        "examples": [["a.jsonl:1", "what is wrong in 1"], ["a.jsonl:2", "what is wrong in 2"]],
    }
    assert Findings.from_dict(Findings().as_dict()) == Findings()
