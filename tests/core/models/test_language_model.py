"""A language model of text alone: what it refuses to read."""

from __future__ import annotations

from typing import Any

import pytest

from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError

QUESTION = Sample((Message("user", "<image> which colour?", ("red.png",)), Message("assistant", "red")), source="p:7")


def test_sample_lists_the_images_of_all_turns_in_order() -> None:
    turns = Message("user", "<image><image>", ("a", "b")), Message("assistant", "x"), Message("user", "<image>", ("c",))
    assert Sample(turns).images == ("a", "b", "c")
    assert Sample((Message("user", "hello"),)).images == ()


@pytest.mark.parametrize("method", ["encode", "encode_prompt"])
def test_images_are_refused_by_a_model_of_text(tiny_model: Any, method: str) -> None:
    with pytest.raises(DataError, match=r"p:7: it has 1 image, and this model reads text alone.*vision-language"):
        getattr(tiny_model, method)(QUESTION)


def test_mark_without_an_image_is_text(tiny_model: Any) -> None:
    sample = Sample((Message("user", "<image> is a tag"),))
    assert "<image> is a tag" in tiny_model.tokenizer.decode(tiny_model.encode_prompt(sample).ids)
