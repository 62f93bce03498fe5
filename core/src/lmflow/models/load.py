"""Loading a model to use it: on its device, in the dtype that suits it there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from lmflow.components import Attention, Context, LoadRequest, Model

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel
    from lmflow.plugins import Plugins


class Compute(BaseModel):
    """Where and in which dtype a model computes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU if there is one.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="dtype of the weights; auto is bf16 on a GPU that has it, else fp32."
    )


def load_for_inference(
    model: Model,
    plugins: Plugins,
    *,
    context: Context | None = None,
    attention: Attention | None = None,
    compute: Compute | None = None,
) -> LanguageModel:
    """Load `model` to use it, changed by `context` and `attention` where there are such.

    Raises LmflowError with what is missing, and RecipeError where a GPU is asked for and there is none.
    """
    from lmflow.models.device import DTYPES, choose_device, choose_precision

    compute = compute or Compute()
    device = choose_device(compute.device)
    dtype = DTYPES[choose_precision(compute.precision, device)]
    return model.load(LoadRequest(dtype=dtype, device=device, context=context, attention=attention, plugins=plugins))
