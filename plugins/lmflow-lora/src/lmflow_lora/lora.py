"""Tuner `lora`: low-rank updates of chosen linear layers (Hu et al., 2021, arXiv 2106.09685), on PEFT."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from lmflow.components import Tuner
from lmflow.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from lmflow.models.language_model import LanguageModel


BASE_CONFIG = "base_config.json"
"""Beside an adapter: the configuration of the model it was trained on."""


class Lora(Tuner):
    """Train low-rank updates of chosen linear layers (Hu et al., 2021)."""

    name = "lora"
    trains_few = True
    supports_quantization = True

    rank: int = Field(8, gt=0, description="Rank of each update.")
    alpha: float = Field(32, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the first low-rank matrix.")
    target_modules: str | list[str] = Field(
        "auto",
        description="Layers to adapt: auto (every linear layer of the blocks, and experts held as one "
        "parameter), a list of names, "
        "or one regular expression over full names.",
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) (arXiv 2312.03732).")
    dora: bool = Field(False, description="Train magnitude and direction apart (arXiv 2402.09353).")
    initialisation: Literal["default", "gaussian", "pissa", "olora", "orthogonal"] = Field(
        "default", description="How the low-rank matrices start."
    )
    modules_to_save: list[str] = Field([], description="Further modules trained in full and saved with the adapter.")

    @field_validator("target_modules")
    @classmethod
    def _split_names(cls, value: str | list[str]) -> str | list[str]:
        """`q_proj,v_proj` on the command line is a list; anything else stays a name or an expression."""
        if isinstance(value, str) and re.fullmatch(r"[\w.]+(,[\w.]+)+", value):
            return value.split(",")
        return value

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wrap `model` in PEFT; only the adapter (and `modules_to_save`) requires gradients.

        Raises RecipeError when a target matches no layer, naming the layers there are, and for what a quantised model
        cannot do: start from a decomposition of its weights, or carry a second adapter.
        """
        self._check_quantized(model)
        from peft import LoraConfig, get_peft_model

        from lmflow_lora.targets import token_tables

        # A skeleton has nothing to be decomposed; what is asked of it does not depend on how the matrices start.
        without_values = next(model.parameters()).is_meta
        targets = self._targets(model)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            target_parameters=self._expert_parameters(model) or None,
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights=True if self.initialisation == "default" or without_values else self.initialisation,
            modules_to_save=self.modules_to_save or None,
            trainable_token_indices=token_tables(model, self.modules_to_save),
            revision=getattr(getattr(model, "config", None), "_commit_hash", None),
        )
        wrapped: nn.Module = get_peft_model(model, config)
        return wrapped

    def notes(self, model: nn.Module) -> Sequence[str]:
        """Which new tokens train, and which experts are left as they are."""
        from lmflow_lora.targets import fused_experts

        found = []
        config = next(iter(getattr(model, "peft_config", {}).values()), None)
        if tables := config and config.trainable_token_indices:
            count, where = len(next(iter(tables.values()))), " and the head" if len(tables) > 1 else ""
            rows = "the row of 1 new token" if count == 1 else f"the rows of {count:,} new tokens"
            found.append(
                f"tuner lora trains {rows} in the embeddings{where} too, as the model's vocabulary was extended"
            )
        base = model.get_base_model() if config else model  # type: ignore[operator]
        if self.target_modules == "auto" and not self._adapts_experts and (left := fused_experts(base)):
            found.append(
                f"tuner lora leaves the experts as they are ({', '.join(left)}): with {self._hindrance} PEFT cannot "
                "adapt experts that are held as one parameter"
            )
        return found

    def save(self, model: LanguageModel, directory: Path) -> Path:
        """Write `adapter/`: the PEFT adapter, with the tokenizer whose template it was trained with.

        `base_config.json` holds the configuration of the model it was trained on, which need not be the one its base
        is stored with: a context may have changed it. `base_weights.json` says which weights those were.

        Where the model was itself merged from an adapter, its weights lie nowhere that this adapter could name as its
        base, so the whole model is written to `model/`, merged.
        """
        from lmflow.models.identity import BaseWeights, write_base
        from lmflow_lora.loading import merged

        if _base_lies_elsewhere(model):
            target = directory / "model"
            model.with_module(merged(copy.deepcopy(model.module))).save(target)
            return target
        target = directory / "adapter"
        model.save(target)
        base: Any = model.module
        config = copy.deepcopy(base.get_base_model().config)
        if hasattr(config, "quantization_config"):  # how the run held the base's weights, not how they are stored
            del config.quantization_config
        config.to_json_file(target / BASE_CONFIG)
        write_base(target, BaseWeights(model.source, model.fingerprint))
        return target

    def _check_quantized(self, model: nn.Module) -> None:
        from lmflow.models.quantization import is_quantized

        if not is_quantized(model):
            return
        if hasattr(model, "peft_config"):
            raise RecipeError(
                [
                    "model.quantization: an adapter on a quantised base cannot be trained further; merge it first "
                    "(lmflow export merge), and quantise the result"
                ]
            )
        if self.initialisation in ("pissa", "olora"):
            raise RecipeError(
                [
                    f"tuner.initialisation: {self.initialisation} takes the model's weights apart, which cannot be "
                    "done while they are quantised; use default, gaussian or orthogonal"
                ]
            )

    @property
    def _hindrance(self) -> str:
        """The option with which PEFT adapts no parameters by themselves; empty where none is in the way."""
        if self.dropout:
            return f"tuner.dropout {self.dropout}"
        if self.dora:
            return "tuner.dora"
        return "" if self.initialisation in ("default", "gaussian") else f"tuner.initialisation {self.initialisation}"

    @property
    def _adapts_experts(self) -> bool:
        return self.target_modules == "auto" and not self._hindrance

    def _expert_parameters(self, model: nn.Module) -> list[str]:
        from lmflow_lora.targets import fused_experts

        return fused_experts(model) if self._adapts_experts else []

    def _targets(self, model: Any) -> str | list[str]:
        """What PEFT is given; a string is an expression that must match a layer's full name."""
        from lmflow_lora.targets import block_linear_names, linear_layers

        linear = linear_layers(model)
        if self.target_modules == "auto":
            return block_linear_names(model)
        if isinstance(self.target_modules, str):
            if not any(re.fullmatch(self.target_modules, name) for name in linear):
                self._refuse(self.target_modules, linear)
            return self.target_modules
        for wanted in self.target_modules:
            if not any(name == wanted or name.endswith(f".{wanted}") for name in linear):
                self._refuse(wanted, linear)
        return self.target_modules

    def _refuse(self, wanted: str, linear: list[str]) -> None:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise RecipeError([f"tuner.target_modules: no linear layer matches {wanted!r}; there are {', '.join(kinds)}"])


def _base_lies_elsewhere(model: LanguageModel) -> bool:
    """Whether the place PEFT will name as the base holds other weights than those that were adapted."""
    module: Any = model.module
    return any(Path(str(c.base_model_name_or_path)) != Path(model.source) for c in module.peft_config.values())
