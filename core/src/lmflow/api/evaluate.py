"""`lmflow.evaluate`: one evaluator's measurement of a model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel

from lmflow.api.components import RewardFunction, plugins_for
from lmflow.api.model import LoadedModel
from lmflow.api.parts import LOADING, READING_SECTION, formats_in, resolve_sections
from lmflow.api.parts import loaded as loaded_parts
from lmflow.api.quiet import quiet_libraries
from lmflow.components import Component, EvaluateContext, Evaluation, Evaluator
from lmflow.data.dataset import read_samples
from lmflow.evaluators.measure import measure
from lmflow.models.load import Compute
from lmflow.plugins import Plugins
from lmflow.recipe.recipe import data_as_dict
from lmflow.recipe.settings import Scope
from lmflow.report.evaluation import check_directory, write_evaluation
from lmflow.run.display import Display
from lmflow.run.log import RunLog
from lmflow.run.record import RunResult


@dataclass(frozen=True)
class Measured:
    """What an evaluator found, the record of it, and the files that were written."""

    evaluation: Evaluation
    record: Mapping[str, Any]
    written: Sequence[Path]


def evaluate(
    model: LoadedModel | RunResult | str | os.PathLike[str] | Mapping[str, Any],
    evaluator: Any,
    data: Any = None,
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    display: bool = False,
    components: Iterable[type[Component] | RewardFunction] = (),
    **options: Any,
) -> Evaluation:
    """Measure a model, loaded or named, as `lmflow eval` does; returns metrics by name, and a row per record.

    `evaluator` is a name ("perplexity"), a class, or an instance; `options` are the evaluator's. `data` is the path of
    records, a list of them, or a section (`{"path": …, "limit": 100}`); without it the held-out part of the embedded
    data is taken. `output` is a directory for results.json, rows.jsonl and report.html. Nothing is printed unless
    `display` asks for progress. Raises RecipeError with every mistake at once, and LmflowError where the records lack
    what is measured.
    """
    with TemporaryDirectory(prefix="lmflow-records-") as folder:
        named, plugins = plugins_for({"evaluator": evaluator, "data": as_section(data, Path(folder))}, components)
        loaded = model if isinstance(model, LoadedModel) else None
        if loaded is None:
            named["model"] = model.directory if isinstance(model, RunResult) else model
        slots = ["evaluator", *(LOADING if loaded is None else ())]
        if data is not None or reads_data(plugins, named["evaluator"]):
            slots.append("data")
        sections: dict[str, type[BaseModel]] = {"compute": Compute, **(READING_SECTION if "data" in slots else {})}
        scope = Scope("eval", slots, sections)
        parts = resolve_sections(plugins, scope, {**named, **{f"evaluator.{key}": options[key] for key in options}})
        from lmflow.run.terminal import make_progress

        place = None if output is None else Path(output)
        with closing(make_progress(quiet=not display)) as shown, quiet_libraries():
            return measure_parts(parts, plugins, shown, place, overwrite=overwrite, loaded=loaded).evaluation


def reads_data(plugins: Plugins, evaluator: Any) -> bool:
    """Whether the evaluator named measures on records; where none is, what is wrong is said later."""
    name = evaluator.get("name") if isinstance(evaluator, Mapping) else evaluator
    offers = plugins.offers("evaluator").get(str(name).rpartition(":")[2], ())
    return all(getattr(offer.component, "reads_data", True) for offer in offers)


def as_section(data: Any, folder: Path) -> Any:
    """The `data` section: a path as one, records in a file in `folder`, what is a section already as it is."""
    if isinstance(data, str | os.PathLike):
        return {"path": data}
    if isinstance(data, Mapping) or data is None or not isinstance(data, Iterable):
        return data
    file = folder / "records.jsonl"
    file.write_text("".join(f"{json.dumps(record)}\n" for record in data), encoding="utf-8")
    return {"path": file}


def measure_parts(
    parts: Mapping[str, Any],
    plugins: Plugins,
    display: Display,
    output: Path | None = None,
    *,
    overwrite: bool = False,
    loaded: LoadedModel | None = None,
) -> Measured:
    """Check everything, measure the model of `parts` (or `loaded`), and write what was found to `output`, if any."""
    if output is not None:
        check_directory(output, overwrite=overwrite)
    evaluator: Evaluator = parts["evaluator"]
    used = {**parts, **(loaded.parts if loaded else {})}
    log = RunLog(None, plugins.emit, display)
    data = parts.get("data")
    samples = read_samples(data, formats_in(parts, plugins), log.note) if evaluator.reads_data and data else []
    opened = nullcontext(loaded.model) if loaded else loaded_parts(parts, plugins, log)
    with opened as model, log.handle_signals():
        context = EvaluateContext(plugins=plugins, log=log, model=model, samples=samples, inferencer=used["inferencer"])
        evaluation, record = measure(evaluator, context)
    described = {slot: described_part(used.get(slot)) for slot in ("model", "context", "inferencer")}
    source = None if data is None else data_as_dict(data, parts["format"], parts["format_options"])
    record = {**record, **described, "data": source, "notes": list(log.notes)}
    written = [] if output is None else write_evaluation(output, record, evaluation, evaluator)
    return Measured(evaluation, record, written)


def described_part(part: Component | None) -> dict[str, Any] | None:
    """A component and its options as the record has them."""
    return None if part is None else {"name": part.name, **part.model_dump(mode="json")}
