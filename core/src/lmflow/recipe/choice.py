"""The component chosen for a slot, and how it was named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lmflow.components import Component
from lmflow.recipe.settings import Origin, Setting


@dataclass(frozen=True)
class Choice:
    """The component chosen for a slot, how it was named, and a field set by naming it (`python:module:function`)."""

    slot: str
    component: type[Component]
    written: str
    setting: Setting
    implied: Mapping[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> Origin:
        """Where its name came from."""
        return self.setting.origin
