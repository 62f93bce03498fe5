"""What all components have in common: options, a name, and what they need beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Need:
    """The component works only when `slot` is filled, by one of `names` if any are given."""

    slot: str
    because: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conflict:
    """The component cannot work with any of `names` in `slot` (with nothing in it, if `names` is empty)."""

    slot: str
    because: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Requirement:
    """The component works only where Python can import `module`; `pip install INSTALL` brings it."""

    module: str
    install: str

    @property
    def installed(self) -> bool:
        """Whether there is such a module; nothing is imported to find out."""
        return find_spec(self.module.partition(".")[0]) is not None


class Component(BaseModel):
    """A named part that fills a slot. Instances are immutable and fully validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, protected_namespaces=())

    name: ClassVar[str]
    """What chooses it on the command line and in recipes; unique in its slot, in small letters and dashes."""
    shorthand: ClassVar[str | None] = None
    """Field set by `--slot NAME:VALUE`, as in `--reward python:module:function`."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """What other slots must hold, checked before anything is loaded."""
    conflicts: ClassVar[tuple[Conflict, ...]] = ()
    """What other slots must not hold, checked before anything is loaded."""
    requires: ClassVar[tuple[Requirement, ...]] = ()
    """Optional dependencies of its distribution that this component cannot do without."""
    one_process: ClassVar[str | None] = None
    """Why a run with it cannot be several processes (`--launch.processes`); None where it can."""
    may_change: ClassVar[tuple[str, ...]] = ()
    """Options that a run may be resumed with other values of, since they change memory and time, and not the result."""
    preferred: ClassVar[Mapping[str, Any]] = {}
    """Other defaults that a tuner, optimizer or aligner prefers, by dotted path ("training.learning_rate",
    "schedule.name", "schedule.warmup"); what the user writes wins."""

    def required(self) -> tuple[Requirement, ...]:
        """Packages that its options ask for, beside those of `requires`."""
        return ()

    @classmethod
    def missing(cls) -> list[Requirement]:
        """Those of its requirements that are not installed; nothing is imported to find out."""
        return [each for each in cls.requires if not each.installed]
