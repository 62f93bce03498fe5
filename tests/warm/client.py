"""What stands in a test's environment as `python`: it asks a warm server to do what Python would, and ends as that does.

Signals go on to the process that does the work, which ends when this one is killed. Where the server cannot stand for a
fresh process, or is gone, this becomes the real Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import NoReturn

COLD = ("pip", "build", "venv", "ensurepip", "mypy", "ruff")
"""Programs that load no heavy library, and look at the Python they run on."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(address: str, real: str) -> NoReturn:
    """Be `python ARGUMENTS`; `real` is the path of a Python of the same environment."""
    executable, *arguments = os.path.abspath(sys.argv[0]), *sys.argv[1:]
    if can_be_warm(arguments):
        ask(address, executable, arguments)
    os.execv(real, [executable, *arguments])  # by its first word it finds its environment, and is `sys.executable`


def can_be_warm(arguments: list[str]) -> bool:
    """Whether it is a program that a server takes: a file's or a module's, with no option of Python's but -P.

    Text (-c) is what asks a fresh Python about itself: how long an import takes, and what it loads.
    """
    words = arguments[1:] if arguments[:1] == ["-P"] else arguments
    if words[:1] == ["-m"]:
        return len(words) > 1 and words[1].partition(".")[0] not in COLD
    return bool(words) and os.path.isfile(words[0]) and os.path.basename(words[0]) not in COLD


def ask(address: str, executable: str, arguments: list[str]) -> None:
    """Have the work done on this process's files, and end as it ends; returns if it was not done."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
        except OSError:
            return
        request = {
            "executable": executable,
            "arguments": arguments,
            "client": os.getpid(),
            "directory": os.getcwd(),
            "environment": dict(os.environ),
            "ignored": [number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN],
        }
        sent = json.dumps(request).encode()
        socket.send_fds(connection, [len(sent).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(sent)
        answers = connection.makefile()
        worker = answers.readline()
        if not worker.strip().isdigit():
            return
        for number in PASSED_ON:
            signal.signal(number, lambda sent, _: pass_on(int(worker), sent))
        ended = answers.readline()
    end(int(ended or -signal.SIGKILL))


def pass_on(process: int, number: int) -> None:
    """Send the process a signal, unless it has just ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def end(code: int) -> NoReturn:
    """End with an exit code, or by the signal that a negative one stands for."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)
