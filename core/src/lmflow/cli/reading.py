"""What the commands that read data and train nothing have in common: the options of reading, and the formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from lmflow.plugins import Plugins
from lmflow.recipe.sections.data import Reading
from lmflow.recipe.settings import DATA

if TYPE_CHECKING:
    from lmflow.data.formats import Formats

READING_SECTION: Mapping[str, type[BaseModel]] = {DATA: Reading}


def formats_in(parts: Mapping[str, Any], plugins: Plugins) -> Formats:
    """What the records that a command's parts name may mean."""
    from lmflow.data.formats import Formats

    return Formats(plugins.classes(DATA), parts["format"], parts["format_options"])
