"""More tokens: what is learnt is byte-pair encoding continued, rows begin as means, and all of it survives a file."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from lmflow.errors import LmflowError
from lmflow.models.language_model import LanguageModel
from lmflow.models.vocabulary import (
    add_tokens,
    learn_merges,
    learn_pieces,
    merged,
    parts_of,
    unknown_characters,
    words_of,
)


@pytest.fixture
def corpus() -> list[str]:
    draw = random.Random(0)
    words = ["photosynthesis", "chlorophyll", "数据库", "mitochondria", "the", "naïveté", "foxes"]
    return [" ".join(draw.choices(words, k=12)) + "." for _ in range(60)]


@pytest.fixture
def model(tiny_model: LanguageModel) -> LanguageModel:
    return copy.deepcopy(tiny_model)


def slow_merges(words: dict[tuple[str, ...], int], count: int, known: set[str]) -> list[tuple[str, str]]:
    """The definition: count every pair anew each time."""
    cut, merges = {word: list(word) for word in words}, []
    while len(merges) < count:
        totals: Counter[tuple[str, str]] = Counter()
        for word, pieces in cut.items():
            for pair in pairwise(pieces):
                totals[pair] += words[word]
        candidates = [(-n, pair) for pair, n in totals.items() if n >= 2 and "".join(pair) not in known]
        if not candidates:
            break
        _, best = min(candidates)
        merges.append(best)
        known = known | {"".join(best)}
        cut = {word: merged(pieces, best) for word, pieces in cut.items()}
    return merges


@pytest.mark.parametrize("seed", range(20))
def test_merges_are_those_of_the_definition(seed: int):
    draw = random.Random(seed)
    words = {tuple(draw.choices("abc", k=draw.randint(1, 9))): draw.randint(1, 5) for _ in range(15)}
    known = {"a", "b", "c", "ab"}
    assert learn_merges(words, 12, known) == slow_merges(words, 12, known)


def test_the_tokenizer_cuts_as_the_merges_say(model: LanguageModel, corpus: list[str]):
    words = words_of(model.tokenizer, corpus)
    old = copy.deepcopy(model.tokenizer)
    merges = learn_merges(words, 40, model.tokenizer.get_vocab())
    made = learn_pieces(model, corpus, 40)
    assert list(made.added) == ["".join(pair) for pair in merges]
    for word in words:
        expected = list(word)
        for pair in merges:
            expected = merged(expected, pair)
        text = old.convert_tokens_to_string(list(word))
        assert made.model.tokenizer.tokenize(text) == expected
    tokenizer = made.model.tokenizer
    for text in [*corpus, "quite other words, 漢字 and  spaces"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    other = "quick brown jumps"
    assert tokenizer.tokenize(other) == old.tokenize(other)  # nothing new applies
    counts = [sum(len(each.tokenize(text)) for text in corpus) for each in (tokenizer, old)]
    assert counts[0] < 0.6 * counts[1]


@pytest.mark.parametrize("tied", [False, True])
def test_rows_begin_as_means_and_old_texts_are_as_before(
    tied: bool, corpus: list[str], make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]
):
    tokenizer = make_tokenizer()
    model = LanguageModel(make_llama(len(tokenizer), tie_word_embeddings=tied), tokenizer, "made here")
    ids = torch.tensor([tokenizer("the quick brown fox")["input_ids"]])
    with torch.no_grad():
        before = model.module(ids).logits
    tables = [
        t.weight.detach().clone() for t in (model.module.get_input_embeddings(), model.module.get_output_embeddings())
    ]  # type: ignore[operator]
    made = learn_pieces(model, corpus, 20)
    module: Any = made.model.module
    for token, pieces in made.added.items():
        new = made.model.tokenizer.convert_tokens_to_ids(token)
        for table, old in zip((module.get_input_embeddings(), module.get_output_embeddings()), tables, strict=True):
            torch.testing.assert_close(table.weight[new], old[list(pieces)].mean(0))
    with torch.no_grad():
        after = module(ids).logits
    torch.testing.assert_close(after[..., : before.shape[-1]], before)


@pytest.fixture
def sentencepiece() -> Any:
    """A tokenizer as Llama 2's: no pre-tokenizer, a mark for the space, bytes for what is not in the vocabulary."""
    letters = [chr(code) for code in range(97, 123)]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters, ".", "th", "the"]
    inner = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            [("t", "h"), ("th", "e")],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_sentencepiece_learns_no_piece_of_two_words_and_whole_characters(
    sentencepiece: Any, make_llama: Callable[..., Any]
):
    """Joined byte tokens would be decoded as the text `<0xE6><0x95>…`."""
    texts = ["the fox of the sea.\nthe fox 数据库 é.", "the fox of the 数据.\n\n"] * 3
    old = copy.deepcopy(sentencepiece)
    made = learn_pieces(LanguageModel(make_llama(len(old)), sentencepiece, "made here"), texts, 30)
    tokenizer = made.model.tokenizer
    assert {"数", "据", "库", "é", "▁fox", "▁the"} <= made.added.keys()
    assert not [piece for piece in made.added if "<0x" in piece or "." in piece.strip(".") or "▁" in piece[1:]]
    assert made.added["数"] == tuple(old.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in "数".encode()]))
    for text in [*texts, "quite other words: 漢字, 数学\n and  spaces"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer.tokenize("\n漢") == old.tokenize("\n漢")
    assert tokenizer.tokenize("the fox 数") == ["▁the", "▁fox", "▁数"]
    assert len(tokenizer.tokenize("数据库")) == 1


def test_characters_that_are_too_rare_keep_their_bytes():
    words = {("▁", "数", "x", "x"): 2, ("据", "x", "x"): 1}
    assert unknown_characters(words, {"▁": 0, "x": 1}, 5) == ["数"]
    assert unknown_characters(words, {"▁": 0, "x": 1}, 0) == []
    assert parts_of(words, {"▁", "x"}) == {("▁",): 2, ("x", "x"): 3}


@pytest.mark.parametrize("special", [False, True])
def test_named_tokens(special: bool, model: LanguageModel):
    old = list(model.tokenizer("<tool>", add_special_tokens=False)["input_ids"])
    row = model.module.get_input_embeddings().weight[old].mean(0)  # type: ignore[operator]
    made = add_tokens(model, ["<tool>", "the", "<tool>"], special=special)
    assert list(made.added) == ["<tool>"]
    ids = made.model.tokenizer("a <tool> b", add_special_tokens=False)["input_ids"]
    new = made.model.tokenizer.convert_tokens_to_ids("<tool>")
    assert new in ids
    torch.testing.assert_close(made.model.module.get_input_embeddings().weight[new], row)  # type: ignore[operator]
    assert ("<tool>" in made.model.decode(ids)) != special
    with pytest.raises(LmflowError, match="nothing to add"):
        add_tokens(made.model, ["<tool>"])


def test_nothing_to_learn(model: LanguageModel):
    with pytest.raises(LmflowError, match="nothing to learn"):
        learn_pieces(model, ["q"], 5)
