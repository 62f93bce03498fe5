"""Reading what others wrote of a model: whatever is wrong with a file becomes one message that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmflow.errors import LmflowError


@contextmanager
def explained_failure(path: str | Path, option: str = "model.path") -> Iterator[None]:
    """Within the context, what libraries raise for files they cannot read is raised as LmflowError.

    `option` says where `path` was named.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise LmflowError(
            f"{option} {path}: {damaged_weights(path)} is damaged: {error}. Copy it again from where it was saved."
        ) from error
    except (OSError, ValueError, ImportError) as error:
        raise LmflowError(f"{option} {path}: it cannot be loaded: {first_lines(error)}") from error


@contextmanager
def reading(path: str | Path, part: str, option: str = "model.path") -> Iterator[None]:
    """Within the context nothing but a library reads `part`, so that its mistakes are those of a file of JSON.

    Of one that holds something else than expected, libraries raise what Python raises on the way. Raises LmflowError.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise LmflowError(
            f"{option} {path}: its {part} cannot be read: {type(error).__name__}: {error}. A file of it is damaged, or "
            "was written by a newer version of the library; copy it again, or install that version."
        ) from error


def damaged_weights(path: str | Path) -> str:
    """The name of the first file of weights in a directory that cannot be read."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(Path(path).expanduser().glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            return file.name
    return "a file of its weights"


def first_lines(error: Exception, count: int = 3) -> str:
    """The beginning of what an error says: libraries go on for a page."""
    return "\n".join(str(error).strip().splitlines()[:count])
