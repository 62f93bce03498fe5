"""Plugins that cost or change what others have to bear: judged from given figures, and really imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lmflow.doctor.import_checks import Import, ask_imports, check_imports
from lmflow.plugins import Plugin, load_plugins

ACME = Plugin("acme-one", "main", "1.2")
TORCH = {
    "torch/__init__.py": "from torch import nn\ndef compile(model): return model\nclass Tensor:\n    def add(self): pass\n",
    "torch/nn/__init__.py": "from torch.nn import functional\n",
    "torch/nn/functional.py": "def cross_entropy(a): return a\ndef gelu(a): return a\n",
    "transformers/__init__.py": "class Trainer:\n    @staticmethod\n    def train(): pass\n    @property\n    def lr(self): pass\n",
}
PATCHING = """
import functools, torch, transformers
from lmflow.hookspecs import hookimpl
print("noise")

def wrapped(function):
    @functools.wraps(function)
    def wrapper(*arguments): return function(*arguments)
    return wrapper

torch.nn.functional.cross_entropy = wrapped(torch.nn.functional.cross_entropy)
torch.compile = lambda model: None
transformers.Trainer.train = staticmethod(functools.partial(lambda speed: None, 2))
transformers.Trainer.lr = property(lambda self: 1)
torch.nn.functional.gelu = torch.nn.functional.gelu
torch.Tensor.mine = lambda self: 1

@hookimpl
def lmflow_step_finished(step): pass
"""
SOUND = "from lmflow.hookspecs import hookimpl\n@hookimpl\ndef lmflow_step_finished(step): pass\n"


@pytest.fixture(autouse=True)
def _small_torch(install_distribution, tmp_path, monkeypatch):
    """A torch that imports in no time, for the processes that import plugins; this one has the real one."""
    for name, text in TORCH.items():
        file = tmp_path / "fakes" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def imported(tmp_path: Path, monkeypatch, limit: int = 60) -> dict[str, Import]:
    plugins = load_plugins()
    monkeypatch.syspath_prepend(tmp_path / "fakes")
    return {each.plugin.distribution: each for each in ask_imports(plugins, os.environ, limit)}


def said(found: Import) -> list[str]:
    return [each.message for each in check_imports([found])]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Import(ACME, seconds=2.34), "acme-one 1.2 takes 2.3 s of processor time to import, and every lmflow command"),
        (Import(ACME, seconds=3, heavy=("torch",)), "loads torch when it is imported (3.0 s of processor time), and"),
        (Import(ACME, heavy=("torch", "transformers")), "loads torch and transformers when it is imported"),
        (Import(ACME, late=True), "takes more than 120 s to import"),
        (Import(ACME, replaced=("torch.a",)), "replaces torch.a when it is imported: runs that do not name it"),
        (Import(ACME, replaced=[f"torch.{n}" for n in "abcde"]), "replaces torch.a, torch.b, torch.c and 2 more when"),
    ],
)
def test_each_fault_is_a_warning_that_names_the_plugin(found, message):
    [finding] = check_imports([Import(Plugin("sound", "main", "1"), seconds=0.2), found])
    assert finding.status == "warning"
    assert finding.message.startswith("acme-one 1.2 ")
    assert message in finding.message
    assert "acme-one" in finding.remedy


def test_a_second_or_less_is_well():
    [finding] = check_imports([Import(ACME, seconds=1.0), Import(ACME, failure="ValueError: once")])
    assert (finding.status, finding.message) == (
        "ok",
        "No plugin loads torch or changes it when imported; the slowest takes 1.00 s.",
    )
    assert list(check_imports([])) == []


def test_what_a_plugin_loads_and_replaces_is_found(install_distribution, tmp_path, monkeypatch):
    before = __import__("torch").nn.functional.cross_entropy
    install_distribution("acme-sound", SOUND)
    install_distribution("acme-heavy", f"import sys\nif 'fakes' in str(sys.path): import torch\n{SOUND}")
    install_distribution("acme-patching", f"import sys\nif 'fakes' in str(sys.path): exec({PATCHING!r})\n{SOUND}")
    found = imported(tmp_path, monkeypatch)
    assert found["acme-sound"].heavy == []
    assert found["acme-heavy"].heavy == ["torch"]
    assert found["acme-heavy"].replaced == []
    assert found["acme-patching"].heavy == ["torch", "transformers"]
    assert found["acme-patching"].replaced == [
        "torch.compile",
        "transformers.Trainer.lr",
        "transformers.Trainer.train",
        "torch.nn.functional.cross_entropy",
    ]
    assert __import__("torch").nn.functional.cross_entropy is before
    assert found["lmflow-lora"].heavy == []
    assert found["lmflow-lora"].seconds > 0
    assert "lmflow-core" not in found


def test_an_import_that_hangs_or_crashes_there_is_said(install_distribution, tmp_path, monkeypatch):
    there = "import os, sys, time\nif 'fakes' in str(sys.path): "
    install_distribution("acme-hanging", f"{there}time.sleep(600)\n{SOUND}")
    install_distribution("acme-crashing", f"{there}os.kill(os.getpid(), 11)\n{SOUND}")
    install_distribution("acme-leaving", f"{there}os._exit(0)\n{SOUND}")
    install_distribution("acme-raising", f"{there}raise ValueError('now')\n{SOUND}")
    found = imported(tmp_path, monkeypatch, limit=5)
    assert found["acme-hanging"].late
    assert found["acme-crashing"].failure == "it crashed with SIGSEGV"
    assert found["acme-leaving"].failure == "it ended the process"
    assert found["acme-raising"].failure == "ValueError: now"


def test_processor_time_is_what_counts(install_distribution, tmp_path, monkeypatch):
    install_distribution("acme-sleeping", f"import sys, time\nif 'fakes' in str(sys.path): time.sleep(1.5)\n{SOUND}")
    assert imported(tmp_path, monkeypatch)["acme-sleeping"].seconds < 1.4
