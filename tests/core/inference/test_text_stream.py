"""Text that comes in tokens: whole characters, stop strings across tokens, nothing taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lmflow.inference.text_stream import TextStream


def pieces(stream: TextStream, ids: Sequence[int]) -> list[str]:
    given = []
    for token in ids:
        stream.add(token)
        given.append(stream.take())
        if stream.stopped:
            break
    stream.finish()
    return [*given, stream.take()]


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def test_characters_come_whole():
    assert pieces(TextStream(decode_bytes), "a€ä".encode()) == ["a", "", "", "€", "", "ä", ""]


def test_bytes_that_never_become_a_character_come_at_the_end():
    assert pieces(TextStream(decode_bytes), b"a\xe2\x82") == ["a", "", "", decode_bytes(b"\xe2\x82")]
    assert pieces(TextStream(decode_bytes), b"a\xffb") == ["a", "", "\N{REPLACEMENT CHARACTER}b", ""]


def test_what_may_begin_a_stop_string_is_held_back():
    assert pieces(TextStream(decode_bytes, ["###", "\n\n"]), b"a#b##c###d") == [
        "a",
        "",
        "#b",
        "",
        "",
        "##c",
        "",
        "",
        "",
        "",
    ]
    assert pieces(TextStream(decode_bytes, ["\n\n"]), b"a\n") == ["a", "", "\n"]


def test_the_first_stop_string_counts():
    words = ["one ", "two END three", " STOP"]
    stream = TextStream(lambda ids: "".join(words[i] for i in ids), ["STOP", "END", " three"])
    assert "".join(pieces(stream, [0, 1, 2])) == "one two "
    assert stream.stopped


def test_a_stop_string_may_be_a_multi_byte_character():
    stream = TextStream(decode_bytes, ["€"])
    assert "".join(pieces(stream, "ab€c".encode())) == "ab"


@pytest.mark.parametrize("text", ["the quick brown fox — naïve €uro 漢字 👩‍👩‍👧 end", "  leading\n\nand  spaces "])
def test_pieces_make_up_the_text_of_all_tokens(make_tokenizer: Any, text: str):
    tokenizer = make_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > 10
    given = pieces(TextStream(tokenizer.decode), ids)
    assert "".join(given) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in given)


def test_long_texts_are_not_decoded_again_and_again():
    decoded = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode_bytes(ids)

    pieces(TextStream(decode, ["stop"]), b"a" * 1000)
    assert decoded < 5000
