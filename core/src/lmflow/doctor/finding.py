"""What the doctor says: findings, each with its severity and the commands that mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["error", "warning", "ok"]
SEVERITY: tuple[Status, ...] = ("error", "warning", "ok")
"""From worst to best: it will not work; it works, but not as it should; it was looked at and is well."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a check found: what, why it matters, and the commands that mend it, one a line."""

    check: str
    status: Status
    message: str
    remedy: str = ""


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Errors, then warnings, then what is well; within each the order of the checks."""
    return sorted(findings, key=lambda finding: SEVERITY.index(finding.status))


def verdict(findings: Iterable[Finding]) -> Status:
    """The status of the worst finding."""
    return min((finding.status for finding in findings), key=SEVERITY.index, default="ok")


def attempt(name: str, check: Callable[..., Iterable[Finding]], *arguments: Any) -> list[Finding]:
    """What `check(*arguments)` finds; a check that fails is a finding itself, and ends nothing."""
    try:
        return list(check(*arguments))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return [Finding(name, "warning", f"This could not be checked ({reason}), so a fault here would go unseen.")]
