"""References from a stage of a recipe to what an earlier one ends with: `model: stage:sft`.

A reference is text in a setting: the whole of a value (`aligner.reference: stage:sft`), or what a component is named
with (`reward: classifier:stage:reward`). Before a stage begins it becomes the path of that result, so that no component
has to know of stages. Until there is one, the model that the earlier stage starts from stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from lmflow.components import Model
from lmflow.plugins import RECIPE_SLOTS
from lmflow.recipe.preferences import nearest
from lmflow.recipe.recipe import Recipe
from lmflow.recipe.settings import DATA, Setting, of_section

REFERENCE = "stage:"
MODEL = "model.name"

Settings = Mapping[str, Setting]


def reference_in(setting: Setting) -> str | None:
    """The stage that a setting names; None if it names none."""
    section, _, key = setting.path.partition(".")
    if not isinstance(setting.value, str) or section not in RECIPE_SLOTS or section == DATA:
        return None
    before, found, name = setting.value.rpartition(REFERENCE)
    alone = not before or (key == "name" and before.endswith(":"))
    return name if found and alone else None


def references_in(settings: Settings) -> dict[str, str]:
    """The stages that settings name, by path."""
    found = {path: reference_in(setting) for path, setting in settings.items()}
    return {path: name for path, name in found.items() if name is not None}


def start_of(settings: Settings) -> str | None:
    """The stage whose result is the model, whatever component that needs; None if the model is named otherwise."""
    value = settings[MODEL].value if MODEL in settings else None
    return value.removeprefix(REFERENCE) if isinstance(value, str) and value.startswith(REFERENCE) else None


def with_results(settings: Settings, result_of: Callable[[str], str]) -> dict[str, Setting]:
    """Settings with what `result_of` gives in the place of all references."""
    return {path: _replaced(setting, result_of) for path, setting in settings.items()}


def _replaced(setting: Setting, found: Callable[[str], str]) -> Setting:
    name = reference_in(setting)
    if name is None:
        return setting
    return replace(setting, value=str(setting.value).removesuffix(f"{REFERENCE}{name}") + found(name))


def faulty_references(stage: str, settings: Settings, order: Sequence[str]) -> Iterator[str]:
    """What is wrong with the references of a stage, of those in `order`."""
    for path, name in references_in(settings).items():
        place = f"{settings[path].place}: {settings[path].value}"
        if name not in order:
            yield f"{place}: there is no stage {name!r}{nearest(name, order)}"
        elif order.index(name) >= order.index(stage):
            when = "is this stage itself" if name == stage else "comes later"
            yield f"{place}: {name} {when}; only the result of an earlier stage can be named"
    if start_of(settings) is None:
        return
    for key, setting in of_section(settings, "model"):
        if key != "name" and key not in Model.model_fields:
            common = " and ".join(f"model.{each}" for each in Model.model_fields)
            yield (
                f"{setting.place}: the result of a stage has the options of every model, {common}; for those of one "
                f"component name that too, as in `model: {{name: pretrained, path: {settings[MODEL].value}}}`"
            )


# What stands for a result that is not there yet


def with_start(settings: Settings, earlier: Mapping[str, Settings]) -> dict[str, Setting]:
    """Settings with the model that stage NAME starts from for `model: stage:NAME`; `earlier` are those before it."""
    start = start_of(settings)
    return dict(settings) if start is None else _with_model_of(settings, MODEL, earlier.get(start, {}))


def with_stand_ins(
    settings: Settings, earlier: Mapping[str, Settings], recipes: Mapping[str, Recipe]
) -> dict[str, Setting]:
    """Settings, as `with_start` gives them, in which all other references are the models those stages start from."""
    found = dict(settings)
    for path, name in references_in(settings).items():
        if path.startswith("model.") and _component(settings) == _component(earlier.get(name, {})):
            found = _with_model_of(found, path, earlier[name])
        elif name in recipes:
            found[path] = _replaced(found[path], lambda of: reference_to(recipes[of]))
    return found


def _component(settings: Settings) -> str | None:
    """The model component that settings name: before a reference as in `adapter:stage:sft`, or beside it."""
    setting = settings.get(MODEL)
    return str(setting.value).partition(":")[0] if setting else None


def _with_model_of(settings: Settings, path: str, earlier: Settings) -> dict[str, Setting]:
    """Settings whose model is that of an earlier stage, but for the options of every model, in the place of `path`."""
    origin = settings[path].origin
    below = {
        f"model.{key}": replace(each, origin=origin)
        for key, each in of_section(earlier, "model")
        if key not in Model.model_fields
    }
    own = {key: each for key, each in settings.items() if key not in (path, MODEL)}
    if path == MODEL:
        own = {key: each for key, each in own.items() if _is_common(key)}
    return own | below if path == MODEL else below | own


def _is_common(path: str) -> bool:
    """Whether a path is an option of every model, or none of a model."""
    section, _, key = path.partition(".")
    return section != "model" or key in Model.model_fields


def reference_to(recipe: Recipe) -> str:
    """What names the model that a recipe starts from."""
    model = recipe.model
    name = recipe.names.get("model", model.name)
    value = getattr(model, model.shorthand) if model.shorthand else None
    return name if value is None else f"{name}:{value}"
