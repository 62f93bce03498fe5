"""Asking in processes of their own: noise, failures, crashes and delays."""

from __future__ import annotations

import os

import pytest

from lmflow.doctor.probes import ask

SAY = "import json, sys\nfrom lmflow.doctor.probes import say\n"


def test_answers_are_found_among_what_libraries_print():
    code = SAY + "print('a banner')\nsay('sum', sum(json.load(sys.stdin)))\nprint('{}')\nsay('word', 'ünïcode')"
    answers = ask(["-c", code], os.environ, [1, 2, 3])
    assert answers.said == {"sum": 6, "word": "ünïcode"}
    assert answers.failure == ""


def test_the_environment_is_the_one_given():
    answers = ask(["-c", SAY + "import os\nsay('value', os.environ.get('ACME'))"], {**os.environ, "ACME": "7"})
    assert answers.said == {"value": "7"}


def test_what_was_said_before_a_crash_is_heard():
    answers = ask(["-c", SAY + "import os\nsay('first', 1)\nos.kill(os.getpid(), 11)\nsay('second', 2)"], os.environ)
    assert answers.said == {"first": 1}
    assert answers.failure == "it crashed with SIGSEGV"


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("raise ValueError('no moon')", "ValueError: no moon"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "it ended with exit code 3"),
    ],
)
def test_the_failure_is_the_last_line_of_the_traceback(code: str, failure: str):
    answers = ask(["-c", code], os.environ)
    assert (answers.said, answers.failure, answers.late) == ({}, failure, False)


def test_what_takes_too_long_is_ended():
    answers = ask(["-c", SAY + "say('first', 1)\nimport time\ntime.sleep(600)"], os.environ, timeout=8)
    assert answers.late
    assert answers.failure == "it took more than 8 s"
    assert answers.said == {"first": 1}


def test_nothing_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "acme_here.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "acme_here" in ask(["-c", "import acme_here"], os.environ).failure
