"""What follows the pages notices when one is untrue."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .following import Follower, is_like
from .pages import INDENTED, anchors, blocks, spans
from .stand_ins import not_here, shortened
from .terminal import Terminal, commands, is_excerpt

Follow = Callable[[str], None]


@pytest.fixture
def follow(tmp_path: Path) -> Follow:
    """Follows a page of the given text in `tmp_path/place`."""
    place = tmp_path / "place"
    place.mkdir()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    follower = Follower(Terminal(place, tmp_path / "state", environment, stand_ins=("pip",)))

    def follow(text: str) -> None:
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        for block in blocks(page):
            follower.follow(block)

    return follow


TRUE = {
    "output": "```console\n$ echo one; echo two\none\ntwo\n```",
    "excerpt": "```console\n$ seq 9\n3\n4\n```\n```text\n8\n```",
    "gap": "```console\n$ seq 9\n3\n…\n8\n```",
    "within a line": "```console\n$ echo took 1.25 seconds\ntook … seconds\n```",
    "continued line": "```console\n$ echo one \\\n    two\none two\n```",
    "exit code": "<!-- exits with 3 -->\n```console\n$ echo no; exit 3\nno\n```",
    "directory and variables": "```console\n$ mkdir a; cd a\n$ export B=c\n```\n```console\n$ echo $B; basename $PWD\nc\na\n```",
    "file": '```toml title="a/b.toml"\nx = 1\n```\n```console\n$ cat a/b.toml\nx = 1\n```',
    "file where one is": '```console\n$ mkdir a; cd a\n```\n```text title="b"\nx\n```\n```console\n$ cat ../a/b\nx\n```',
    "script": "```python\nprint(6 * 7)\n```\n```text\n42\n```",
    "record": '```console\n$ echo \'{"a": [1.002], "b": "c d"}\'\n```\n```json\n{"a": [1.0], "b": "c…"}\n```',
    "plugin": "```python\nfrom lmflow.hookspecs import hookimpl\n\n\n@hookimpl\ndef lmflow_tuners():\n    return []\n```",
    "not run": "<!-- not run by the tests: it would take a day -->\n```console\n$ exit 1\n```",
    "pip": "```console\n$ pip install 'lmflow-core>=0.1'\n```",
}
UNTRUE = {
    "output": ("```console\n$ echo one\ntwo\n```", r"page\.md:1: \$ echo one(.|\n)*two(.|\n)*was printed:\none"),
    "order": ("```console\n$ seq 9\n4\n3\n```", "was printed"),
    "not adjacent": ("```console\n$ seq 9\n3\n8\n```", "was printed"),
    "text": ("```console\n$ seq 3\n```\n```text\n4\n```", "page.md:4: The page shows\n4"),
    "text without a command": ("```text\n4\n```", "nothing was run before it"),
    "failure": ("```console\n$ false\n```", r"page\.md:1: \$ false\nexits with 1, not 0"),
    "failure in a pipe": ("```console\n$ false | cat\n```", "exits with 1, not 0"),
    "no failure": ("<!-- exits with 1 -->\n```console\n$ true\n```", "exits with 0, not 1"),
    "no language": ("```\n$ true\n```", "page.md:1: it is called nothing; a block is console, python"),
    "another language": ("```sh\ntrue\n```", "it is called sh"),
    "no reason": ("<!-- not run by the tests: slow -->\n```console\n$ true\n```", "say why"),
    "script": ("```python\nraise SystemExit(1)\n```", "exits with 1"),
    "record": ('```console\n$ echo \'{"a": 1}\'\n```\n```json\n{"a": 2}\n```', "page.md:4"),
    "recipe": ("```yaml\ntuner: {name: full, rnak: 3}\n```", r"tuner\.rnak"),
    "misspelt hook": (
        "```python\nfrom lmflow.hookspecs import hookimpl\n\n\n@hookimpl\ndef lmflow_tuner():\n    return []\n```",
        "there is no hook lmflow_tuner",
    ),
    "unknown extra": ("```console\n$ pip install lmflow-core[nothing]\n```", "lmflow-core has no extra nothing"),
    "unknown distribution": ("```console\n$ pip install lmflow-nothing\n```", "lmflow-nothing is not installed"),
}


@pytest.mark.parametrize("page", TRUE.values(), ids=TRUE)
def test_a_true_page_passes(page: str, follow: Follow):
    follow(page)


@pytest.mark.parametrize(("page", "message"), UNTRUE.values(), ids=UNTRUE)
def test_an_untrue_page_fails_and_the_block_is_named(page: str, message: str, follow: Follow):
    with pytest.raises(pytest.fail.Exception, match=message):
        follow(page)


def test_what_is_not_run_leaves_no_trace(follow: Follow, tmp_path: Path):
    follow("<!-- not run by the tests: it makes a file -->\n```console\n$ touch file\n```")
    assert not list((tmp_path / "place").iterdir())


def test_a_fence_that_stays_open_is_an_error(follow: Follow):
    with pytest.raises(ValueError, match=r"page\.md:2: this fence is never closed"):
        follow("\n```console\n$ true\n")


def test_output_above_the_first_command_is_an_error():
    with pytest.raises(ValueError, match="above the first command: 'one'"):
        list(commands("one\n$ echo one\n"))


def test_a_block_in_a_list_has_no_indentation(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("- one:\n\n  ```console\n  $ echo\n  ```\n")
    assert [block.text for block in blocks(page)] == ["$ echo\n"]


def test_the_last_comment_above_a_block_counts(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("<!-- exits with 1 -->\ntext\n<!-- exits\nwith 2 -->\n\n```console\n$ exit 2\n```\n```text\n```\n")
    assert [(block.remark, block.exit_code) for block in blocks(page)] == [("exits with 2", 2), ("", 0)]


@pytest.mark.parametrize("page", ["text:\n\n    $ code\n", "text:\n\n\tcode\n"])
def test_indented_code_is_seen(page: str):
    assert INDENTED.search(page)
    assert not INDENTED.search(page.replace("text:", "- text:"))


def test_spans_and_anchors_are_those_of_the_text_alone(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# What `a` is, and B_c\n\n`lmflow run\n--help`\n\n```text\n# no `heading`\n```\n<!-- `no` -->\n")
    assert spans(page) == ["a", "lmflow run --help"]
    assert anchors(page) == {"what-a-is-and-b_c"}


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("", "anything", True),
        ("a.c", "abc", False),
        ("b", "abc", False),
        ("b  ", "a\nb \nc", True),
        ("…\nc", "a\nc", True),
    ],
)
def test_an_excerpt_is_whole_lines(shown: str, printed: str, expected: bool):
    assert is_excerpt(shown, printed) is expected


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [(1, 1, True), (1.0, 1.02, False), ({"a": 1}, {"a": 1, "b": 2}, False), ([1], [1, 2], False), ("a…", "b", False)],
)
def test_a_record_is_compared_whole(shown: object, printed: object, expected: bool):
    assert is_like(shown, printed) is expected


def test_a_run_is_shortened_but_keeps_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("aligner: raft\n")
    two = ["--training.max_steps", "2"]
    assert shortened(["run", "--training.max_steps", "400", "--quiet"]) == ["run", "--quiet", *two]
    assert shortened(["run", "recipe.yaml", "--aligner.samples", "3"]).count("--aligner.samples") == 1
    assert "--aligner.iterations" in shortened(["run", "recipe.yaml"])
    for untouched in (["run", "--help"], ["run", "--resume", "--output", "DIR"], ["generate"]):
        assert shortened(untouched) == untouched


def test_a_requirement_is_held_against_what_is_installed():
    assert list(not_here(["lmflow-multimodal[clip]"])) == []
    assert list(not_here(["lmflow-core==0.0.1"])) == ["lmflow-core==0.0.1: 0.1.0 is installed"]
