"""Everything installed explains itself, since help and reference are made of what it says."""

from __future__ import annotations

import pytest

from lmflow import hookspecs
from lmflow.plugins import SLOTS, load_plugins


@pytest.mark.parametrize("slot", SLOTS)
def test_every_component_and_option_is_explained(slot: str):
    assert (getattr(hookspecs, SLOTS[slot].hook).__doc__ or "").strip()
    for component in load_plugins().classes(slot):
        assert (component.__doc__ or "").strip(), component.name
        unexplained = [name for name, field in component.model_fields.items() if not field.description]
        assert not unexplained, f"{slot} {component.name}: {unexplained}"
