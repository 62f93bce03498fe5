"""`lmflow doctor` as a user meets it: in this installation, and in one that is sick in many ways at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lmflow.cli.doctor import closing_line, listing
from lmflow.doctor.finding import Finding
from lmflow.doctor.launcher_checks import LAUNCHER

LMFLOW = str(Path(sys.executable).with_name("lmflow"))
TUNER = """
from lmflow.components import Tuner
from lmflow.hookspecs import hookimpl

class Mine(Tuner):
    "Train nothing."
    name = "mine"
    def prepare(self, model): return model

@hookimpl
def lmflow_tuners(): return [Mine]
"""
BROKEN = Finding(
    "plugins", "error", "acme is broken and left out: it " + "was never tried " * 6, "pip install acme\nls"
)
SMALL = Finding("disk", "warning", "Only 1.0 GB are free.", "export HF_HOME=DIRECTORY")
WELL = Finding("torch", "ok", "torch 2.15.0.")

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def doctor(tmp_path: Path) -> Call:
    """The command in an empty directory, and an environment in which nothing is set that concerns it."""
    ours = (*LAUNCHER, "TORCHELASTIC", "LMFLOW_", "HF_HUB_OFFLINE", "TMPDIR")
    healthy = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    healthy |= {"HF_HOME": str(tmp_path / "hf"), "COLUMNS": "80"}
    here = tmp_path / "here"
    here.mkdir()

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [LMFLOW, "doctor", *arguments]
        given = {**healthy, **environment}
        return subprocess.run(command, cwd=here, env=given, capture_output=True, text=True, check=False)

    return call


def checks(done: subprocess.CompletedProcess[str], status: str) -> dict[str, Any]:
    """Findings of a status by their check; several become the last."""
    return {each["check"]: each for each in json.loads(done.stdout)["findings"] if each["status"] == status}


@pytest.mark.slow
def test_this_installation_has_no_error(doctor: Call, tmp_path: Path):
    done = doctor("--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["status"] in ("ok", "warning")
    assert {"plugins", "packages", "torch", "attention", "disk"} <= set(checks(done, "ok"))
    assert set(report["findings"][0]) == {"check", "status", "message", "remedy"}
    assert {"python", "lmflow", "torch", "transformers", "flash-attn", "liger-kernel"} <= set(report["versions"])
    assert "lmflow-core" in report["plugins"]
    assert os.listdir(tmp_path / "here") == []
    assert not (tmp_path / "hf").exists()


@pytest.mark.slow
def test_a_sick_world_fails_and_each_fault_has_its_remedy(doctor: Call, install_distribution: Any, tmp_path: Path):
    site = install_distribution("acme-broken", "import no_such_module\n")
    install_distribution("acme-one", TUNER)
    install_distribution("acme-two", TUNER, requires=["acme-maths>=2"])
    (tmp_path / "here" / "torch.py").write_text("")
    sick = {
        "PYTHONPATH": str(site),
        "LMFLOW_DISABLE_PLUGINS": "lmflow-raft",
        "RANK": "0",
        "WORLD_SIZE": "2",
    }
    done = doctor("--output", str(tmp_path / "here" / "torch.py" / "runs"), **sick)
    assert done.returncode == 1
    assert done.stderr == ""
    remedies = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("$ ")]
    for expected in (
        "$ lmflow plugins show acme-broken",
        "$ lmflow run --tuner acme-one:mine",
        "$ unset LMFLOW_DISABLE_PLUGINS",
        "$ unset RANK WORLD_SIZE",
        "$ mv torch.py my_torch.py",
        "$ lmflow run --output DIRECTORY",
    ):
        assert expected in remedies, done.stdout
    assert any(remedy.endswith("'acme-maths>=2'") for remedy in remedies)
    assert "for runs: not a directory." in " ".join(done.stdout.split())
    for line in done.stdout.splitlines():  # a path alone on its line is not broken
        assert len(line) <= 80 or "$ " in line or len(line.split()) == 1, line
    statuses = [line.split()[0] for line in done.stdout.splitlines() if line.startswith(("error", "warning", "ok"))]
    assert statuses == sorted(statuses, key=["error", "warning", "ok"].index)
    assert "errors and" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_started_as_a_module_it_reports_what_a_run_would_import(tmp_path: Path):
    (tmp_path / "torch.py").write_text("")
    command = [sys.executable, "-m", "lmflow", "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "torch.py in this directory hides" in checks(done, "warning")["directory"]["message"], done.stderr
    assert checks(done, "ok")["torch"]


# What is printed


def test_each_finding_has_its_severity_text_and_commands():
    lines = list(listing([BROKEN, WELL], 60))
    assert lines[0].startswith("error    plugins: acme is broken and left out: it was")
    assert all(line.startswith(" " * 9) for line in lines[1:5])
    assert all(len(line) <= 60 for line in lines)
    assert lines[-5:] == [
        "         $ pip install acme",
        "         $ ls",
        "ok       torch: torch 2.15.0.",
        "",
        lines[-1],
    ]


def test_commands_are_never_wrapped():
    command = "pip install " + "'acme>=1' " * 20
    assert f"         $ {command}" in list(listing([Finding("packages", "error", "x", command)], 40))


def test_colour_marks_the_severity_alone():
    [line, *_] = listing([SMALL], 80, colour=True)
    assert line == "\033[33mwarning  \033[0mdisk: Only 1.0 GB are free."
    assert "\033" not in "".join(listing([SMALL], 80))


@pytest.mark.parametrize(
    ("findings", "line"),
    [
        ([WELL], "Nothing is wrong with this installation."),
        ([SMALL], "1 warning: all works, though not all as you may expect."),
        ([BROKEN, SMALL, SMALL, WELL], "1 error and 2 warnings: what an error names will not work."),
        ([BROKEN, BROKEN], "2 errors: what an error names will not work."),
    ],
)
def test_the_closing_line_counts(findings: list[Finding], line: str):
    assert closing_line(findings) == line


def test_help_loads_no_plugin():
    code = (
        "import sys\nfrom lmflow.cli import main\n"
        "try: main(['doctor', '--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "assert not [n for n in sys.modules if n.startswith(('lmflow_', 'torch', 'transformers'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout


@pytest.mark.slow
def test_a_check_that_fails_ends_nothing(lmflow: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def failing(*_: Any) -> Any:
        raise ZeroDivisionError("no disk at all")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmflow.doctor.examination.check_disk", failing)
    done = lmflow("doctor", "--json")
    report: Mapping[str, Any] = json.loads(done.out)
    [disk] = [each for each in report["findings"] if each["check"] == "disk"]
    assert disk["status"] == "warning"
    assert "could not be checked (ZeroDivisionError: no disk at all)" in disk["message"]
    assert any(each["check"] == "memory" for each in report["findings"])
