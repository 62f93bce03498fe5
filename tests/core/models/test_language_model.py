"""A language model of text alone: what it refuses to read, and where its answers end."""

from __future__ import annotations

import json
from pathlib import Path
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


TURNS = "{% for m in messages %}{{ m['content'] }}<|turn|>\n{% endfor %}"


@pytest.fixture
def base_model() -> Any:
    """A model whose end-of-text token is not what ends a turn, as base models are."""
    from lmflow.testing.tiny import tiny_model

    model = tiny_model()
    model.tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    model.tokenizer.chat_template = TURNS
    return model


def test_the_end_of_a_turn_ends_an_answer_whatever_the_end_of_a_text_is(base_model: Any) -> None:
    base_model.module.resize_token_embeddings(len(base_model.tokenizer))
    turn = base_model.tokenizer.convert_tokens_to_ids("<|turn|>")
    assert base_model.end_ids == (base_model.tokenizer.eos_token_id, turn)
    [sequence] = base_model.encode(Sample((Message("user", "q"), Message("assistant", "a"))))
    trained = [token for token, learnt in zip(sequence.ids, sequence.loss_mask, strict=True) if learnt]
    assert trained[-1] == turn
    base_model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert base_model.end_ids == (base_model.tokenizer.eos_token_id,), "it is the template's, which may change"


def test_all_ends_are_saved_for_whatever_serves_the_model(base_model: Any, tmp_path: Path) -> None:
    base_model.module.resize_token_embeddings(len(base_model.tokenizer))
    before = base_model.module.generation_config.to_diff_dict()
    base_model.save(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["eos_token_id"] == list(base_model.end_ids)
    assert base_model.module.generation_config.to_diff_dict() == before, "the model itself stays as it was"
