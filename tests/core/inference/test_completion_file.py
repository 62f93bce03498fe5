"""A file of completions that a call can go on with: what is kept, what is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError, RunDirectoryError
from lmflow.inference.completion_file import CompletionFile, fingerprint

SAMPLES = [Sample((Message("user", text),), source=f"p:{text}") for text in "abcde"]


def record(index: int, **more: Any) -> dict[str, Any]:
    return {"index": index, "prompt": "abcde"[index], "completions": [{"text": f"é\u2028{index}"}], **more}


def indices(path: Path) -> list[int]:
    return [json.loads(line)["index"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def begun(path: Path, *there: int, **more: Any) -> None:
    """A file as an interrupted call leaves it."""
    with suppress(KeyboardInterrupt), CompletionFile(path, SAMPLES, "o1") as file:
        for index in there:
            file.append(record(index, **more))
        raise KeyboardInterrupt


def test_records_are_there_at_once_and_in_order_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "o.jsonl"
    with CompletionFile(path, SAMPLES, "o1") as file:
        for index in (3, 0, 4, 1, 2):
            file.append(record(index))
            assert indices(path)[-1] == index
    assert indices(path) == [0, 1, 2, 3, 4]
    assert [each.name for each in path.parent.iterdir()] == ["o.jsonl"]
    assert json.loads(path.read_text(encoding="utf-8").split("\n")[0]) == {**record(0), "options": "o1"}


def test_resume_keeps_complete_records_and_drops_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    begun(path, 3, 0)
    kept = path.read_bytes()
    for torn in (b"", b'{"index": 1, "prompt": "b", "comp', '{"index": 1, "prompt": "é'.encode()[:-1]):
        path.write_bytes(kept + torn)
        file = CompletionFile(path, SAMPLES, "o1", resume=True)
        assert path.read_bytes() == kept + torn, "looking changes nothing"
        assert sorted(file.missing()) == [1, 2, 4]
        assert file.missing()[2] is SAMPLES[2]
        with suppress(KeyboardInterrupt), file:
            assert indices(path) == [0, 3]
            raise KeyboardInterrupt
        path.write_bytes(kept)
    with CompletionFile(path, SAMPLES, "o1", resume=True) as file:
        for index in file.missing():
            file.append(record(index))
    assert indices(path) == [0, 1, 2, 3, 4]
    assert not CompletionFile(path, SAMPLES, "o1", resume=True).missing()


def test_resume_tries_refused_prompts_again(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    begun(path, 0, 1, error="too long")
    assert len(CompletionFile(path, SAMPLES, "o1", resume=True).missing()) == 5


def test_resume_of_a_file_that_is_not_there_begins_it(tmp_path: Path) -> None:
    assert len(CompletionFile(tmp_path / "o", SAMPLES, "o1", resume=True).missing()) == 5
    (tmp_path / "empty").touch()
    assert len(CompletionFile(tmp_path / "empty", SAMPLES, "o1").missing()) == 5


def test_an_existing_file_is_refused_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    begun(path, 0)
    with pytest.raises(RunDirectoryError, match=r"exists\. Continue it with --resume, or replace it with --overwrite"):
        CompletionFile(path, SAMPLES, "o1")
    replaced = CompletionFile(path, SAMPLES, "o2", overwrite=True)
    assert indices(path) == [0], "nothing is lost before the work begins"
    with replaced:
        assert path.read_text() == ""
    with pytest.raises(RunDirectoryError, match="is not a file"):
        CompletionFile(tmp_path, SAMPLES, "o1", overwrite=True)


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    begun(path, 0, 1)
    with pytest.raises(RunDirectoryError, match=r"o\.jsonl:1: it was made with another model or other options"):
        CompletionFile(path, SAMPLES, "o2", resume=True)
    with pytest.raises(RunDirectoryError, match=r"o\.jsonl:2: it answers another prompt than record 1 of the input"):
        CompletionFile(path, [SAMPLES[0], *SAMPLES[2:]], "o1", resume=True)
    with pytest.raises(RunDirectoryError, match=r"o\.jsonl:2: this is no record"):
        CompletionFile(path, SAMPLES[:1], "o1", resume=True)
    for line in ("{", '{"text": "other data"}', "[]", '{"index": "0", "prompt": "a", "options": "o1"}'):
        path.write_text(line + "\n")
        with pytest.raises(RunDirectoryError, match=r"o\.jsonl:1: this is no record of an output for these prompts"):
            CompletionFile(path, SAMPLES, "o1", resume=True)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"), CompletionFile(tmp_path / "file" / "o", SAMPLES, "o1"):
        pass


def test_fingerprint_tells_options_apart() -> None:
    assert fingerprint({"a": 1, "b": (2,)}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 12
