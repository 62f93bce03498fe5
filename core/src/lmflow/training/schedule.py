"""The learning rate of each optimizer step, as a pure function of the step."""

from __future__ import annotations

import math


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Steps of warm-up: a share of all steps when `warmup` is below 1, else that many steps."""
    steps = math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)
    return min(steps, total_steps)


def learning_rate_factor(step: int, *, total_steps: int, warmup: int, schedule: str, minimum: float = 0.0) -> float:
    """What the base learning rate is multiplied by at 0-based `step`.

    Warm-up rises linearly and reaches 1 at its last step, so no step has a rate of zero (Transformers' schedules
    start at zero and waste the first step). After it `cosine` and `linear` fall to `minimum`, which they would
    reach one step past the end; `constant` stays at 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    fall = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return minimum + (1.0 - minimum) * fall
