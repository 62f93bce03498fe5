"""A Python that has imported the heavy libraries: each program it is asked for runs in a fork of it, as in a fresh one.

Importing them takes ten seconds of a processor, more than most of what tests start, and happens once here instead.

    python server.py SOCKET      until standard input ends

A fork has the files, variables, directory and arguments of who asks (`client.py`), and looks for modules where that
Python would: `PYTHONPATH`, then the packages of its environment. Where these hold another lmflow than is imported here,
it forgets this one; where they hold another torch, it says so, and the client starts a real process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import site
import socket
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

LIBRARIES = ("transformers", "peft")
OURS = ("lmflow.cli.app", "lmflow.run.run", "lmflow.training.trainer")
FORGOTTEN = "lmflow"
"""What a program may have another version of; all else that is imported here must be the same there."""
READ_AT_START = ("OMP_", "MKL_", "TORCH_", "HF_", "TRANSFORMERS_", "ACCELERATE_", "CUDA_", "PYTHON", "LC_", "LD_")
"""Prefixes of variables that Python and libraries read once: a process with other values must be a fresh one."""
READ_BY_FORKS = ("PYTHONPATH",)
STANDARD = Path(sysconfig.get_path("stdlib"))
STANDARD_PATH = [
    place
    for place in sys.path
    if Path(place) in {STANDARD, STANDARD / "lib-dynload", STANDARD.parent / "python{}{}.zip".format(*sys.version_info)}
]
"""Where the modules that come with Python are found."""
Request = Mapping[str, Any]


def serve(address: str) -> None:
    """Answer on the Unix socket `address` until standard input ends; a line on standard output says when it listens."""
    from lmflow.api.quiet import set_environment

    set_environment()  # before the libraries are imported, as the command has it
    for name in LIBRARIES:
        importlib.import_module(name)
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    for name in OURS:
        importlib.import_module(name)
    for plugin in entry_points(group="pytest11"):  # which pytest wants to import itself, to rewrite their assertions
        forget(plugin.module.partition(".")[0])
    fresh = Fresh(dict(os.environ), loaded())
    gc.collect()
    gc.freeze()  # a fork need not look through all this again, which would also give it pages of its own
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as selector:
        listening.bind(address)
        listening.listen(64)
        Server(listening, selector, fresh).run()


def forget(package: str) -> None:
    """Have a package imported anew when it is asked for again."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def loaded() -> dict[str, str]:
    """The file of each module at the top that is imported, but for those that come with Python."""
    found = {}
    for name, module in list(sys.modules.items()):
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        is_file = "." not in name and origin is not None and os.path.isfile(origin)
        if is_file and PathFinder.find_spec(name, STANDARD_PATH) is None:
            found[name] = os.path.realpath(origin)
    return found


