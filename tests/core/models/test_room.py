"""Prompts that leave room for an answer, and what is said of the others."""

from __future__ import annotations

import pytest

from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.models.encoding import prompts_with_room
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.data import DataOptions
from lmflow.testing.contexts import quiet_log


def ask(text: str) -> Sample:
    return Sample((Message("user", text),), source=f"{text[:5]}:1")


def test_a_prompt_without_room_is_counted_and_named(tiny_model: LanguageModel):
    log = quiet_log()
    long = ask("word " * 300)
    kept = prompts_with_room(tiny_model, [ask("short"), long], 8, DataOptions(), log, "held-out")
    assert [sample.source for sample in kept] == ["short:1"]
    [note] = log.notes
    assert "1 of 2 held-out prompts leave no room for 8 new tokens within 256" in note
    assert "word :1; they are left out" in note
    assert log.metrics == {"prompts_too_long_heldout": 1}
    with pytest.raises(DataError, match=r"1 of 1 training prompts.*word :1.*max_new_tokens"):
        prompts_with_room(tiny_model, [long], 8, DataOptions(), log, "training")


def test_the_last_token_of_room_is_room(tiny_model: LanguageModel):
    length = len(tiny_model.encode_prompt(ask("short")).ids)
    for limit, kept in ((length + 8, 1), (length + 7, 0)):
        log = quiet_log()
        samples = [ask("short"), ask("")]
        found = prompts_with_room(tiny_model, samples, 8, DataOptions(max_length=limit), log, "training")
        assert len(found) == 1 + kept
        assert log.metrics == ({} if kept else {"prompts_too_long_training": 1})
    assert prompts_with_room(tiny_model, [], 8, DataOptions(max_length=2), quiet_log(), "training") == []
