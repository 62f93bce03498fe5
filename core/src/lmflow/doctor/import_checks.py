"""What do plugins cost every command? Slow ones, those that load torch, and those that change it for everybody."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points

from lmflow.doctor.finding import Finding
from lmflow.doctor.installer import pip
from lmflow.doctor.probes import ask
from lmflow.plugins import CORE, GROUP, Plugin, Plugins

NAME = "imports"
SLOW = 1.0
"""Seconds of processor time to import; all of lmflow's own plugins together take a tenth of it."""
LIMIT = 120
"""Seconds after which an import is given up."""
SHOWN = 3
"""Replaced attributes that are named; the rest are counted."""


@dataclass(frozen=True)
class Import:
    """What importing a plugin took and did."""

    plugin: Plugin
    seconds: float = 0.0
    heavy: Sequence[str] = ()
    replaced: Sequence[str] = ()
    late: bool = False
    failure: str = ""

    @property
    def who(self) -> str:
        """The distribution with its version."""
        return f"{self.plugin.distribution} {self.plugin.version}"


def ask_imports(plugins: Plugins, environment: Mapping[str, str], limit: int = LIMIT) -> list[Import]:
    """Import each loaded plugin but the core in a process of its own."""
    values = {
        f"{point.dist.name}:{point.name}": point.value for point in entry_points(group=GROUP) if point.dist is not None
    }
    asked = {each.key: each for each in plugins.loaded if each.distribution != CORE and each.key in values}
    if not asked:
        return []
    points = [{"key": key, "name": each.entry_point, "value": values[key]} for key, each in asked.items()]
    question = {"plugins": points, "path": sys.path, "limit": limit}
    timeout = 2.0 * limit * (len(points) + 1)
    said = ask(["-m", "lmflow.doctor.import_probe"], environment, question, timeout=timeout).said
    return [Import(asked[key], **found) for key, found in said.items() if key in asked]


def check_imports(imports: Sequence[Import]) -> Iterator[Finding]:
    """A finding for each plugin whose import costs or changes what others have to bear."""
    faults = [finding for each in imports for finding in _judge(each)]
    yield from faults
    if not faults and imports:
        slowest = max(each.seconds for each in imports)
        text = f"No plugin loads torch or changes it when imported; the slowest takes {slowest:.2f} s."
        yield Finding(NAME, "ok", text)


def _judge(found: Import) -> Iterator[Finding]:
    remedy = pip(f"install --upgrade {found.plugin.distribution}")
    waits = "and every lmflow command waits for it"
    inside = "Its author should import inside the methods that need it."
    took = f"{found.seconds:.1f} s of processor time"
    text = ""
    if found.late:
        text = f"{found.who} takes more than {LIMIT} s to import, {waits}."
    elif found.heavy:
        text = f"{found.who} loads {' and '.join(found.heavy)} when it is imported ({took}), {waits}. {inside}"
    elif found.seconds > SLOW:
        text = f"{found.who} takes {took} to import, {waits}. {inside}"
    if text:
        yield Finding(NAME, "warning", text, remedy)
    if found.replaced:
        more = f" and {len(found.replaced) - SHOWN} more" if len(found.replaced) > SHOWN else ""
        text = f"{found.who} replaces {', '.join(found.replaced[:SHOWN])}{more} when it is imported"
        text += ": runs that do not name it may compute something else. It should change the instance it is given."
        yield Finding(NAME, "warning", text, f"{remedy}\nlmflow run --disable-plugin {found.plugin.distribution}")
