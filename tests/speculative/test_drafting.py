"""How a draft is loaded: as its target was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lmflow.builtin.attention import Eager, Sdpa
from lmflow.components import Attention, LoadRequest, RunContext
from lmflow.errors import LmflowError
from lmflow.models.pretrained import Pretrained
from lmflow.plugins import load_plugins
from lmflow.run.log import RunLog
from lmflow.testing.tiny import tiny_model
from lmflow_speculative.drafting import check_vocabularies, load_draft
from lmflow_speculative.speculative import Speculative


@pytest.mark.parametrize("attention", [Eager(), Sdpa()])
def test_the_draft_computes_attention_as_its_target(attention: Attention, model_directory: Path) -> None:
    draft = load_draft(load_plugins(), str(model_directory), "float32", "cpu", attention)
    assert draft.module.config._attn_implementation == attention.name
    target = Pretrained(path=str(model_directory)).load(LoadRequest(attention=attention))
    inferencer = Speculative(draft=str(model_directory))
    inferencer.open(RunContext(plugins=load_plugins(), log=RunLog(None, lambda *_, **__: None), model=target))
    assert inferencer._load(str(model_directory), target).module.config._attn_implementation == attention.name


def test_a_draft_with_fewer_embeddings_than_tokens_is_named() -> None:
    target, draft = tiny_model(), tiny_model()
    count = len(target.tokenizer)
    check_vocabularies(draft, target)
    draft.module.resize_token_embeddings(count - 5, mean_resizing=False)
    with pytest.raises(LmflowError, match=rf"has {count - 5} embeddings, and token {count - 5} .* is beyond them"):
        check_vocabularies(replace(draft), target)
