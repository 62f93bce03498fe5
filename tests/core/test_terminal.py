"""What is printed: nothing from outside that a terminal acts on."""

from __future__ import annotations

import io
import json

import pytest

from lmflow.terminal import make_console, printable, write_error, write_out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb", "a\r\nb"),
        ("ok\rerror", r"ok\u000derror"),
        ("\x1b[2J\x07", r"\u001b[2J\u0007"),
        ("\x9b31m\x7f", r"\u009b31m\u007f"),
        ("\u202etxt.exe\u2069", r"\u202etxt.exe\u2069"),
        ("\udcff", r"\udcff"),
        ("naïve 数据 😀 \u200d عربي", "naïve 数据 😀 \u200d عربي"),
    ],
)
def test_what_a_terminal_acts_on_is_shown(text: str, shown: str):
    assert printable(text) == shown


def test_json_means_the_same():
    value = {"text": "\x1b[2J \x9b \u202e"}
    assert json.loads(printable(json.dumps(value, ensure_ascii=False))) == value


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_what_a_model_says_and_a_terminal_what_can_be_shown(monkeypatch: pytest.MonkeyPatch):
    for stream, exact in ((io.StringIO(), "\x1b[2J?"), (Terminal(), r"\u001b[2J\udc80")):
        monkeypatch.setattr("sys.stdout", stream)
        write_out("\x1b[2J\udc80", exact=True)
        assert stream.getvalue() == exact
    file = io.StringIO()
    monkeypatch.setattr("sys.stdout", file)
    write_out("\x1b[2J")
    assert file.getvalue() == r"\u001b[2J"


def test_errors_are_shown_wherever_they_go(capsys: pytest.CaptureFixture[str]):
    write_error("error: \x1b[8mhidden\n")
    assert capsys.readouterr().err == "error: \\u001b[8mhidden\n"


def test_brackets_are_text_to_a_console():
    file = io.StringIO()
    make_console(file=file, width=80).print("runs/a[/b] [bold]:smile:")
    assert file.getvalue() == "runs/a[/b] [bold]:smile:\n"
