"""Classes and functions as Markdown: their signatures as the source has them, docstrings, and tables of fields."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from types import ModuleType
from typing import Any

SHOWN = re.compile(r"(abstractmethod|classmethod|staticmethod|property|cached_property|contextmanager)$")
"""Decorators that say how something is called, or that it has to be written."""
TYPES = "Types: "
"""Begins the line of a signature's types."""
LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "pattern": "matches"}
Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Attribute:
    """A field or class variable as the source has it; `default` is None where a value must be given."""

    name: str
    type: str
    default: str | None
    text: str

    @property
    def of_class(self) -> bool:
        """Whether it belongs to the class, not to each of its instances."""
        return self.type.startswith("ClassVar")


@dataclass(frozen=True)
class Source:
    """The text of a class, function or module, and what it parses to."""

    text: str
    body: Sequence[ast.stmt]
    node: ast.AST

    @classmethod
    def of(cls, owner: type | Callable[..., Any] | ModuleType) -> Source:
        """Read it."""
        text = textwrap.dedent(inspect.getsource(owner))
        module = ast.parse(text)
        if inspect.ismodule(owner):
            return cls(text, module.body, module)
        [node] = module.body
        assert isinstance(node, Definition)
        return cls(text, node.body, node)

    def segment(self, node: ast.AST) -> str:
        """The text of a part, on one line."""
        return " ".join((ast.get_source_segment(self.text, node) or "").split())

    def attributes(self) -> Iterator[Attribute]:
        """Its public annotated names, each with the string that follows it or the description of its field."""
        for node, following in zip_longest(self.body, self.body[1:]):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_":
                default, said = self._value(node.value)
                kind = self.segment(node.annotation)
                yield Attribute(node.target.id, kind, default, string_of(following) or said)

    def names(self) -> dict[str, str]:
        """What is said below each assignment, by name."""
        pairs = zip(self.body, self.body[1:])
        return {
            ast.unparse(target): said
            for node, following in pairs
            if isinstance(node, ast.Assign | ast.AnnAssign) and (said := string_of(following))
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        }

    def functions(self) -> Iterator[ast.FunctionDef]:
        """Its functions in order, private ones left out."""
        return (node for node in self.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_")

    def signature(self, node: ast.FunctionDef) -> str:
        """From the decorators worth showing to the colon, as the source is laid out."""
        lines = self.text.splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
        decorators = [ast.unparse(each) for each in node.decorator_list]
        shown = [f"@{name}" for name in decorators if SHOWN.search(name)]
        return "\n".join([*shown, *textwrap.dedent("\n".join(lines)).splitlines()]) + " ..."

    def instance_attributes(self) -> Iterator[str]:
        """What `__init__` assigns to public names of the instance, with the types it tells."""
        made = next((n for n in self.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if made is None:
            return
        given = {each.arg: each.annotation for each in [*made.args.args, *made.args.kwonlyargs]}
        for node in made.body:
            kind: ast.expr | None = None
            match node:
                case ast.AnnAssign(ast.Attribute(attr=name), kind):
                    pass
                case ast.Assign([ast.Attribute(attr=name)], ast.Name(argument)):
                    kind = given.get(argument)
                case ast.Assign([ast.Attribute(attr=name)]):
                    pass
                case _:
                    continue
            if name[0] != "_":
                yield f"`{name}: {self.segment(kind)}`" if kind else f"`{name}`"

    def _value(self, value: ast.expr | None) -> tuple[str | None, str]:
        """A default as text (None: there is none), and the description beside it."""
        if not (isinstance(value, ast.Call) and ast.unparse(value.func) in ("Field", "field")):
            return (None if value is None else self.segment(value)), ""
        given = {word.arg: word.value for word in value.keywords}
        default = value.args[0] if value.args else given.get("default")
        factory = given.get("default_factory")
        text = self.segment(default) if default else None
        if isinstance(factory, ast.Name):
            text = {"dict": "{}", "list": "[]", "tuple": "()"}.get(factory.id, f"{factory.id}()")
        limits = [f"{LIMITS[name]} {self.segment(given[name])}" for name in LIMITS if name in given]
        said = str(ast.literal_eval(given["description"])) if "description" in given else ""
        return text, " ".join([said, f"({', '.join(limits)})" if limits else ""]).strip()


def string_of(node: ast.stmt | None) -> str:
    """The text of a statement that is only a string; empty for any other."""
    match node:
        case ast.Expr(ast.Constant(str(text))):
            return inspect.cleandoc(text)
    return ""


def described_class(owner: type) -> str:
    """What a class is for, what it holds, and what its methods do."""
    source = Source.of(owner)
    attributes = list(source.attributes())
    parts = [docstring(source.node)]
    for title, of_class in (("class variable", True), ("field", False)):
        chosen = [each for each in attributes if each.of_class is of_class]
        if any(each.text for each in chosen):
            parts.append(attribute_table(title, chosen))
        elif chosen:
            parts.append(declared(owner, chosen))
    if told := list(source.instance_attributes()):
        parts.append(f"Attributes: {', '.join(told)}.")
    parts += [
        f"#### {owner.__name__}.{node.name}\n\n{called(source.signature(node), node)}" for node in source.functions()
    ]
    return "\n\n".join(part.strip() for part in parts if part)


def described_function(function: Callable[..., Any]) -> str:
    """A function's signature and docstring."""
    source = Source.of(inspect.unwrap(function))
    assert isinstance(source.node, ast.FunctionDef)
    return called(source.signature(source.node), source.node)


def described_value(module: ModuleType, name: str) -> str:
    """A constant of a module: how it is assigned, and what is said below."""
    source = Source.of(module)
    [node] = [each for each in source.body if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == name]
    return f"{fenced(source.segment(node))}\n\n{source.names().get(name, '')}"


def called(signature: str, node: ast.AST) -> str:
    """A signature, the docstring, and on a line of its own the names of types to be linked."""
    types = " ".join(dict.fromkeys(re.findall(r"\b[A-Z]\w+", signature)))
    return f"{fenced(signature)}\n\n{docstring(node)}" + (f"\n\n{TYPES}{types}" if types else "")


def declared(owner: type, attributes: Iterable[Attribute]) -> str:
    """Fields that need no explanation of their own, as the class has them."""
    ends = ((each, "" if each.default is None else f" = {each.default}") for each in attributes)
    lines = [f"    {each.name}: {each.type}{end}" for each, end in ends]
    return fenced("\n".join([f"class {owner.__name__}:", *lines]))


def attribute_table(title: str, attributes: Iterable[Attribute]) -> str:
    """Name, type, default and meaning of each."""
    kinds = ((each, re.sub(r"^ClassVar\[(.*)\]$", r"\1", each.type)) for each in attributes)
    rows = [(code(each.name), code(kind), code(each.default), one_line(each.text)) for each, kind in kinds]
    return table((title, "type", "default", "what it is"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar within a cell is escaped."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |".replace("  ", " ") for cells in lines)


def code(text: str | None) -> str:
    """In the type of code; nothing for None."""
    return "" if text is None else f"`{text}`"


def fenced(text: str) -> str:
    """A block of Python."""
    return f"```python\n{text}\n```"


def one_line(text: str) -> str:
    """Text that fits into a cell."""
    return " ".join(text.split())


def first_line(node: ast.AST) -> str:
    """The first paragraph of a docstring, on one line."""
    return docstring(node).partition("\n\n")[0].replace("\n", " ")


def docstring(node: ast.AST) -> str:
    """A docstring as Markdown: examples that it indents become blocks of Python."""
    assert isinstance(node, Definition | ast.Module)
    return markdown(ast.get_docstring(node) or "")


def markdown(text: str) -> str:
    """Text of a docstring, its indented examples as blocks."""
    example = re.compile(r"(?:^ {4}.*\n?(?:\n(?= {4}))*)+", flags=re.MULTILINE)
    return example.sub(lambda found: fenced(textwrap.dedent(found[0]).strip("\n")) + "\n", text).strip()
