"""Would accelerate override the recipe? By its variables, by its configuration file, or by a launcher's leftovers.

lmflow's trainer makes an `Accelerator()`, and accelerate lets the environment speak where its caller is silent. Which
variables matter is not listed here: those that are set are tried, each in a few steps of the trainer itself
(`lmflow.doctor.override_probe`), so the answer is true of the installed versions.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmflow.doctor.finding import Finding
from lmflow.doctor.probes import Answers, ask

NAME = "accelerate"
DETAILS = {
    "ACCELERATE_DYNAMO_BACKEND": "ACCELERATE_DYNAMO_",
    "ACCELERATE_USE_DEEPSPEED": "ACCELERATE_DEEPSPEED_",
    "ACCELERATE_USE_FSDP": "FSDP_",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM_",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "PARALLELISM_CONFIG_",
    "ACCELERATE_USE_SAGEMAKER": "ACCELERATE_SAGEMAKER_",
}
"""Switches, and how the variables begin that say more about what they switch on."""
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
"""Variables in which accelerate looks for the number of processes, in its order."""
TRIED = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "FORK_LAUNCHED")
EFFECTS = {
    "ACCELERATE_MIXED_PRECISION": "models compute in {value}, whatever --training.precision says",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "every gradient is divided by {value}",
    "ACCELERATE_DYNAMO_BACKEND": "the model is compiled ({value}), which makes the first steps slow",
}
SPLITTING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""Act on several GPUs only, so that a trial on one shows nothing."""


def configuration_file(environment: Mapping[str, str]) -> Path:
    """Where `accelerate config` writes and `accelerate launch` reads."""
    cache = Path(environment.get("XDG_CACHE_HOME", "~/.cache"))
    home = Path(environment.get("HF_HOME") or cache / "huggingface").expanduser()
    return home / "accelerate" / "default_config.yaml"


