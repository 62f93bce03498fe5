"""Variables that mislead, and files that hide installed modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lmflow.doctor.environment_checks import check_environment, check_shadows, usable_cores

NEEDED = {"torch", "transformers", "pyyaml", "lmflow-core"}


def notes(cores: int = 16, **environment: str) -> list[tuple[str, str]]:
    return [(finding.message.partition(":")[0], finding.remedy) for finding in check_environment(environment, cores)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_HUB_OFFLINE", "1"),
        ("TRANSFORMERS_OFFLINE", "yes"),
        ("OMP_NUM_THREADS", "1"),
        ("TOKENIZERS_PARALLELISM", "true"),
    ],
)
def test_a_variable_that_surprises_is_noted_without_blame(name: str, value: str):
    assert notes(**{name: value}) == [(f"{name}={value}", f"unset {name}")]
    assert [finding.status for finding in check_environment({name: value}, 16)] == ["ok"]


@pytest.mark.parametrize(
    "environment",
    [{}, {"HF_HUB_OFFLINE": "0"}, {"OMP_NUM_THREADS": "8"}, {"TOKENIZERS_PARALLELISM": "false"}, {"HOME": "/"}],
)
def test_others_are_not(environment: dict[str, str]):
    [finding] = check_environment(environment, 16)
    assert finding.message.startswith("No variable is set")


def test_one_thread_on_a_small_machine_is_right():
    assert notes(cores=2, OMP_NUM_THREADS="1") == notes()
    assert usable_cores() >= 1


def test_a_file_that_hides_an_installed_module(tmp_path: Path):
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "__init__.py").write_text("")
    torch, yaml = check_shadows(tmp_path, NEEDED)
    assert torch.status == "warning"
    assert torch.message.startswith("torch.py in this directory hides the module torch")
    assert torch.remedy == "mv torch.py my_torch.py"
    assert yaml.remedy == "mv yaml my_yaml"


def test_a_file_that_hides_python_s_own_module(tmp_path: Path):
    (tmp_path / "random.py").write_text("")
    [finding] = check_shadows(tmp_path, NEEDED)
    assert finding.remedy == "mv random.py my_random.py"
    done = subprocess.run([sys.executable, "-m", "random"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == b""  # Python's own prints a demonstration


def test_other_files_are_the_user_s_own(tmp_path: Path):
    for name in ("my_rewards.py", "torch.txt", "pytest.py", "data.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "transformers").mkdir()  # without __init__.py an installed package is preferred
    assert list(check_shadows(tmp_path, NEEDED)) == []


def test_the_sources_themselves_hide_nothing():
    """Run from where lmflow itself lies, its own folder is not a shadow."""
    import lmflow

    sources = Path(lmflow.__file__).parents[1]
    assert list(check_shadows(sources, NEEDED, [str(sources)])) == []
