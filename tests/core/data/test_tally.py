"""Samples fitted and counted: what is trained on, what is wrong, and what cannot be tokenised."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from lmflow.data.control_tokens import use_special_tokens
from lmflow.data.findings import Findings
from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.data.tally import CHUNK, Tally, each_encoded, encode_all
from lmflow.errors import DataError
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.data import DataOptions


def sample(text: str = "the fox", answer: str = "jumps", number: int = 1, **fields: Any) -> Sample:
    return Sample((Message("user", text), Message("assistant", answer)), source=f"a:{number}", **fields)


def tallied(model: LanguageModel, samples: Sequence[Sample], **options: Any) -> tuple[list[TokenSequence], Tally]:
    tally = Tally(model, DataOptions(**options))
    encoded = encode_all(model, samples, options.get("train_on", "assistant"), tally.findings)
    return list(tally.fitted(encoded)), tally


def test_what_is_trained_on_is_counted(tiny_model: LanguageModel):
    samples = [sample(), sample("the fox " * 40, number=2), sample(answer="jumps " * 40, number=3)]
    kept, tally = tallied(tiny_model, samples, max_length=40)
    report = tally.report()
    assert (report.samples, report.kept, report.tokens) == (3, 2, sum(map(len, kept)))
    assert report.num_targets == sum(each.num_targets for each in kept)
    assert report.sequences == {"whole": 1, "truncated": 1, "untrained": 1}
    assert report.findings.counts == {"cut_off": 2, "nothing_to_train": 1}
    assert report.totals().startswith("3 samples, 2 sequences, ")
    table, *warnings = report.describe().split("\nwarning: ")
    assert "cut at the end" in table, "how many tokens each rule cost"
    assert [line.partition(",")[0] for line in warnings] == [
        "2 sequences cut off or skipped at the length limit",
        "1 sample without a trained token: a:2: no token of it is trained",
    ]


@pytest.mark.parametrize(("policy", "counts"), [("split", {}), ("skip", {"cut_off": 1}), ("error", {"over_length": 1})])
def test_what_each_policy_makes_of_a_long_sample(policy: str, counts: dict[str, int], tiny_model: LanguageModel):
    samples = [sample(), sample(answer="jumps " * 40, number=2)]
    _, tally = tallied(tiny_model, samples, max_length=40, too_long=policy)
    assert tally.findings.counts == counts
    if policy == "error":
        with pytest.raises(DataError, match=r"1 sequence longer than the limit(.|\n)*a:2: \d+ tokens, more than 40"):
            tally.report()
    assert tally.summary().samples == 2


def test_a_plain_text_is_split_without_a_word(tiny_model: LanguageModel):
    text = Sample((Message("assistant", "the quick brown fox " * 40),), False, source="a:1")
    kept, tally = tallied(tiny_model, [text], max_length=40)
    assert len(kept) > 3
    assert tally.findings.counts == {}


def test_what_is_not_wanted_is_no_loss(tiny_model: LanguageModel):
    unwanted = Sample((Message("user", "q"),), label=False, source="a:1")
    untrained = Message("assistant", "a", is_target=False)
    tally = Tally(tiny_model, DataOptions())
    nothing = TokenSequence([5, 6], [False, False], "a:2")
    assert tally.add(unwanted, tiny_model.encode(unwanted)) == []
    assert tally.add(Sample((Message("user", "q"), untrained), source="a:2"), [nothing]) == []
    assert tally.findings.counts == {}
    asked = Sample((Message("user", "q"),), source="a:3")
    tally.add(asked, tiny_model.encode(asked))
    assert tally.findings.counts == {"nothing_to_train": 1}


def test_samples_that_cannot_be_tokenised_are_named_after_all_were_read(tiny_model: LanguageModel):
    seen = Message("user", "what?", images=("a.jpg",))
    bad = [Sample((seen, Message("assistant", "a")), source=f"b:{number}") for number in range(7)]
    samples = [sample(number=number) for number in range(CHUNK)] + [*bad, sample(number=-1)]
    kept, tally = tallied(tiny_model, samples)
    assert len(kept) == CHUNK + 1
    with pytest.raises(DataError) as error:
        tally.report()
    assert "7 samples that the model cannot be given" in str(error.value)
    assert "  b:0: it has 1 image, and this model reads text alone" in str(error.value)
    assert "… and 2 more" in str(error.value)


def test_an_error_that_lies_in_no_sample_is_raised_at_once():
    def broken(samples: Sequence[Sample]) -> list[int]:
        raise DataError("The chat template is not valid Jinja")

    with pytest.raises(DataError, match=r"^The chat template is not valid Jinja$"):
        each_encoded(broken, [sample()])


def test_one_by_one_only_where_one_fails():
    calls: list[int] = []

    def encode(samples: Sequence[Sample]) -> list[int]:
        calls.append(len(samples))
        if any("bad" in each.source for each in samples):
            raise DataError("bad: no")
        return [1] * len(samples)

    good = [sample(number=number) for number in range(3)]
    assert [found for _, found in each_encoded(encode, good)] == [1, 1, 1]
    assert calls == [3]
    *found, (_, error) = each_encoded(encode, [*good, Sample((Message("user", "q"),), source="bad")])
    assert [each for _, each in found] == [1, 1, 1]
    assert isinstance(error, DataError)
    assert calls == [3, 4, 1, 1, 1, 1]


def test_findings_may_be_shared(tiny_model: LanguageModel):
    findings = Findings(kept=None)
    for number in (1, 2):
        Tally(tiny_model, DataOptions(), findings).add(sample("<|pad|>", number=number), [])
    assert findings.counts["control_token"] == 2


def test_special_tokens_that_are_kept_are_a_note(tiny_model: LanguageModel):
    said = sample("what is <|im_end|>?")
    assert tallied(tiny_model, [said])[1].findings.of("warning") == {"control_token": 1}
    other = replace(tiny_model, tokenizer=copy.deepcopy(tiny_model.tokenizer))
    use_special_tokens(other.tokenizer, "keep")
    assert tallied(other, [said])[1].findings.of("note") == {"control_token": 1}


def test_of_a_last_answer_that_is_not_to_be_learnt_nothing_is(tiny_model: LanguageModel):
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    said = Sample((*turns, Message("assistant", "d", is_target=False)), source="a:1")
    assert tallied(tiny_model, [said])[1].findings.counts == {}
    kept, tally = tallied(tiny_model, [said], train_on="last")
    assert (kept, tally.findings.counts) == ([], {"nothing_to_train": 1})
