"""Model component `adapter`: a PEFT adapter directory, merged into its base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lmflow.components import Model, OptionalPathOrName, PathOrName
from lmflow.errors import LmflowError

if TYPE_CHECKING:
    from lmflow.components import LoadRequest
    from lmflow.models.language_model import LanguageModel
    from lmflow.models.source import ModelSource

ADAPTER_CONFIG = "adapter_config.json"


class Adapter(Model):
    """A PEFT adapter directory, loaded with its base and merged into it."""

    name = "adapter"
    supports_quantization = True
    shorthand = "path"

    path: PathOrName = Field(description="Directory that holds adapter_config.json.")
    base: OptionalPathOrName = Field(
        None, description="Base model directory, where it is no longer where the adapter says."
    )

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

        from lmflow.models.identity import combined, fingerprint
        from lmflow.models.pretrained import assemble, load_weights, place
        from lmflow.models.source import ModelSource
        from lmflow_lora.loading import adapted, merged

        request = self.completed(request)
        source, config = self._base(request)
        apart = request.quantization is not None
        with self._explained_base(source):
            base = load_weights(source, config, request if apart else replace(request, dtype="float32"))
        weights = self._checked_base(source)
        module = adapted(base, self.path)
        if not apart:
            module = place(merged(module).to(dtype=getattr(torch, request.dtype)), request)
        model = assemble(module, self._tokenizer(source), self.path, request)
        return replace(model, fingerprint=combined(weights, fingerprint(ModelSource(self.path))))

    def skeleton(self, request: LoadRequest) -> LanguageModel:
        """The base's configuration and the adapter's tokenizer: once merged, the adapter has no shape of its own."""
        from lmflow.models.pretrained import assemble, skeleton

        request = self.completed(request)
        source, config = self._base(request)
        return assemble(skeleton(config, request), self._tokenizer(source), self.path, request)

    def _base(self, request: LoadRequest) -> tuple[ModelSource, Any]:
        """Where the base is, and the configuration that it had when the adapter was trained."""
        from lmflow.models.pretrained import configuration
        from lmflow.models.quantization import stored_quantization
        from lmflow.models.reading import explained_failure, reading
        from lmflow.models.source import ModelSource
        from lmflow_lora.lora import BASE_CONFIG

        if not self.recognises(self.path):
            raise LmflowError(f"{self.path} is no adapter directory: {ADAPTER_CONFIG} is missing.")
        from peft import PeftConfig

        with explained_failure(self.path), reading(self.path, ADAPTER_CONFIG):
            named = PeftConfig.from_pretrained(self.path)
        path = self.base or named.base_model_name_or_path
        if not path:
            raise LmflowError(f"{self.path} names no base model; name its directory with --model.base.")
        source = ModelSource(str(path), "model.base", revision=None if self.base else named.revision)
        with self._explained_base(source):
            source.check()
            own = Path(self.path) / BASE_CONFIG
            config = configuration(
                ModelSource(self.path, config_file=BASE_CONFIG) if own.is_file() else source, request
            )
        if stored := stored_quantization(config):
            raise LmflowError(
                f"The base model of adapter {self.path} is stored quantised ({stored}); merging the adapter into it "
                "would round its weights again. Name the model it was made from with --model.base."
            )
        return source, config

    def _checked_base(self, source: ModelSource) -> str | None:
        """The fingerprint of the base. Raises LmflowError where the adapter was trained on other weights."""
        from lmflow.models.identity import BASE, BaseWeights, differ, fingerprint, read_base

        before, now = read_base(Path(self.path)), BaseWeights(source.path, fingerprint(source))
        if before is not None and differ(before.fingerprint, now.fingerprint):
            raise LmflowError(
                f"The adapter {self.path} was trained on the weights of {before}, and those of {now} are others. Name "
                f"the directory of those it was trained on with --model.base; to use these all the same, delete "
                f"{Path(self.path) / BASE}."
            )
        return now.fingerprint

    @contextmanager
    def _explained_base(self, source: ModelSource) -> Iterator[None]:
        """Within the context, what is wrong with the base says whose base it is."""
        try:
            yield
        except LmflowError as error:
            raise LmflowError(
                f"The base model of adapter {self.path} cannot be loaded from {source.path}: {error}\n"
                "If it has moved, name its directory with --model.base."
            ) from error

    def _tokenizer(self, base: ModelSource) -> Any:
        from lmflow.data.tokenize import ensure_chat_template
        from lmflow.models.source import ModelSource

        own = (Path(self.path) / "tokenizer_config.json").exists()
        tokenizer = (ModelSource(self.path) if own else base).tokenizer()
        ensure_chat_template(tokenizer)
        return tokenizer
