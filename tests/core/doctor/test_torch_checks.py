"""torch as it is here, and in worlds that are sick: libraries that do not load, GPUs that are not seen."""

from __future__ import annotations

import math
import os
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from lmflow.doctor import torch_checks
from lmflow.doctor.finding import Finding
from lmflow.doctor.package_checks import index
from lmflow.doctor.probes import Answers
from lmflow.doctor.torch_checks import (
    ask_import,
    ask_torch,
    check_attention,
    check_extensions,
    check_torch,
    has_kernels,
    hides_all,
    linked_libraries,
    nvidia_gpu_present,
)

CUDA = {"version": "2.15.0+cu132", "cuda": "13.2", "rocm": None, "architectures": [], "reason": "no driver"}
H200 = {"name": "NVIDIA H200", "memory": 150e9, "capability": [9, 0], "bfloat16": True, "error": ""}
BUILT = CUDA | {"architectures": ["sm_80", "sm_90", "compute_90"]}


@pytest.fixture(scope="module")
def here() -> Answers:
    """What torch says on this machine."""
    libraries = linked_libraries(index(distributions()).values())
    paths = [path for each in libraries.values() for path in each]
    return ask_torch(paths, ["torchvision"] if "torchvision" in libraries else [], os.environ)


def check(facts: dict[str, Any], *devices: dict[str, Any], gpu: bool = False, **environment: str) -> list[Finding]:
    return list(check_torch(Answers({"torch": facts, "devices": list(devices)}), environment, gpu))


# torch itself


@pytest.mark.slow
def test_this_torch_is_well(here: Answers):
    assert here.failure == ""
    [finding] = check_torch(here, os.environ, gpu_present=False)
    assert finding.status == "ok"
    assert here.said["torch"]["version"] in finding.message


def test_a_torch_that_cannot_be_imported(tmp_path: Path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')\n")
    answers = ask_torch([], [], {**os.environ, "PYTHONPATH": str(tmp_path)})
    [finding] = check_torch(answers, os.environ, gpu_present=False)
    assert finding.status == "error"
    assert "torch cannot be imported: ImportError: libtorch_cpu.so" in finding.message
    assert finding.remedy.endswith("--force-reinstall torch")
    assert list(check_attention(answers)) == []
    assert list(check_extensions({}, answers, {})) == []


@pytest.mark.parametrize(
    ("facts", "built"),
    [(CUDA, "CUDA 13.2"), (CUDA | {"cuda": None}, "CPUs only"), (CUDA | {"cuda": None, "rocm": "7.0"}, "ROCm 7.0")],
)
def test_without_a_gpu_any_build_is_well(facts: dict[str, Any], built: str):
    [finding] = check(facts)
    assert finding.status == "ok"
    assert f"built for {built}; no GPU here" in finding.message


def test_a_gpu_beside_a_build_for_cpus():
    [finding] = check(CUDA | {"version": "2.15.0+cpu", "cuda": None}, gpu=True)
    assert finding.status == "warning"
    assert "torch 2.15.0+cpu is built without CUDA" in finding.message
    assert finding.remedy.endswith("--force-reinstall torch torchvision")


@pytest.mark.parametrize("value", ["", "-1", "-1,0", "NoDevFiles"])
def test_a_gpu_that_is_hidden(value: str):
    assert hides_all(value)
    [finding] = check(CUDA, gpu=True, CUDA_VISIBLE_DEVICES=value)
    assert (finding.status, finding.remedy) == ("warning", "unset CUDA_VISIBLE_DEVICES")


def test_a_gpu_that_torch_cannot_use():
    assert not hides_all("0,1")
    [finding] = check(CUDA | {"reason": "The NVIDIA driver is too old"}, gpu=True, CUDA_VISIBLE_DEVICES="0,1")
    assert finding.status == "warning"
    assert "cannot use it: The NVIDIA driver is too old" in finding.message


def test_a_gpu_that_computes_is_described():
    [finding] = check(BUILT, H200, gpu=True)
    assert finding.status == "ok"
    assert "NVIDIA H200, 150.0 GB, bf16" in finding.message
    [finding] = check(BUILT, H200 | {"bfloat16": False}, gpu=True)
    assert "no bf16, so training.precision auto is fp32" in finding.message


def test_a_gpu_that_this_torch_was_not_built_for():
    [finding] = check(BUILT, H200 | {"capability": [7, 0]}, gpu=True)
    assert finding.status == "error"
    assert "has compute capability 7.0, and torch 2.15.0+cu132 holds kernels for sm_80, sm_90" in finding.message


def test_a_gpu_that_computes_wrongly():
    [finding] = check(BUILT, H200 | {"error": "CUDA error: unspecified launch failure"}, gpu=True)
    assert (finding.status, "unspecified launch failure" in finding.message) == ("error", True)


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 6), ["sm_80"], True),  # compiled code runs on later minor versions of its major version
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_86"], False),
        ((9, 0), ["compute_80"], True),  # PTX on everything later
        ((7, 5), ["compute_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((12, 1), ["sm_90", "sm_120"], True),
        ((12, 0), [], False),
    ],
)
def test_which_gpus_compiled_code_runs_on(capability: tuple[int, int], architectures: list[str], runs: bool):
    assert has_kernels(capability, architectures) is runs


def test_a_driver_or_a_device_shows_a_gpu(tmp_path: Path):
    assert not nvidia_gpu_present(tmp_path / "dev", tmp_path / "proc")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert nvidia_gpu_present(tmp_path / "dev", tmp_path / "proc")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "version").touch()
    assert nvidia_gpu_present(tmp_path, tmp_path / "proc")


# Attention


