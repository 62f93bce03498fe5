"""Fitting to a length without silence: each policy, pairs, and the report on what was lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmflow.data.lengths import (
    NAMED,
    RULES,
    LengthFitter,
    LengthReport,
    fit_lengths,
    is_plain_text,
    length_limit,
    pieces,
)
from lmflow.data.sample import TokenSequence
from lmflow.errors import DataError


def sequence(prompt: int, answer: int, name: str = "s") -> TokenSequence:
    return TokenSequence(list(range(prompt + answer)), [False] * prompt + [True] * answer, name)


def test_truncation_is_counted_and_what_lost_its_answer_is_named():
    kept, report = fit_lengths([sequence(2, 3, "a"), sequence(3, 9, "b"), sequence(8, 4, "c")], 6, "truncate")
    assert [len(each) for each in kept] == [5, 6]
    assert (report.kept, report.longest, report.untrained) == (2, 12, ("c",))
    assert report.sequences == {"whole": 1, "truncated": 1, "untrained": 1}
    assert report.lost_tokens == {"truncated": 6, "untrained": 12}
    assert (report.tokens, report.num_targets) == (5 + 6, 3 + 3)
    assert report.describe().splitlines() == [
        "2 sequences, 11 tokens, 6 of them trained (55%)",
        "  of 3 with a limit of 6 tokens (the longest has 12):",
        "    1  kept whole",
        "    1  cut at the end                 6 tokens lost",
        "    1  skipped: nothing to train on  12 tokens lost (c)",
    ]


def test_where_all_is_kept_whole_there_is_no_table():
    _, report = fit_lengths([sequence(2, 3)], None, "auto")
    assert report.table() == []
    assert report.describe() == "1 sequence, 5 tokens, 3 of them trained (60%)"


def test_skip_and_error():
    kept, report = fit_lengths([sequence(2, 3), sequence(3, 9)], 6, "skip")
    assert (len(kept), report.sequences, report.lost_tokens) == (1, {"whole": 1, "skipped": 1}, {"skipped": 12})
    for policy in ("error", "skip"):
        for text in (False, True):  # what is asked for in so many words holds for plain text too
            long = TokenSequence(list(range(12)), [True] * 12, "b") if text else sequence(3, 9, "b")
            message = (
                "b: 12 tokens, more than 6.*--data.max_length" if policy == "error" else "The one sample is longer"
            )
            with pytest.raises(DataError, match=message):
                fit_lengths([long], 6, policy)


def test_a_dialogue_is_split_where_that_is_asked_for():
    kept, report = fit_lengths([sequence(7, 5)], 4, "split")
    assert [list(each.ids) for each in kept] == [[6, 7, 8, 9], [9, 10, 11]]
    assert [list(each.loss_mask) for each in kept] == [[False, True, True, True], [True, True, True]]
    assert report.num_targets == 5
    assert (report.sequences, report.lost_tokens) == ({"split": 1}, {"split": 8})


@pytest.mark.parametrize("policy", ["auto", "split"])
def test_plain_text_is_cut_without_loss(policy: Any):
    """Every token but the first is a target exactly once, whatever the length."""
    for total in range(2, 40):
        for limit in (2, 3, 7, 16):
            kept, report = fit_lengths([TokenSequence(list(range(total)), [True] * total)], limit, policy)
            assert all(len(each) <= limit for each in kept)
            targets = [token for each in kept for token in list(each.ids)[1:]]
            assert targets == list(range(1, total))
            assert not report.lost_tokens


def test_plain_text_is_truncated_when_that_is_asked_for():
    [kept], report = fit_lengths([TokenSequence(list(range(12)), [True] * 12)], 5, "truncate")
    assert list(kept.ids) == [0, 1, 2, 3, 4]
    assert report.lost_tokens == {"truncated": 7}


def test_nothing_to_train_on_is_refused_with_names():
    with pytest.raises(DataError, match=r"No token would be trained in any of 7 samples \(p0, p1, p2, p3, p4\)"):
        fit_lengths([sequence(4, 0, f"p{i}") for i in range(7)], None, "auto")


def test_the_report_is_plain_data():
    report = fit_lengths([sequence(2, 3), sequence(3, 9)], 6, "truncate")[1].as_dict()
    assert report["rules"]["truncated"] == {"sequences": 1, "tokens_lost": 6}
    assert report["rules"]["skipped"] == {"sequences": 0, "tokens_lost": 0}


def text(length: int, name: str = "t") -> TokenSequence:
    """Plain text: every token is a target."""
    return TokenSequence(list(range(length)), [True] * length, name)


@pytest.mark.parametrize(
    ("context", "longest", "expected"), [(None, None, None), (8, None, 8), (None, 8, 8), (8, 9, 8), (9, 8, 8)]
)
def test_the_shorter_limit_counts(context: int | None, longest: int | None, expected: int | None):
    assert length_limit(context, longest) == expected


def test_the_limit_itself_is_not_too_long():
    for policy in ("auto", "error", "truncate", "skip", "split"):
        kept, report = fit_lengths([sequence(2, 4)], 6, policy)
        assert [len(each) for each in kept] == [6]
        assert report.sequences == {"whole": 1}


def test_where_there_is_no_sample_none_is_said_to_be_too_long():
    with pytest.raises(DataError, match=r"^There is no sample to train on"):
        fit_lengths([], 8, "auto")


def test_text_with_further_inputs_of_the_model_is_not_split():
    """An image's place is in the text: a piece without it would be about nothing."""
    plain = text(12)
    seeing = TokenSequence(list(range(12)), [True] * 12, "t", model_inputs={"pixels": 1})
    assert is_plain_text(plain)
    assert not is_plain_text(seeing)
    assert not is_plain_text(sequence(1, 3))
    [kept], report = fit_lengths([seeing], 5, "auto")
    assert (len(kept), report.sequences) == (5, {"truncated": 1})


