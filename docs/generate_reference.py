"""Write docs/plugins/reference.md: hooks, components and what they are given, from the code alone.

    python docs/generate_reference.py

Signatures are those of the source, texts its docstrings, tables its fields. A test compares the file with what this
makes, so neither can change without the other.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from source_text import (
    TYPES,
    Source,
    attribute_table,
    described_class,
    described_function,
    described_value,
    docstring,
    fenced,
    first_line,
    markdown,
    one_line,
    table,
)

import lmflow
import lmflow.testing
from lmflow import cli, components, errors, hookspecs, plugins, versions
from lmflow.plugins import EVENTS, GROUP, SLOTS, Plugins, Slot, discovery, load_plugins
from lmflow.recipe.settings import RUN_SCOPE, TRACKERS, Scope

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "plugins" / "reference.md"
HEAD = """# Reference

Everything a plugin can offer, everything its components are given, and what examines them. Made from the code by
`make docs`.
"""
DECLARATIONS = ("Need", "Conflict", "Requirement", "Command")
CONTEXTS = (
    "RunContext",
    "AlignContext",
    "PlanContext",
    "EvaluateContext",
    "ExportContext",
    "LoadRequest",
    "Quantization",
    "GenerateRequest",
    "Log",
    "ParameterGroup",
    "Workload",
    "Head",
)
"""What calls of components are given, or give."""
OBJECTS = (
    "lmflow.data.sample:Message",
    "lmflow.data.sample:Sample",
    "lmflow.data.sample:Answer",
    "lmflow.data.sample:Dataset",
    "lmflow.data.sample:TokenSequence",
    "lmflow.models.language_model:LanguageModel",
    "lmflow.training.trainer:Trainer",
    "lmflow.training.setup:Setup",
    "lmflow.training.objective:Objective",
    "lmflow.training.objective:Loss",
    "lmflow.training.objective:NextToken",
    "lmflow.training.objective:FunctionObjective",
    "lmflow.data.sample:Item",
    "lmflow.recipe.sections.data:Reading",
    "lmflow.recipe.sections.data:DataOptions",
    "lmflow.recipe.sections.training:TrainingOptions",
    "lmflow.recipe.sections.launch:LaunchOptions",
    "lmflow.data.collate:Batch",
    "lmflow.data.lengths:LengthReport",
    "lmflow.run.log:RunLog",
    "lmflow.distributed.processes:Processes",
    "lmflow.inference.types:Sampling",
    "lmflow.data.sample:Prompt",
    "lmflow.inference.types:Completion",
    "lmflow.components.engine:Engine",
    "lmflow.components.engine:Update",
    "lmflow.components:Evaluation",
    "lmflow.recipe.recipe:Recipe",
    "lmflow.plugins:Plugins",
)
"""What hooks and components are given or return."""
PARTS = (
    "lmflow.data.collate:collate",
    "lmflow.data.collate:collate_packed",
    "lmflow.models.encoding:encode",
    "lmflow.models.encoding:encode_answered",
    "lmflow.models.encoding:prompts_with_room",
    "lmflow.models.pairs:Pair",
    "lmflow.models.pairs:encode_pairs",
    "lmflow.models.pairs:encode_answered_pairs",
    "lmflow.training.loss:negative_log_likelihood",
    "lmflow.training.loss:target_logits",
    "lmflow.training.loss:target_logprobs",
    "lmflow.training.loss:sums_by_sequence",
    "lmflow.training.loss:target_inputs",
    "lmflow.training.loss:sequence_inputs",
    "lmflow.training.loss:token_logprobs",
    "lmflow.training.loss:sequence_logprobs",
    "lmflow.training.loss:target_map",
    "lmflow.training.loss:target_states",
    "lmflow.training.heads:head_applied",
    "lmflow.training.heads:head_outputs",
    "lmflow.training.heads:last_positions",
    "lmflow.training.chunked_loss:chunked_map",
    "lmflow.training.distributions:entropy",
    "lmflow.training.distributions:kl_divergence",
    "lmflow.training.advantages:normalized_advantages",
    "lmflow.training.advantages:centered_advantages",
    "lmflow.training.advantages:leave_one_out_advantages",
    "lmflow.data.formats.fields:text_of",
    "lmflow.data.formats.fields:turns_of",
    "lmflow.data.formats.fields:bad",
    "lmflow.inference.rewards:score_completions",
    "lmflow.inference.rewards:score_on_rank0",
    "lmflow.inference.rewards:score_groups",
    "lmflow.inference.rollouts:completion_sequence",
    "lmflow.inference.shard:generate_sharded",
    "lmflow.inference.decoder:eval_mode",
    "lmflow.inference.decoder:concatenate_inputs",
    "lmflow.inference.hf:HuggingFace",
    "lmflow.inference.engine:PassInferencer",
    "lmflow.inference.batching:PassEngine",
    "lmflow.inference.batching:finish",
    "lmflow.inference.generate:completion_budgets",
    "lmflow.inference.generate:SamplingRules",
    "lmflow.inference.generate:check_finite",
    "lmflow.inference.sampling:filtered_logprobs",
    "lmflow.inference.sampling:sample",
    "lmflow.inference.sampling:sample_scored",
    "lmflow.inference.sampling:stream_key",
    "lmflow.inference.sampling:uniforms",
    "lmflow.inference.text_stream:TextStream",
    "lmflow.inference.prompts:Framing",
    "lmflow.inference.prompts:prompt_sample",
    "lmflow.inference.prompts:complete",
    "lmflow.plugins:load_plugins",
    "lmflow.recipe.resolve:model_from_reference",
    "lmflow.models.load:load_for_inference",
    "lmflow.models.pretrained:Pretrained",
    "lmflow.models.pretrained:assemble",
    "lmflow.models.pretrained:explained_attention",
    "lmflow.run.run:run",
    "lmflow.testing.contexts:quiet_log",
    "lmflow.testing.contexts:evaluate_context",
)
"""What the core's own components are made of, and others may be."""
BY_ARGUMENT = {"exporter": "export NAME"}
"""Commands that name the component of a slot by an argument, where no option does."""

