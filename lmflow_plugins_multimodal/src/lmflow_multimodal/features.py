"""Features of images, computed once for each content: kept in memory, or in a directory for any number of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmflow_multimodal.images import decode, read_bytes, shown
from lmflow_multimodal.tower import Tower

FEATURES = "image_features"


class FeatureStore:
    """What a frozen tower sees in images, by the hash of their bytes.

    With a directory the features are files below it, in a folder named after the tower's own hash, so that several
    runs share them and another tower never reads them; without one, or where its disk is full, they stay in memory.
    """

    def __init__(self, tower: Tower, directory: Path | None = None) -> None:
        self._tower = tower
        self._directory = directory / tower.fingerprint() if directory else None
        if self._directory:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError:
                self._directory = None
        self._held: dict[str, Tensor] = {}
        self._keys: dict[str, str] = {}
        self.computed = 0
        """Images the tower has looked at."""

    def inputs(self, references: Sequence[str]) -> Mapping[str, Any]:
        """The model's further input for these images: rows of features, (len * tokens, width), in order."""
        if not references:
            return {}
        return ImageFeatures(self, [self._ensure(reference) for reference in references])

    def load(self, key: str) -> Tensor:
        """Features of one image, (tokens, width) float32."""
        import numpy

        if self._directory is None or key in self._held:
            return self._held[key]
        return torch.from_numpy(numpy.load(self._directory / f"{key}.npy"))

    def _ensure(self, reference: str) -> str:
        """The image's key, its features being there afterwards."""
        key = self._keys.get(reference)
        if key is None:
            data = read_bytes(reference)
            key = hashlib.sha256(data).hexdigest()[:32]
            if not self._has(key):
                self._keep(key, self._look(data, shown(reference)))
            self._keys[reference] = key
        return key

    @torch.no_grad()
    def _look(self, data: bytes, name: str) -> Tensor:
        self.computed += 1
        weight = next(self._tower.parameters())
        pixels = self._tower.pixels(decode(data, name)).unsqueeze(0)
        with torch.autocast(weight.device.type, enabled=False):  # the same features whatever the run computes in
            features: Tensor = self._tower(pixels.to(weight))
        return features[0].float().cpu()

    def _has(self, key: str) -> bool:
        return key in self._held or (self._directory is not None and (self._directory / f"{key}.npy").exists())

    def _keep(self, key: str, features: Tensor) -> None:
        if self._directory is None:
            self._held[key] = features
            return
        import numpy

        partial = self._directory / f".{key}.{os.getpid()}.npy"
        try:
            numpy.save(partial, features.numpy())
            os.replace(partial, self._directory / f"{key}.npy")
        except OSError:  # a full disk means no cache, not no run
            self._held[key] = features
            with suppress(OSError):
                partial.unlink(missing_ok=True)


class ImageFeatures(Mapping[str, Tensor]):
    """The input of some images, put together when a batch is made: samples of one image share its features."""

    def __init__(self, store: FeatureStore, keys: Sequence[str]) -> None:
        self._store = store
        self._images = list(keys)

    def __getitem__(self, name: str) -> Tensor:
        if name != FEATURES:
            raise KeyError(name)
        return torch.cat([self._store.load(key) for key in self._images])

    def __iter__(self) -> Iterator[str]:
        return iter((FEATURES,))

    def __len__(self) -> int:
        return 1
