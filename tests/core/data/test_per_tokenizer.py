"""What is remembered of a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmflow.data.per_tokenizer import PerTokenizer


def test_it_is_found_out_once_and_again_after_a_change(make_tokenizer: Callable[..., Any]):
    asked: list[Any] = []

    def ask(tokenizer: Any) -> int:
        asked.append(tokenizer)
        return len(asked)

    known, tokenizer = PerTokenizer(ask), make_tokenizer()
    assert [known(tokenizer), known(tokenizer)] == [1, 1]
    tokenizer.chat_template = "{{ messages }}"
    assert known(tokenizer) == 2
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    assert known(tokenizer) == 3
    tokenizer.eos_token = "<new>"
    assert known(tokenizer) == 4
    assert known(make_tokenizer()) == 5, "another tokenizer is another"