RUNS = (
    "RECORDS",
    "write_records",
    "plugins_with",
    "resolve_settings",
    "stored_recipe",
    "prepare",
    "Prepared",
    "interrupt",
    "metrics_lines",
)
"""Of lmflow.testing.runs, what tests of a plugin's own begin runs with."""

Entry = tuple[str, str]
"""A heading, and the Markdown below it."""


def render() -> str:
    """The whole page."""
    installed = first_party_plugins()
    sections: Mapping[str, tuple[str, list[Entry]]] = {
        "Hooks": (hooks_overview(), list(hooks(installed))),
        "Components": (docstring_of(components), [imported(f"lmflow.components:{each}") for each in component_names()]),
        "Declarations": ("", [imported(f"lmflow.components:{name}") for name in DECLARATIONS]),
        "Contexts": ("", [imported(f"lmflow.components:{name}") for name in CONTEXTS]),
        "What components are given and return": ("", [imported(each) for each in OBJECTS]),
        "Parts to build on": ("", [imported(each) for each in PARTS]),
        "Errors": (error_table(), []),
        "Versions and switches": (switches(), []),
        "Conformance suites": (docstring_of(lmflow.testing), [*suites(), *small_models(), *for_tests()]),
    }
    body = "\n\n".join(section(title, *content) for title, content in sections.items()) + "\n"
    return formatted(f"{HEAD}\n{contents(sections)}\n{linked(body)}")


def section(title: str, text: str, entries: Iterable[Entry]) -> str:
    """A heading, what is said below it, and its entries."""
    parts = [f"## {title}", text, *(f"### {name}\n\n{text}" for name, text in entries)]
    return "\n\n".join(part for part in parts if part)


def formatted(page: str) -> str:
    """The page with its Python laid out as `make lint` wants it."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(PAGE), "-"]
    return subprocess.run(command, input=page, capture_output=True, encoding="utf-8", check=True, cwd=ROOT).stdout


def contents(sections: Mapping[str, tuple[str, list[Entry]]]) -> str:
    """A link to every section and every heading in it."""
    lines = []
    for title, (_, entries) in sections.items():
        links = ", ".join(link(name) for name, _ in entries)
        lines.append(f"- {link(title)}" + (f": {links}" if links else ""))
    return "\n".join(lines) + "\n"


def link(title: str) -> str:
    """A link to a heading of this page."""
    return f"[{title}](#{re.sub(r'[^a-z0-9_ -]', '', title.lower()).replace(' ', '-')})"


def linked(body: str) -> str:
    """Links for those of a signature's types that have a heading."""
    titles = re.findall(r"^### (\w+)$", body, flags=re.MULTILINE)

    def with_links(found: re.Match[str]) -> str:
        links = ", ".join(link(word) for word in found[1].split() if word in titles)
        return f"\n{TYPES}{links}.\n" if links else ""

    return re.sub(rf"^\n{TYPES}(.*)\n", with_links, body, flags=re.MULTILINE)


# What is installed


