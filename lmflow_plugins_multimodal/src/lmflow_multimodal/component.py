"""Model component `vision-language`: a vision tower and a projector before any causal language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lmflow.components import LoadRequest, Model, OptionalPathOrName, Requirement
from lmflow.errors import LmflowError, RecipeError

if TYPE_CHECKING:
    from lmflow.components import LoadRequest
    from lmflow.models.language_model import LanguageModel
    from lmflow_multimodal.tower import Tower

CONFIG = "vision_language.json"


class VisionLanguage(Model):
    """A vision tower of open_clip and a projector before any causal language model (LLaVA, arXiv 2310.03744)."""

    name = "vision-language"
    supports_quantization = True
    requires = (Requirement("open_clip", "'lmflow-multimodal[clip]'"),)
    shorthand = "path"

    path: OptionalPathOrName = Field(
        None, description="Directory of a saved vision-language model; replaces the next seven."
    )
    language_model: OptionalPathOrName = Field(
        None, description="The language model: a component (demo), a model or adapter directory, a run, a hub name."
    )
    tower: OptionalPathOrName = Field(
        None,
        description="The vision tower: an open_clip architecture (ViT-B-32), a .json file that describes one, or a "
        "directory with open_clip_config.json and weights.",
    )
    checkpoint: OptionalPathOrName = Field(
        None, description="The tower's weights: a file, a pretrained tag of open_clip, or random."
    )
    projector: Literal["linear", "mlp"] = Field("mlp", description="One linear layer, or two with GELU between them.")
    layer: int = Field(-2, lt=0, description="Block of the tower whose features are read, from the end.")
    pool: int = Field(1, ge=1, description="Side of the square of patches that are averaged into one image token.")
    resize: Literal["shortest", "longest", "squash"] | None = Field(
        None, description="How images are made square: cropped, padded or squashed; by default as the tower does."
    )
    projector_learning_rate: float | None = Field(
        None, gt=0, description="The projector's learning rate; training.learning_rate if unset."
    )
    train_projector: bool = Field(True, description="Train the projector, beside what the tuner trains.")
    feature_cache: str | None = Field(
        None, description="Directory for the features of images, shared between runs; in memory if unset."
    )

    @classmethod
    def recognises(cls, reference: str) -> bool:
        """A directory that such a model was saved to."""
        return (Path(reference) / CONFIG).is_file()

    def load(self, request: LoadRequest) -> LanguageModel:
        """Load the language model, then tower and projector around it. The tower always computes in float32.

        Quantization and attention are those of the language model alone.
        Raises LmflowError naming the field and what it must be, and how to get open_clip where it is missing.
        """
        request = self.completed(request)
        if self.path is not None:
            return self._load_saved(Path(self.path).expanduser(), request)
        missing = [name for name in ("language_model", "tower") if getattr(self, name) is None]
        if missing:
            raise RecipeError([f"model.{name}: missing; give it, or a saved model with model.path" for name in missing])
        import torch

        from lmflow_multimodal.projector import make_projector
        from lmflow_multimodal.tower import open_tower

        tower = open_tower(str(self.tower), self.checkpoint, layer=self.layer, pool=self.pool, resize=self.resize)
        language = load_language_model(str(self.language_model), request)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            projector = make_projector(self.projector, tower.width, hidden_size(language))
        return self._assemble(language, tower, projector, self.projector, str(self.language_model))

    def _load_saved(self, directory: Path, request: LoadRequest) -> LanguageModel:
        from lmflow.models.heads import read_heads
        from lmflow.models.identity import combined, fingerprint_of
        from lmflow_multimodal.model import LANGUAGE, PROJECTOR, TOWER
        from lmflow_multimodal.projector import make_projector
        from lmflow_multimodal.saved import load_weights, read_config
        from lmflow_multimodal.tower import load_tower

        self._check_nothing_changed(directory)
        if not self.recognises(str(directory)):
            raise LmflowError(f"model.path: {directory} is no vision-language model: {CONFIG} is missing.")
        config = read_config(directory / CONFIG)
        tower = load_tower(config["tower"], directory / TOWER)
        language = load_language_model(str((directory / LANGUAGE).resolve()), request)
        projector = make_projector(config["projector"], tower.width, hidden_size(language))
        load_weights(projector, directory / PROJECTOR)
        heads = {name: each.to(request.device) for name, each in read_heads(directory).items()}
        model = self._assemble(language, tower, projector, config["projector"], str(directory))
        parts = combined(model.fingerprint, fingerprint_of([directory / PROJECTOR]))
        return replace(model, heads=heads, fingerprint=parts)

    def _check_nothing_changed(self, directory: Path) -> None:
        """Raise RecipeError naming each option that the saved model already decides and that is given otherwise."""
        given = self.model_fields_set & {
            "language_model", "tower", "checkpoint", "projector", "layer", "pool", "resize"
        }  # fmt: skip
        changed = sorted(name for name in given if getattr(self, name) != type(self).model_fields[name].default)
        if changed:
            raise RecipeError([f"model.{name}: comes with the saved model at {directory}" for name in changed])

    def _assemble(self, language: LanguageModel, tower: Tower, projector: Any, kind: str, source: str) -> LanguageModel:
        from lmflow.models.identity import combined
        from lmflow_multimodal.features import FeatureStore
        from lmflow_multimodal.model import VisionLanguageModel
        from lmflow_multimodal.module import VisionLanguageNetwork

        weight = next(language.module.parameters())
        network = VisionLanguageNetwork(
            language.module, tower.to(weight.device), projector.to(weight), image_token(language.tokenizer)
        )
        cache = Path(self.feature_cache).expanduser() if self.feature_cache else None
        return VisionLanguageModel(
            network.eval(),
            language.tokenizer,
            source,
            store=FeatureStore(tower, cache),
            language=language,
            attention=language.attention,
            fingerprint=combined(language.fingerprint, tower.fingerprint()),
            projector_kind=kind,
            projector_learning_rate=self.projector_learning_rate,
            train_projector=self.train_projector,
        )


def load_language_model(reference: str, request: LoadRequest) -> LanguageModel:
    """The language model that `--model REFERENCE` would load. Raises LmflowError where the request has no plugins."""
    from lmflow.recipe.resolve import model_from_reference

    if request.plugins is None:
        raise LmflowError(f"the language model {reference} is found among the plugins; LoadRequest.plugins holds none")
    model = model_from_reference(request.plugins, reference)
    return model.load(model.completed(request))


def hidden_size(language: LanguageModel) -> int:
    """Size of the language model's embeddings."""
    table: Any = language.module.get_input_embeddings()  # type: ignore[operator]
    return int(table.embedding_dim)


def image_token(tokenizer: Any) -> int:
    """The id of `<image>`, added to the tokenizer where it has none; the model's table of embeddings stays as it is."""
    from tokenizers import AddedToken

    from lmflow_multimodal.images import MARK

    tokenizer.add_tokens([AddedToken(MARK, special=True, normalized=False)], special_tokens=True)
    return int(tokenizer.convert_tokens_to_ids(MARK))
