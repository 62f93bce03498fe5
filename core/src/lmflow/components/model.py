"""Slots `model`, `context` and `attention`: weights and tokenizer, what positions mean, how attention is computed."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from lmflow.components.base import Component, Requirement
from lmflow.components.contexts import LoadRequest, Quantization
from lmflow.errors import LmflowError

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel


BITSANDBYTES = Requirement("bitsandbytes", "'lmflow-core[quantization]'")
"""What quantised weights are stored and multiplied by."""


class Model(Component):
    """Slot `model`: where weights and tokenizer come from.

    Quantization and placement are options of every model. They reach `load` and `skeleton` in the request that
    `completed` returns, which a component that supports them begins with; one that does not refuses them when it is
    made. A model made of others passes on the completed request.
    """

    supports_quantization: ClassVar[bool] = False
    """Whether `load` does what `LoadRequest.quantization` says."""
    supports_device_map: ClassVar[bool] = False
    """Whether `load` does what `LoadRequest.device_map` says."""

    quantization: Literal["nf4", "fp4", "int8"] | None = Field(
        None, description="Weights of linear layers in 4 bits (nf4, fp4) or 8 (int8), by bitsandbytes."
    )
    device_map: Literal["auto"] | None = Field(
        None, description="auto spreads the layers over all GPUs and main memory; not for training."
    )

    @field_validator("quantization", "device_map")
    @classmethod
    def _supported(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not getattr(cls, f"supports_{info.field_name}"):
            raise ValueError(f"model {cls.name} does not support it")
        return value

    def required(self) -> tuple[Requirement, ...]:
        """bitsandbytes, where weights are to be quantised."""
        return (BITSANDBYTES,) if self.quantization else ()

    def completed(self, request: LoadRequest) -> LoadRequest:
        """The request, with what this model's own options ask for.

        Raises LmflowError, before anything is imported, where the model does not support what is asked (as when the
        request comes from a model that this one is a part of), or a package for it is not installed.
        """
        own = None if self.quantization is None else Quantization(self.quantization)
        request = replace(
            request, quantization=own or request.quantization, device_map=self.device_map or request.device_map
        )
        for option in ("quantization", "device_map"):
            if getattr(request, option) is not None and not getattr(self, f"supports_{option}"):
                raise LmflowError(f"model.{option}: model {self.name} does not support it")
        if request.quantization is not None and not BITSANDBYTES.installed:
            raise LmflowError(
                f"model.quantization {request.quantization.kind} needs {BITSANDBYTES.module}, which is not installed: "
                f"pip install {BITSANDBYTES.install}"
            )
        return request

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
