"""What plugins print never reaches standard output: in this process, in real commands, from Python and from C."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmflow.plugins import load_plugins
from lmflow.plugins.stray_output import stdout_as_stderr

TALKER = """
import ctypes, os, subprocess, sys
print("python")
os.write(1, b"descriptor\\n")
ctypes.CDLL(None).puts(b"from C")
sys.__stdout__.write("original\\n")
subprocess.run([sys.executable, "-c", "print('child')"])

from pydantic import Field, field_validator
from lmflow.components import Tuner
from lmflow.hookspecs import hookimpl

class Talker(Tuner):
    "Train nothing, loudly."
    name = "talker"
    rank: int = Field(8, description="How much of nothing.")

    @field_validator("rank")
    @classmethod
    def check(cls, value):
        print("validator")
        os.write(1, b"validator\\n")
        return value

    def prepare(self, model): return model

@hookimpl
def lmflow_tuners():
    print("offer")
    return [Talker]
"""
SAID = ("python", "descriptor", "from C", "original", "child", "offer")


def command(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A real command that finds the plugin."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    words = [sys.executable, "-m", "lmflow", *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def site(install_distribution) -> Path:
    return install_distribution("acme-talker", TALKER)


def test_json_stays_json_whatever_a_plugin_prints(site):
    done = command(site, "plugins", "--json")
    names = [each["distribution"] for each in json.loads(done.stdout)["plugins"]]
    assert "acme-talker" in names
    for word in SAID:
        assert f"{word}\n" in done.stderr


def test_a_validator_that_prints_leaves_the_recipe_alone(site):
    done = command(site, "recipe", "show", "--tuner", "talker", "--tuner.rank", "4")
    assert done.returncode == 0
    assert done.stdout.startswith("model:\n")
    assert not any(word in done.stdout for word in (*SAID, "validator"))
    assert "validator\n" in done.stderr


def test_loading_plugins_prints_nothing_to_standard_output(site, capfd):
    load_plugins()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "offer\n" in printed.err


def test_what_was_printed_before_and_after_stays_where_it_was_meant(capfd):
    sys.stdout.write("before\n")
    with stdout_as_stderr():
        os.write(1, b"within\n")
    os.write(1, b"after\n")
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("before\nafter\n", "within\n")


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_descriptor_is_no_obstacle(site, closed):
    words = f"exec {closed}>&-; exec {sys.executable} -m lmflow recipe show --tuner talker"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in done.stderr
    assert done.stdout == "" if closed == "1" else "name: talker" in done.stdout


def test_an_import_that_leaves_the_working_directory_is_brought_back(install_distribution, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    install_distribution("acme-mover", "import os\nos.chdir('/')\n")
    load_plugins()
    assert Path.cwd() == tmp_path
