"""Schedules `cosine`, `linear` and `constant`."""

from __future__ import annotations

import math

from pydantic import Field

from lmflow.components import Schedule


class Falling(Schedule):
    """A schedule that falls from the highest learning rate to a final one."""

    final_ratio: float = Field(0.0, ge=0, le=1, description="Final learning rate, as a share of the highest.")

    def progress(self, step: int, total: int) -> float:
        """How much of what follows the warm-up is done at `step`: from 0 to 1, which is one step past the end.

        Where the number of steps is not known (0) nothing is ever done: the learning rate stays at its highest.
        """
        if not total:
            return 0.0
        warmup = self.warmup_steps(total)
        return min(1.0, (step - warmup) / max(1, total - warmup))

    def between(self, share: float) -> float:
        """The factor of which `share` is left above the final one."""
        return self.final_ratio + (1.0 - self.final_ratio) * share


class Cosine(Falling):
    """Fall along half a cosine (Loshchilov and Hutter, 2017, arXiv 1608.03983, without restarts)."""

    name = "cosine"

    def factor(self, step: int, total: int) -> float:
        """From 1 to `final_ratio`."""
        return self.between(0.5 * (1.0 + math.cos(math.pi * self.progress(step, total))))


class Linear(Falling):
    """Fall in a straight line."""

    name = "linear"

    def factor(self, step: int, total: int) -> float:
        """From 1 to `final_ratio`."""
        return self.between(1.0 - self.progress(step, total))


class Constant(Schedule):
    """Stay at the highest learning rate."""

    name = "constant"

    def factor(self, step: int, total: int) -> float:
        """Always 1."""
        return 1.0
