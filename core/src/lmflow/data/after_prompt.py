"""Finished answers put after the prompt that they are asked with, where a template writes them after another one.

Models that think by default are asked with `<think>`; where they are not to think, with an empty thought. Templates
write a finished answer without either. Others (Mistral's) give the system's text to a last question alone, and it is
gone once that is answered. Such an answer would be learnt for a prompt that is never given. Here it is put after its
prompt: a thought that is open there is closed, which is what these models are trained on as answers without one; and
where prompt and answer share the heading that answers stand under, what follows that is what the model says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmflow.data.facts import alike

CLOSED = re.compile(
    r"\s*(<think>\s*</think>|<\|channel>thought\s*<channel\|>|<\|START_THINKING\|><\|END_THINKING\|>)\s*"
)
OPEN = re.compile(r"\s*<think>\s*")
ENDS_AT_ONCE = re.compile(r"\s*(<think>\s*)?</think>\s*")
CLOSING = "\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class AfterPrompt:
    """An answer put after its prompt.

    It and the template's own text are alike up to `same`, and in the last `tail` characters.
    """

    text: str
    prompt: int
    """Characters of the prompt."""
    same: int
    tail: int
    shift: int
    """How many characters longer the text is than the template's own."""

    def moved(self, place: int, own: int) -> int:
        """Where a place in the template's own text of `own` characters is now."""
        if place < self.same:
            return place
        return self.prompt if place <= own - self.tail else place + self.shift


def put_after_prompt(text: str, prompt: str) -> AfterPrompt | None:
    """The answer that ends `text`, after `prompt`; None where that begins `text`, or differs in more than a thought."""
    if text.startswith(prompt):
        return None
    same = _same(text, prompt)
    asked, said = prompt[same:], text[same:]
    ended = ENDS_AT_ONCE.match(said)
    if CLOSED.fullmatch(asked):
        kept = said[ended.end() :] if ended else said
        joined = prompt + kept
    elif OPEN.fullmatch(asked) or (ended and not asked.strip()):
        kept = said if ended else said.lstrip()
        joined = prompt + (said if ended else CLOSING.lstrip("\n" if prompt.endswith("\n\n") else "") + kept)
    else:
        return None
    return AfterPrompt(joined, len(prompt), same, len(kept), len(joined) - len(text))


def put_after_heading(text: str, prompt: str, special: re.Pattern[str], plain: str = "") -> AfterPrompt | None:
    """What is under the last heading of `text`, after `prompt`, which ends with the same heading; None if it does not.

    A heading is `plain`, where the prompt ends with that, or a special token with what follows it, such as
    `<|im_start|>assistant` and a newline.
    """
    begin = max((found.start() for found in special.finditer(prompt)), default=len(prompt))
    headings = [plain if prompt.endswith(plain) else "", prompt[begin:]]
    heading = next((each for each in headings if each.strip() and each in text), None)
    if heading is None or text.startswith(prompt):
        return None
    place = text.rfind(heading)
    said = text[place + len(heading) :]
    joined = prompt + said
    return AfterPrompt(joined, len(prompt), _same(text, prompt), len(said), len(joined) - len(text))


def _same(text: str, prompt: str) -> int:
    """How many characters both begin with, none of a mark that is not whole."""
    same = alike(text, prompt)
    mark = prompt.rfind("<", 0, same)
    return mark if mark >= 0 and ">" not in prompt[mark:same] else same
