"""Files and directories that are whole or absent, wherever the process is killed and whenever the disk fills up.

What is written stands under a hidden name beside its place until all of it is on the disk, and is then renamed. A
process that is killed leaves that behind; whoever writes the same thing next removes it, but for what another process
is still writing, which holds a lock on it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ENDING = re.compile(r"\.[0-9a-f]{8}\.partial")
"""How hidden names end."""
LONGEST = 100
"""Characters of a name that its hidden one keeps: file systems allow 255 bytes in all."""
CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""What file systems answer that have nothing to flush; a full disk says something else."""


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` on the disk, or leave it as it was. Raises OSError where it cannot be written."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Within the context the file is written at the path given; afterwards it is `path`, unless there is an error."""
    remove_remains(path.parent, path.name)
    partial = _hidden(path)
    try:
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    except OSError as error:
        _name(error, partial, path)
        raise
    try:
        _lock(descriptor)
        yield partial
        flush_to_disk(partial)
        os.replace(partial, path)
        flush_to_disk(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        _name(error, partial, path)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Within the context a directory is filled at the path given; afterwards it is `path`, unless there is an error.

    An empty directory may stand there, and with `replace` any other, which goes at the last moment. Parents are made.
    """
    with scratch_directory(path) as partial:
        yield partial
        move_into_place(partial, path, replace=replace)


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Within the context there is a hidden directory beside `path`, whose parents are made; afterwards it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_remains(path.parent, path.name)
    scratch = _hidden(path)
    scratch.mkdir()
    descriptor = os.open(scratch, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield scratch
    except OSError as error:
        _name(error, scratch, path)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(descriptor)


def move_into_place(made: Path, path: Path, *, replace: bool = False) -> None:
    """Rename a directory to `path` once it is on the disk; see `atomic_directory`."""
    _flush_all(made)
    if replace and path.exists():
        remove_atomically(path)
    os.replace(made, path)
    flush_to_disk(path.parent)


def remove_atomically(path: Path) -> None:
    """Delete a file or directory; one half deleted is never seen, even if the process is killed meanwhile."""
    hidden = _hidden(path)
    os.replace(path, hidden)
    _remove(hidden)


def remove_remains(directory: Path, name: str = "") -> None:
    """Delete what killed processes were writing or deleting in `directory`: all of it, or of what is called `name`."""
    begins = f".{name[:LONGEST]}"
    with suppress(OSError):
        for entry in list(os.scandir(directory)):
            rest = entry.name.removeprefix(begins)
            hidden = rest != entry.name and (ENDING.fullmatch if name else ENDING.search)(rest)
            if hidden and not _is_written(entry.path):
                _remove(Path(entry.path))


def flush_to_disk(path: Path) -> None:
    """Make the operating system write a file, or the names in a directory, so that losing power does not undo it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)


def _flush_all(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            if os.path.isfile(os.path.join(folder, name)):
                flush_to_disk(Path(folder, name))
        flush_to_disk(Path(folder))


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name[:LONGEST]}.{secrets.token_hex(4)}.partial")


def _name(error: BaseException, partial: Path, path: Path) -> None:
    """Let an error speak of the place that was meant, not of the hidden one."""
    if isinstance(error, OSError) and error.filename is not None:
        error.filename = str(error.filename).replace(str(partial), str(path))


def _lock(descriptor: int) -> None:
    """Say that it is being written, as long as this process lives; not every file system has locks."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_written(path: str) -> bool:
    """Whether another process, or this one, is still writing it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
