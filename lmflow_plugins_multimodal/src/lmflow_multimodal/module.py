"""The network: patch features of images, projected, in place of the image tokens' embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmflow.errors import LmflowError
from lmflow_multimodal.tower import Tower


class VisionLanguageNetwork(nn.Module):
    """A causal language model that reads images (LLaVA, arXiv 2304.08485).

    `language_model` is any causal language model of Transformers, also one that a tuner has wrapped; to the trainer
    and the inferencers this module looks like it. An image token's id may lie beyond the vocabulary: it is never
    looked up and never drawn. Without images the language model is called as if this module were not there.
    """

    def __init__(self, language_model: nn.Module, tower: Tower, projector: nn.Sequential, image_id: int) -> None:
        super().__init__()
        self.language_model = language_model
        self.tower = tower
        self.projector = projector
        self.image_id = image_id

    def forward(self, input_ids: Tensor, image_features: Tensor | None = None, **inputs: Any) -> Any:
        """The language model's output for `input_ids` (B, T).

        `image_features` (N, width) are the rows for the image tokens of the whole batch, in row-major order.
        Raises LmflowError when their numbers differ.
        """
        places = input_ids == self.image_id
        if image_features is None and not (torch.is_grad_enabled() and self.projector_trains):
            self._check(places, 0)
            return self.language_model(input_ids=input_ids, **inputs)
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(places, 0))
        if image_features is None:
            # A batch without images still gives every trained parameter a gradient, of zero.
            self._check(places, 0)
            embeddings = embeddings + 0 * self._project(embeddings.new_zeros(1, self.tower.width)).sum()
        else:
            self._check(places, len(image_features))
            projected = self._project(image_features).to(embeddings.dtype)
            embeddings = embeddings.masked_scatter(places.unsqueeze(-1), projected)
        return self.language_model(inputs_embeds=embeddings, **inputs)

    @property
    def projector_trains(self) -> bool:
        """Whether the projector is being trained."""
        return next(self.projector.parameters()).requires_grad

    def _project(self, features: Tensor) -> Tensor:
        projected: Tensor = self.projector(features.to(next(self.projector.parameters()).dtype))
        return projected

    def _check(self, places: Tensor, features: int) -> None:
        count = int(places.sum())
        if count != features:
            raise LmflowError(f"The batch has {count} image tokens and features for {features}.")

    # What the core asks of a causal language model

    @property
    def config(self) -> Any:
        """The language model's configuration."""
        return self.language_model.config

    @property
    def generation_config(self) -> Any:
        """The language model's generation configuration."""
        return self.language_model.generation_config

    @property
    def active_peft_config(self) -> Any:
        """The adapter's configuration; there is none (AttributeError) without an adapter."""
        return self.language_model.active_peft_config

    def get_base_model(self) -> nn.Module:
        """The language model beneath an adapter."""
        inner = self.language_model
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # type: ignore[operator]

    def get_input_embeddings(self) -> nn.Module:
        """The language model's table of embeddings."""
        return self.language_model.get_input_embeddings()  # type: ignore[operator, no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()  # type: ignore[operator, no-any-return]

    def gradient_checkpointing_enable(self, options: Any = None) -> None:
        """Recompute the language model's activations in the backward pass."""
        self.language_model.gradient_checkpointing_enable(options)  # type: ignore[operator]

    def enable_input_require_grads(self) -> None:
        """Make the embeddings' output require gradients."""
        self.language_model.enable_input_require_grads()  # type: ignore[operator]
