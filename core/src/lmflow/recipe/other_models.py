"""The models that an aligner uses beside the one it trains."""

from __future__ import annotations

from lmflow.components import Aligner, Model
from lmflow.errors import RecipeError
from lmflow.plugins import Plugins
from lmflow.recipe.resolve import model_from_reference


def other_models(aligner: Aligner, plugins: Plugins) -> dict[str, Model]:
    """The components of `aligner.models()` by name; references are read as those of `--model` are.

    Raises RecipeError with every one that means nothing.
    """
    found: dict[str, Model] = {}
    problems: list[str] = []
    for name, wanted in aligner.models().items():
        try:
            place = f"the {name} model of aligner {aligner.name}"
            found[name] = model_from_reference(plugins, wanted, place) if isinstance(wanted, str) else wanted
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return found
