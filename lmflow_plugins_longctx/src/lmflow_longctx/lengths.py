"""The lengths an evaluator measures at, checked against the model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lmflow.errors import DataError

if TYPE_CHECKING:
    from lmflow.components import Log
    from lmflow.models.language_model import LanguageModel


def chosen_lengths(model: LanguageModel, asked: Sequence[int] | None, *, option: str) -> list[int]:
    """Lengths in tokens, ascending; by default a quarter, half and all of the model's context.

    Raises DataError where none is given and the model names no limit, and where a length is beyond positions that end.
    """
    reach = model.context_length
    if asked:
        lengths = sorted(set(asked))
    elif reach is None:
        raise DataError(f"The model's configuration names no context length; give --evaluator.{option}.")
    else:
        lengths = sorted({max(reach // 4, 1), max(reach // 2, 1), reach})
    if reach is not None and lengths[-1] > reach and not has_rotary_positions(model):
        raise DataError(
            f"--evaluator.{option} {lengths[-1]}: this model has positions for {reach} tokens and no rotary ones, so "
            "there is nothing beyond."
        )
    return lengths


def check_within(model: LanguageModel, lengths: Sequence[int], *, option: str) -> None:
    """Raise DataError for lengths, ascending, within which the model cannot write an answer."""
    reach = model.context_length
    if reach is not None and lengths[-1] > reach:
        raise DataError(
            f"--evaluator.{option} {lengths[-1]}: the model reads {reach:,} tokens, and writes no answer beyond them. "
            "Name shorter lengths, extend it with --context, or compare numbers with --evaluator.scoring choice."
        )


def announce(model: LanguageModel, lengths: Sequence[int], log: Log) -> None:
    """Tell the user what is unusual: lengths beyond the model's, and that no PNG can be drawn."""
    reach = model.context_length
    beyond = [length for length in lengths if reach is not None and length > reach]
    if beyond:
        log.note(f"measured beyond the model's {reach:,} tokens: {', '.join(f'{each:,}' for each in beyond)}")
    if find_spec("matplotlib") is None:
        log.note("matplotlib is not installed: plots are SVG only; pip install 'lmflow-longctx[plots]' adds PNG")


def has_rotary_positions(model: LanguageModel) -> bool:
    """Whether positions are computed, so that there is one for every token however far."""
    config: Any = getattr(model.module, "config", None)
    return config is not None and bool(getattr(config.get_text_config(), "rope_parameters", None))
