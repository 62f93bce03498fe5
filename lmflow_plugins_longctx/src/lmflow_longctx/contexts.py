"""Contexts linear, ntk, dynamic, yarn and llama3: how a model's rotary positions are stretched."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from lmflow.components import Context
from lmflow.errors import LmflowError

if TYPE_CHECKING:
    from torch import Tensor

    from lmflow_longctx.configuration import Rotation


FARTHEST = 10_000
"""Times longer that a context may be asked to be: the methods were tried up to a few dozen."""


class RopeScaling(Context):
    """Stretch rotary positions through the model's configuration, so that plain Transformers loads the result."""

    composes_with: ClassVar[tuple[str, ...]] = ()
    """Types of RoPE, beside the default, that the method can be put upon: factors multiply."""
    grows_at_run_time: ClassVar[bool] = False
    """Whether `max_position_embeddings` stays: it is where Transformers begins to scale."""

    factor: float | None = Field(
        None, ge=1, le=FARTHEST, allow_inf_nan=False, description="How many times longer; this or length."
    )
    length: int | None = Field(None, gt=1, description="The new length in tokens; this or factor.")
    original_length: int | None = Field(
        None, gt=1, description="Tokens the model was trained with; its max_position_embeddings if unset."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> RopeScaling:
        if (self.factor is None) == (self.length is None):
            given = "neither was" if self.factor is None else "both were"
            raise ValueError(f"give either factor or length; {given} given")
        return self

    def configure(self, config: Any) -> None:
        """Write the method into `config`, a Transformers configuration; see `lmflow_longctx.configuration.extend`."""
        from lmflow_longctx.configuration import extend

        extend(config, self)

    @abstractmethod
    def parameters(self, rotation: Rotation) -> dict[str, Any]:
        """What to write into `rope_parameters`."""

    @abstractmethod
    def scale(self, frequencies: Tensor, rotation: Rotation) -> tuple[Tensor, float]:
        """The frequencies, (d/2,), that the method makes of the model's, and the factor of queries and keys."""


class Linear(RopeScaling):
    """Position interpolation: all positions divided by the factor (Chen et al., 2023, arXiv 2306.15595)."""

    name = "linear"
    composes_with = ("linear", "proportional")

    def parameters(self, rotation: Rotation) -> dict[str, Any]:
        """Transformers' type linear; proportional (Gemma 4, which turns a share of its pairs) has a factor itself."""
        kind = "proportional" if rotation.kind == "proportional" else "linear"
        return {"rope_type": kind, "factor": rotation.factor}

    def scale(self, frequencies: Tensor, rotation: Rotation) -> tuple[Tensor, float]:
        """See `frequencies.interpolate`."""
        from lmflow_longctx.frequencies import interpolate

        return interpolate(frequencies, rotation.factor), 1.0


class Ntk(RopeScaling):
    """NTK-aware scaling: a larger base, so that low frequencies are stretched and high ones kept."""

    name = "ntk"

    def parameters(self, rotation: Rotation) -> dict[str, Any]:
        """The default type with a larger rope_theta: Transformers has no type for it and needs none.

        Raises LmflowError where two dimensions are turned.
        """
        from lmflow_longctx.frequencies import enlarge_base

        check_frequency_count(self.name, rotation)
        return {"rope_type": "default", "rope_theta": enlarge_base(rotation.base, rotation.dimension, rotation.factor)}

    def scale(self, frequencies: Tensor, rotation: Rotation) -> tuple[Tensor, float]:
        """See `frequencies.ntk`."""
        from lmflow_longctx.frequencies import ntk

        return ntk(frequencies, rotation.factor), 1.0


class Dynamic(RopeScaling):
    """NTK-aware scaling that begins beyond the original length and grows with the text."""

    name = "dynamic"
    grows_at_run_time = True

    def parameters(self, rotation: Rotation) -> dict[str, Any]:
        """Transformers' type dynamic. Raises LmflowError where two dimensions are turned."""
        check_frequency_count(self.name, rotation)
        return {"rope_type": "dynamic", "factor": rotation.factor}

    def scale(self, frequencies: Tensor, rotation: Rotation) -> tuple[Tensor, float]:
        """See `frequencies.dynamic_ntk`; this is where a model starts, at its original length."""
        from lmflow_longctx.frequencies import dynamic_ntk

        length = rotation.original_length
        return dynamic_ntk(frequencies, rotation.factor, length, length), 1.0


def check_frequency_count(name: str, rotation: Rotation) -> None:
    """Raise LmflowError where two dimensions are turned: of a single frequency none is the lowest."""
    if rotation.dimension <= 2:
        raise LmflowError(
            f"--context {name}: this model turns {rotation.dimension} dimensions of a head, which is one frequency, "
            "and no other base changes it. Take --context linear."
        )


class Yarn(RopeScaling):
    """YaRN: interpolation by parts, and a temperature in attention (Peng et al., 2023, arXiv 2309.00071)."""

    name = "yarn"

    beta_fast: float = Field(32, gt=0, description="Pairs that turn more often within the original length are kept.")
    beta_slow: float = Field(1, gt=0, description="Pairs that turn less often are interpolated.")
    attention_factor: float | None = Field(
        None, gt=0, description="Factor of queries and keys; 0.1 ln(factor) + 1 if unset."
    )

    @model_validator(mode="after")
    def _fast_above_slow(self) -> Yarn:
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast ({self.beta_fast:g}) must be above beta_slow ({self.beta_slow:g})")
        return self

    def parameters(self, rotation: Rotation) -> dict[str, Any]:
        """Transformers' type yarn, with the temperature written out."""
        return {
            "rope_type": "yarn",
            "factor": rotation.factor,
            "original_max_position_embeddings": rotation.original_length,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "attention_factor": self._attention_factor(rotation),
        }

    def scale(self, frequencies: Tensor, rotation: Rotation) -> tuple[Tensor, float]:
        """See `frequencies.yarn` and `frequencies.yarn_attention_factor`."""
        from lmflow_longctx.frequencies import yarn

        scaled = yarn(
            frequencies,
            rotation.factor,
            rotation.original_length,
            base=rotation.base,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
        )
        return scaled, self._attention_factor(rotation)

    def _attention_factor(self, rotation: Rotation) -> float:
        from lmflow_longctx.frequencies import yarn_attention_factor

        return self.attention_factor or yarn_attention_factor(rotation.factor)


class Llama3(RopeScaling):
    """Llama 3.1's scaling: low frequencies interpolated, high ones kept, a smooth passage between."""

    name = "llama3"

    low_freq_factor: float = Field(
        1, gt=0, description="Pairs that turn less often within the original length are interpolated."
    )
    high_freq_factor: float = Field(4, gt=0, description="Pairs that turn more often are kept.")

    @model_validator(mode="after")
    def _high_above_low(self) -> Llama3:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor ({self.high_freq_factor:g}) must be above low_freq_factor ({self.low_freq_factor:g})"
            )
        return self

    def parameters(self, rotation: Rotation) -> dict[str, Any]:
        """Transformers' type llama3."""
        return {
            "rope_type": "llama3",
            "factor": rotation.factor,
            "original_max_position_embeddings": rotation.original_length,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
        }

    def scale(self, frequencies: Tensor, rotation: Rotation) -> tuple[Tensor, float]:
        """See `frequencies.llama3`."""
        from lmflow_longctx.frequencies import llama3

        scaled = llama3(
            frequencies,
            rotation.factor,
            rotation.original_length,
            low_freq_factor=self.low_freq_factor,
            high_freq_factor=self.high_freq_factor,
        )
        return scaled, 1.0
