"""What importing a plugin costs and changes, found out in processes of its own: `python -m lmflow.doctor.import_probe`.

One process imports what every command has anyway, and forks for each plugin: what is measured is the plugin's alone. It
is processor time, so that it does not depend on what else the machine does.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint
from types import FunctionType, ModuleType
from typing import Any

HEAVY = ("torch", "transformers")
"""Libraries that take seconds to load, and that nothing but a run needs."""
OWN = (*HEAVY, "torchgen", "functorch", "builtins", "functools")
"""Whose objects may stand where a library's own stood, without a plugin having put them there."""


def main() -> None:
    """Answer by plugin the question on standard input: entry points, the path, a limit in seconds."""
    from lmflow.doctor.probes import say

    question = json.load(sys.stdin)
    sys.path[:] = question["path"]
    importlib.import_module("lmflow.plugins")
    for each in question["plugins"]:
        point = EntryPoint(each["name"], each["value"], "lmflow")
        found = in_child(functools.partial(measure, point), question["limit"])
        if modules := found.pop("modules", None):
            found["replaced"] = in_child(functools.partial(find_replaced, point, modules), question["limit"]).get(
                "replaced", []
            )
        say(each["key"], found)


def in_child(answer: Callable[[], Mapping[str, Any]], limit: int) -> dict[str, Any]:
    """What `answer()` returns in a child process.

    It is {"failure": …} where that fails, and {"late": true} where it takes more than `limit` seconds.
    """
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(readable)
            signal.alarm(limit)
            os.dup2(2, 1)
            with os.fdopen(writable, "w") as pipe:
                json.dump(attempted(answer), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        late = number == signal.SIGALRM
        return {"late": True} if late else {"failure": f"it crashed with {signal.Signals(number).name}"}
    with suppress(ValueError):
        found: dict[str, Any] = json.loads(said)
        return found
    return {"failure": "it ended the process"}


def attempted(answer: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The answer, or why there is none."""
    try:
        return answer()
    except (Exception, SystemExit) as error:
        return {"failure": f"{type(error).__name__}: {error}"}


def measure(point: EntryPoint) -> dict[str, Any]:
    """Seconds of processor time that loading takes, and which heavy libraries it loads."""
    start = time.process_time()
    point.load()
    seconds = time.process_time() - start
    heavy = [name for name in HEAVY if name in sys.modules]
    modules = [name for name in sys.modules if name.partition(".")[0] in heavy]
    return {"seconds": seconds, "heavy": heavy, "modules": modules}


def find_replaced(point: EntryPoint, modules: Sequence[str]) -> dict[str, Any]:
    """Functions and classes of heavy libraries that are somebody else's once the plugin is loaded."""
    for name in modules:
        with suppress(Exception):
            importlib.import_module(name)
    loaded = {name: module for name in modules if isinstance(module := sys.modules.get(name), ModuleType)}
    before = dict(attributes(loaded))
    point.load()
    after = dict(attributes(loaded))
    replaced = [name for name, old in before.items() if after.get(name) is not old and is_foreign(after.get(name))]
    return {"replaced": sorted(replaced, key=lambda name: (name.count("."), name))}


def attributes(modules: Mapping[str, ModuleType]) -> Iterable[tuple[str, Any]]:
    """Every function and class of the modules, and every method of their classes, by dotted name."""
    for module_name, module in modules.items():
        for name, value in list(vars(module).items()):
            if callable(value):
                yield f"{module_name}.{name}", value
            if isinstance(value, type) and value.__module__ == module_name:
                for method, member in list(vars(value).items()):
                    if callable(member) or isinstance(member, staticmethod | classmethod | property):
                        yield f"{module_name}.{name}.{method}", member


def is_foreign(value: Any) -> bool:
    """Whether something was defined outside the heavy libraries."""
    while isinstance(value, staticmethod | classmethod | property | functools.partial):
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", getattr(value, "func", None))
    if isinstance(value, FunctionType):  # functools.wraps gives a wrapper the module of what it wraps
        home = value.__globals__.get("__name__", "")
    else:
        home = (value if isinstance(value, type) else type(value)).__module__
    return str(home).partition(".")[0] not in OWN


if __name__ == "__main__":
    main()
