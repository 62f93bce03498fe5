"""Models from the outside: directories and hub names that Transformers loads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lmflow.components import Model
from lmflow.data.hub import hub_is_out_of_reach, is_kept_from_hub
from lmflow.errors import LmflowError, RecipeError
from lmflow.models.reading import explained_failure, first_lines, read_tokenizer, reading

if TYPE_CHECKING:
    from lmflow.components import LoadRequest
    from lmflow.models.language_model import LanguageModel


class Pretrained(Model):
    """A causal language model that Transformers loads: a directory, or a hub name."""

    name = "pretrained"
    shorthand = "path"
    supports_quantization = True
    supports_device_map = True

    path: str = Field(description="Model directory, or a name on the model hub.")
    revision: str | None = Field(
        None, description="Revision on the hub, for weights, configuration and tokenizer alike."
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with the model.")

    @classmethod
    def recognises(cls, reference: str) -> bool:
        """A directory with a model configuration."""
        return (Path(reference) / "config.json").is_file()

    @property
    def _settings(self) -> dict[str, Any]:
        """What weights, configuration and tokenizer are all loaded with."""
        revision = {"revision": self.revision} if self.revision else {}
        kept_only = {"local_files_only": True} if asks_hub(self.path) and hub_is_out_of_reach() else {}
        return {"trust_remote_code": self.trust_remote_code, **revision, **kept_only}

    def skeleton(self, request: LoadRequest) -> LanguageModel:
        """Configuration and tokenizer, around weights that take no memory."""
        request = self.completed(request)
        check_path(self.path, self.revision)
        from transformers import GenerationConfig

        with explained_failure(self.path):
            config = configuration(self.path, request, **self._settings)
            tokenizer = read_tokenizer(self.path, **self._settings)
            module = skeleton(config, request, trust_remote_code=self.trust_remote_code)
            with suppress(OSError):  # not every model has one
                module.generation_config = GenerationConfig.from_pretrained(self.path, **self._settings)
        return assemble(module, tokenizer, self.path, request)

    def load(self, request: LoadRequest) -> LanguageModel:
        """Load configuration, weights and tokenizer with the same revision and trust."""
        request = self.completed(request)
        check_path(self.path, self.revision)
        settings = self._settings
        with explained_failure(self.path):
            config = configuration(self.path, request, **settings)
            tokenizer = read_tokenizer(self.path, **settings)
            module = place(load_weights(self.path, config, request, **settings), request)
        return assemble(module, tokenizer, self.path, request)


def configuration(source: str | Path, request: LoadRequest, **settings: Any) -> Any:
    """The configuration of the model at `source`, changed by the request's context if there is one."""
    from transformers import AutoConfig

    with reading(source, "configuration"):
        config = AutoConfig.from_pretrained(source, **settings)
    if request.context is not None:
        request.context.configure(config)
    return config


def load_weights(source: str | Path, config: Any, request: LoadRequest, **settings: Any) -> Any:
    """The causal language model at `source`, with the request's attention, quantization and placement.

    Without the last two it is in main memory, and `place` brings it where it is to be. Raises LmflowError naming the
    model type where it has no such attention, and what Transformers raises where weights cannot be read.
    """
    from transformers import AutoModelForCausalLM

    from lmflow.models.quantization import keep_as_stored, placement_settings

    trust = settings.get("trust_remote_code", False)
    plain = replace(request, quantization=None)
    placement = placement_settings(config, request, lambda: skeleton(config, plain, trust_remote_code=trust))
    with explained_attention(config, request) as attention:
        module = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=request.dtype, **settings, **attention, **placement
        )
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

    ensure_chat_template(tokenizer)
    heads = {name: each.to(request.device) for name, each in read_heads(source).items()}
    model = LanguageModel(module.eval(), tokenizer, source, attention=request.attention, heads=heads)
    if not model.end_ids:
        raise LmflowError(f"{source}: neither tokenizer nor generation configuration names an end-of-text token.")
    return model


def asks_hub(path: str) -> bool:
    """Whether `path` is a name on the hub, OWNER/NAME, rather than a place on this machine."""
    there = Path(path).expanduser().exists()
    return not there and not path.startswith((".", "/", "~")) and path.count("/") == 1


def check_path(path: str, revision: str | None = None) -> None:
    """Raise RecipeError when `path` looks like a place on this machine and nothing is there.

    A name on the hub is refused where the hub is out of reach and the model was not fetched before.
    """
    place = Path(path).expanduser()
    if place.exists():
        if place.is_dir() and not (place / "config.json").is_file():
            raise RecipeError([f"model.path: {path} is a directory without config.json, so it holds no model"])
        return
    if asks_hub(path):
        if hub_is_out_of_reach() and not is_kept_from_hub(path, "config.json", revision):
            raise RecipeError([f"model.path: {path} does not exist here, and the model hub is out of reach"])
        return
    siblings = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, siblings, n=1)
    hint = f"; did you mean {place.parent / near[0]}?" if near else ""
    raise RecipeError([f"model.path: {path} does not exist{hint}"])
