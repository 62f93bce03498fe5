"""The parts of a command that uses a model: resolved from what names them, and opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from lmflow.components import RunContext
from lmflow.data.formats.recognising import Formats
from lmflow.errors import RecipeError
from lmflow.inference.types import Sampling
from lmflow.models.load import Compute, load_for_inference
from lmflow.plugins import Plugins
from lmflow.recipe.mapping import read_mapping
from lmflow.recipe.resolve import resolve_parts
from lmflow.recipe.sections.data import Reading
from lmflow.recipe.settings import DATA, Scope

if TYPE_CHECKING:
    from lmflow.components import Log
    from lmflow.models.language_model import LanguageModel

READING_SECTION: Mapping[str, type[BaseModel]] = {DATA: Reading}
"""The section of commands that read data and do not train."""

LOADING = ("model", "context", "attention", "inferencer")
"""The slots that make a model which can be asked."""


def resolve_sections(plugins: Plugins, scope: Scope, sections: Mapping[str, Any]) -> dict[str, Any]:
    """The components and sections of `scope` by name; raises RecipeError with everything wrong in `sections`."""
    problems: list[str] = []
    settings = list(read_mapping({key: value for key, value in sections.items() if value is not None}, problems))
    try:
        parts = resolve_parts(plugins, scope, settings)
    except RecipeError as error:
        raise RecipeError([*problems, *error.problems]) from None
    if problems:
        raise RecipeError(problems)
    return parts


def resolve_sampling(options: Mapping[str, Any], **defaults: Any) -> Sampling:
    """Sampling options over `defaults`; raises RecipeError for an unknown one, with the nearest name."""
    stop = options.get("stop")
    given = {**options, **({"stop": (stop,)} if isinstance(stop, str) else {})}
    preferred = {f"sampling.{name}": value for name, value in defaults.items()}
    scope = Scope("generate", (), {"sampling": Sampling}, preferred)
    sampling: Sampling = resolve_sections(Plugins(), scope, {"sampling": given})["sampling"]
    return sampling


def formats_in(parts: Mapping[str, Any], plugins: Plugins) -> Formats:
    """What the records that a command's parts name may mean."""
    return Formats(plugins.classes(DATA), parts["format"], parts["format_options"])


def load_parts(parts: Mapping[str, Any], plugins: Plugins, log: Log) -> LanguageModel:
    """The model of a command's parts, loaded, and its inferencer opened with it."""
    compute: Compute = parts["compute"]
    with log.phase(f"loading model {parts['model'].name}"):
        model = load_for_inference(
            parts["model"], plugins, context=parts["context"], attention=parts["attention"], compute=compute
        )
    parts["inferencer"].open(RunContext(plugins=plugins, log=log, model=model))
    return model


@contextmanager
def loaded(parts: Mapping[str, Any], plugins: Plugins, log: Log) -> Iterator[LanguageModel]:
    """The model of a command's parts, and its inferencer open for the time of the context."""
    model = load_parts(parts, plugins, log)
    try:
        yield model
    finally:
        parts["inferencer"].close()