def first_party_plugins() -> Plugins:
    """The plugins of this repository alone. Raises SystemExit where one is not installed."""
    folders = [ROOT / "core", *ROOT.glob("plugins/*"), *ROOT.glob("lmflow_plugins_*")]
    files = [folder / "pyproject.toml" for folder in folders if (folder / "pyproject.toml").is_file()]
    names = {tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"] for file in files}
    points = [point for point in entry_points(group=GROUP) if point.dist and point.dist.name in names]
    found = load_plugins(points, disabled=())
    missing = names - {plugin.distribution for plugin in found.loaded}
    if missing:
        raise SystemExit(f"not installed, or broken: {', '.join(sorted(missing))}; run make setup, then lmflow plugins")
    return found


def offered(installed: Plugins, slot: str) -> str:
    """The components of a slot, with the distributions that offer them."""
    by_home: dict[str, list[str]] = {}
    for name, offers in installed.offers(slot).items():
        by_home.setdefault(offers[0].distribution, []).append(f"`{name}`")
    return "; ".join(f"{', '.join(names)} ({home})" for home, names in by_home.items())


def scopes() -> Iterator[Scope]:
    """What each command that takes components can set."""
    yield RUN_SCOPE
    for module in pkgutil.iter_modules(cli.__path__, "lmflow.cli."):
        scope = getattr(importlib.import_module(module.name), "SCOPE", None)
        if isinstance(scope, Scope):
            yield scope


def chosen_with(slot: Slot) -> str:
    """The option that chooses a slot's components, and the commands that have it."""
    if slot.base is components.Exporter:
        return "`lmflow export NAME`"
    several = slot.base is components.Tracker
    commands = [each.command for each in scopes() if (each.trackers if several else slot.name in each.slots)]
    option = f"--{TRACKERS} NAME,…" if several else f"--{slot.name} NAME"
    return f"`{option}` ({', '.join(commands)})" if commands else f"`lmflow {BY_ARGUMENT[slot.name]}`"


# Hooks


def hooks_overview() -> str:
    """What a plugin is, and every offer in a row."""
    rows = [
        (link(slot.hook), link(slot.base.__name__), chosen_with(slot), first_line(Source.of(slot.base).node))
        for slot in SLOTS.values()
    ]
    head = ("hook", "offers", "chosen with", "what it is")
    return f"{docstring_of(hookspecs)}\n\n{fenced('from lmflow.hookspecs import hookimpl')}\n\n{table(head, rows)}"


def hooks(installed: Plugins) -> Iterator[Entry]:
    """Every hook, in the order of hookspecs.py."""
    by_hook = {slot.hook: slot for slot in SLOTS.values()}
    for node in Source.of(hookspecs).functions():
        text = described_function(getattr(hookspecs, node.name))
        if node.name in by_hook:
            slot = by_hook[node.name]
            text = text.partition(f"\n\n{TYPES}")[0]  # the line below says it
            who = offered(installed, slot.name) or "none"
            text += f"\n\nAn offer, of {link(slot.base.__name__)}, chosen with {chosen_with(slot)}. Our own: {who}."
        elif node.name in EVENTS:
            text += f"\n\nAn event. Our own listeners: {', '.join(listeners(installed, node.name)) or 'none'}."
        else:
            offers = ", ".join(f"`{command.name}` ({home})" for command, home in installed.commands)
            text += f"\n\nAn offer, of {link('Command')}. Our own: {offers or 'none'}."
        yield node.name, text


def listeners(installed: Plugins, event: str) -> Iterator[str]:
    """The trackers and plugins that listen to an event."""
    for name, offers in installed.offers("tracker").items():
        if hasattr(offers[0].component, event):
            yield f"tracker `{name}` ({offers[0].distribution})"
    for implementation in getattr(installed.manager.hook, event).get_hookimpls():
        yield implementation.plugin_name.partition(":")[0]


# Classes and functions


def component_names() -> list[str]:
    """The common class, then that of each slot."""
    return ["Component", *(slot.base.__name__ for slot in SLOTS.values())]


def imported(reference: str) -> Entry:
    """A class or function by `module:name`: how to import it, where it comes from, what it does."""
    module, _, name = reference.partition(":")
    thing = getattr(importlib.import_module(module), name)
    how = f"`from {module} import {name}`"
    if inspect.isfunction(thing):
        return name, f"{how}\n\n{described_function(thing)}"
    if not inspect.isclass(thing):
        return name, f"{how}\n\n{described_value(importlib.import_module(module), name)}"
    parents = [parent.__name__ for parent in thing.__bases__ if parent.__module__.startswith("lmflow")]
    derived = f", derived from {', '.join(link(parent) for parent in parents)}" if parents else ""
    hook = next((slot.hook for slot in SLOTS.values() if slot.base is thing), None)
    offered_by = f"; offered by {link(hook)}" if hook else ""
    return name, f"{how}{derived}{offered_by}\n\n{described_class(thing)}"


def docstring_of(module: Any) -> str:
    """What a module says of itself."""
    return markdown(inspect.getdoc(module) or "")


def error_table() -> str:
    """Every error with its exit code."""
    kinds = [each for each in vars(errors).values() if inspect.isclass(each) and each.__module__ == errors.__name__]
    rows = [(f"`{kind.__name__}`", exit_code(kind), one_line(inspect.getdoc(kind) or "")) for kind in kinds]
    return f"All are in `lmflow.errors`.\n\n{table(('error', 'exit code', 'meaning'), rows)}"


def exit_code(kind: type[Any]) -> str:
    """What the command exits with; that of an interruption depends on the signal."""
    return "128 + signal" if kind is errors.Interrupted else str(kind.exit_code)


def switches() -> str:
    """The version of the interface, how a plugin declares it, and how a plugin is left out."""
    version = lmflow.INTERFACE_VERSION
    said = Source.of(versions).names()["INTERFACE_VERSION"]
    rows = [
        ("`LMFLOW_INTERFACE`", "in a plugin's module", one_line(inspect.getdoc(discovery.declared_interface) or "")),
        (f"`{plugins.DISABLE}`", "in the environment", one_line(inspect.getdoc(plugins.disabled_by_environment) or "")),
    ]
    text = f"`lmflow.INTERFACE_VERSION` is {version}. {one_line(said)}"
    return f"{text}\n\n{table(('name', 'where', 'what it holds'), rows)}"


# Conformance


def suites() -> Iterator[Entry]:
    """Every suite that is not only another's base."""
    found = list(suite_classes())
    last = [suite for suite in found if not any(suite in other.__bases__ for other in found)]
    order = [f"{slot.base.__name__}Suite" for slot in SLOTS.values()]
    for suite in sorted(last, key=lambda each: order.index(each.__name__) if each.__name__ in order else len(order)):
        yield suite.__name__, suite_text(suite)


def suite_classes() -> Iterator[type]:
    """The classes of lmflow.testing that hold checks, in the order of their modules."""
    for name in sorted(module.name for module in pkgutil.iter_modules(lmflow.testing.__path__, "lmflow.testing.")):
        module = importlib.import_module(name)
        own = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == name]
        yield from (each for each in own if any(member.startswith("test_") for member in dir(each)))


