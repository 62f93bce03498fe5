"""`lmflow chat` through a pipe and in a terminal: streaming, commands, and what Ctrl-C and Ctrl-D do."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lmflow.inference.hf import HuggingFace

LMFLOW = str(Path(sys.executable).with_name("lmflow"))
Call = Callable[..., Any]


@pytest.fixture
def chat(lmflow: Call, model_directory: Path) -> Call:
    """`lmflow chat` with the tiny model and short answers; arguments, then the lines that are said."""

    def call(*arguments: object, says: list[str]) -> Any:
        options = ["--model", model_directory, "--sampling.max_new_tokens", 4, *arguments]
        return lmflow("chat", *options, stdin="".join(f"{line}\n" for line in says))

    return call


def test_a_dialogue_through_a_pipe(chat: Call) -> None:
    done = chat(says=["the fox", "jumps", ""])
    assert done.code == 0
    assert len(done.out.rstrip("\n").split("\n")) >= 1
    assert done.out == chat(says=["the fox", "jumps", ""]).out
    assert "error" not in done.err


def test_the_last_line_may_lack_its_newline(lmflow: Call, model_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    assert lmflow("chat", "--model", model_directory, stdin=f"/save {path}").code == 0
    assert path.exists()


def test_commands_change_what_follows(chat: Call, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    done = chat(
        "--system", "first",
        says=["/set temperature 0", "the fox", "/system second", "/reset", "jumps", f"/save {path}", "/exit", "not said"],
    )  # fmt: skip
    assert done.code == 0
    text = path.read_text()
    assert '"second"' in text
    assert '"jumps"' in text
    assert "the fox" not in text
    assert "sampling.temperature is 0.0" in done.err
    assert "2 messages saved" in done.err


def test_a_line_may_go_on_in_the_next(chat: Call, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    chat(says=["the \\", "fox", f"/save {path}"])
    assert '"the \\nfox"' in path.read_text()


def test_errors_cost_one_line_only(chat: Call, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    done = chat(says=["/rset", "/set temprature 1", "/image no.png", "fox " * 300, "the fox", f"/save {path}"])
    assert done.code == 0
    for expected in (
        "error: no command is called /rset; did you mean /reset?",
        "error: temprature: unknown option; did you mean sampling.temperature?",
        "error: there is no image no.png",
        "error: the message: the prompt has",
        "2 messages saved",
    ):
        assert expected in done.err, done.err
    assert "Traceback" not in done.err


def test_left_out_turns_are_said(chat: Call) -> None:
    done = chat("--sampling.min_new_tokens", 4, says=["the fox " * 10] * 8)
    assert "the dialogue no longer fits the model's context of 256 tokens: it is not shown the oldest 2" in done.err


def test_quiet_writes_answers_only(chat: Call) -> None:
    done = chat("--quiet", says=["/set temperature 0", "the fox", "/rset"])
    assert "sampling" not in done.err
    assert "loading model" not in done.err
    assert "error: no command is called /rset" in done.err


def test_ctrl_c_stops_the_answer_alone(chat: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = HuggingFace.stream

    def stream(self: Any, *arguments: Any) -> Iterator[str]:
        for count, piece in enumerate(original(self, *arguments)):
            if count == 2:
                signal.raise_signal(signal.SIGINT)
            yield piece

    monkeypatch.setattr(HuggingFace, "stream", stream)
    path = tmp_path / "d.json"
    done = chat("--sampling.min_new_tokens", 4, says=["the fox", f"/save {path}"])
    assert done.code == 0
    assert "[stopped]" in done.err
    assert "2 messages saved" in done.err


def test_mistakes(lmflow: Call) -> None:
    done = lmflow("chat", "--sampling.n", 2, "--prompt", "x", "--sampling.temperature", -1, "--data", "demo")
    assert (done.code, done.out) == (2, "")
    for expected in (
        "--sampling.n: it means nothing to lmflow chat",
        "--prompt: unknown option",
        "--sampling.temperature: must be at least 0.0, got '-1'",
        "--data: unknown option",
    ):
        assert expected in done.err, done.err


class Terminal:
    """A process in a pseudo-terminal, and what it has shown."""

    def __init__(self, *arguments: str) -> None:
        self.shown = ""
        self._code: int | None = None
        self.process, self._end = pty.fork()
        if self.process == 0:  # pragma: no cover - the child
            os.environ |= {"OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "200"}
            os.execv(LMFLOW, [LMFLOW, *arguments])

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait_for(self, text: str, after: int = 0, seconds: float = 600) -> int:
        """Wait until `text` is shown beyond `after`; returns where it ends."""
        deadline = time.monotonic() + seconds
        while text not in self.shown[after:]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown[after:]!r}"
            assert self.read(0.1) or self.code is None, self.shown
        return self.shown.index(text, after) + len(text)

    @property
    def code(self) -> int | None:
        """The process's exit code, None while it goes on."""
        if self._code is None:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code

    def interrupt_until(self, happened: Callable[[], bool], seconds: float = 600) -> None:
        """Press Ctrl-C, again after a minute: readline sleeps through one that comes as it begins to wait for keys.

        Not sooner, because one more would count as another, or kill a process that takes its time to end.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"no reaction to Ctrl-C: {self.shown!r}"
            with suppress(OSError):  # it may have ended just now
                self.type("\x03")
            again = time.monotonic() + 60
            while not happened() and time.monotonic() < again:
                self.read(0.05)

    def read(self, seconds: float) -> bool:
        """Take what is shown within so many seconds; whether there was anything."""
        before = len(self.shown)
        if select.select([self._end], [], [], seconds)[0]:
            with suppress(OSError):  # the other end is closed
                self.shown += os.read(self._end, 4096).decode(errors="replace")
        return len(self.shown) > before

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.code is None:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self._end)

    def read_more(self, count: int) -> None:
        """Wait until `count` more characters are shown."""
        wanted = len(self.shown) + count
        while len(self.shown) < wanted:
            self.shown += os.read(self._end, 4096).decode(errors="replace")


@pytest.mark.slow
def test_in_a_terminal(make_llama: Call, make_tokenizer: Call, tmp_path: Path) -> None:
    """A long answer is stopped by Ctrl-C and kept; a second Ctrl-C at the prompt leaves."""
    tokenizer = make_tokenizer()
    make_llama(len(tokenizer), max_position_embeddings=100_000).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    saved = tmp_path / "d.json"
    many = ["--sampling.max_new_tokens", "50000", "--sampling.min_new_tokens", "50000"]
    with Terminal("chat", "--model", str(tmp_path / "model"), *many) as terminal:
        at = terminal.wait_for("> ", terminal.wait_for("Ctrl-D or /exit leaves"))
        terminal.type("the fox\n")
        at = terminal.wait_for("the fox\r\n", at)
        terminal.read_more(40)  # it streams: this much comes long before the end
        terminal.type("\x03")
        at = terminal.wait_for("> ", terminal.wait_for("[stopped]", at))
        terminal.type(f"/save {saved}\n")
        at = terminal.wait_for("> ", terminal.wait_for("2 messages saved", at))
        terminal.interrupt_until(lambda: "once more, Ctrl-D or /exit leaves" in terminal.shown[at:])
        at = terminal.wait_for("> ", terminal.wait_for("once more, Ctrl-D or /exit leaves", at))
        terminal.interrupt_until(lambda: terminal.code is not None)
        assert terminal.code == 0
        assert '"the fox"' in saved.read_text()
        assert "Traceback" not in terminal.shown
