"""Does torch fit this machine, and do compiled extensions fit torch? Attention is tried, not assumed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from lmflow.doctor.finding import Finding
from lmflow.doctor.installer import pip
from lmflow.doctor.probes import Answers, ask
from lmflow.formatting import size
from lmflow.plugins import normal_name

PAIR = ("torch", "torchvision")
"""Built for each other: Transformers and PEFT import the second wherever it is installed."""
OPTIONAL = ("bitsandbytes", "deepspeed")
"""Packages that some recipes use, and that break when torch or CUDA change; each imports as the module of its name."""
PATIENCE = 8.0
"""Seconds for the import of one of those: some take long, and a broken one fails sooner."""
FLASH = "flash_attention_2"
LINKED = (b"libc10", b"libtorch")
"""One of these names is in every library that is linked with torch."""


def ask_torch(libraries: Iterable[Path], modules: Sequence[str], environment: Mapping[str, str]) -> Answers:
    """Facts about torch, whether each of `libraries` loads beside it, and whether `modules` can be imported."""
    question = {"libraries": [str(path) for path in libraries], "modules": modules}
    return ask(["-m", "lmflow.doctor.torch_probe"], environment, question)


def ask_import(module: str, environment: Mapping[str, str]) -> Answers:
    """Whether a module can be imported, if that does not take longer than PATIENCE."""
    return ask(["-c", f"import {module}"], environment, timeout=PATIENCE)


def nvidia_gpu_present(devices: Path = Path("/dev"), drivers: Path = Path("/proc/driver/nvidia")) -> bool:
    """Whether this machine has an NVIDIA GPU with a driver, whatever torch can do with it."""
    return (drivers / "version").exists() or (devices / "nvidia0").exists()


def linked_libraries(distributions: Iterable[Distribution]) -> dict[str, list[Path]]:
    """Compiled libraries linked with torch, by the distribution that needs torch and brings them."""
    found: dict[str, list[Path]] = {}
    for distribution in distributions:
        if not any(re.match(r"torch(?![\w.-])", text) for text in distribution.requires or ()):
            continue
        files = [Path(str(file.locate())) for file in distribution.files or () if file.suffix == ".so"]
        linked = [file for file in files if is_linked(file)]
        if linked:
            found.setdefault(normal_name(distribution.name), linked)
    return found


def is_linked(library: Path) -> bool:
    """Whether a compiled library names torch's own among those it is linked with."""
    import mmap

    if not library.is_file() or not library.stat().st_size:
        return False
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name) >= 0 for name in LINKED)


def check_torch(answers: Answers, environment: Mapping[str, str], gpu_present: bool) -> Iterator[Finding]:
    """Whether torch can be imported, and computes on the GPUs there are."""
    facts = answers.said.get("torch")
    if facts is None:
        text = f"torch cannot be imported: {answers.failure}. Nothing that computes works."
        yield Finding("torch", "error", text, pip("install --force-reinstall torch"))
        return
    devices = answers.said.get("devices", ())
    faults = [*_check_build(facts, devices, environment, gpu_present)]
    faults += [fault for number, device in enumerate(devices) for fault in _check_device(number, device, facts)]
    yield from faults
    if not faults:
        built = f"CUDA {facts['cuda']}" if facts["cuda"] else f"ROCm {facts['rocm']}" if facts["rocm"] else "CPUs only"
        where = "; ".join(_describe(device) for device in devices) or "no GPU here, so it computes on the CPU"
        yield Finding("torch", "ok", f"torch {facts['version']}, built for {built}; {where}.")


def check_attention(answers: Answers) -> Iterator[Finding]:
    """Which back ends of attention work, each compared with exact attention."""
    tried = answers.said.get("attention")
    if tried is None:
        if "torch" in answers.said:
            text = f"Attention could not be tried: {answers.failure}."
            yield Finding("attention", "error", text, pip("install --force-reinstall torch"))
        return
    compared = {name: each for name, each in tried.items() if "difference" in each}
    wrong = {name: each for name, each in compared.items() if not each["difference"] <= each["tolerance"]}  # or NaN
    for name, each in wrong.items():
        text = (
            f"{name} differs from exact attention by {each['difference']:.1e} in {each['dtype']}, where rounding "
            f"explains {each['tolerance']:.0e}: training and answers with it are wrong."
        )
        avoid = "eager" if name.startswith("sdpa") else "sdpa"
        remedy = f"lmflow run --model DIRECTORY --attention {avoid}\n{pip('install --force-reinstall torch')}"
        yield Finding("attention", "error", text, remedy)
    absent = [f"{name} ({each['error']})" for name, each in tried.items() if name not in compared]
    if FLASH not in tried:
        absent.append(f"{FLASH} (it takes an NVIDIA GPU and the package flash-attn)")
    works = ", ".join(name for name in compared if name not in wrong)
    note = f" Not here: {'; '.join(absent)}." if absent else ""
    if works:
        yield Finding("attention", "ok", f"Exact by trial: {works}.{note}")


