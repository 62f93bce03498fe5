"""What components prefer elsewhere in a recipe (`Component.preferred`): a path that means nothing is an error."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence

from lmflow.plugins import Plugins
from lmflow.recipe.choice import Choice
from lmflow.recipe.settings import PLAIN, TRAINING

WITHOUT = ("reward",)
"""Slots whose component cannot be preferred: the data's own reward stands there."""


def faulty_preferences(
    chosen: Mapping[str, Choice | None], preferring: Sequence[str], order: Sequence[str], plugins: Plugins
) -> Iterator[str]:
    """A sentence on each preference of the components in the slots `preferring` that no recipe could follow.

    `order` is that in which slots are filled: a component can be preferred only for a slot that comes later.
    """
    for slot in preferring:
        choice = chosen.get(slot)
        for path in choice.component.preferred if choice else ():
            if fault := _fault(path, slot, order, plugins):
                who = plugins.describe_owner(slot, choice.component) if choice else slot
                yield f"{who} prefers {path}: {fault}"


def _fault(path: str, slot: str, order: Sequence[str], plugins: Plugins) -> str | None:
    """What is wrong with a preferred path; None where nothing is."""
    section, _, key = path.partition(".")
    sections = [TRAINING, *(each for each in order if each != slot)]
    if not key:
        return "expected section.option, such as training.learning_rate"
    if section == slot:
        return "the defaults of its own options are those of its fields"
    if section not in sections:
        return f"there is no such section{nearest(section, sections)}"
    known = set(PLAIN[section].model_fields) if section in PLAIN else set()
    if section != TRAINING:
        offers = plugins.offers(section).values()
        known |= {field for each in offers for offer in each for field in offer.component.model_fields}
    if key == "name" and section != TRAINING:
        too_late = section in WITHOUT or order.index(section) < order.index(slot)
        return f"what fills the slot {section} is chosen before" if too_late else None
    return None if key in known else f"there is no such option{nearest(key, known, section)}"


def nearest(name: str, names: Collection[str], section: str = "") -> str:
    """The nearest of `names`, as a question; empty where none is near."""
    near = difflib.get_close_matches(name, names, n=1)
    place = f"{section}." if section else ""
    return f"; did you mean {place}{near[0]}?" if near else ""