def suite_text(suite: type) -> str:
    """What a suite's author supplies, what can be changed, and every check."""
    sources = [Source.of(each) for each in suite.__mro__[:-1]]
    functions = own_functions(sources)
    fixtures = [node for node in functions if any("fixture" in ast.unparse(each) for each in node.decorator_list)]
    attributes = {each.name: each for source in reversed(sources) for each in source.attributes()}
    checks = [node for node in functions if node.name.startswith("test_")]
    home = "lmflow.testing" if hasattr(lmflow.testing, suite.__name__) else suite.__module__
    parts = [f"`from {home} import {suite.__name__}`", docstring(sources[0].node)]
    rows = [(f"`{each.name}`", "you" if is_missing(each) else "the suite", first_line(each)) for each in fixtures]
    parts.append(table(("fixture", "supplied by", "what it is"), sorted(rows, key=lambda row: row[1] != "you")))
    if attributes:
        parts.append(attribute_table("class attribute", attributes.values()))
    parts.append(table(("check", "what it requires"), [(f"`{node.name}`", first_line(node)) for node in checks]))
    return "\n\n".join(parts)


def own_functions(sources: Iterable[Source]) -> list[ast.FunctionDef]:
    """The functions of a class and its bases by name, the nearest of each."""
    found: dict[str, ast.FunctionDef] = {}
    for source in sources:
        for node in source.functions():
            found.setdefault(node.name, node)
    return list(found.values())


def is_missing(fixture: ast.FunctionDef) -> bool:
    """Whether a fixture only fails: its suite's author must write it."""
    return not any(isinstance(node, ast.Return | ast.Yield) for node in ast.walk(fixture))


def small_models() -> Iterator[Entry]:
    """The functions that make models from code."""
    module = importlib.import_module("lmflow.testing.tiny")
    for node in Source.of(module).functions():
        yield imported(f"lmflow.testing.tiny:{node.name}")


def for_tests() -> Iterator[Entry]:
    """What tests of a plugin's own take beside the suites: whole runs, and what a component is given in a call."""
    yield from (imported(f"lmflow.testing.runs:{name}") for name in RUNS)
    module = importlib.import_module("lmflow.testing.contexts")
    for node in Source.of(module).functions():
        yield imported(f"lmflow.testing.contexts:{node.name}")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
