"""Models from the outside: directories and hub names that Transformers loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lmflow.components import Model, PathOrName
from lmflow.errors import LmflowError
from lmflow.models.identity import fingerprint
from lmflow.models.reading import first_lines
from lmflow.models.source import ModelSource

if TYPE_CHECKING:
    from lmflow.components import LoadRequest
    from lmflow.models.language_model import LanguageModel

PERMUTED = ("xlnet",)
"""Types of models that Transformers counts among the causal ones, and that are none."""


class Pretrained(Model):
    """A causal language model that Transformers loads: a directory, or a hub name."""

    name = "pretrained"
    shorthand = "path"
    supports_quantization = True
    supports_device_map = True

    path: PathOrName = Field(description="Model directory, or a name on the model hub.")
    revision: str | None = Field(
        None, description="Revision on the hub, for weights, configuration and tokenizer alike."
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with the model.")

    @classmethod
    def recognises(cls, reference: str) -> bool:
        """A directory with a model configuration."""
        return (Path(reference) / "config.json").is_file()

    @property
    def _source(self) -> ModelSource:
        return ModelSource(self.path, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def skeleton(self, request: LoadRequest) -> LanguageModel:
        """Configuration and tokenizer, around weights that take no memory."""
        request, source = self.completed(request), self._source
        source.check()
        config = configuration(source, request)
        tokenizer = source.tokenizer()
        with source.explained():
            module = skeleton(config, request, trust_remote_code=self.trust_remote_code)
        if (generation := source.generation_config()) is not None:
            module.generation_config = generation
        return assemble(module, tokenizer, self.path, request)

    def load(self, request: LoadRequest) -> LanguageModel:
        """Load configuration, weights and tokenizer with the same revision and trust."""
        request, source = self.completed(request), self._source
        source.check()
        config = configuration(source, request)
        tokenizer = source.tokenizer()
        module = place(load_weights(source, config, request), request)
        return replace(assemble(module, tokenizer, self.path, request), fingerprint=fingerprint(source))


def configuration(source: ModelSource, request: LoadRequest) -> Any:
    """The configuration of the model at `source`, changed by the request's context if there is one.

    Raises LmflowError for a model that does not read a text from its beginning to its end.
    """
    config = source.configuration()
    check_causal(source, config)
    if request.context is not None:
        request.context.configure(config)
    return config


def check_causal(source: ModelSource, config: Any) -> None:
    """Raise LmflowError for a kind of model that has a part for reading beside the one that writes."""
    kind = getattr(config, "model_type", None)
    if getattr(config, "is_encoder_decoder", False):
        raise LmflowError(f"{source.option} {source.path} ({kind}): encoder-decoder models are not supported.")
    if kind in PERMUTED:
        raise LmflowError(
            f"{source.option} {source.path} ({kind}): models that predict a text in another order than from left to "
            "right are not supported."
        )


def load_weights(source: ModelSource, config: Any, request: LoadRequest) -> Any:
    """The causal language model at `source`, with the request's attention, quantization and placement.

    Without the last two it is in main memory, and `place` brings it where it is to be. Raises LmflowError naming the
    model type where it has no such attention, and the tensors that are not those of the configuration.
    """
    from transformers import AutoModelForCausalLM

    from lmflow.models.quantization import keep_as_stored, placement_settings

    plain = replace(request, quantization=None)
    trust = source.trust_remote_code
    placement = placement_settings(config, request, lambda: skeleton(config, plain, trust_remote_code=trust))
    with source.explained(), explained_attention(config, request) as attention:
        module = source.weights(AutoModelForCausalLM, config, dtype=request.dtype, **attention, **placement)
    check_attention(module, attention, request)
    if request.quantization is not None:
        keep_as_stored(module)
    return module


def place(module: Any, request: LoadRequest) -> Any:
    """The module on the request's device; quantised weights and those under a device map are where they are to be."""
    placed = request.quantization is not None or request.device_map is not None
    return module if placed else module.to(request.device)


def skeleton(config: Any, request: LoadRequest, *, trust_remote_code: bool = False) -> Any:
    """A causal language model of this configuration whose weights take no memory, quantised as the request says.

    Raises LmflowError naming the model type where it has no such attention.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from lmflow.models.quantization import with_quantized_shapes

    with explained_attention(config, request) as attention, torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **attention)
    check_attention(module, attention, request)
    return module if request.quantization is None else with_quantized_shapes(module, request.quantization)


@contextmanager
def explained_attention(config: Any, request: LoadRequest) -> Iterator[dict[str, str]]:
    """Within the context the model is built, with these settings; what it says of its attention is put in one message.

    Transformers raises ValueError and ImportError for this as it does for much else, so what speaks of attention
    counts.
    """
    if request.attention is None:
        yield {}
        return
    try:
        yield {"attn_implementation": request.attention.implementation(config, request.device)}
    except (ValueError, ImportError) as error:
        if "attention" not in str(error).lower():
            raise
        raise unsupported_attention(config, request, first_lines(error, 1)) from error


def check_attention(module: Any, attention: Mapping[str, str], request: LoadRequest) -> None:
    """Raise LmflowError where a model was built with another attention than it was asked for."""
    if not attention:
        return
    asked = attention["attn_implementation"]
    found = getattr(module.config.get_text_config(), "_attn_implementation", None)
    if found != asked:
        raise unsupported_attention(module.config, request, f"Transformers built it with {found} instead of {asked}")


def unsupported_attention(config: Any, request: LoadRequest, why: str) -> LmflowError:
    """That a type of model has not the attention that the request asks for."""
    assert request.attention is not None
    return LmflowError(
        f"--attention {request.attention.name}: a model of type {config.model_type} cannot be built with it: {why} "
        "Leave the option out, or choose another."
    )


def assemble(module: Any, tokenizer: Any, source: str, request: LoadRequest) -> LanguageModel:
    """Weights and tokenizer, loaded as `request` says, as a LanguageModel in eval mode, with a chat template.

    Heads that lie beside the model at `source` come with it.

    Raises LmflowError when there is no token that could end an answer.
    """
    from lmflow.data.tokenize import ensure_chat_template
    from lmflow.models.heads import read_heads
    from lmflow.models.language_model import LanguageModel
    from lmflow.models.vocabulary import mark_new_tokens

    ensure_chat_template(tokenizer)
    mark_new_tokens(module, source)
    heads = {name: each.to(request.device) for name, each in read_heads(source).items()}
    model = LanguageModel(module.eval(), tokenizer, source, attention=request.attention, heads=heads)
    if not model.end_ids:
        raise LmflowError(f"{source}: neither tokenizer nor generation configuration names an end-of-text token.")
    return model