def trials_of(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The variables to try, each with those that give its details."""
    tried = {name: value for name, value in environment.items() if name.startswith(TRIED)}
    switches = [name for name in tried if not any(name.startswith(each) for each in DETAILS.values())]
    switches += [name for name in DETAILS if name in tried and name not in switches]
    trials = {}
    for name in switches:
        details = DETAILS.get(name)
        more = {key: value for key, value in tried.items() if details and key.startswith(details)}
        trials[name] = {name: tried[name], **more}
    return trials


def trials_of_file(settings: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Settings of an accelerate configuration that could change a run, as the variables `accelerate launch` sets."""
    trials: dict[str, dict[str, str]] = {}

    def add(setting: str, value: Any, variables: Mapping[str, Any]) -> None:
        trials[f"{setting}: {value}"] = {name: str(each) for name, each in variables.items()}

    precision = settings.get("mixed_precision") or "no"
    add("mixed_precision", precision, {"ACCELERATE_MIXED_PRECISION": precision})
    dynamo = settings.get("dynamo_config") or {}
    backend = dynamo.get("dynamo_backend") or dynamo.get("backend") or "no"
    add("dynamo_backend", backend, {"ACCELERATE_DYNAMO_BACKEND": backend})
    kind = str(settings.get("distributed_type") or "NO")
    if f"ACCELERATE_USE_{kind}" in DETAILS:
        add("distributed_type", kind, {f"ACCELERATE_USE_{kind}": "true"})
    steps = (settings.get("deepspeed_config") or {}).get("gradient_accumulation_steps", 1)
    add("gradient_accumulation_steps", steps, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": steps})
    sizes = {
        key.upper(): value
        for key, value in (settings.get("parallelism_config") or {}).items()
        if key.startswith("parallelism_config_")
    }
    if sizes:
        add("parallelism_config", "set", {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", **sizes})
    fp8 = settings.get("fp8_config") or {}
    if fp8.get("fp8_backend") or fp8.get("backend"):
        backend = fp8.get("fp8_backend") or fp8.get("backend")
        add("fp8_backend", backend, {"ACCELERATE_FP8_BACKEND": backend})
    return trials


def ask_overrides(environment: Mapping[str, str]) -> Answers:
    """How each variable and setting goes; asks nobody where there is nothing to try."""
    trials, file = trials_of(environment), configuration_file(environment)
    if not trials and not os.path.isfile(file):
        return Answers()
    others = {name: each for name, each in environment.items() if not name.startswith((*TRIED, *SIZES, *LAUNCHER))}
    question = {"trials": trials, "file": str(file) if os.path.isfile(file) else None}
    return ask(["-m", "lmflow.doctor.override_probe"], others, question)


def check_variables(environment: Mapping[str, str], answers: Answers, gpus: int) -> Iterator[Finding]:
    """Variables of accelerate that change a run; `gpus` is the number torch sees."""
    trials = trials_of(environment)
    faults = [
        fault
        for name in trials
        for fault in _judge_variable(name, environment[name], answers.said.get(f"variable {name}"), answers, gpus)
    ]
    yield from faults
    if not faults:
        harmless = f"{', '.join(trials)}: set, and changes nothing" if trials else "no variable of accelerate is set"
        yield Finding(NAME, "ok", f"{harmless[0].upper()}{harmless[1:]}.")


def check_configuration(environment: Mapping[str, str], answers: Answers) -> Iterator[Finding]:
    """What the configuration file would do to a run started with `accelerate launch`."""
    file = configuration_file(environment)
    if not os.path.isfile(file):
        return
    remedy = f"mv {shlex.quote(str(file))} {shlex.quote(str(file) + '.off')}"
    said = answers.said.get("file")
    if said and said["error"]:
        yield Finding(NAME, "warning", f"accelerate launch refuses its configuration {file}: {said['error']}", remedy)
        return
    if answers.failure:
        text = f"{file} could not be tried ({answers.failure}); it may override the recipe under accelerate launch."
        yield Finding(NAME, "warning", text, remedy)
        return
    found = {
        topic.removeprefix("setting "): answer for topic, answer in answers.said.items() if topic.startswith("setting ")
    }
    splitting = [f"distributed_type: {name.removeprefix('ACCELERATE_USE_')}" for name in SPLITTING]
    acting = [name for name, answer in found.items() if answer["outcome"] != "same" or name in splitting]
    if acting:
        text = (
            f"{file} sets {', '.join(acting)}: where a run is started with accelerate launch, that stands above the "
            "recipe. lmflow run alone does not read the file."
        )
        yield Finding(NAME, "warning", text, remedy)
    else:
        yield Finding(NAME, "ok", f"{file} overrides nothing of a recipe.")


def check_launcher(environment: Mapping[str, str], gpus: int) -> Iterator[Finding]:
    """Variables by which a launcher tells a process of the others, and that outlived it.

    On the CPU accelerate takes the number of processes from any of SIZES; on GPUs LOCAL_RANK alone makes it look.
    """
    present = [name for name in dict.fromkeys([*LAUNCHER, *SIZES]) if environment.get(name)]
    remedy = f"unset {' '.join(present)}"
    looked_at = ("LOCAL_RANK",) if gpus else ("LOCAL_RANK", *SIZES)
    wrong = [name for name in looked_at if environment.get(name) and _number(environment, name) is None]
    if wrong:
        text = f"{wrong[0]}={environment[wrong[0]]} is no number: every training run stops at once."
        yield Finding("launcher", "error", text, remedy)
        return
    size = next((count for name in SIZES if (count := _number(environment, name)) is not None and count >= 0), 1)
    if _number(environment, "LOCAL_RANK") in (None, -1) and (gpus or size < 2):
        return
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if gpus else ("MASTER_ADDR",)
    missing = [name for name in needed if not environment.get(name)]
    if missing:
        text = (
            f"{', '.join(present)}: set as in one of several processes, while {', '.join(missing)} is not, so every "
            "training run stops at once. A launcher such as torchrun sets them all."
        )
        yield Finding("launcher", "error", text, remedy)
    elif size > 1 and "TORCHELASTIC_RUN_ID" not in environment:
        text = (
            f"{', '.join(present)}: set as in one of {size} processes, but torchrun did not start this one. A "
            "training run waits for the others, for ever if they never come."
        )
        yield Finding("launcher", "warning", text, remedy)
    else:
        rank = environment.get("RANK") or "0"
        yield Finding("launcher", "ok", f"This is process {rank} of {size}, as its launcher says.")


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """A variable as a whole number, None where it is unset or something else."""
    value = environment.get(name, "").strip()
    return int(value) if re.fullmatch(r"[+-]?\d+", value) else None


def _judge_variable(
    name: str, value: str, answer: Mapping[str, str] | None, answers: Answers, gpus: int
) -> Iterator[Finding]:
    remedy = f"unset {name}"
    if answer is None:
        text = f"{name}={value} could not be tried ({answers.failure}); it may override the recipe."
        yield Finding(NAME, "warning", text, remedy)
    elif answer["outcome"] == "failed":
        text = f"{name}={value} stops every training run: {answer['why']}"
        yield Finding(NAME, "error", text, remedy)
    elif answer["outcome"] in ("changed", "compiled"):
        effect = EFFECTS.get(name, "two steps that were tried came out otherwise").format(value=value)
        yield Finding(NAME, "warning", f"{name}={value} overrides the recipe: {effect}.", remedy)
    elif name in SPLITTING and value.lower() == "true" and gpus > 1:
        text = (
            f"{name}={value}: on several GPUs accelerate would split the model, which lmflow's recipes do not ask for."
        )
        yield Finding(NAME, "warning", text, remedy)
