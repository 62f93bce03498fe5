"""Fitting to a length without silence, and batches in which no sample sees another."""

import random
from typing import Any

import pytest
import torch

from lmflow.data.collate import collate, collate_packed
from lmflow.data.lengths import fit_lengths
from lmflow.data.packing import group_rows, pack_rows, plan_epoch, split_micro
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
        "2 sequences, 11 tokens, 55% of them trained",
        "  of 3 with a limit of 6 tokens (the longest has 12):",
        "    1  kept whole",
        "    1  cut at the end                 6 tokens lost",
        "    1  skipped: nothing to train on  12 tokens lost (c)",
    ]


def test_where_all_is_kept_whole_there_is_no_table():
    _, report = fit_lengths([sequence(2, 3)], None, "auto")
    assert report.table() == []
    assert report.describe() == "1 sequence, 5 tokens, 60% of them trained"


@pytest.mark.gpu
def test_a_pinned_batch_is_the_same_batch():
    for batch in (collate([sequence(2, 3), sequence(1, 1)], 0), collate_packed([[sequence(2, 3), sequence(1, 1)]], 0)):
        pinned = batch.pinned()
        assert pinned.input_ids.is_pinned()
        assert torch.equal(pinned.to(torch.device("cuda")).target_positions.cpu(), batch.target_positions)


def test_skip_and_error():
    kept, report = fit_lengths([sequence(2, 3), sequence(3, 9)], 6, "skip")
    assert (len(kept), report.sequences, report.lost_tokens) == (1, {"whole": 1, "skipped": 1}, {"skipped": 12})
    for policy in ("error", "skip"):
        for text in (False, True):  # what is asked for in so many words holds for plain text too
            long = TokenSequence(list(range(12)), [True] * 12, "b") if text else sequence(3, 9, "b")
            message = "b: 12 tokens, more than 6.*--data.max_length" if policy == "error" else "All 1 samples"
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


def test_padding_by_hand():
    batch = collate([sequence(1, 2), sequence(2, 3)], pad_id=9)
    assert batch.input_ids.tolist() == [[0, 1, 2, 9, 9], [0, 1, 2, 3, 4]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.loss_mask.tolist() == [[False, True, True, False, False], [False, False, True, True, True]]
    assert (batch.num_targets, batch.tokens) == (5, 8)


def test_packing_by_hand():
    batch = collate_packed([[sequence(0, 2), sequence(1, 2)], [sequence(1, 1)]], pad_id=9)
    assert batch.input_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 9, 9, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]
    assert batch.loss_mask.tolist() == [[False, True, False, True, True], [False, True, False, False, False]]
    assert batch.attention_mask is None
    assert (batch.num_targets, batch.tokens) == (4, 7)


def test_extras_are_concatenated_in_row_order():
    with_pixels = [TokenSequence([1], [True], model_inputs={"pixels": torch.full((n, 2), float(n))}) for n in (1, 2)]
    batch = collate([with_pixels[0], TokenSequence([1], [True]), with_pixels[1]], 0)
    assert batch.model_inputs["pixels"][:, 0].tolist() == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("seed", range(10))
def test_rows_hold_everything_once_and_no_more_than_fits(seed: int):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 30) for _ in range(draw.randint(1, 40))]
    rows = pack_rows(lengths, 30)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 30 for row in rows)
    assert len(rows) <= 2 * -(-sum(lengths) // 30)  # best-fit never needs twice the best


def test_a_sequence_goes_into_the_fullest_row_with_room():
    assert pack_rows([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    assert pack_rows([7, 6, 3, 4], 10) == [[0, 2], [1, 3]]  # the 4 fits into the second only, the 3 fills the first
    assert pack_rows([5, 7, 3], 10) == [[1, 2], [0]]  # first-fit would do the same; the fullest row is the first


@pytest.mark.parametrize("seed", range(10))
def test_batches_of_packed_rows_are_hardly_padded(seed: int):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 100) for _ in range(50)]
    groups = group_rows(lengths, 4)
    assert sorted(i for group in groups for i in group) == list(range(50))
    assert max(len(group) for group in groups) <= 4
    for group in groups:
        space = len(group) * max(lengths[i] for i in group)
        assert sum(lengths[i] for i in group) >= 0.97 * space
    assert len(group_rows([30] * 8, 4)) == 2


def test_epochs_hold_every_sample_once_in_seeded_order():
    steps = list(plan_epoch(10, 4, seed=3, epoch=0))
    assert [len(step) for step in steps] == [4, 4, 2]
    assert sorted(i for step in steps for i in step) == list(range(10))
    assert steps == list(plan_epoch(10, 4, seed=3, epoch=0))
    assert steps != list(plan_epoch(10, 4, seed=3, epoch=1))
    assert steps != list(plan_epoch(10, 4, seed=4, epoch=0))


def test_micro_batches_are_alike_in_length():
    assert split_micro([9, 1, 8, 2], 2) == [[1, 3], [2, 0]]
    assert split_micro([], 2) == []


def test_long_samples_come_in_smaller_micro_batches():
    assert split_micro([9, 1, 8, 2, 50], 4, tokens=16) == [[1, 3], [2], [0], [4]]
    assert split_micro([4, 4, 4, 4, 4], 4, tokens=16) == [[0, 1, 2, 3], [4]]
