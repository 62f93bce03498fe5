"""Components given as Python objects: classes, instances with their options, and reward functions."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lmflow.builtin.rewards import call_function
from lmflow.components import Component, Reward
from lmflow.data.sample import Sample
from lmflow.errors import PluginError
from lmflow.plugins import Plugins
from lmflow.plugins.in_process import load_plugins_with, slot_of
from lmflow.recipe.mapping import named_stages
from lmflow.recipe.settings import STAGES, TRACKERS

RewardFunction = Callable[..., Any]
"""Called with three lists (prompt texts, completion texts, records); returns one number per completion."""


def plugins_for(
    recipe: Mapping[str, Any], components: Iterable[type[Component] | RewardFunction]
) -> tuple[dict[str, Any], Plugins]:
    """The recipe with names in the place of Python objects, and plugins that offer those under these names.

    A class, or an instance with its options, may stand for a component's name in any section, and a function in
    `reward`; in the sections of a stage too. Raises PluginError for what is no component.
    """
    sections = _with_reward_class(recipe)
    stages = {
        name: _with_reward_class(each) if isinstance(each, Mapping) else each
        for name, each in named_stages(recipe.get(STAGES, {}), [])
    }
    held = [each for part in [sections, *stages.values()] if isinstance(part, Mapping) for each in _objects(part)]
    plugins = load_plugins_with([as_class(each) for each in [*components, *held]])
    named = _all_named(plugins, sections)
    if stages and len(stages) == len(recipe[STAGES]):  # otherwise what is wrong with them is told later
        named[STAGES] = {
            name: _all_named(plugins, each) if isinstance(each, Mapping) else each for name, each in stages.items()
        }
    return named, plugins


def _with_reward_class(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Sections in which a reward function is named, where it can be imported, or else has become a class."""
    sections = dict(recipe)
    reward: Any = sections.get("reward")
    if is_function(reward):
        reference = importable_name(reward)
        sections["reward"] = f"python:{reference}" if reference else reward_class(reward)
    return sections


def _all_named(plugins: Plugins, sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as a file would have them."""
    return {section: _named(plugins, section, value) for section, value in sections.items()}


def _objects(sections: Mapping[str, Any]) -> Iterator[type[Component]]:
    """The classes of components that sections hold."""
    for value in sections.values():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Component):
                yield type(each)
            elif is_class(each):
                yield each


def _named(plugins: Plugins, section: str, value: Any) -> Any:
    """What stands in a section as a file would have it."""
    if section == TRACKERS and isinstance(value, list | tuple) and any(isinstance(each, Component) for each in value):
        return dict(_with_options(plugins, each) for each in value)
    if isinstance(value, list | tuple):
        return [_with_options(plugins, each)[0] if is_class(each) else each for each in value]
    if is_class(value) or isinstance(value, Component):
        name, options = _with_options(plugins, value)
        return {"name": name, **options}
    return value


def _with_options(plugins: Plugins, value: Any) -> tuple[Any, dict[str, Any]]:
    """The name of a component and the options it was made with."""
    if isinstance(value, Component):
        return reference_to(plugins, type(value)), value.model_dump(exclude_unset=True)
    return reference_to(plugins, value) if is_class(value) else value, {}


def reference_to(plugins: Plugins, component: type[Component]) -> str:
    """What names a component: its name, with its distribution where several offer that."""
    offers = plugins.offers(slot_of(component).name).get(component.name, ())
    if len(offers) < 2:
        return component.name
    home = next(offer.distribution for offer in offers if offer.component is component)
    return f"{home}:{component.name}"


def as_class(given: Any) -> type[Component]:
    """A component's class, or that of a reward made of a function. Raises PluginError for anything else."""
    if is_class(given):
        found: type[Component] = given
        return found
    if is_function(given):
        return reward_class(given)
    raise PluginError(f"components: expected component classes and reward functions, got {given!r}")


def is_class(value: Any) -> bool:
    """Whether it is the class of a component."""
    return isinstance(value, type) and issubclass(value, Component)


def is_function(value: Any) -> bool:
    """Whether it can be called, and is no class and no component."""
    return callable(value) and not isinstance(value, type | Component)


def importable_name(function: RewardFunction) -> str | None:
    """`module:function` where another process could import it by that; None for what exists in this one alone."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module in (None, "__main__") or name is None or "<" in name:
        return None
    found: Any = sys.modules.get(str(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is function else None


def reward_class(function: RewardFunction) -> type[Reward]:
    """A reward that calls `function`, under its name: `my_reward` is `my-reward`."""
    called = str(getattr(function, "__name__", type(function).__name__))
    words = re.sub(r"[^a-z0-9]+", "-", called.lower()).strip("-") or "function"

    class OfFunction(Reward):
        """Call a function of the program that started the run."""

        name = words

        def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> Sequence[float]:
            """Call it once for the whole batch."""
            return call_function(function, samples, completions)

    return OfFunction
