"""Models from the outside: directories and hub names that Transformers loads."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lmflow.components import Model
from lmflow.data.hub import hub_is_out_of_reach, is_kept_from_hub
from lmflow.errors import LmflowError, RecipeError

if TYPE_CHECKING:
    from lmflow.components import LoadRequest
    from lmflow.models.language_model import LanguageModel


class Pretrained(Model):
    """A causal language model that Transformers loads: a directory, or a hub name."""

    name = "pretrained"
    shorthand = "path"

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
        check_path(self.path, self.revision)
        from transformers import AutoTokenizer, GenerationConfig

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, **self._settings)
            config = configuration(self.path, request, **self._settings)
            module = skeleton(config, trust_remote_code=self.trust_remote_code)
            with suppress(OSError):  # not every model has one
                module.generation_config = GenerationConfig.from_pretrained(self.path, **self._settings)
        except (OSError, ValueError, ImportError) as error:
            raise LmflowError(f"model.path {self.path}: it cannot be loaded: {_first_lines(error)}") from error
        return assemble(module, tokenizer, self.path)

    def load(self, request: LoadRequest) -> LanguageModel:
        """Load configuration, weights and tokenizer with the same revision and trust."""
        check_path(self.path, self.revision)
        from transformers import AutoModelForCausalLM, AutoTokenizer

        settings = self._settings
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, **settings)
            config = configuration(self.path, request, **settings)
            module = AutoModelForCausalLM.from_pretrained(
                self.path, config=config, dtype=request.dtype, **settings, **attention_settings(config, request)
            )
        except (OSError, ValueError, ImportError) as error:
            raise LmflowError(f"model.path {self.path}: it cannot be loaded: {_first_lines(error)}") from error
        return assemble(module.to(request.device), tokenizer, self.path)


def configuration(source: str | Path, request: LoadRequest, **settings: Any) -> Any:
    """The configuration of the model at `source`, changed by the request's context if there is one."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, **settings)
    if request.context is not None:
        request.context.configure(config)
    return config


def attention_settings(config: Any, request: LoadRequest) -> dict[str, str]:
    """What Transformers is told of the request's attention, if it has one."""
    if request.attention is None:
        return {}
    return {"attn_implementation": request.attention.implementation(config, request.device)}


def skeleton(config: Any, *, trust_remote_code: bool = False) -> Any:
    """A causal language model of this configuration whose weights take no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def assemble(module: Any, tokenizer: Any, source: str) -> LanguageModel:
    """Weights and tokenizer as a LanguageModel in eval mode, with a chat template.

    Raises LmflowError when there is no token that could end an answer.
    """
    from lmflow.data.tokenize import ensure_chat_template
    from lmflow.models.language_model import LanguageModel

    ensure_chat_template(tokenizer)
    model = LanguageModel(module.eval(), tokenizer, source)
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


def _first_lines(error: Exception, count: int = 3) -> str:
    return "\n".join(str(error).strip().splitlines()[:count])