def check_extensions(
    libraries: Mapping[str, Sequence[Path]], answers: Answers, imports: Mapping[str, Answers]
) -> Iterator[Finding]:
    """Whether packages that need torch load beside it.

    `libraries` is what `linked_libraries` found, `imports` how the import of each installed one of OPTIONAL went.
    """
    if "torch" not in answers.said:
        return  # nothing loads beside a torch that does not load
    tried = [topic.removeprefix("import ") for topic in answers.said if topic.startswith("import ")]
    works = []
    for name in dict.fromkeys([*libraries, *tried, *imports]):
        load, alone = _load_failure(libraries.get(name, ()), answers), imports.get(name, Answers())
        imported = answers.said.get(f"import {name}", "") or ("" if alone.late else alone.failure)
        if load or imported:
            yield _judge_extension(name, load, imported)
        else:
            works.append(f"{name} ({alone.failure}, and was not waited for)" if alone.late else name)
    if works:
        yield Finding("extensions", "ok", f"{', '.join(works)}: loaded beside this torch.")


def _check_build(
    facts: Mapping[str, Any], devices: Sequence[Any], environment: Mapping[str, str], gpu_present: bool
) -> Iterator[Finding]:
    """A GPU that torch does not see."""
    if devices or not gpu_present:
        return
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    if facts["cuda"] is None:
        text = (
            f"This machine has an NVIDIA GPU, but torch {facts['version']} is built without CUDA: all runs on the CPU."
        )
        yield Finding("torch", "warning", text, pip(f"install --force-reinstall {' '.join(PAIR)}"))
    elif hidden is not None and hides_all(hidden):
        text = f"CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU of this machine: all runs on the CPU."
        yield Finding("torch", "warning", text, "unset CUDA_VISIBLE_DEVICES")
    else:
        text = (
            f"This machine has an NVIDIA GPU, but torch {facts['version']} (CUDA {facts['cuda']}) cannot use it: "
            f"{facts['reason'].rstrip('.') or 'it says no reason'}. All runs on the CPU."
        )
        yield Finding("torch", "warning", text, "nvidia-smi")


def hides_all(visible: str) -> bool:
    """Whether a value of CUDA_VISIBLE_DEVICES leaves no GPU: it ends before the first invalid number."""
    return visible.strip().partition(",")[0].strip() in ("", "-1", "NoDevFiles")


def _check_device(number: int, device: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Finding]:
    name = f"GPU {number} ({device['name']})"
    if facts["cuda"] and not has_kernels(tuple(device["capability"]), facts["architectures"]):
        wanted = ".".join(map(str, device["capability"]))
        text = (
            f"{name} has compute capability {wanted}, and torch {facts['version']} holds kernels for "
            f"{', '.join(facts['architectures'])} only: what runs on it fails."
        )
        yield Finding(
            "torch", "error", text, f"{pip('install --upgrade torch torchvision')}\nexport CUDA_VISIBLE_DEVICES="
        )
    elif device["error"]:
        text = f"{name} fails at a small computation: {device['error']}."
        yield Finding("torch", "error", text, "nvidia-smi\nexport CUDA_VISIBLE_DEVICES=")


def has_kernels(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Whether code for one of `architectures` ("sm_86", "compute_90") runs on a GPU of this compute capability.

    Compiled code (sm) runs on its own major version from its minor on; PTX (compute) on everything newer. A letter at
    the end (sm_90a) binds it to that very capability.
    """
    for architecture in architectures:
        kind, _, digits = architecture.partition("_")
        number = int(digits.rstrip("af"))
        own = number // 10, number % 10
        if digits[-1] == "a":
            fits = own == capability
        elif kind == "compute":
            fits = own <= capability
        else:
            fits = own[0] == capability[0] and own[1] <= capability[1]
        if fits:
            return True
    return False


def _describe(device: Mapping[str, Any]) -> str:
    precision = "bf16" if device["bfloat16"] else "no bf16, so training.precision auto is fp32"
    return f"{device['name']}, {size(device['memory'])}, {precision}"


def _load_failure(paths: Sequence[Path], answers: Answers) -> str:
    """Why the first of the libraries that does not load does not, "" if all do."""
    for path in paths:
        said = answers.said.get(f"library {path}")
        if said is None:
            return answers.failure or "nothing was said about it"
        if said:
            return f"{path.name}: {said}"
    return ""


def _judge_extension(name: str, load: str, imported: str) -> Finding:
    """`load` is why its library does not load, `imported` why it cannot be imported; one of them may be ""."""
    if name in PAIR:
        text = (
            f"{name} does not load beside this torch ({load or imported}). The two must be built for each other: "
            "Transformers and PEFT import it wherever it is installed, so no model can be loaded."
        )
        return Finding("extensions", "error", text, pip(f"install --upgrade --force-reinstall {' '.join(PAIR)}"))
    remedy = f"{pip(f'install --upgrade {name}')}\n{pip(f'uninstall {name}')}"
    text = (
        f"{name} does not load beside this torch ({load}): it was built for another, and what uses it fails or is slow."
    )
    if not load:
        text = f"{name} is installed and cannot be imported ({imported}): what uses it fails."
    return Finding("extensions", "warning", text, remedy)
