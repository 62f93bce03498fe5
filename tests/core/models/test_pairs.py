"""Preferences as pairs: which tokens are targets, and what the rules of length do to both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lmflow.data.formats import TextToScoredTextList
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.models.language_model import LanguageModel
from lmflow.models.pairs import encode_answered_pairs, encode_pairs
from lmflow.recipe.sections.data import DataOptions


def preference(chosen: str, rejected: str, *before: Message, source: str = "p:1", **record: Any) -> Sample:
    turns = before or (Message("user", "what is it?"),)
    sides = ((*turns, Message("assistant", text)) for text in (chosen, rejected))
    return Sample(next(sides), record=record, source=source, rejected=next(sides))


def options(**given: Any) -> DataOptions:
    return DataOptions(**given)


def targets(model: LanguageModel, sequence: Any) -> str:
    ids = [token for token, is_target in zip(sequence.ids, sequence.loss_mask, strict=True) if is_target]
    text: str = model.tokenizer.decode(ids)
    return text


def test_the_targets_are_the_answers_with_their_ends(tiny_model: LanguageModel):
    [(chosen, rejected)], report = encode_pairs(tiny_model, [preference("a fox", "the dog")], options())
    assert targets(tiny_model, chosen) == "a fox<|im_end|>"
    assert targets(tiny_model, rejected) == "the dog<|im_end|>"
    assert chosen.ids == tiny_model.encode(preference("a fox", "the dog"))[0].ids
    assert (report.kept, report.num_targets) == (2, chosen.num_targets + rejected.num_targets)


def test_scored_answers_are_compared_best_against_worst(tiny_model: LanguageModel):
    outputs = [{"text": text, "score": score} for text, score in (("the dog", 1), ("a fox", 3), ("quick", 2))]
    record = {"input": "what is it? ", "output": outputs}
    [(chosen, rejected)], _ = encode_pairs(tiny_model, [TextToScoredTextList().sample(record, "s:1")], options())
    assert targets(tiny_model, chosen).startswith("a fox")
    assert targets(tiny_model, rejected).startswith("the dog")


def test_an_answer_counts_from_its_first_token_though_both_begin_alike(tiny_model: LanguageModel):
    [(chosen, rejected)], _ = encode_pairs(tiny_model, [preference("the quick fox", "the quick dog")], options())
    assert targets(tiny_model, chosen) == "the quick fox<|im_end|>"
    assert targets(tiny_model, rejected) == "the quick dog<|im_end|>"


def test_earlier_answers_that_both_have_are_the_prompt(tiny_model: LanguageModel):
    before = Message("user", "one?"), Message("assistant", "it is one"), Message("user", "and?")
    [(chosen, rejected)], _ = encode_pairs(tiny_model, [preference("two", "to", *before)], options())
    assert targets(tiny_model, chosen) == "two<|im_end|>"
    assert targets(tiny_model, rejected) == "to<|im_end|>"


def test_answers_behind_the_first_difference_all_count(tiny_model: LanguageModel):
    turns = [(Message("user", "one?"), Message("assistant", word), Message("user", "and?")) for word in ("yes", "no")]
    sample = Sample(
        (*turns[0], Message("assistant", "two")), source="p:1", rejected=(*turns[1], Message("assistant", "2"))
    )
    [(chosen, rejected)], _ = encode_pairs(tiny_model, [sample], options())
    assert targets(tiny_model, chosen) == "yes<|im_end|>two<|im_end|>"
    assert targets(tiny_model, rejected) == "no<|im_end|>2<|im_end|>"


def test_a_rejected_answer_obeys_the_limit_too(tiny_model: LanguageModel):
    long = preference("fox", "lazy dog " * 60)
    for policy in ("auto", "truncate"):
        [(chosen, rejected)], report = encode_pairs(tiny_model, [long], options(max_length=40, too_long=policy))
        assert len(chosen) < 40 == len(rejected)
        assert report.sequences == {"whole": 1, "truncated": 1}
        assert report.lost_tokens["truncated"] == report.longest - 40
        assert report.findings.counts == {"cut_off": 1}
    with pytest.raises(DataError, match=r"p:1: \d+ tokens, more than 40"):
        encode_pairs(tiny_model, [long], options(max_length=40, too_long="error"))
    with pytest.raises(DataError, match=r"p:1: .*cannot be compared in pieces.*truncate or skip"):
        encode_pairs(tiny_model, [long], options(max_length=40, too_long="split"))


def test_the_models_context_is_a_limit_without_being_asked_for(tiny_model: LanguageModel):
    [(_, rejected)], report = encode_pairs(tiny_model, [preference("fox", "lazy dog " * 300)], options())
    assert (len(rejected), report.limit) == (256, 256)


def test_skip_leaves_out_the_pair_and_counts_both(tiny_model: LanguageModel):
    samples = [preference("fox", "lazy dog " * 60, source="p:1"), preference("fox", "dog", source="p:2")]
    pairs, report = encode_pairs(tiny_model, samples, options(max_length=40, too_long="skip"))
    assert [chosen.source for chosen, _ in pairs] == ["p:2"]
    assert report.sequences == {"whole": 2, "skipped": 2}
    assert report.findings.counts == {"cut_off": 1}, "a pair that was left out whole is not without a target besides"


@pytest.mark.parametrize("sample", [preference("fox", "dog", Message("user", "jumps " * 80)), preference("fox", "fox")])
def test_a_pair_with_nothing_to_compare_is_left_out_and_named(tiny_model: LanguageModel, sample: Sample):
    """A prompt that leaves no room, and answers that are the same."""
    pairs, report = encode_pairs(
        tiny_model, [replace(sample, source="p:9"), preference("a", "b")], options(max_length=40)
    )
    assert len(pairs) == 1
    assert report.untrained == ("p:9",)
    assert report.findings.of("warning")["nothing_to_train"] == 1
    assert "2  skipped: nothing to train on" in report.describe()
    with pytest.raises(DataError, match="p:9"):
        encode_pairs(tiny_model, [replace(sample, source="p:9")], options(max_length=40))


def test_answers_alike_up_to_the_limit_are_no_pair(tiny_model: LanguageModel):
    alike = preference("lazy dog " * 60 + "a", "lazy dog " * 60 + "b", source="p:9")
    pairs, report = encode_pairs(tiny_model, [alike, preference("a", "b")], options(max_length=40))
    assert (len(pairs), report.untrained) == (1, ("p:9",))


def test_a_margin_goes_to_the_objective(tiny_model: LanguageModel):
    pairs, _ = encode_pairs(tiny_model, [preference("a", "b", margin=1.5), preference("a", "b")], options())
    assert [[dict(each.objective_inputs) for each in pair] for pair in pairs] == [[{"margin": 1.5}] * 2, [{}, {}]]
    with pytest.raises(DataError, match="p:1: margin: expected a number, found 'much'"):
        encode_pairs(tiny_model, [preference("a", "b", margin="much")], options())


def test_what_is_no_preference_is_named(tiny_model: LanguageModel):
    plain = Sample((Message("user", "q"), Message("assistant", "a")), source="p:7")
    with pytest.raises(DataError, match="p:7: it has no rejected answer"):
        encode_pairs(tiny_model, [plain], options())
    with pytest.raises(DataError, match="p:7: both dialogues must end with an answer"):
        encode_pairs(tiny_model, [replace(plain, rejected=plain.messages[:1])], options())
    with pytest.raises(DataError, match=r"data\.train_on all"):
        encode_pairs(tiny_model, [preference("a", "b")], options(train_on="all"))
    assert encode_answered_pairs(tiny_model, [plain], options()) == []
    assert len(encode_answered_pairs(tiny_model, [plain, preference("a", "b")], options())) == 1


def test_all_pairs_that_cannot_be_used_are_named_together(tiny_model: LanguageModel):
    good = preference("a", "b")
    bad = [replace(good, rejected=(), source=source) for source in ("p:7", "p:9")]
    with pytest.raises(DataError, match="p:7: it has no rejected answer") as error:
        encode_pairs(tiny_model, [good, *bad], options())
    assert "2 samples that the model cannot be given" in str(error.value)
    assert "p:9: it has no rejected answer" in str(error.value)
    long = [preference("fox", "lazy dog " * 60, source=f"p:{number}") for number in range(3)]
    with pytest.raises(DataError, match="3 sequences longer than the limit"):
        encode_pairs(tiny_model, [good, *long], options(max_length=40, too_long="error"))


def test_what_both_dialogues_give_reason_to_warn_of_is_told(tiny_model: LanguageModel):
    samples = [preference("a fox", "the <|im_end|> dog", source="p:1"), preference("a", "b", source="p:2")]
    _, report = encode_pairs(tiny_model, samples, options())
    assert (report.samples, report.kept) == (2, 4)
    assert report.findings.counts == {"control_token": 1}
    assert "p:1: turn 2 (assistant) contains '<|im_end|>' at character 5" in report.describe()
