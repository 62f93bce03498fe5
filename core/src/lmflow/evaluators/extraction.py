"""Finding the answer in what a model says: a number, a choice, yes or no, or a short text.

The kinds and their names are those of LMFlow's evaluator. Its rules took the last thing that looked like an answer,
anywhere: a letter of any word was a choice, "no" in "no evidence" a verdict. Here what an explicit phrase announces
("The answer is", "####", a box) counts first, and what stands alone after that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

CUE = re.compile(
    r"####|\\boxed|"
    r"\b(?:the\s+)?(?:final\s+|correct\s+|best\s+|right\s+)?(?:answer|output|result)\b(?:\s+(?:choice|option))?"
    r"\s*(?:\*\*)?\s*(?:is|:|=)(?:\s*:)?",
    re.IGNORECASE,
)
"""What announces an answer."""

CHOICE_CUE = re.compile(r"\b(?:choose|choice|option|select|pick|go with)\b\s*(?:is|:)?", re.IGNORECASE)
NUMBER = re.compile(
    r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][+-]?\d+)?(?:\s*/\s*\d+)?(?!\w)"
)
FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
VERDICT = re.compile(r"\b(yes|no|maybe)\b", re.IGNORECASE)


def last_announced(text: str) -> str | None:
    """What follows the last phrase that announces an answer, None if there is none."""
    cues = list(CUE.finditer(text))
    return text[cues[-1].end() :] if cues else None


def extract_text(text: str) -> str | None:
    """The announced answer's first line, else the whole text; without quotes and the full stop around it."""
    announced = last_announced(text)
    chosen = text if announced is None else (announced.strip().splitlines() or [""])[0]
    return plain(chosen) or None


def extract_number(text: str) -> str | None:
    """The announced number (after an equals sign on that line, what it equals), else the last in the text.

    Thousands separators are dropped, fractions kept: "1,250" is "1250", "\\frac{1}{2}" is "1/2".
    """
    text = FRACTION.sub(lambda found: f"{found[1]}{found[2]}/{found[3]}", text)
    announced = last_announced(text)
    if announced is not None:
        line = next(iter(announced.strip().splitlines()), "")
        sentence = re.split(r"[.;]\s", line)[0]
        found = numbers(sentence.rpartition("=")[2]) or numbers(sentence)
        if found:
            return found[0]
    found = numbers(text)
    return found[-1] if found else None


def numbers(text: str) -> list[str]:
    """All numbers of a text, without separators and spaces."""
    return [re.sub(r"[,\s]", "", found) for found in NUMBER.findall(text) if any(map(str.isdigit, found))]


def choice_extractor(letters: str) -> Callable[[str], str | None]:
    """A function that finds the letter chosen among `letters`, in upper case."""
    any_case = f"[{letters}{letters.lower()}]"
    after_cue = re.compile(rf"^[\s:*$\\{{(\[\"']*(?:(?:option|choice)\s+)?[(\[]?({any_case})(?![\w'])", re.IGNORECASE)
    at_start = re.compile(rf"^[\s*(\[\"']*({any_case})(?:[)\].:,*]|\s*$|\n)")
    enclosed = re.compile(rf"[(\[]({any_case})[)\]]")
    alone = re.compile(rf"(?<![\w'])([{letters}])(?![\w'])")

    def extract(text: str) -> str | None:
        for cue in reversed([*CHOICE_CUE.finditer(text), *CUE.finditer(text)]):
            found = after_cue.match(text[cue.end() :])
            # "the answer is a number": a lone small letter that a word follows is an article, not a choice
            if found and not (found[1] == "a" and re.match(r"\s+\w", text[cue.end() + found.end(1) :])):
                return found[1].upper()
        found = at_start.match(text)
        if found:
            return found[1].upper()
        candidates = enclosed.findall(text)
        if not candidates:
            candidates = [
                each[1]
                for each in alone.finditer(text)
                if not (each[1] == "A" and re.match(r"\s+\w", text[each.end() :]))  # the article
            ]
        return candidates[-1].upper() if candidates else None

    return extract


def extract_verdict(text: str) -> str | None:
    """yes, no or maybe: the one announced, or that begins the text, or ends it, or is the only one in it."""
    announced = last_announced(text)
    if announced is not None:
        found = re.match(r"\W*(yes|no|maybe)\b", announced, re.IGNORECASE)
        if found:
            return found[1].lower()
    for pattern in (r"\W*(yes|no|maybe)\s*(?:[.,;:!\n]|$)", r"(?s:.*)\b(yes|no|maybe)\W*$"):
        found = re.match(pattern, text, re.IGNORECASE)
        if found:
            return found[1].lower()
    said = [each.lower() for each in VERDICT.findall(text)]
    return said[-1] if said else None


def extract_letters(text: str) -> str | None:
    """The announced letters, else those of the last word, in lower case: "The answer is n-k." is "nk"."""
    announced = last_announced(text)
    words = re.findall(r"[^\s\"'.:]+", text if announced is None else announced)
    if not words:
        return None
    chosen = words[-1] if announced is None else "".join(words)
    return re.sub(r"[\W_]", "", chosen).lower() or None


def plain(text: str) -> str:
    """Text to compare: one space between words, no case, no quotes or full stop around it."""
    return " ".join(text.split()).strip(" .!\"'`*“”").casefold()


def same_number(one: str, other: str) -> bool:
    """Whether two numbers are equal: 72 and 72.0, 1/2 and 0.5, to one part in a million."""
    a, b = as_fraction(one), as_fraction(other)
    return a is not None and b is not None and abs(a - b) <= max(abs(a), abs(b)) / 1_000_000


def as_fraction(text: str) -> Fraction | None:
    """The value of a number's text; None for a fraction by zero."""
    above, _, below = text.partition("/")
    denominator = Fraction(below) if below else Fraction(1)
    return Fraction(above) / denominator if denominator else None


Extract = Callable[[str], str | None]

KINDS: dict[str, Extract] = {
    "text": extract_text,
    "number": extract_number,
    "multiple_choice": choice_extractor("ABCDE"),
    "binary_choice": extract_verdict,
    "last_letters": extract_letters,
}
"""What an answer can be, and how it is found."""

FOUR_CHOICES: Extract = choice_extractor("ABCD")

NAMES: dict[str, Extract] = {
    **KINDS,
    **dict.fromkeys(("math", "gsm8k", "svamp", "asdiv", "addsub", "singleeq", "multiarith"), extract_number),
    **dict.fromkeys(("aqua", "csqa", "usmle"), KINDS["multiple_choice"]),
    "medmcqa": FOUR_CHOICES,
    **dict.fromkeys(("strategyqa", "coin_flip", "pubmedqa"), extract_verdict),
}
"""The kinds, and LMFlow's names of data sets for them."""


def same(extract: Extract, one: str, other: str) -> bool:
    """Whether two extracted answers are equal."""
    return same_number(one, other) if extract is extract_number else one == other
