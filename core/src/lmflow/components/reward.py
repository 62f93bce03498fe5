"""Slot `reward`: how good a completion is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lmflow.components.base import Component

if TYPE_CHECKING:
    from lmflow.data.sample import Sample


class Reward(Component):
    """Slot `reward`: how good a completion is."""

    verifiable: ClassVar[bool] = False
    """Whether 1.0 means correct, so that the share of such scores is an accuracy."""

    def check(self) -> None:
        """Raise RecipeError, or another LmflowError, where it cannot score at all; called before anything slow is done.

        The default finds nothing wrong.
        """

    @abstractmethod
    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> Sequence[float]:
        """One number per completion, higher is better; `samples[i]` is the prompt of `completions[i]`."""
