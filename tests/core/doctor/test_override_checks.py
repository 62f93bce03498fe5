"""What overrides a recipe: each variable is set for real, and lmflow's own trainer takes steps under it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from lmflow.doctor.finding import Finding
from lmflow.doctor.override_checks import (
    LAUNCHER,
    SIZES,
    TRIED,
    ask_overrides,
    check_configuration,
    check_launcher,
    check_variables,
    configuration_file,
    trials_of,
    trials_of_file,
)
from lmflow.doctor.probes import Answers

CPU = {"CUDA_VISIBLE_DEVICES": ""}
ANSWERED = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_DYNAMO_BACKEND": "EAGER",
}
"""Questions of accelerate that lmflow's trainer answers itself, so that these variables have no say."""
STOPPING = {
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_SAGEMAKER": "true",
    "ACCELERATE_DEBUG_MODE": "perhaps",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
}
HARMLESS = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "ACCELERATE_LOG_LEVEL": "info",
    "FORK_LAUNCHED": "1",
}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment without anything of accelerate, whose caches are empty."""
    ours = (*TRIED, *LAUNCHER, *SIZES, "TORCHELASTIC")
    rest = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**rest, **CPU, "HF_HOME": str(tmp_path / "hf")}


def write(environment: Mapping[str, str], **settings: object) -> Path:
    """An accelerate configuration where accelerate looks for it."""
    file = configuration_file(environment)
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump({"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", **settings}))
    return file


def examine(environment: Mapping[str, str], gpus: int = 0) -> list[Finding]:
    answers = ask_overrides(environment)
    return [*check_variables(environment, answers, gpus), *check_configuration(environment, answers)]


# Variables


def test_nothing_set_is_nothing_to_ask(home: dict[str, str]):
    assert ask_overrides(home) == Answers()
    assert [finding.message for finding in examine(home)] == ["No variable of accelerate is set."]


def test_a_switch_is_tried_with_its_details_and_without_the_others():
    trials = trials_of({**STOPPING, **ANSWERED, "ACCELERATE_DYNAMO_MODE": "default", "PATH": "/bin"})
    assert trials["ACCELERATE_USE_PARALLELISM_CONFIG"] == {
        "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
        "PARALLELISM_CONFIG_TP_SIZE": "2",
    }
    assert set(trials["ACCELERATE_DYNAMO_BACKEND"]) == {"ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"}
    assert trials["ACCELERATE_MIXED_PRECISION"] == {"ACCELERATE_MIXED_PRECISION": "bf16"}
    assert set(trials) == {*ANSWERED, *STOPPING} - {"PARALLELISM_CONFIG_TP_SIZE"}


def test_exactly_the_variables_that_change_a_run_are_reported(home: dict[str, str]):
    findings = examine({**home, **ANSWERED, **STOPPING, **HARMLESS})
    status = {finding.remedy.removeprefix("unset "): finding.status for finding in findings}
    assert status == dict.fromkeys(set(STOPPING) - {"PARALLELISM_CONFIG_TP_SIZE"}, "error")
    assert any("No module named 'smdistributed'" in finding.message for finding in findings)


def test_what_the_trainer_answers_itself_overrides_nothing(home: dict[str, str]):
    [finding] = examine({**home, **ANSWERED})
    assert finding.status == "ok"
    assert "set, and changes nothing" in finding.message.replace("change nothing", "changes nothing")


def test_a_variable_that_changes_the_steps_overrides():
    answers = Answers({"variable ACCELERATE_MIXED_PRECISION": {"outcome": "changed", "why": ""}})
    [finding] = check_variables({"ACCELERATE_MIXED_PRECISION": "bf16"}, answers, 0)
    assert (finding.status, finding.remedy) == ("warning", "unset ACCELERATE_MIXED_PRECISION")
    assert "ACCELERATE_MIXED_PRECISION=bf16 overrides the recipe: models compute in bf16" in finding.message


def test_steps_of_another_precision_are_seen_as_changed(monkeypatch: pytest.MonkeyPatch):
    """The probe notices what a trainer that asked accelerate would do."""
    from lmflow.doctor import override_probe

    usual = override_probe.take_steps()
    monkeypatch.setattr(override_probe, "take_steps", lambda: [step * 1.01 for step in usual])
    assert override_probe.compare({}, usual) == {"outcome": "changed", "why": ""}


def test_what_a_launcher_sets_for_nothing_special_is_no_fault(home: dict[str, str]):
    """The variables that `accelerate launch` sets with its defaults."""
    usual = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_USE_CPU": "False",
    }
    [finding] = examine({**home, **usual})
    assert finding.status == "ok"
    assert "ACCELERATE_MIXED_PRECISION" in finding.message


def test_a_trial_that_cannot_be_made_is_said():
    answers = Answers({}, "it crashed with SIGSEGV")
    [finding] = check_variables({"ACCELERATE_MIXED_PRECISION": "bf16"}, answers, 0)
    assert finding.status == "warning"
    assert "could not be tried (it crashed with SIGSEGV)" in finding.message


def test_splitting_a_model_matters_where_there_are_several_gpus():
    environment = {"ACCELERATE_USE_FSDP": "true"}
    answers = Answers({"variable ACCELERATE_USE_FSDP": {"outcome": "same", "why": ""}})
    assert [finding.status for finding in check_variables(environment, answers, 1)] == ["ok"]
    [finding] = check_variables(environment, answers, 2)
    assert (finding.status, finding.remedy) == ("warning", "unset ACCELERATE_USE_FSDP")


# The configuration file


def test_the_file_is_where_accelerate_looks(home: dict[str, str]):
    code = "from accelerate.commands.config.config_args import default_yaml_config_file as f; print(f)"
    for environment in (home, {**home, "HF_HOME": "", "XDG_CACHE_HOME": "/tmp/acme"}):
        given = {name: value for name, value in environment.items() if value}
        done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
        assert str(configuration_file(given)) == done.stdout.strip()


def test_a_configuration_that_overrides_is_put_aside(home: dict[str, str]):
    """Splitting the model changes nothing in a single process, as here, and is reported all the same."""
    file = write(home, distributed_type="FSDP", num_processes=2)
    _, finding = examine(home)
    assert finding.status == "warning"
    assert f"{file} sets distributed_type: FSDP" in finding.message
    assert finding.remedy == f"mv {file} {file}.off"


def test_a_configuration_that_overrides_nothing_is_well(home: dict[str, str]):
    file = write(home, mixed_precision="bf16", dynamo_config={"dynamo_backend": "EAGER"}, num_processes=1, use_cpu=True)
    _, finding = examine(home)
    assert (finding.status, finding.message) == ("ok", f"{file} overrides nothing of a recipe.")


def test_a_configuration_that_accelerate_refuses(home: dict[str, str]):
    file = write(home, gradient_accumulation_steps=4, num_processes=1)
    _, finding = examine(home)
    assert finding.status == "warning"
    assert f"accelerate launch refuses its configuration {file}" in finding.message
    assert "gradient_accumulation_steps" in finding.message


def test_a_configuration_that_cannot_be_tried(home: dict[str, str]):
    file = write(home, mixed_precision="bf16")
    answers = Answers({"file": {"error": ""}}, "it crashed with SIGSEGV")
    [finding] = check_configuration(home, answers)
    assert (finding.status, finding.remedy) == ("warning", f"mv {file} {file}.off")
    assert "could not be tried (it crashed with SIGSEGV)" in finding.message


def test_settings_become_the_variables_that_accelerate_launch_sets():
    settings = {
        "mixed_precision": "fp8",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"gradient_accumulation_steps": 8, "zero_stage": 2},
        "parallelism_config": {"parallelism_config_tp_size": 2},
        "fp8_config": {"backend": "TE"},
    }
    trials = trials_of_file(settings)
    assert trials["mixed_precision: fp8"] == {"ACCELERATE_MIXED_PRECISION": "fp8"}
    assert trials["distributed_type: DEEPSPEED"] == {"ACCELERATE_USE_DEEPSPEED": "true"}
    assert trials["gradient_accumulation_steps: 8"] == {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"}
    assert trials["fp8_backend: TE"] == {"ACCELERATE_FP8_BACKEND": "TE"}
    assert trials["parallelism_config: set"] == {
        "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
        "PARALLELISM_CONFIG_TP_SIZE": "2",
    }


# What a launcher leaves


def launcher(gpus: int = 0, **environment: str) -> list[tuple[str, str]]:
    return [(finding.status, finding.remedy) for finding in check_launcher(environment, gpus)]


COMPLETE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environment", [{}, {"RANK": "1"}, {"WORLD_SIZE": "1"}, {"LOCAL_RANK": "-1"}, {"MASTER_ADDR": "127.0.0.1"}]
)
def test_what_makes_no_difference_is_not_mentioned(environment: dict[str, str]):
    assert launcher(**environment) == []


LEFTOVERS = ("WORLD_SIZE", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@pytest.mark.parametrize("name", LEFTOVERS)
def test_a_single_leftover_is_an_error(name: str):
    assert launcher(**{name: "2"}) == [("error", f"unset {name}")]


def test_because_accelerate_refuses_it(home: dict[str, str]):
    code = f"""
