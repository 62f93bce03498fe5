"""Numbers as people read them: 1,234, 1 min 32 s, 1.2 GB."""

from __future__ import annotations

import math


def number(value: float, digits: int = 4) -> str:
    """A value in at most so many digits, or with its thousands marked: 0.25, 1,234, 1e-5."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 1e-3 or abs(value) >= 1e9:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def counted(count: int, noun: str) -> str:
    """So many of what the noun names, whose plural has an s: 1 sample, 1,234 samples."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def change(before: float, after: float, decimals: int = 3) -> str:
    """The difference with its sign, a true minus, and no negative zero."""
    text = f"{after - before:+,.{decimals}f}"
    if not text.strip("+-0.,"):
        return "0"
    return text.replace("-", "−")  # noqa: RUF001 - the minus that is as wide as the plus


def duration(seconds: float) -> str:
    """Seconds in their two largest units: 0.4 s, 1 min 32 s, 2 h 5 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: float) -> str:
    """Bytes in decimal units: 512 B, 93 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB"):
        if round(count) < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
