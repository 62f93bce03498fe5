"""Slot `tracker`: a record of runs kept elsewhere."""

from __future__ import annotations

from lmflow.components.base import Component


class Tracker(Component):
    """Slot `tracker`: a record of runs kept elsewhere; a run may have any number of them, chosen with --trackers.

    Its methods are events: those marked `@hookimpl`, with names and arguments of `lmflow.hookspecs`, are called in the
    runs it is chosen for. What it keeps between them goes into pydantic's private attributes.
    """
