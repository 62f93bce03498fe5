"""The command `lmflow` from a process that has imported the heavy libraries: each call is a fork of it.

Importing them takes longer than most commands of the tests, and happens once here instead of at each.

    python warm_lmflow.py serve SOCKET          until standard input ends
    python warm_lmflow.py ask SOCKET ARGUMENTS  does what `lmflow ARGUMENTS` does
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def ask(address: str, arguments: list[str]) -> int:
    """Have the server at `address` carry out `lmflow ARGUMENTS` here, on this process's files; returns the exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        wish = {"arguments": arguments, "directory": str(Path.cwd()), "environment": dict(os.environ)}
        socket.send_fds(connection, [b"!"], [0, 1, 2])
        connection.sendall(json.dumps(wish).encode())
        connection.shutdown(socket.SHUT_WR)
        return int(connection.makefile().read())


def serve(address: str) -> None:
    """Answer on the Unix socket `address` until standard input ends; a line on standard output says when it listens."""
    from lmflow.cli import ENVIRONMENT, main

    os.environ.update(ENVIRONMENT)  # before the libraries are imported, as `main` has it
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    import lmflow.run.run
    import lmflow.training.trainer  # noqa: F401

    if importlib.util.find_spec("deepspeed"):  # accelerate imports it wherever a model is saved, which takes as long
        logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)  # as `main` does
        importlib.import_module("deepspeed")

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that have ended leave nothing behind
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                carry_out(main, connection)
            connection.close()


def carry_out(main: Callable[[], None], connection: socket.socket) -> None:
    """Be the command that was asked for, tell its exit code, and end."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    wish = json.loads(connection.makefile().read())
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(wish["directory"])
    os.environ.clear()
    os.environ.update(wish["environment"])
    sys.argv = ["lmflow", *wish["arguments"]]
    code = 1
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        connection.sendall(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    sys.exit(serve(where) if what == "serve" else ask(where, rest))
