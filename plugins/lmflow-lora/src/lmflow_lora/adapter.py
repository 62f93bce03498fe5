"""Model component `adapter`: a PEFT adapter directory, merged into its base."""

from __future__ import annotations

from dataclasses import replace
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
    supports_quantization = True
    shorthand = "path"

    path: str = Field(description="Directory that holds adapter_config.json.")
    base: str | None = Field(None, description="Base model directory, where it is no longer where the adapter says.")

    @classmethod
    def recognises(cls, reference: str) -> bool:
        """A directory with an adapter configuration."""
        return (Path(reference) / ADAPTER_CONFIG).is_file()

    def load(self, request: LoadRequest) -> LanguageModel:
        """Merge in float32, whatever dtype is asked for, so that rounding happens once.

        The base is built with the configuration the adapter was trained with, where it stands beside it. On a quantised
        base the adapter stays beside the weights, as it was while it was trained: merging would round them again.
        Raises LmflowError for a base that is stored quantised.
        """
        import torch

        from lmflow.models.pretrained import assemble, load_weights, place
        from lmflow.models.reading import explained_failure

        request = self.completed(request)
        config, base_path = self._base_configuration(request)
        from peft import PeftModel

        apart = request.quantization is not None
        try:
            base = load_weights(base_path, config, request if apart else replace(request, dtype="float32"))
        except (OSError, ValueError) as error:
            raise self._without_base(base_path, error) from error
        # PEFT draws weights for the adapter before it reads them.
        with torch.random.fork_rng(devices=[]), explained_failure(self.path):
            module = PeftModel.from_pretrained(base, self.path)
        if not apart:
            module = place(module.merge_and_unload().to(dtype=getattr(torch, request.dtype)), request)
        return assemble(module, self._tokenizer(base_path), self.path, request)

    def skeleton(self, request: LoadRequest) -> LanguageModel:
        """The base's configuration and the adapter's tokenizer: once merged, the adapter has no shape of its own."""
        from lmflow.models.pretrained import assemble, skeleton

        request = self.completed(request)
        config, base_path = self._base_configuration(request)
        return assemble(skeleton(config, request), self._tokenizer(base_path), self.path, request)

    def _base_configuration(self, request: LoadRequest) -> tuple[Any, str]:
        """The configuration of the base, and where its weights are."""
        from lmflow.models.pretrained import configuration
        from lmflow.models.quantization import stored_quantization
        from lmflow.models.reading import explained_failure, reading
        from lmflow_lora.lora import BASE_CONFIG

        if not self.recognises(self.path):
            raise LmflowError(f"{self.path} is no adapter directory: {ADAPTER_CONFIG} is missing.")
        from peft import PeftConfig

        with explained_failure(self.path), reading(self.path, ADAPTER_CONFIG):
            base_path: str = self.base or PeftConfig.from_pretrained(self.path).base_model_name_or_path
        own = Path(self.path) / BASE_CONFIG
        try:
            config = configuration(own if own.is_file() else base_path, request)
        except (OSError, ValueError) as error:
            raise self._without_base(base_path, error) from error
        if stored := stored_quantization(config):
            raise LmflowError(
                f"The base model of adapter {self.path} is stored quantised ({stored}); merging the adapter into it "
                "would round its weights again. Name the model it was made from with --model.base."
            )
        return config, base_path

    def _without_base(self, base_path: str, error: Exception) -> LmflowError:
        return LmflowError(
            f"The base model of adapter {self.path} cannot be loaded from {base_path}: {error}\n"
            "If it has moved, name its directory with --model.base."
        )

    def _tokenizer(self, base_path: str) -> Any:
        from lmflow.data.tokenize import ensure_chat_template
        from lmflow.models.reading import explained_failure, read_tokenizer

        own = (Path(self.path) / "tokenizer_config.json").exists()
        place = self.path if own else base_path
        with explained_failure(place):
            tokenizer = read_tokenizer(place)
        ensure_chat_template(tokenizer)
        return tokenizer
