"""Before and after: the same held-out prompts, answered by both models, differences marked word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape

from lmflow.formatting import number
from lmflow.report.content import Comparisons, Row, finite

OPEN = 8
"""Prompts shown at once; the others are one click away."""
MOST_CHARACTERS = 3000
ALIKE = 0.3
"""Similarity from which marking single words says more than showing two different texts."""


def answers(comparisons: Comparisons) -> str:
    """The prompts with their answers, empty if there are none."""
    if not comparisons.count:
        return ""
    first = "".join(map(comparison, comparisons.shown[:OPEN]))
    rest = comparisons.shown[OPEN:]
    more = ""
    if rest:
        more = f'<details class="more"><summary>{len(rest)} more</summary>{"".join(map(comparison, rest))}</details>'
    return f"<p>{escape(outcome(comparisons))}</p>{first}{more}"


def outcome(found: Comparisons) -> str:
    """How many answers changed, in a sentence or two."""
    text = f"{found.count:,} held-out prompts, answered greedily by the model before and after"
    if found.count > len(found.shown):
        text += f" (the first {len(found.shown)} are shown)"
    text += f". {found.changed:,} answers changed"
    if found.better is not None and found.worse is not None:
        same = found.count - found.better - found.worse
        text += f"; by reward {found.better:,} are better, {found.worse:,} worse, {same:,} as good as before"
    return text + "."


def comparison(row: Row) -> str:
    """One prompt with its two answers."""
    before, after = (clip(str(row.get(when) or "")) for when in ("before", "after"))
    old, new = mark_difference(before, after)
    rewards = finite(row.get("reward_before")), finite(row.get("reward_after"))
    expected = row.get("expected")
    wanted = f'<p class="expected">expected: {escape(clip(str(expected), 600))}</p>' if expected else ""
    return (
        f'<article><div class="asked"><p>{escape(clip(str(row.get("prompt") or "")))}</p>{wanted}</div>'
        f"{one_answer('before', old, badge(rewards[0]))}"
        f"{one_answer('after', new, badge(rewards[1], rewards[0]))}</article>"
    )


def one_answer(when: str, marked: str, reward: str) -> str:
    """An answer, already escaped and marked, with its reward."""
    return f'<div class="answer"><h3>{when}{reward}</h3><p>{marked or "<i>nothing</i>"}</p></div>'


def badge(reward: float | None, before: float | None = None) -> str:
    """A reward; arrow and colour say whether it rose or fell."""
    if reward is None:
        return ""
    kind, arrow = "", ""
    if before is not None and reward != before:
        kind, arrow = (" good", " ▲") if reward > before else (" bad", " ▼")
    return f' <b class="badge{kind}"><span class="unseen">reward </span>{number(reward)}{arrow}</b>'


def mark_difference(before: str, after: str) -> tuple[str, str]:
    """Both texts escaped, words only in the first within <del>, words only in the second within <ins>.

    Texts with little in common are not marked: everything differs.
    """
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    matcher = SequenceMatcher(None, old, new, autojunk=True)
    if not old or not new or matcher.ratio() < ALIKE:
        return escape(before), escape(after)
    marked: tuple[list[str], list[str]] = ([], [])
    for kind, i, j, k, m in matcher.get_opcodes():
        marked[0].append(wrap("del", old[i:j], plain=kind == "equal"))
        marked[1].append(wrap("ins", new[k:m], plain=kind == "equal"))
    return "".join(marked[0]), "".join(marked[1])


def wrap(tag: str, words: Sequence[str], *, plain: bool) -> str:
    """Words escaped, within `tag` unless plain or blank."""
    text = escape("".join(words))
    return text if plain or not text.strip() else f"<{tag}>{text}</{tag}>"


def clip(text: str, most: int = MOST_CHARACTERS) -> str:
    """At most `most` characters, saying how many were left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"
