"""What is found out about a tokenizer once, and again when its template or its vocabulary changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
KEPT = "special_tokens_in_contents"
"""What is "keep" in the tokenizer's configuration, and saved with it, where special tokens in contents are kept."""


class PerTokenizer(Generic[T]):
    """A function of a tokenizer that remembers what it gave for each."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._known: WeakKeyDictionary[Any, tuple[object, T]] = WeakKeyDictionary()

    def __call__(self, tokenizer: Any) -> T:
        """What is known of the tokenizer as it is now."""
        settings = (tokenizer.split_special_tokens, tokenizer.init_kwargs.get(KEPT))
        key = (tokenizer.chat_template, len(tokenizer), settings, *tokenizer.all_special_tokens)
        known = self._known.get(tokenizer)
        if known is None or known[0] != key:
            known = self._known[tokenizer] = (key, self._make(tokenizer))
        return known[1]
