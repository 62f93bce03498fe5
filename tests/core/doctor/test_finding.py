"""Findings: their order, the verdict, and checks that fail themselves."""

from __future__ import annotations

from lmflow.doctor.finding import Finding, attempt, verdict, worst_first

OK, WARNING, ERROR = (Finding("check", status, status) for status in ("ok", "warning", "error"))


def test_the_worst_comes_first_and_equals_keep_their_order():
    second = Finding("other", "warning", "second")
    assert worst_first([OK, WARNING, second, ERROR]) == [ERROR, WARNING, second, OK]


def test_the_verdict_is_that_of_the_worst():
    assert verdict([OK, ERROR, WARNING]) == "error"
    assert verdict([OK, WARNING]) == "warning"
    assert verdict([OK]) == "ok"
    assert verdict([]) == "ok"


def test_a_check_that_fails_is_a_finding_and_ends_nothing():
    def check(reason: str):
        yield OK
        raise ValueError(f"{reason}\nand more")

    [finding] = attempt("disk", check, "the moon is full")
    assert (finding.check, finding.status) == ("disk", "warning")
    assert "could not be checked (ValueError: the moon is full)" in finding.message


def test_a_check_that_succeeds_gives_what_it_found():
    assert attempt("check", lambda one, other: [one, other], OK, ERROR) == [OK, ERROR]
