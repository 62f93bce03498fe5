"""What is said of a dialogue that a chat template does not write as it would have to be learnt."""

from __future__ import annotations

from lmflow.data.facts import Fact, alike, facts_of, quoted
from lmflow.data.sample import Sample
from lmflow.errors import DataError

HELP = {
    "the thought": "Choose one that keeps thoughts with --data.template (qwen3, deepseek_r1, …)",
    "the text": "Choose another with --data.template (chatml, …)",
}
"""What helps where a part of this kind is left out; for all others it is a template that has tools."""
BEFORE = 20
"""Characters that are shown in front of where two texts differ."""


def refused(sample: Sample, error: Exception) -> DataError:
    """The error for messages that a template does not take, or for a template that is not one."""
    from jinja2 import TemplateSyntaxError

    if isinstance(error, TemplateSyntaxError):
        return DataError(f"The chat template is not valid Jinja: line {error.lineno}: {error.message}")
    roles = ", ".join(turn.role for turn in sample.messages)
    return DataError(
        f"{sample.source}: the model's chat template cannot write this dialogue (turns of {roles}): {error}"
    )


def left_out(sample: Sample, what: str, help_with: str) -> DataError:
    """The error for a turn or a tool that is not in the text."""
    return DataError(
        f"{sample.source}: the model's chat template leaves out {what}. {help_with} with --data.template "
        "(qwen2_5, llama3_for_tool, …)."
    )


def lost(sample: Sample, index: int, fact: Fact) -> DataError:
    """The error for a part of answer `index` that is not in the text."""
    hint = HELP.get(fact.kind, "Choose one that has tools with --data.template (qwen2_5, llama3_for_tool, …)")
    beside = " beside its calls" if fact.kind == "the text" and sample.messages[index].tool_calls else ""
    return DataError(
        f"{sample.source}: the model's chat template leaves out {fact} of turn {index + 1}{beside}, which would not be "
        f"learnt. {hint}, or take it out of the data."
    )


def other_prompt(sample: Sample, index: int, text: str, prompt: str, template: str) -> DataError:
    """The error for answer `index`, which ends `text`, where that does not begin with its prompt."""
    same = alike(text, prompt)
    begin = max(0, same - BEFORE)
    asked, written = quoted(prompt[begin:]), quoted(text[begin : same + BEFORE])
    return DataError(
        f"{sample.source}: the model's chat template asks for answers with {asked} and writes that of turn {index + 1} "
        f"after {written}, so it would be learnt for another prompt than it is asked with. "
        f"{_how_to_match(sample, index, prompt[same:], template)}, or choose another template with --data.template."
    )


def _how_to_match(sample: Sample, index: int, asked: str, template: str) -> str:
    """What may make a template write answers after the prompt it asks with."""
    if "enable_thinking" in template:
        return "Try --data.template_arguments enable_thinking=false or =true"
    if any(fact.kind == "the thought" for fact in facts_of(sample.messages[index])):
        return "Leave thoughts out of the data"
    if "think" in asked.lower():
        return "Give each answer its thought"
    return "Mend what the template adds for add_generation_prompt"


def no_end(sample: Sample, index: int) -> DataError:
    """The error for answer `index` where nobody can say where it ends."""
    return DataError(
        f"{sample.source}: the model's chat template shows no clear place where the answer of turn {index + 1} ends. "
        "Choose one with --data.template, or mark answers in your own with {% generation %}."
    )
