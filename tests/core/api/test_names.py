"""`import lmflow`: what it loads, what names it has, and what type checkers are told of them."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import lmflow

HEAVY = ("torch", "transformers", "pydantic", "pluggy", "typer", "yaml", "numpy", "rich", "importlib.metadata")
SOURCE = Path(lmflow.__file__)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_loads_nothing_else():
    """What time it takes is a benchmark; here, that there is nothing that could take any."""
    code = f"import sys; before = {{*sys.modules}}; import lmflow; print(*({{*sys.modules}} - before) & {{*{HEAVY!r}}})"
    assert python(code).split() == []
    loaded = python("import sys, lmflow; print(*(name for name in sys.modules if name.startswith('lmflow')))").split()
    assert sorted(loaded) == ["lmflow", "lmflow.run", "lmflow.versions"]


def test_asking_for_a_component_loads_no_torch():
    code = "import sys, lmflow; lmflow.Aligner, lmflow.hookimpl, lmflow.LmflowError, lmflow.load_plugins, lmflow.run"
    assert python(f"{code}; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("order", ["lmflow.run; import lmflow.run.run", "import lmflow.run.run"])
def test_run_is_the_function_whatever_else_is_imported(order: str):
    code = f"import lmflow; {order}; from lmflow.run.record import RunResult; print(lmflow.run.__module__)"
    assert python(code) == "lmflow.api.run\n"


def test_every_name_is_there_and_listed():
    for module, names in lmflow.NAMES.items():
        for name in names:
            assert getattr(lmflow, name) is getattr(sys.modules[module], name)
            assert name in dir(lmflow)
    assert {"INTERFACE_VERSION", "__version__"} <= {*dir(lmflow)}
    assert not {"annotations", "importlib", "TYPE_CHECKING", "NAMES"} & {*dir(lmflow)}


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lmflow' has no attribute 'rnu'"):
        lmflow.rnu  # noqa: B018
    assert not hasattr(lmflow, "generate_everything")


def test_type_checkers_are_told_the_same_names():
    [block] = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    told = {(each.module, alias.name, alias.asname) for each in block.body for alias in each.names}
    assert told == {(module, name, name) for module, names in lmflow.NAMES.items() for name in names}


def test_all_components_and_errors_are_among_them():
    from lmflow import components, errors

    assert {*components.__all__} == {*lmflow.NAMES["lmflow.components"]}
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name for name in classes if issubclass(getattr(errors, name), Exception)} == {
        *lmflow.NAMES["lmflow.errors"]
    }


SCRIPT = """
import lmflow


class Longest(lmflow.Reward):
    '''Prefer long answers.'''

    name = "longest"

    def score(self, samples: object, completions: object) -> list[float]:
        return []


def polite(prompts: list[str], completions: list[str], records: list[dict[str, object]]) -> list[float]:
    return [float(len(each)) for each in completions]


result = lmflow.run({"tuner": "lora"}, aligner="raft", reward=polite, components=[Longest, polite], output="out")
reveal_type(result)
reveal_type(result.metrics)
with lmflow.load_model(result, precision="fp32") as model:
    reveal_type(model)
    reveal_type(model.generate("a"))
    reveal_type(model.generate("a", n=2, temperature=0.5))
    reveal_type(model.generate(["a", "b"]))
    reveal_type(model.generate(["a", "b"], n=2))
    reveal_type(model.chat([{"role": "user", "content": "a"}]))
    reveal_type(model.chat("a", stream=True))
    reveal_type(lmflow.evaluate(model, "perplexity", data="text.txt"))
reveal_type(lmflow.load_plugins())
reveal_type(lmflow.__version__)
"""
UNREAD = ("torch", "transformers", "peft", "datasets", "numpy", "pyarrow", "accelerate", "safetensors", "rich", "yaml")
REVEALED = [
    "lmflow.run.record.RunResult",
    "typing.Mapping[str, Any]",
    "lmflow.api.model.LoadedModel",
    "lmflow.inference.types.Completion",
    "list[lmflow.inference.types.Completion]",
    "list[lmflow.inference.types.Completion]",
    "list[list[lmflow.inference.types.Completion]]",
    "str",
    "typing.Iterator[str]",
    "lmflow.components.evaluator.Evaluation",
    "lmflow.plugins.registry.Plugins",
    "str",
]


@pytest.mark.slow
def test_a_program_that_uses_it_is_checked_strictly(tmp_path: Path):
    """As in the program of a user, who has lmflow among the installed packages and no configuration of ours.

    Libraries that no type in it comes from are left unread: it takes a minute to go through them.
    """
    program, configuration = tmp_path / "program.py", tmp_path / "mypy.ini"
    program.write_text(SCRIPT)
    configuration.write_text(f"[mypy]\n[mypy-{','.join(f'{each}.*' for each in UNREAD)}]\nfollow_imports = skip\n")
    silent = ["--strict", f"--config-file={configuration}", f"--cache-dir={tmp_path / 'cache'}"]
    # In a process of its own, since what it has read of a program stays in memory.
    command = [sys.executable, "-m", "mypy", *silent, "--follow-imports=silent", "--ignore-missing-imports", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr
    lines = [line for line in done.stdout.splitlines() if "program.py" in line]
    revealed = [line.partition('Revealed type is "')[2].rstrip('"') for line in lines if "Revealed" in line]
    assert [line for line in lines if "error" in line] == [], done.stdout
    assert [each.replace("builtins.", "") for each in revealed] == REVEALED