def test_pieces_by_hand():
    assert [list(each.ids) for each in pieces(text(7), 3)] == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert [list(each.ids) for each in pieces(text(6), 3)] == [[0, 1, 2], [2, 3, 4], [4, 5]]
    assert list(pieces(text(1), 3)) == []


def test_a_message_names_the_first_few_and_says_that_there_are_more():
    _, report = fit_lengths([sequence(2, 2), *(sequence(4, 0, f"p{i}") for i in range(NAMED + 2))], 9, "auto")
    assert report.untrained == tuple(f"p{i}" for i in range(NAMED))
    assert report.table()[-1].endswith("28 tokens lost (p0, p1, p2, p3, p4, …)")
    _, report = fit_lengths([sequence(2, 2), sequence(4, 0, "p0")], 9, "auto")
    assert report.table()[-1].endswith("4 tokens lost (p0)")


def test_a_report_comes_back_from_its_json():
    _, report = fit_lengths([sequence(2, 3, "a"), sequence(3, 9, "b"), sequence(8, 4, "c")], 6, "truncate")
    assert LengthReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    _, whole = fit_lengths([sequence(2, 3)], None, "auto")
    assert LengthReport.from_dict(whole.as_dict()) == whole


# Pairs


def pair(one: TokenSequence, other: TokenSequence, limit: int | None, policy: str = "auto") -> Any:
    fitter = LengthFitter(limit, policy)
    fitted = fitter.fit_pair((one, other))
    return (fitted and tuple(len(each) for each in fitted)), dict(fitter.sequences), fitter


def test_both_sides_of_a_pair_that_fits_stay_whole():
    kept, rules, fitter = pair(sequence(2, 3), sequence(2, 2), 9)
    assert (kept, rules) == ((5, 4), {"whole": 2})
    assert (fitter.tokens, fitter.num_targets, fitter.kept) == (9, 5, 2)


def test_each_side_is_cut_by_itself():
    kept, rules, fitter = pair(sequence(2, 3), sequence(2, 9), 6)
    assert (kept, rules) == ((5, 6), {"whole": 1, "truncated": 1})
    assert dict(fitter.lost_tokens) == {"whole": 0, "truncated": 5}


def test_plain_text_in_a_pair_is_cut_where_auto_would_split_it():
    other = TokenSequence([50, *range(1, 9)], [True] * 9, "o")
    kept, rules, _ = pair(text(8), other, 6)
    assert (kept, rules) == ((6, 6), {"truncated": 2})


def test_a_side_without_a_target_left_leaves_out_both():
    kept, rules, fitter = pair(sequence(6, 3, "p"), sequence(2, 3, "p"), 6)
    assert (kept, rules, fitter.untrained) == (None, {"untrained": 2}, ["p"])
    assert fitter.lost_tokens["untrained"] == 9 + 5
    assert (fitter.kept, fitter.tokens) == (0, 0)


def test_sides_that_a_cut_made_equal_leave_out_both():
    one, other = (TokenSequence([1, 2, 3, end], [False, True, True, True], "p") for end in (8, 9))
    assert pair(one, other, 3)[:2] == (None, {"untrained": 2})
    assert pair(one, other, 4)[0] == (4, 4)


def test_a_side_that_is_skipped_takes_the_other_with_it():
    assert pair(sequence(2, 3), sequence(2, 9), 6, "skip")[:2] == (None, {"skipped": 2})


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("split", r"p: 11 tokens, more than 6, and an answer cannot be compared in pieces\. Raise --data\.max_length"),
        ("error", r"q: 11 tokens, more than 6\. Raise --data\.max_length"),
    ],
)
def test_a_pair_that_is_too_long_is_refused_where_that_is_asked_for(policy: str, message: str):
    with pytest.raises(DataError, match=message):
        pair(sequence(2, 3, "p"), sequence(2, 9, "q"), 6, policy)


# Whatever comes


SEQUENCES = st.lists(
    st.lists(st.booleans(), min_size=1, max_size=24).map(lambda mask: TokenSequence(range(len(mask)), mask, "s")),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(SEQUENCES, st.none() | st.integers(2, 20), st.sampled_from(["auto", "truncate", "skip", "split"]))
def test_the_figures_add_up(sequences: list[TokenSequence], limit: int | None, policy: str):
    """Each sequence is under one rule; what is kept has a target and fits; tokens are kept or counted as lost."""
    fitter = LengthFitter(limit, policy)
    kept = [each for one in sequences for each in fitter.fit(one)]
    assert all(each.num_targets and (limit is None or len(each) <= limit) for each in kept)
    assert sum(fitter.sequences.values()) == len(sequences)
    assert fitter.sequences.keys() <= RULES.keys()
    assert (fitter.kept, fitter.tokens) == (len(kept), sum(map(len, kept)))
    assert fitter.num_targets == sum(each.num_targets for each in kept)
    assert fitter.longest == max(map(len, sequences), default=0)
    if policy != "split" and not any(map(is_plain_text, sequences)):  # pieces share tokens
        assert fitter.tokens + sum(fitter.lost_tokens.values()) == sum(map(len, sequences))
    if not kept:
        with pytest.raises(DataError):
            fitter.report()
