"""Chat templates by name: each model's public format, with the answers marked.

A preset writes all that it is given, each part in its place, or raises. It leaves out nothing but the thoughts of
earlier answers, where the model is given none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from lmflow.errors import RecipeError

CHATML = "chatml"
HELPFUL = "You are a helpful assistant."
QWQ = "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should think step-by-step."
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
NO_ARGUMENTS: Mapping[str, Any] = {}
PRESETS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "chatglm3": ("chatglm3", {}),
    "chatml": (CHATML, {}),
    "deepseek": ("deepseek", {}),
    "deepseek_v2": ("deepseek", {}),
    "deepseek_v3": ("deepseek_v3", {"thinking": ""}),
    "deepseek_r1": ("deepseek_v3", {"thinking": "open"}),
    "deepseek_r1_distill": ("deepseek_v3", {"thinking": "open"}),
    "gemma": ("gemma", {"system": "refuse"}),
    "gemma3": ("gemma", {"system": "before"}),
    "hymba": ("hymba", {}),
    "internlm2": (CHATML, {"start": "bos"}),
    "llama2": ("llama2", {}),
    "llama3": ("llama3", {}),
    "llama3_for_tool": ("llama3_for_tool", {}),
    "phi3": ("phi3", {}),
    "qwen2": (CHATML, {"system": HELPFUL}),
    "qwen2_for_tool": ("qwen2_for_tool", {}),
    "qwen2_5": ("qwen2_5", {"system": QWEN}),
    "qwen2_5_1m": ("qwen2_5", {"system": HELPFUL}),
    "qwen2_5_math": (
        "qwen2_5",
        {"system": "Please reason step by step, and put your final answer within \\boxed{}."},
    ),
    "qwen_qwq": ("qwen2_5", {"system": QWQ}),
    "qwen3": ("qwen3", {}),
    "yi": (CHATML, {}),
    "yi1_5": ("yi1_5", {}),
    "zephyr": ("zephyr", {}),
    "empty": ("empty", {}),
    "disable": ("empty", {}),
    "empty_no_special_tokens": ("empty_no_special_tokens", {}),
}
"""Each name's file beside this one, and what is set at its beginning."""

REFUSALS: Mapping[str, tuple[str, str]] = {
    "tools": ("tools", "the format {name} has no place for tools: qwen2_5, qwen3 and llama3_for_tool have"),
    "tool_calls": (
        "messages | selectattr('tool_calls') | list",
        "the format {name} has no place for calls of tools: qwen2_5, qwen3 and llama3_for_tool have",
    ),
    "thoughts_of": (
        "messages | selectattr('reasoning_content') | list or messages | selectattr('thinking') | list",
        "the format {name} has no place for thoughts beside an answer: qwen3 and deepseek_r1 have",
    ),
}
"""What a format that never reads a name is not given: when it would be, and what is said."""


def chat_template(name: str) -> str:
    """The Jinja text of a preset or of a file. Raises RecipeError where there is neither, or the file is no text."""
    if name in PRESETS:
        return _preset(name)
    path = Path(name).expanduser()
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError([f"data.template: {name} cannot be read: {error}"]) from error
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; templates by name are {', '.join(PRESETS)}"
    raise RecipeError([f"data.template: {name} is neither a file nor a template by name{hint}"])


def _preset(name: str) -> str:
    """The preset's file, behind its values, the refusal of what it does not read, and what it reads thoughts with."""
    file, values = PRESETS[name]
    text = _text(file)
    given = "".join(f"{{%- set preset_{key} = {value!r} %}}" for key, value in values.items())
    given += "".join(_refusal(name, *REFUSALS[each]) for each in REFUSALS if not re.search(rf"\b{each}\b", text))
    return given + (_text("thoughts") if "thoughts_of(" in text else "") + text


def _text(file: str) -> str:
    return files(__name__).joinpath(f"{file}.jinja").read_text(encoding="utf-8").rstrip("\n")


def _refusal(name: str, condition: str, reason: str) -> str:
    return f"{{%- if {condition} %}}{{{{- raise_exception({reason.format(name=name)!r}) }}}}{{%- endif %}}"


def use_template(tokenizer: Any, name: str | None, arguments: Mapping[str, Any] = NO_ARGUMENTS) -> None:
    """Give the tokenizer the template of that name; None leaves it its own.

    `arguments` are what the template is called with where it is called without: they become a part of it, so that a
    model is served as it was trained. Raises RecipeError for one that no template could take.
    """
    if name is not None:
        tokenizer.chat_template = chat_template(name)
    if arguments:
        tokenizer.chat_template = with_arguments(tokenizer.chat_template, arguments)


def with_arguments(template: Any, arguments: Mapping[str, Any]) -> Any:
    """The template, or each of several by name, with values for what it is called without."""
    if not isinstance(template, str):
        return {name: with_arguments(each, arguments) for name, each in template.items()}
    for name in arguments:
        if not name.isidentifier():
            raise RecipeError([f"data.template_arguments: {name} is no name that a template could use"])
        if name not in template:
            raise RecipeError([f"data.template_arguments: the chat template does not use {name}"])
    given = "".join(
        f"{{%- set {name} = {name} if {name} is defined else {value!r} %}}" for name, value in arguments.items()
    )
    return given + template