@dataclass
class Work:
    """A fork, the connection to the client that it works for, and a file that can be read once it has ended."""

    process: int
    client: socket.socket
    end: int

    def kill(self) -> None:
        """End it, and what it started."""
        for kill in (os.killpg, os.kill):  # the group is its own as soon as it has begun
            with contextlib.suppress(ProcessLookupError):
                kill(self.process, signal.SIGKILL)

    def tell(self) -> None:
        """Tell the client how it ended."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        with contextlib.suppress(OSError):
            self.client.sendall(f"{code}\n".encode())
        self.client.close()
        os.close(self.end)


class Server:
    """The loop that starts forks, tells their clients how they ended, and ends those whose client has gone."""

    def __init__(self, listening: socket.socket, selector: selectors.BaseSelector, fresh: Fresh) -> None:
        self._listening = listening
        self._selector = selector
        self._fresh = fresh
        self._work: list[Work] = []

    def run(self) -> None:
        """Serve until standard input ends."""
        self._selector.register(self._listening, selectors.EVENT_READ, self._begin)
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    for each in self._work:
                        each.kill()
                    return
                if self._selector.get_map().get(key.fileobj) == key:  # nothing before it in this round has ended it
                    key.data()

    def _begin(self) -> None:
        client, _ = self._listening.accept()
        try:
            request, files = receive(client)
        except ValueError:  # it has gone
            client.close()
            return
        process = os.fork()
        if process == 0:
            for key in list(self._selector.get_map().values()):
                if key.fileobj is not sys.stdin:
                    os.close(key.fd)
            self._selector.close()
            self._fresh.become(request, files, client)
        for file in files:
            os.close(file)
        work = Work(process, client, os.pidfd_open(process))
        self._work.append(work)
        self._selector.register(work.client, selectors.EVENT_READ, partial(self._client_gone, work))
        self._selector.register(work.end, selectors.EVENT_READ, partial(self._ended, work))

    def _client_gone(self, work: Work) -> None:
        self._selector.unregister(work.client)
        work.kill()

    def _ended(self, work: Work) -> None:
        for each in (work.client, work.end):
            if each in self._selector.get_map():
                self._selector.unregister(each)
        work.tell()
        self._work.remove(work)


def receive(client: socket.socket) -> tuple[Request, list[int]]:
    """What a client asks for, and its files; raises ValueError if it has gone."""
    head, files, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as stream:
        sent = stream.read(int.from_bytes(head, "big"))
    return json.loads(sent), files


class Fresh:
    """Turns a fork into what a fresh process would be."""

    def __init__(self, variables: Mapping[str, str], modules: Mapping[str, str]) -> None:
        self._variables = variables
        """Those that were there when the libraries were imported."""
        self._modules = modules
        """Files of what was imported."""

    def become(self, request: Request, files: Sequence[int], client: socket.socket) -> NoReturn:
        """Do what is asked, and end; or tell the client that a fork cannot."""
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in request["ignored"]:
            signal.signal(number, signal.SIG_IGN)
        os.chdir(request["directory"])
        os.environ.clear()
        os.environ.update(request["environment"])
        place_modules(request["executable"])
        is_fresh = not self._differs(request["environment"]) and self._forget_others()
        if is_fresh:
            for number, file in enumerate(files):
                os.dup2(file, number)
        for file in files:
            os.close(file)
        client.sendall(f"{os.getpid()}\n".encode() if is_fresh else b"cold\n")
        client.close()
        if not is_fresh:
            os._exit(0)
        os.getppid = partial(parent_of, request["client"])
        sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
        sys.orig_argv = [request["executable"], *request["arguments"]]
        finish(ended(partial(execute, request["arguments"])))

    def _differs(self, environment: Mapping[str, str]) -> bool:
        """Whether a variable that is read once has another value."""
        read = (name for name in environment if name.startswith(READ_AT_START) and name not in READ_BY_FORKS)
        return any(environment[name] != self._variables.get(name) for name in read)

    def _forget_others(self) -> bool:
        """Forget what this program has another version of; whether all that is left is its own."""
        for name, file in self._modules.items():
            spec = PathFinder.find_spec(name, sys.path)
            if spec is not None and spec.origin is not None and os.path.realpath(spec.origin) == file:
                continue
            if name != FORGOTTEN:
                return False
            forget(name)
        site.execsitecustomize()
        return True


def place_modules(executable: str) -> None:
    """Look for modules where a Python of this path does."""
    sys.executable = executable
    sys.prefix = sys.exec_prefix = site.PREFIXES[0] = os.path.dirname(os.path.dirname(executable))
    del site.PREFIXES[1:]
    importlib.reload(sysconfig)
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*(os.path.abspath(place) for place in given if place), *STANDARD_PATH]
    sys.modules.pop("sitecustomize", None)
    importlib.invalidate_caches()
    site.addsitepackages(set())


def parent_of(process: int) -> int:
    """The process that started another; 1 once either has gone."""
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 1
    return int(state.rpartition(")")[2].split()[1])


def execute(arguments: Sequence[str]) -> None:
    """Be `python ARGUMENTS`, as far as `client.can_be_warm` lets them through."""
    safe, words = arguments[0] == "-P", list(arguments[arguments[0] == "-P" :])
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__builtins__ = __builtins__  # type: ignore[attr-defined]
    if words[0] == "-m":
        sys.argv = ["-m", *words[2:]]
        sys.path[:0] = [] if safe else [os.getcwd()]
        runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
        return
    sys.argv = words
    main.__file__ = words[0]
    code = compile(Path(words[0]).read_bytes(), words[0], "exec")
    sys.path[:0] = [] if safe else [os.path.dirname(os.path.realpath(words[0]))]
    exec(code, main.__dict__)


def ended(program: Callable[[], None]) -> int:
    """The exit code of a program; a negative one stands for the signal that ends it."""
    try:
        program()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        sys.stderr.write(f"{stop.code}\n")
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def finish(code: int) -> NoReturn:
    """End as Python does, but for taking its modules apart."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it is closed, or its reader has gone
            stream.flush()  # type: ignore[union-attr]
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)  # there is nothing to put away
