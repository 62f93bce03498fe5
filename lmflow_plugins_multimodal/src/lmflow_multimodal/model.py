"""A loaded vision-language model: how its samples become tokens and features, and the directory that holds it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmflow.data.sample import Prompt, Sample, TokenSequence
from lmflow.data.tokenize import encode_prompt, encode_samples
from lmflow.errors import DataError
from lmflow.models.heads import write_heads
from lmflow.models.language_model import LanguageModel
from lmflow_multimodal.features import FEATURES, FeatureStore
from lmflow_multimodal.images import MARK, check_marks
from lmflow_multimodal.module import VisionLanguageNetwork
from lmflow_multimodal.tower import Tower, save_tower

if TYPE_CHECKING:
    from lmflow.components import Tuner

CONFIG = "vision_language.json"
TOWER = "tower.safetensors"
PROJECTOR = "projector.safetensors"
LANGUAGE = "language_model"


@dataclass(frozen=True)
class VisionLanguageModel(LanguageModel):
    """A language model with a vision tower and a projector, which reads samples with images.

    Each `<image>` in a text becomes as many image tokens as the tower gives features; none of them is a target.
    """

    store: FeatureStore = field(kw_only=True)
    language: LanguageModel = field(kw_only=True)
    """The language model as it was loaded; tuners work on this part."""
    projector_kind: str = field(kw_only=True)
    projector_learning_rate: float | None = field(default=None, kw_only=True)
    train_projector: bool = field(default=True, kw_only=True)

    @property
    def network(self) -> VisionLanguageNetwork:
        """The module, by its own type."""
        assert isinstance(self.module, VisionLanguageNetwork)
        return self.module

    @property
    def tower(self) -> Tower:
        """The vision tower."""
        return self.network.tower

    # Training

    def prepare(self, tuner: Tuner) -> VisionLanguageModel:
        """Tune the language model as `tuner` does, train the projector beside it, and leave the tower as it is."""
        network = self.network
        network.requires_grad_(False)
        network.language_model = tuner.prepare(network.language_model)
        network.projector.requires_grad_(self.train_projector)
        return self

    def tuner_notes(self, tuner: Tuner) -> Sequence[str]:
        """What `tuner` has to say of the language model."""
        return tuner.notes(self.network.language_model)

    def learning_rate(self, parameter: str) -> float | None:
        """The projector's own learning rate, if there is one."""
        return self.projector_learning_rate if parameter.startswith("projector.") else None

    # Tokens

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Padding and the image token, which may have a spare row in the language model's head."""
        return (*super().suppressed_ids, self.network.image_id)

    def encode_all(self, samples: Sequence[Sample], train_on: str = "assistant") -> list[list[TokenSequence]]:
        """Tokenise samples with their images; see `LanguageModel.encode_all`.

        Raises DataError when the texts have more or fewer marks than images.
        """
        for sample in samples:
            for turn in sample.messages:
                check_marks(turn.content, turn.images, sample.source or "the sample")
        encoded = encode_samples(self.tokenizer, samples, train_on=train_on, end_ids=self.end_ids)
        return [
            [self._with_images(sequence, sample) for sequence in sequences]
            for sample, sequences in zip(samples, encoded, strict=True)
        ]

    @property
    def token_key(self) -> None:
        """None: a sequence has the features of images beside its tokens."""
        return None

    def encode_prompt(self, sample: Sample) -> Prompt:
        """Tokenise what precedes a sample's last answer, with its images."""
        prompt = sample.prompt()
        for turn in prompt.messages:
            check_marks(turn.content, turn.images, sample.source or "the prompt")
        ids = encode_prompt(self.tokenizer, sample)
        sequence = self._with_images(TokenSequence(ids, [False] * len(ids)), prompt)
        return Prompt(sequence.ids, sequence.model_inputs)

    def _with_images(self, sequence: TokenSequence, sample: Sample) -> TokenSequence:
        """The sequence with every image token repeated for the features of its image."""
        self.check_ids(sequence.ids, sample, (self.network.image_id,))
        count = list(sequence.ids).count(self.network.image_id)
        images = sample.images[:count]  # a template may give a conversation in parts, each up to one of its answers
        if count != len(images):
            raise DataError(f"{sample.source}: the chat template repeats {MARK}; {count} for {len(images)} images.")
        if not images:
            return sequence
        ids, loss_mask = spread(sequence.ids, sequence.loss_mask, self.network.image_id, self.tower.tokens)
        model_inputs = self.store.inputs(images)
        return ImageSequence(ids, loss_mask, sequence.source, model_inputs, image_id=self.network.image_id)

    # Files

    def save(self, directory: Path) -> None:
        """Write everything: the tower, the projector, and the language model with its tokenizer in a folder."""
        directory.mkdir(parents=True, exist_ok=True)
        self._tuned_language().save(directory / LANGUAGE)
        write_heads(self.heads, directory)
        self._save_parts(directory)

    def save_tuned(self, tuner: Tuner, directory: Path) -> Path:
        """Write everything, the language model as `tuner` stores it: an adapter, where it makes one."""
        language = self._tuned_language()
        scratch = directory / ".language_model.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        saved = tuner.save(language, scratch)
        target = directory / saved.name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        os.replace(saved, target / LANGUAGE)
        shutil.rmtree(scratch)
        self._save_parts(target)
        return target

    def _tuned_language(self) -> LanguageModel:
        return self.language.with_module(self.network.language_model)

    def _save_parts(self, directory: Path) -> None:
        """Write all but the language model; the configuration last, for a directory without it is no model."""
        from safetensors.torch import save_file

        config = {
            "image_mark": MARK,
            "projector": self.projector_kind,
            "tower": dict(save_tower(self.tower, directory / TOWER)),
        }
        weights = {name: value.detach().contiguous() for name, value in self.network.projector.state_dict().items()}
        save_file(weights, directory / PROJECTOR)
        (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class ImageSequence(TokenSequence):
    """A sequence whose `model_inputs` are rows for its image tokens."""

    image_id: int = -1

    def cut(self, start: int, end: int) -> TokenSequence:
        """The tokens and the rows that belong to them."""
        ids, loss_mask = self.ids[start:end], self.loss_mask[start:end]
        before, inside = (list(part).count(self.image_id) for part in (self.ids[:start], ids))
        model_inputs: Mapping[str, Any] = {}
        if inside:
            model_inputs = {FEATURES: self.model_inputs[FEATURES][before : before + inside]}
        return replace(self, ids=ids, loss_mask=loss_mask, model_inputs=model_inputs)


def spread(ids: Sequence[int], loss_mask: Sequence[bool], image_id: int, count: int) -> tuple[list[int], list[bool]]:
    """Ids with every image token `count` times, and the targets, of which no image token is one."""
    new_ids: list[int] = []
    new_mask: list[bool] = []
    for token, target in zip(ids, loss_mask, strict=True):
        times = count if token == image_id else 1
        new_ids += [token] * times
        new_mask += [target and token != image_id] * times
    return new_ids, new_mask
