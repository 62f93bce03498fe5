"""The command `lmflow`: one place where errors become messages and exit codes."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lmflow.api.quiet import ENVIRONMENT as ENVIRONMENT
from lmflow.api.quiet import set_environment
from lmflow.cli.output import print_error

if TYPE_CHECKING:
    from lmflow.distributed.worker import Ending
    from lmflow.errors import LmflowError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 for a failure, 2 for a mistake in what was asked, 128 + n for signal n."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    set_environment()
    ending = prepare_ending()
    try:
        from lmflow.cli.app import run_app

        given, disabled = take_disabled(given)
        with without_plugins(disabled):
            code = run_app(given)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if debug and not as_worker():
            raise
        code = report_error(error, debug=debug)
    if ending is not None:
        ending.code = code
    sys.exit(code)


def prepare_ending() -> Ending | None:
    """What ends this process, if it is one of a run's: as the first of its exit handlers it runs last."""
    if not as_worker():
        return None
    from lmflow.distributed.worker import Ending

    ending = Ending()
    atexit.register(ending)
    return ending


def take_disabled(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--disable-plugin NAME`, and the names; raises PluginError where one is missing."""
    rest, names = [], []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--disable-plugin":
            rest.append(word)
            continue
        name = value if equals else next(words, "")
        if not name or name.startswith("-"):
            from lmflow.errors import PluginError

            raise PluginError("--disable-plugin: needs the name of a distribution; lmflow plugins lists them")
        names.append(name)
    return rest, names


@contextmanager
def without_plugins(names: Sequence[str]) -> Iterator[None]:
    """Within the context plugins of these distributions are not loaded, here and in processes started from here."""
    if not names:
        yield
        return
    from lmflow.plugins import DISABLE

    before = os.environ.get(DISABLE)
    os.environ[DISABLE] = ",".join([*([before] if before else []), *names])
    try:
        yield
    finally:
        os.environ.pop(DISABLE)
        if before is not None:
            os.environ[DISABLE] = before


def as_worker() -> bool:
    """Whether this is one of the processes of a run, of which one speaks for all."""
    return any(name in os.environ for name in ("RANK", "SLURM_PROCID"))


def report_error(error: Exception, *, debug: bool = False) -> int:
    """Print what went wrong without a traceback, and return the exit code."""
    code, lines = describe_error(error)
    if as_worker():
        from lmflow.distributed.worker import report_end

        if debug:
            import traceback

            traceback.print_exception(error)
        lines = list(report_end(error, code, lines))
    for line in lines:
        print_error(line, label="")
    return code


def labelled(error: LmflowError) -> Iterator[str]:
    """The lines of an error: each thing that is wrong begins with "error: ", what more there is to it is indented."""
    from lmflow.errors import RecipeError

    text = str(error) or "unknown error"
    several = isinstance(error, RecipeError) and text == "\n".join(error.problems)
    for problem in error.problems if isinstance(error, RecipeError) and several else [text]:
        first, *rest = problem.splitlines()
        yield f"error: {first}"
        yield from (line if line.startswith(" ") or not line else f"  {line}" for line in rest)


def describe_error(error: Exception) -> tuple[int, list[str]]:
    """The exit code, and the lines that say what went wrong."""
    from lmflow.errors import Interrupted, LmflowError, is_disk_full, is_out_of_memory

    if isinstance(error, Interrupted):
        return error.exit_code, [str(error)]
    if isinstance(error, LmflowError):
        return error.exit_code, list(labelled(error))
    if is_disk_full(error):
        return 1, [f"error: the disk is full: {getattr(error, 'filename', None) or 'a file'} could not be written"]
    if is_out_of_memory(error):
        return 1, [
            "error: not enough memory. Lower --training.micro_batch_size, --data.max_length or "
            "--inferencer.batch_tokens, or set --training.gradient_checkpointing."
        ]
    if isinstance(error, OSError) and error.filename and error.strerror:
        return 1, [f"error: {_shortened(str(error.filename))}: {error.strerror}"]
    return 1, [
        f"error: {type(error).__name__}: {error}".strip(),
        "this is not one of the errors lmflow expects; --debug shows the traceback",
    ]


def _shortened(name: str) -> str:
    """A name as a message has room for it: one that is too long for the file system is too long for a line."""
    return name if len(name) <= 200 else f"{name[:100]}…{name[-50:]}"
