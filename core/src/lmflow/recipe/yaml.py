"""Reading a recipe file, keeping the line of every value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lmflow.errors import RecipeError
from lmflow.recipe.settings import OPTIONS_ONLY, SOURCES, STAGES, TRACKERS, Origin, Setting
from lmflow.recipe.stage_names import faulty_name

MERGE = "tag:yaml.org,2002:merge"
INTEGER = "tag:yaml.org,2002:int"
MAX_BYTES = 10_000_000
"""Of a recipe file; those of people have a few thousand."""
MAX_VALUES = 100_000
"""Values of a recipe, each as often as an alias repeats it."""


class Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: `1e-4` is a number, `010` is ten; `on`, `off`, `yes`, `no` and `1:30` are text."""

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """The number, of base ten but after `0o` and `0x`."""
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_constructor(INTEGER, Loader.construct_integer)
Loader.add_implicit_resolver(INTEGER, re.compile(r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


class Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else: `on` as well as `1e5`."""


Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, ()), *Loader.yaml_implicit_resolvers.get(first, ())]
    for first in {**yaml.SafeDumper.yaml_implicit_resolvers, **Loader.yaml_implicit_resolvers}
}


def write(sections: Mapping[str, Any]) -> str:
    """Sections as the text of a recipe file, which reads as the same."""
    return yaml.dump(sections, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def read_settings(file: Path, problems: list[str]) -> Iterator[Setting]:
    """Every value of the recipe with its place; mistakes of form are added to `problems`.

    A section is a component's name, or a mapping with `name` and its options; `trackers` is names, or a mapping from
    names to options; `stages` holds named recipes, whose values have paths that begin with "stages.NAME", which is also
    a setting by itself. Raises RecipeError for a file that cannot be read as YAML at all.
    """
    root = _compose(file)
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError([f"{file}:1: expected sections such as `tuner: lora`, found something else"])
    try:
        yield from _sections(root, file, problems)
    except yaml.MarkedYAMLError as error:  # a tag that stands for no plain value, or a node that holds itself
        mark = error.problem_mark or root.start_mark
        raise RecipeError([f"{file}:{mark.line + 1}: {error.problem}"]) from error


def _sections(root: yaml.MappingNode, file: Path, problems: list[str]) -> Iterator[Setting]:
    """The values of all sections of a recipe."""
    for section, node, line in _entries(root, file, problems):
        if section == STAGES:
            yield from _stages(node, line, file, problems)
        elif section == TRACKERS and isinstance(node, yaml.MappingNode):
            names = [str(key.value) for key, _ in _with_merged(node, file)]
            yield Setting(f"{section}.name", names, Origin("file", f"{file}:{line}"))
            for name, options, at in _entries(node, file, problems, f"{section}."):
                yield from _section(f"{section}.{name}", options, at, file, problems)
        elif isinstance(node, yaml.MappingNode) or section in (*OPTIONS_ONLY, SOURCES):
            yield from _section(section, node, line, file, problems)
        else:
            yield Setting(f"{section}.name", _construct(node), Origin("file", f"{file}:{line}"))


def _stages(node: yaml.Node, line: int, file: Path, problems: list[str]) -> Iterator[Setting]:
    """The values of every stage, below its name."""
    known = len(problems)
    found = list(_named_stages(node, file, problems))
    if not found and len(problems) == known:
        problems.append(f"{file}:{line}: {STAGES}: expected stages by name, each a recipe; there is none")
    for name, sections, at in found:
        if fault := faulty_name(name):
            problems.append(f"{file}:{at}: {STAGES}: {fault}")
            continue
        start = f"{STAGES}.{name}"
        yield Setting(start, None, Origin("file", f"{file}:{at}"))
        if isinstance(sections, yaml.MappingNode):
            inner = _sections(sections, file, problems)
            yield from (replace(setting, path=f"{start}.{setting.path}") for setting in inner)
        elif _construct(sections) is not None:
            problems.append(f"{file}:{at}: {start}: expected sections such as `tuner: lora`")


def _named_stages(node: yaml.Node, file: Path, problems: list[str]) -> Iterator[tuple[str, yaml.Node, int]]:
    """Names, sections and lines of the stages of a mapping, or of a list whose items have a `name`."""
    if isinstance(node, yaml.MappingNode):
        yield from _entries(node, file, problems, f"{STAGES}.")
    seen: dict[str, int] = {}
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        line = item.start_mark.line + 1
        entries = list(_with_merged(item, file)) if isinstance(item, yaml.MappingNode) else []
        name = next((str(value.value) for key, value in entries if key.value == "name"), None)
        if name is None:
            problems.append(f"{file}:{line}: {STAGES}: each stage of a list needs a name, as in `- name: sft`")
        elif name in seen:
            problems.append(f"{file}:{line}: {STAGES}.{name}: given twice (first in line {seen[name]})")
        else:
            seen[name] = line
            rest = [(key, value) for key, value in entries if key.value != "name"]
            yield name, yaml.MappingNode(item.tag, rest, item.start_mark, item.end_mark), line


def _section(section: str, node: yaml.Node, line: int, file: Path, problems: list[str]) -> Iterator[Setting]:
    """The options in a section; a null has none, anything but a mapping is a problem."""
    if isinstance(node, yaml.MappingNode):
        for key, value, at in _entries(node, file, problems, f"{section}."):
            yield Setting(f"{section}.{key}", _construct(value), Origin("file", f"{file}:{at}"))
    elif _construct(node) is not None:
        problems.append(f"{file}:{line}: {section}: expected options, one per line")


def _compose(file: Path) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(_read(file), Loader=Loader)
        values = 0 if node is None else _values(node, {})
    except RecursionError:
        raise RecipeError([f"{file}: values inside values, too deep to read"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError([f"{file}:{line}: not valid YAML: {error.problem}"]) from None
    except yaml.YAMLError as error:
        raise RecipeError([f"{file}: not valid YAML: {error}"]) from None
    if values > MAX_VALUES:
        most = f"at most {MAX_VALUES:,} are read"
        raise RecipeError([f"{file}: {values:,} values, most of them by aliases (`*name`); {most}"])
    return node


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecipeError([f"{file}: more than {MAX_BYTES // 1_000_000} MB, which no recipe has"])
        return content.decode("utf-8")
    except FileNotFoundError:
        raise RecipeError([f"{file}: there is no such recipe file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"{file}: cannot be read: {error}"]) from None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values are in a node, itself included; one that holds itself is counted once."""
    if id(node) not in known:
        known[id(node)] = 1
        inside = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (part for item in inside for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def _entries(
    node: yaml.MappingNode, file: Path, problems: list[str], prefix: str = ""
) -> Iterator[tuple[str, yaml.Node, int]]:
    """Keys, values and 1-based lines of a mapping, merged ones last; a key given twice is a problem."""
    seen: dict[str, int] = {}
    for key_node, value in _with_merged(node, file):
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in seen:
            problems.append(f"{file}:{line}: {prefix}{key}: given twice (first in line {seen[key]})")
            continue
        seen[key] = line
        yield key, value, line


def _with_merged(
    node: yaml.MappingNode, file: Path, within: Sequence[yaml.Node] = ()
) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Keys and values of a mapping; those of the mappings that `<<` names only where it has no such key itself."""
    own = [(key, value) for key, value in node.value if key.tag != MERGE]
    yield from own
    seen = {key.value for key, _ in own}
    for key_node, merged in node.value:
        if key_node.tag != MERGE:
            continue
        for source in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
            if not isinstance(source, yaml.MappingNode) or source in (node, *within):
                line = source.start_mark.line + 1
                raise RecipeError([f"{file}:{line}: <<: expected sections or options to take over, as in `<<: *name`"])
            for key, value in _with_merged(source, file, [node, *within]):
                if key.value not in seen:
                    seen.add(key.value)
                    yield key, value


def _construct(node: yaml.Node) -> Any:
    constructor = Loader("")
    try:
        return constructor.construct_object(node, deep=True)
    finally:
        constructor.dispose()
