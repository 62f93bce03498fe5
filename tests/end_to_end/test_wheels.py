"""The distributions as users get them: built into wheels, installed beside nothing else of ours, used, and removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT, ROOT / "core", *sorted(ROOT.glob("plugins/*")), *sorted(ROOT.glob("lmflow_plugins_*"))]
pytestmark = pytest.mark.xdist_group("wheels")
SHORT = ("--training.max_steps", "1", "--data.limit", "16")


@pytest.fixture(scope="module")
def wheels(make_environment: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a wheel of each distribution."""
    directory = tmp_path_factory.mktemp("wheels")
    build = ["pip", "wheel", "--no-deps", "--wheel-dir", directory]
    make_environment().run(*build, *SOURCES, cwd=directory)
    assert len(list(directory.glob("*.whl"))) == len(SOURCES)
    return directory


@pytest.fixture
def clean(make_environment: Callable[..., Any], wheels: Path, tmp_path: Path) -> Any:
    """Installs distributions of ours, from their wheels, where only other people's packages are."""
    environment = make_environment(without=[wheel.name.split("-")[0] for wheel in wheels.iterdir()])

    def install(*names: str) -> Any:
        environment.run("pip", "install", "--find-links", wheels, *names, cwd=tmp_path)
        return environment

    return install


def components(environment: Any, cwd: Path) -> Iterator[tuple[str, str, str]]:
    """Distribution, slot and name of every component listed; fails where a plugin is not whole."""
    listed = json.loads(environment.run("lmflow", "plugins", "--json", cwd=cwd).stdout)
    for plugin in listed["plugins"]:
        assert plugin["status"] == "loaded", plugin
        for component in plugin["components"]:
            yield plugin["distribution"], component["slot"], component["name"]


@pytest.mark.slow
def test_everything_installed_runs_and_one_uninstalled_takes_only_its_own_away(clean, tmp_path):
    environment = clean("lmflow-all")
    assert (
        str(ROOT) not in environment.run("python", "-c", "import lmflow; print(lmflow.__path__)", cwd=tmp_path).stdout
    )
    before = set(components(environment, tmp_path))
    assert {source.name.replace("_plugins_", "-") for source in SOURCES[2:]} <= {owner for owner, _, _ in before}
    quick = ("--aligner.iterations", "1", "--aligner.prompts", "4", "--aligner.heldout_prompts", "4")
    environment.run("lmflow", "run", "--tuner", "lora", "--aligner", "raft", *quick, "--output", "run", cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "completed"
    assert (tmp_path / "run" / "report.html").is_file()

    environment.run("pip", "uninstall", "--yes", "lmflow-raft", cwd=tmp_path)
    after = set(components(environment, tmp_path))
    assert {(slot, name) for _, slot, name in before - after} == {("aligner", "raft")}
    assert not after - before
    refused = environment.run("lmflow", "run", "--aligner", "raft", cwd=tmp_path, code=2)
    assert "lmflow plugins install lmflow-raft" in refused.stderr
    assert "Traceback" not in refused.stderr
    environment.run("lmflow", "run", "--tuner", "lora", *SHORT, cwd=tmp_path)


def test_core_alone_says_what_to_install(clean, tmp_path):
    environment = clean("lmflow-core")
    assert {owner for owner, _, _ in components(environment, tmp_path)} == {"lmflow-core"}
    refused = environment.run("lmflow", "run", "--tuner", "lora", cwd=tmp_path, code=2)
    assert "lmflow plugins install lmflow-lora" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.fixture
def materials(tmp_path: Path, model_directory: Path, tower_file: Path) -> None:
    """Files that a user would have, where the commands are typed."""
    from PIL import Image

    shutil.copytree(model_directory, tmp_path / "tiny")
    (tmp_path / "text.jsonl").write_text('{"text": "a tree by the river"}\n' * 8)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "question"}\n' * 8)
    (tmp_path / "images.json").write_text(json.dumps([{"image": "red.png", "text": "red"}] * 8))
    shutil.copy(tower_file, tmp_path / "tower.json")
    (tmp_path / "mine.py").write_text(
        "def short(prompts, completions, records):\n    return [-len(c) for c in completions]\n"
    )
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")


USES = {
    "lmflow-demo": "run --tuner full",
    "lmflow-lora": "run --model tiny --data.path text.jsonl --tuner lora",
    "lmflow-raft": "run --model tiny --data.path prompts.jsonl --tuner full --aligner raft --aligner.iterations 1 "
    "--reward python:mine:short",
    "lmflow-longctx": "run --model tiny --data.path text.jsonl --tuner full --context yarn --context.factor 2",
    "lmflow-speculative": "generate --model tiny --prompt hello --inferencer speculative --sampling.max_new_tokens 4",
    "lmflow-multimodal": "run --model vision-language --model.language_model tiny --model.tower tower.json "
    "--model.checkpoint random --tuner projector --data.path images.json",
    "lmflow-trackers": "run --model tiny --data.path text.jsonl --tuner full --trackers tensorboard",
}


@pytest.mark.slow
@pytest.mark.usefixtures("materials")
@pytest.mark.parametrize("distribution", [source.name.replace("_plugins_", "-") for source in SOURCES[2:]])
def test_each_plugin_beside_core_alone(clean, distribution, tmp_path):
    environment = clean(distribution)
    assert {owner for owner, _, _ in components(environment, tmp_path)} == {"lmflow-core", distribution}
    command = ["lmflow", *USES[distribution].split()]
    environment.run(*command, *(SHORT if command[1] == "run" else ()), cwd=tmp_path)
