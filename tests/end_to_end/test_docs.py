"""The documentation is true: its commands run, its recipe resolves, its plugin works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import types
from pathlib import Path

import pytest

from lmflow import hookspecs
from lmflow.plugins import SLOTS, load_plugins
from lmflow.recipe import resolve

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
    *sorted(ROOT.glob("lmflow_plugins_*/README.md")),
]
QUICK = ["--training.max_steps", "2"]
RAFT = [
    "--aligner.iterations",
    "1",
    "--aligner.prompts",
    "4",
    "--aligner.samples",
    "2",
    "--aligner.max_new_tokens",
    "4",
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands() -> list[tuple[str, str]]:
    """Every `$ lmflow …` line of the documentation, with the page it is on."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            joined = block.replace("\\\n", " ")
            found += [(page.name, line[2:]) for line in joined.splitlines() if line.startswith("$ lmflow ")]
    return found


@pytest.fixture
def place(tmp_path: Path, model_directory: Path) -> Path:
    """A directory with everything the documentation's commands name."""
    shutil.copytree(model_directory, tmp_path / "DIR")
    records = [{"instruction": f"say {i}", "input": "", "output": f"{i} it is"} for i in range(40)]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(40)))
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    (tmp_path / "my_rewards.py").write_text(
        "def polite(prompts, completions, records):\n    return [float(len(c)) for c in completions]\n"
    )
    return tmp_path


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda value: value.replace("/", "-")[:80])
def test_a_documented_command_runs(page: str, command: str, place: Path, lmflow):
    arguments = shlex.split(command, comments=True)[1:]
    if arguments[0] == "run" and "--help" not in arguments:
        arguments += QUICK + (RAFT if "raft" in arguments else [])
    done = lmflow(*arguments)
    assert done.code == 0, f"{page}: {command}\n{done.err}"


def test_the_documented_recipe_resolves(tmp_path: Path):
    [text] = blocks(ROOT / "docs" / "running.md", "yaml")
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    recipe = resolve(load_plugins(), file).recipe
    assert recipe.tuner.name == "lora"
    assert recipe.training.learning_rate == 1e-3


def test_the_documented_plugin_works():
    [source, *_] = blocks(ROOT / "docs" / "plugins.md", "python")
    module = types.ModuleType("my_bitfit")
    exec(compile(source, "my_bitfit.py", "exec"), module.__dict__)
    from torch import nn

    [tuner] = module.lmflow_tuners()
    prepared = tuner().prepare(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False)))
    assert [name for name, parameter in prepared.named_parameters() if parameter.requires_grad] == ["0.bias"]


def test_every_component_and_hook_is_explained():
    for slot in SLOTS.values():
        assert (getattr(hookspecs, slot.hook).__doc__ or "").strip()
    plugins = load_plugins()
    for slot_name in SLOTS:
        for name, offers in plugins.offers(slot_name).items():
            component = offers[0].component
            assert (component.__doc__ or "").strip(), name
            unexplained = [field for field, info in component.model_fields.items() if not info.description]
            assert not unexplained, f"{slot_name} {name}: {unexplained}"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
