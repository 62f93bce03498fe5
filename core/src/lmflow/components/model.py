"""Slots `model`, `context` and `attention`: weights and tokenizer, what positions mean, how attention is computed."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from lmflow.components.base import Component

if TYPE_CHECKING:
    from lmflow.components.contexts import LoadRequest
    from lmflow.models.language_model import LanguageModel


class Model(Component):
    """Slot `model`: where weights and tokenizer come from."""

    @classmethod
    def recognises(cls, reference: str) -> bool:
        """Whether `--model REFERENCE` (a directory, a file, a hub name) is for this component."""
        return False

    @abstractmethod
    def load(self, request: LoadRequest) -> LanguageModel:
        """Return model and tokenizer as the request says, in eval mode.

        Raises LmflowError with what is missing and how to get it.
        """

    def skeleton(self, request: LoadRequest) -> LanguageModel:
        """The model for those who need its tokenizer and configuration alone; its weights may have no values.

        The default loads the whole of it.
        """
        return self.load(request)


class Context(Component):
    """Slot `context`: how far a model's positions reach, and what they mean."""

    @abstractmethod
    def configure(self, config: Any) -> None:
        """Change a Transformers configuration in place, so that a model built with it reads longer texts.

        Raises LmflowError naming the model type and the reason when that cannot be done.
        """


class Attention(Component):
    """Slot `attention`: how attention is computed; every one gives the same numbers up to rounding."""

    @abstractmethod
    def implementation(self, config: Any, device: str) -> str:
        """The `attn_implementation` that Transformers builds the model with; a plugin registers its own first.

        `config` is the model's configuration, `device` where it will compute ("cpu", "cuda"). Raises LmflowError naming
        the model type and the reason where the model or the machine cannot do it.
        """