import os
from accelerate import Accelerator
from accelerate.state import AcceleratorState
before = dict(os.environ)
for name in {LEFTOVERS}:
    os.environ[name] = "2"
    try:
        Accelerator(cpu=True)
    except ValueError as error:
        print(name, "MASTER_ADDR" in str(error))
    os.environ.clear()
    os.environ.update(before)
    AcceleratorState._reset_state(reset_partial_state=True)
"""
    done = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} True" for name in LEFTOVERS]


def test_on_gpus_only_the_local_rank_is_looked_at():
    assert launcher(gpus=2, WORLD_SIZE="2") == []
    assert launcher(gpus=2, LOCAL_RANK="0", MASTER_ADDR="127.0.0.1") == [("error", "unset LOCAL_RANK MASTER_ADDR")]


def test_what_is_no_number_stops_every_run():
    [finding] = check_launcher({"LOCAL_RANK": "first", "RANK": "0"}, 0)
    assert (finding.status, finding.remedy) == ("error", "unset RANK LOCAL_RANK")
    assert finding.message.startswith("LOCAL_RANK=first is no number")


def test_a_complete_set_without_its_launcher_waits_for_others():
    assert launcher(**COMPLETE) == [("warning", "unset RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT")]


def test_on_gpus_a_complete_set_waits_as_well():
    assert [status for status, _ in launcher(gpus=1, **COMPLETE)] == ["warning"]


def test_under_torchrun_all_is_well():
    [finding] = check_launcher({**COMPLETE, "TORCHELASTIC_RUN_ID": "1"}, 0)
    assert (finding.status, finding.message) == ("ok", "This is process 1 of 2, as its launcher says.")
