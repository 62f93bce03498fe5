"""Files and directories are whole or absent, and nothing is left of those whose writer was killed."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmflow import atomic
from lmflow.atomic import (
    atomic_directory,
    atomic_file,
    remove_atomically,
    remove_remains,
    scratch_directory,
    write_atomically,
)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def killed_while(write: Callable[[], None]) -> None:
    """Another process begins to write and is killed; `write` ends with that."""
    child = os.fork()
    if child == 0:
        write()
        os._exit(0)
    os.waitpid(child, 0)


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may have more than a hundred bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_file_is_replaced(tmp_path: Path):
    place = tmp_path / "a.json"
    for text in ("one", "two é"):
        write_atomically(place, text)
        assert place.read_text(encoding="utf-8") == text
    assert names(tmp_path) == ["a.json"]
    assert place.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    place = tmp_path / "a.json"
    write_atomically(place, "old")
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        write_atomically(place, "x" * 101)
    assert names(tmp_path) == ["a.json"]
    assert place.read_text() == "old"


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_no_directory(tmp_path: Path):
    def fill() -> None:
        with atomic_directory(tmp_path / "out") as partial:
            (partial / "small").write_text("x")
            (partial / "large").write_text("x" * 101)

    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        fill()
    assert names(tmp_path) == []


def test_files_are_on_the_disk_before_they_have_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: (done.append(os.readlink(f"/proc/self/fd/{number}")), flush(number))
    )
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("renamed"), rename(old, new)))
    write_atomically(tmp_path / "a", "x")
    file, then, folder = done
    assert (Path(file).parent, then, folder) == (tmp_path, "renamed", str(tmp_path))
    done.clear()
    with atomic_directory(tmp_path / "b") as partial:
        (partial / "within").mkdir()
        (partial / "within" / "c").write_text("x")
    assert {Path(each).name for each in done[:-2]} >= {"c", "within"}
    assert done[-2:] == ["renamed", str(tmp_path)]


def test_what_a_killed_process_was_writing_goes_with_the_next(tmp_path: Path):
    def file() -> None:
        with atomic_file(tmp_path / "out") as partial:
            partial.write_text("half")
            end()

    def directory() -> None:
        with atomic_directory(tmp_path / "out") as partial:
            (partial / "half").write_text("half")
            end()

    killed_while(file)
    [left] = names(tmp_path)
    killed_while(directory)
    [then] = names(tmp_path)
    assert left != then
    assert not (tmp_path / "out").exists()
    mine = tmp_path / ".out.mine.partial"
    mine.write_text("is no remains")
    with atomic_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == [mine.name, "out"]


def test_what_another_is_still_writing_stays(tmp_path: Path):
    with atomic_directory(tmp_path / "out") as partial, atomic_file(tmp_path / "file") as other:
        remove_remains(tmp_path)
        (partial / "a").write_text("a")
        other.write_text("b")
    assert names(tmp_path) == ["file", "out"]


def test_remains_of_other_names_stay(tmp_path: Path):
    remains = tmp_path / ".b.0123abcd.partial"
    remains.mkdir()
    remove_remains(tmp_path, "a")
    assert remains.exists()
    remove_remains(tmp_path)
    assert names(tmp_path) == []


def test_a_directory_is_replaced_only_where_that_is_asked(tmp_path: Path):
    for text in ("old", "new"):
        with atomic_directory(tmp_path / "out", replace=True) as partial:
            (partial / text).write_text(text)
    assert names(tmp_path / "out") == ["new"]
    with pytest.raises(OSError, match="not empty"), atomic_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_an_error_names_the_place_that_was_meant(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught, atomic_directory(tmp_path / "out") as partial:
        (partial / "no" / "such").write_text("x")
    assert caught.value.filename == str(tmp_path / "out" / "no" / "such")


def test_a_scratch_directory_is_gone_afterwards(tmp_path: Path):
    with scratch_directory(tmp_path / "deep" / "out") as scratch:
        (scratch / "a").write_text("a")
    assert names(tmp_path / "deep") == []


def test_a_name_as_long_as_names_may_be(tmp_path: Path):
    write_atomically(tmp_path / ("n" * 255), "x")
    assert names(tmp_path) == ["n" * 255]


def test_deleting_is_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("a")
    seen: list[list[str]] = []
    remove = atomic.shutil.rmtree

    def watched(path: Path, **options: bool) -> None:
        seen.append(names(tmp_path))
        remove(path, **options)

    monkeypatch.setattr(atomic.shutil, "rmtree", watched)
    remove_atomically(tmp_path / "out")
    assert seen[0] != ["out"]
    assert names(tmp_path) == []


def test_file_systems_that_cannot_flush_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def cannot(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", cannot)
    write_atomically(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"
