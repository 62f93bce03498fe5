"""A key-value cache that grows in place, and whose rows leave, join and lose common padding."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

SPARE = 32
"""Positions reserved beyond what is needed; the cache is copied once in so many tokens instead of at every token."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # Transformers is not followed
    """A layer's keys and values, (B, heads, T, size) each: views of larger tensors whose free end takes new tokens.

    It writes in place, so it is for inference only.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._key_store: Tensor | None = None
        self._value_store: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, heads, t, size) and return all there is."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        self._key_store, self.keys = _append(self._key_store, self.keys, key_states, length)
        self._value_store, self.values = _append(self._value_store, self.values, value_states, length)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at `indices`, in that order; a row may be named several times."""
        self._key_store, self.keys = _select(self._key_store, self.keys, indices)
        self._value_store, self.values = _select(self._value_store, self.values, indices)

    def trim_left(self, tokens: int) -> None:
        """Forget the first `tokens` positions of all rows, without copying."""
        self._key_store, self.keys = _drop_left(self._key_store, self.keys, tokens)
        self._value_store, self.values = _drop_left(self._value_store, self.values, tokens)

    def gather(self, positions: Tensor) -> None:
        """Keep of each row the positions given, (B, T), in that order."""
        index = positions[:, None, :, None].expand(-1, self.keys.shape[1], -1, -1)
        self.keys = self.keys.gather(2, index.expand(-1, -1, -1, self.keys.shape[-1]))
        self.values = self.values.gather(2, index.expand(-1, -1, -1, self.values.shape[-1]))

    def concat(self, other: GrowingLayer) -> None:
        """Add the rows of `other` below these, both padded on the left to the longer of the two."""
        self._key_store, self.keys = _join(self.keys, other.keys)
        self._value_store, self.values = _join(self.values, other.values)


def growing_cache(config: Any) -> DynamicCache | None:
    """An empty cache for a model of this configuration, whose plain layers are `GrowingLayer`s.

    None for a model with other layers than attention: it brings its own cache.
    """
    cache = DynamicCache(config=config)
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def whole_cache(config: Any) -> DynamicCache | None:
    """An empty cache that keeps all tokens, sliding windows too; None for a model with other layers than attention.

    The model's mask still hides what a sliding window has left behind.
    """
    cache = growing_cache(config)
    if cache is not None:
        cache.layers = [GrowingLayer() for _ in cache.layers]
    return cache


def is_flexible(cache: Cache) -> bool:
    """Whether every layer can drop padding and take in rows; sliding windows and recurrent states cannot."""
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def trim_left(cache: Cache, tokens: int) -> None:
    """Forget the first `tokens` positions of a flexible cache."""
    for layer in cache.layers:
        layer.trim_left(tokens)


def drop_right(cache: Cache, tokens: int) -> None:
    """Forget the last `tokens` positions of a flexible cache, without copying."""
    for layer in cache.layers:
        layer.crop(-tokens)


def gather(cache: Cache, positions: Tensor) -> None:
    """Keep of each row of a flexible cache the positions given, (B, T), in that order."""
    for layer in cache.layers:
        layer.gather(positions)


def concat(cache: Cache, other: Cache) -> None:
    """Add the rows of one flexible cache below those of another."""
    for layer, added in zip(cache.layers, other.layers, strict=True):
        layer.concat(added)


def _append(store: Tensor | None, held: Tensor, new: Tensor, length: int) -> tuple[Tensor, Tensor]:
    total = length + new.shape[-2]
    if store is None or not _backs(store, held) or store.shape[-2] < total:
        store = new.new_empty(*new.shape[:2], total + SPARE, new.shape[-1])
        if length:
            store[:, :, :length] = held
    store[:, :, length:total] = new
    return store, store[:, :, :total]


def _select(store: Tensor | None, held: Tensor, indices: Tensor) -> tuple[Tensor | None, Tensor]:
    if store is None or not _backs(store, held):
        return None, held.index_select(0, indices)
    store = store.index_select(0, indices)
    return store, store[:, :, : held.shape[-2]]


def _drop_left(store: Tensor | None, held: Tensor, tokens: int) -> tuple[Tensor | None, Tensor]:
    if store is None or not _backs(store, held):
        return None, held[:, :, tokens:]
    return store[:, :, tokens:], held[:, :, tokens:]


def _join(above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = above.shape[0] + below.shape[0], max(above.shape[-2], below.shape[-2])
    store = above.new_empty(rows, above.shape[1], width + SPARE, above.shape[-1])
    start = 0
    for part in above, below:
        end, padding = start + part.shape[0], width - part.shape[-2]
        store[start:end, :, :padding] = 0  # attention gives padding weight 0, and 0 times anything must be 0
        store[start:end, :, padding:width] = part
        start = end
    return store, store[:, :, :width]


def _backs(store: Tensor, held: Tensor) -> bool:
    """Whether `held` still is the beginning of `store`; cropping keeps that, other operations need not."""
    return store.data_ptr() == held.data_ptr() and store.shape[0] == held.shape[0]
