"""Model component `adapter`: a PEFT adapter directory, merged into its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lmflow.components import Model
from lmflow.errors import LmflowError

if TYPE_CHECKING:
    from lmflow.components import LoadRequest
    from lmflow.models.language_model import LanguageModel

ADAPTER_CONFIG = "adapter_config.json"


class Adapter(Model):
    """A PEFT adapter directory, loaded with its base and merged into it."""

    name = "adapter"
    shorthand = "path"

    path: str = Field(description="Directory that holds adapter_config.json.")
    base: str | None = Field(None, description="Base model directory, where it is no longer where the adapter says.")

    @classmethod
    def recognises(cls, reference: str) -> bool:
        """A directory with an adapter configuration."""
        return (Path(reference) / ADAPTER_CONFIG).is_file()

    def load(self, request: LoadRequest) -> LanguageModel:
        """Merge in float32, whatever dtype is asked for, so that rounding happens once.

        The base is built with the configuration the adapter was trained with, where it stands beside it.
        """
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        from lmflow.models.language_model import LanguageModel
        from lmflow.models.pretrained import attention_settings

        config, base_path = self._base_configuration(request)
        settings = attention_settings(config, request)
        try:
            base = AutoModelForCausalLM.from_pretrained(base_path, config=config, dtype=torch.float32, **settings)
        except (OSError, ValueError) as error:
            raise self._without_base(base_path, error) from error
        with torch.random.fork_rng(devices=[]):  # PEFT draws weights for the adapter before it reads them
            module = PeftModel.from_pretrained(base, self.path).merge_and_unload()
        module = module.to(device=request.device, dtype=getattr(torch, request.dtype)).eval()
        return LanguageModel(module, self._tokenizer(base_path), self.path)

    def skeleton(self, request: LoadRequest) -> LanguageModel:
        """The base's configuration and the adapter's tokenizer: once merged, the adapter has no shape of its own."""
        from lmflow.models.language_model import LanguageModel
        from lmflow.models.pretrained import skeleton

        config, base_path = self._base_configuration(request)
        return LanguageModel(skeleton(config).eval(), self._tokenizer(base_path), self.path)

    def _base_configuration(self, request: LoadRequest) -> tuple[Any, str]:
        """The configuration of the base, and where its weights are."""
        from peft import PeftConfig

        from lmflow.models.pretrained import configuration
        from lmflow_lora.lora import BASE_CONFIG

        if not self.recognises(self.path):
            raise LmflowError(f"{self.path} is no adapter directory: {ADAPTER_CONFIG} is missing.")
        base_path: str = self.base or PeftConfig.from_pretrained(self.path).base_model_name_or_path
        own = Path(self.path) / BASE_CONFIG
        try:
            return configuration(own if own.is_file() else base_path, request), base_path
        except (OSError, ValueError) as error:
            raise self._without_base(base_path, error) from error

    def _without_base(self, base_path: str, error: Exception) -> LmflowError:
        return LmflowError(
            f"The base model of adapter {self.path} cannot be loaded from {base_path}: {error}\n"
            "If it has moved, name its directory with --model.base."
        )

    def _tokenizer(self, base_path: str) -> Any:
        from transformers import AutoTokenizer

        from lmflow.data.tokenize import ensure_chat_template

        own = (Path(self.path) / "tokenizer_config.json").exists()
        tokenizer = AutoTokenizer.from_pretrained(self.path if own else base_path)
        ensure_chat_template(tokenizer)
        return tokenizer
