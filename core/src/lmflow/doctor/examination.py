"""Every check there is, and what each is shown.

Each check is a small function of what it looks at; none knows of another. What needs torch is asked in processes of
their own, all at once, so that the whole takes little longer than importing torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, distributions
from pathlib import Path

from lmflow.doctor.environment_checks import check_environment, check_shadows, usable_cores
from lmflow.doctor.finding import Finding, attempt, worst_first
from lmflow.doctor.import_checks import ask_imports, check_imports
from lmflow.doctor.launcher_checks import check_launcher
from lmflow.doctor.machine_checks import check_disk, check_memory, places
from lmflow.doctor.package_checks import check_duplicates, check_requirements, index, requirement_closure
from lmflow.doctor.plugin_checks import check_optional_parts, check_plugins
from lmflow.doctor.torch_checks import (
    OPTIONAL,
    PAIR,
    ask_import,
    ask_torch,
    check_attention,
    check_extensions,
    check_torch,
    linked_libraries,
    nvidia_gpu_present,
)
from lmflow.plugins import CORE, Plugins, disabled_by_environment

COMPILED = ("torchvision", "torchaudio", "flash-attn", "liger-kernel", "bitsandbytes", "deepspeed")
"""Packages that are not required and make a difference where they are installed."""


def examine(
    plugins: Plugins, output: Path, environment: Mapping[str, str], directory: Path, commands: Collection[str]
) -> list[Finding]:
    """Every finding about this installation, the worst first.

    `output` is where runs are to go, `directory` the working directory, `commands` the core's own.
    """
    found = list(distributions())
    installed = index(found)
    roots = [name for name in ("lmflow-all", CORE) if name in installed] + plugins.distributions()
    return worst_first(
        [
            *attempt("plugins", check_plugins, plugins, installed, commands, disabled_by_environment()),
            *attempt("optional parts", check_optional_parts, plugins),
            *attempt("imports", lambda: check_imports(ask_imports(plugins, environment))),
            *attempt("packages", check_requirements, roots, installed),
            *attempt("packages", lambda: check_duplicates(requirement_closure(roots, installed), found)),
            *attempt("torch", _examine_computing, installed, environment),
            *attempt("disk", check_disk, places(environment, output)),
            *attempt("memory", check_memory),
            *attempt("environment", check_environment, environment, usable_cores()),
            *attempt("directory", lambda: check_shadows(directory, requirement_closure(roots, installed))),
        ]
    )


def optional_versions() -> dict[str, str | None]:
    """Versions of packages that make a difference where they are installed, None where they are not."""
    installed = index(distributions())
    return {name: installed[name].version if name in installed else None for name in COMPILED}


def _examine_computing(installed: Mapping[str, Distribution], environment: Mapping[str, str]) -> list[Finding]:
    """What torch and what stands on it say; they are asked all at once, because each takes seconds to import."""
    libraries = linked_libraries(installed.values())
    paths = [path for found in libraries.values() for path in found]
    beside = [name for name in PAIR if name in installed and name != "torch"]
    with ThreadPoolExecutor() as pool:
        torch = pool.submit(ask_torch, paths, beside, environment)
        asked = {name: pool.submit(ask_import, name, environment) for name in OPTIONAL if name in installed}
    imports = {name: future.result() for name, future in asked.items()}
    said = torch.result()
    return [
        *attempt("torch", check_torch, said, environment, nvidia_gpu_present()),
        *attempt("attention", check_attention, said),
        *attempt("extensions", check_extensions, libraries, said, imports),
        *attempt("launcher", check_launcher, environment),
    ]
