"""A fork of the warm server is what a fresh process would be, as far as what it runs can see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="nothing starts warm on this system")
Ask = Callable[..., "subprocess.CompletedProcess[str]"]
SEEN = """
import json, os, sys, sysconfig
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "name": __name__, "file": globals().get("__file__"), "prefix": sys.prefix,
    "executable": sys.executable, "directory": os.getcwd(), "packages": sysconfig.get_path("purelib"),
    "variable": os.environ.get("OF_THE_TEST"), "parent": os.getppid(),
}))
"""
IS_WARM = "import sys; print('torch' in sys.modules)"


@pytest.fixture
def ask(shared_environment: Any, tmp_path: Path) -> Ask:
    """Runs `python ARGUMENTS`, warm or as its environment's real Python."""

    def run(*arguments: str | Path, warm: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        python = shared_environment.command("python") if warm else shared_environment.real_python
        return subprocess.run(
            [python, *arguments],
            cwd=tmp_path,
            env={**shared_environment.variables, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def ask_file(ask: Ask, tmp_path: Path) -> Ask:
    """Runs a program's text from a file."""
    file = tmp_path / "files" / "program.py"
    file.parent.mkdir()

    def run(program: str, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
        file.write_text(program)
        return ask(*options, file, **more)

    return run


def test_libraries_are_there_at_once(ask: Ask, ask_file: Ask):
    assert ask_file(IS_WARM).stdout == "True\n"
    assert ask_file(IS_WARM, OMP_NUM_THREADS="3").stdout == "False\n", "what is read at the start differs"
    assert ask_file(IS_WARM, "-I").stdout == "False\n", "an option of Python's"
    assert ask("-c", IS_WARM).stdout == "False\n", "it may ask what a fresh Python has loaded"


@pytest.mark.parametrize("how", ["file", "module", "module, safe"])
def test_it_sees_what_a_fresh_process_does(ask: Ask, tmp_path: Path, how: str):
    place = tmp_path / "here"
    place.mkdir()
    (tmp_path / "seen.py").write_text(SEEN)
    (place / "seen.py").write_text(SEEN)
    words = {
        "file": [place / "seen.py"],
        "module": ["-m", "seen"],
        "module, safe": ["-P", "-m", "seen"],
    }[how]
    variables = {"PYTHONPATH": str(place), "OF_THE_TEST": "here"}
    warm, cold = (ask(*words, "--an", "argument", warm=each, **variables) for each in (True, False))
    seen, expected = json.loads(warm.stdout), json.loads(cold.stdout)
    assert Path(seen.pop("executable")).with_name(Path(expected["executable"]).name) == Path(expected.pop("executable"))
    assert seen == expected


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit",
        "raise SystemExit(3)",
        "raise SystemExit('in words')",
        "import sys; print('out'); print('err', file=sys.stderr); 1 / 0",
        "import atexit; atexit.register(print, 'last'); print('first')",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os; os._exit(7)",
        "def",
    ],
)
def test_it_ends_as_a_fresh_process_does(ask_file: Ask, program: str):
    warm, cold = (ask_file(program, warm=each) for each in (True, False))
    assert (warm.returncode, warm.stdout) == (cold.returncode, cold.stdout)
    assert warm.stderr.splitlines()[-1:] == cold.stderr.splitlines()[-1:]
    assert ("Traceback" in warm.stderr, "server.py" in warm.stderr) == ("Traceback" in cold.stderr, False)


def test_what_was_installed_just_now_is_found(ask_file: Ask, tmp_path: Path):
    about = tmp_path / "site" / "late-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[lmflow]\nmain = late\n")
    listing = (
        "from importlib.metadata import entry_points as all; print('late' in {p.value for p in all(group='lmflow')})"
    )
    assert ask_file(listing).stdout == "False\n"
    assert ask_file(listing, PYTHONPATH=str(about.parent)).stdout == "True\n"


def test_another_lmflow_is_imported_where_there_is_one(ask_file: Ask, tmp_path: Path):
    other = tmp_path / "lmflow"
    other.mkdir()
    (other / "__init__.py").write_text("mine = True")
    assert ask_file("import lmflow; print(lmflow.mine)", PYTHONPATH=str(tmp_path)).stdout == "True\n"
    (tmp_path / "torch.py").write_text("mine = True")
    assert ask_file("import torch; print(torch.mine)", PYTHONPATH=str(tmp_path)).stdout == "True\n"


WAITING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print(os.getpid(), flush=True)
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_it_and_it_does_not_outlive_its_client(shared_environment: Any, tmp_path: Path, number: int):
    (tmp_path / "waiting.py").write_text(WAITING)
    command = [shared_environment.command("python"), "waiting.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=shared_environment.variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as client:
        assert client.stdout is not None
        process = int(client.stdout.readline())
        assert process != client.pid
        client.send_signal(number)
        assert client.wait(timeout=300) == (5 if number == signal.SIGTERM else -number)
    while Path(f"/proc/{process}").exists():
        time.sleep(0.01)