@pytest.mark.slow
def test_every_back_end_here_is_exact(here: Answers):
    tried = here.said["attention"]
    assert {"eager", "sdpa math"} <= set(tried)
    assert all(each["difference"] <= each["tolerance"] for each in tried.values() if "difference" in each)
    [finding] = check_attention(here)
    assert finding.status == "ok"
    assert finding.message.startswith("Exact by trial: eager, sdpa math")


@pytest.mark.parametrize("difference", [0.5, math.nan])
def test_a_back_end_that_is_wrong(difference: float):
    right = {"difference": 1e-6, "tolerance": 1e-4, "dtype": "float32"}
    tried = {"eager": right, "sdpa flash": right | {"difference": difference}, "sdpa cudnn": {"error": "no kernel"}}
    wrong, well = check_attention(Answers({"torch": CUDA, "attention": tried}))
    assert wrong.status == "error"
    assert wrong.message.startswith("sdpa flash differs from exact attention by")
    assert wrong.remedy.splitlines()[0] == "lmflow run --model DIRECTORY --attention eager"
    assert well.message.startswith("Exact by trial: eager. Not here: sdpa cudnn (no kernel); flash_attention_2")


def test_attention_that_crashes_is_an_error():
    [finding] = check_attention(Answers({"torch": CUDA}, "it crashed with SIGILL"))
    assert (finding.status, "it crashed with SIGILL" in finding.message) == ("error", True)


@pytest.mark.gpu
def test_on_a_gpu_its_kernels_are_tried(here: Answers):
    [finding] = check_torch(here, os.environ, gpu_present=True)
    assert finding.status == "ok", finding
    assert here.said["devices"][0]["error"] == ""
    assert "difference" in here.said["attention"]["sdpa flash"]


# What stands beside torch


def install(site: Path, name: str, source: str = "", library: bytes = b"") -> Path:
    """A distribution that needs torch, with one module and one compiled library."""
    module = name.replace("-", "_")
    folder = site / f"{module}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: numpy\nRequires-Dist: torch (>=2.0)\n"
    )
    (folder / "RECORD").write_text(f"{module}/__init__.py,,\n{module}/_C.so,,\n")
    (site / module).mkdir()
    (site / module / "__init__.py").write_text(source)
    (site / module / "_C.so").write_bytes(library)
    return site / module / "_C.so"


def test_only_libraries_linked_with_torch_count(tmp_path: Path):
    linked = install(tmp_path, "acme-kernels", library=b"\x7fELF junk libc10.so junk")
    install(tmp_path, "acme-plain", library=b"\x7fELF libcrypto.so")
    install(tmp_path, "acme-empty")
    assert linked_libraries(distributions(path=[str(tmp_path)])) == {"acme-kernels": [linked]}


def test_what_is_installed_here_loads(here: Answers):
    libraries = linked_libraries(index(distributions()).values())
    findings = list(check_extensions(libraries, here, {}))
    assert [finding.status for finding in findings] == (["ok"] if libraries else [])


@pytest.mark.slow
def test_a_library_that_does_not_load_beside_this_torch(tmp_path: Path):
    library = install(tmp_path, "acme-kernels", library=b"\x7fELF junk libc10.so junk")
    answers = ask_torch([library], [], os.environ)
    [finding] = check_extensions({"acme-kernels": [library]}, answers, {})
    assert finding.status == "warning"
    assert finding.message.startswith("acme-kernels does not load beside this torch (_C.so: ")
    upgrade, uninstall = finding.remedy.splitlines()
    assert upgrade.endswith("--upgrade acme-kernels")
    assert uninstall.endswith(" acme-kernels")


@pytest.mark.slow
def test_a_torchvision_built_for_another_torch(tmp_path: Path):
    reason = "operator torchvision::nms does not exist"
    install(tmp_path, "torchvision", source=f"raise RuntimeError('{reason}')\n")
    answers = ask_torch([], ["torchvision"], {**os.environ, "PYTHONPATH": str(tmp_path)})
    [finding] = check_extensions({}, answers, {})
    assert finding.status == "error"
    assert reason in finding.message
    assert "no model can be loaded" in finding.message
    assert finding.remedy.endswith("--force-reinstall torch torchvision")


def test_a_library_that_crashes_python_is_the_culprit(tmp_path: Path):
    path = tmp_path / "_C.so"
    answers = Answers({"torch": CUDA}, "it crashed with SIGSEGV")
    [finding] = check_extensions({"acme": [path]}, answers, {})
    assert "acme does not load beside this torch (it crashed with SIGSEGV)" in finding.message


def test_an_optional_package_that_cannot_be_imported(tmp_path: Path):
    install(tmp_path, "deepspeed", source="import no_such_module\n")
    imports = {"deepspeed": ask_import("deepspeed", {**os.environ, "PYTHONPATH": str(tmp_path)})}
    [finding] = check_extensions({}, Answers({"torch": CUDA}), imports)
    assert finding.status == "warning"
    assert "deepspeed is installed and cannot be imported (ModuleNotFoundError" in finding.message


def test_a_slow_import_is_not_waited_for_and_no_fault(tmp_path: Path, monkeypatch):
    install(tmp_path, "deepspeed", source="import time\ntime.sleep(60)\n")
    monkeypatch.setattr(torch_checks, "PATIENCE", 1.0)
    imports = {"deepspeed": ask_import("deepspeed", {**os.environ, "PYTHONPATH": str(tmp_path)})}
    [finding] = check_extensions({}, Answers({"torch": CUDA}), imports)
    assert finding.status == "ok"
    assert "deepspeed (it took more than 1 s, and was not waited for)" in finding.message
