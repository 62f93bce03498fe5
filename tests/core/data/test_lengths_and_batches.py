"""Fitting to a length without silence, and batches in which no sample sees another."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from lmflow.data.batches import collate, collate_packed, pack_rows, plan_epoch, split_micro
from lmflow.data.lengths import fit_lengths
from lmflow.data.sample import TokenSequence
from lmflow.errors import DataError


def sequence(prompt: int, answer: int, name: str = "s") -> TokenSequence:
    return TokenSequence(list(range(prompt + answer)), [False] * prompt + [True] * answer, name)


def test_truncation_is_counted_and_what_lost_its_answer_is_named():
    kept, report = fit_lengths([sequence(2, 3, "a"), sequence(3, 9, "b"), sequence(8, 4, "c")], 6, "truncate")
    assert [len(each) for each in kept] == [5, 6]
    assert (report.total, report.kept, report.truncated, report.untrained) == (3, 2, 2, ("c",))
    assert report.trained_tokens == 3 + 3
    assert "2 of 3 cut at 6 tokens (longest 12)" in report.describe()
    assert "1 without a trained token left out (c)" in report.describe()


def test_drop_and_error():
    kept, report = fit_lengths([sequence(2, 3), sequence(3, 9)], 6, "drop")
    assert (len(kept), report.dropped) == (1, 1)
    with pytest.raises(DataError, match=r"b: 12 tokens, more than 6.*--data.max_length"):
        fit_lengths([sequence(3, 9, "b")], 6, "error")
    with pytest.raises(DataError, match="All 1 samples are longer than 6"):
        fit_lengths([sequence(3, 9)], 6, "drop")


def test_plain_text_is_cut_without_loss():
    """Every token but the first is a target exactly once, whatever the length."""
    for total in range(2, 40):
        for limit in (2, 3, 7, 16):
            kept, report = fit_lengths([TokenSequence(list(range(total)), [True] * total)], limit, "truncate")
            assert all(len(each) <= limit for each in kept)
            targets = [token for each in kept for token in list(each.ids)[1:]]
            assert targets == list(range(1, total))
            assert report.truncated == 0


def test_nothing_to_train_on_is_refused_with_names():
    with pytest.raises(DataError, match=r"No token would be trained in any of 7 samples \(p0, p1, p2, p3, p4\)"):
        fit_lengths([sequence(4, 0, f"p{i}") for i in range(7)], None, "truncate")


def test_padding_by_hand():
    batch = collate([sequence(1, 2), sequence(2, 3)], pad_id=9)
    assert batch.input_ids.tolist() == [[0, 1, 2, 9, 9], [0, 1, 2, 3, 4]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.trained.tolist() == [[False, True, True, False, False], [False, False, True, True, True]]
    assert (batch.trained_tokens, batch.tokens) == (5, 8)


def test_packing_by_hand():
    batch = collate_packed([[sequence(0, 2), sequence(1, 2)], [sequence(1, 1)]], pad_id=9)
    assert batch.input_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 9, 9, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]
    assert batch.trained.tolist() == [[False, True, False, True, True], [False, True, False, False, False]]
    assert batch.attention_mask is None
    assert (batch.trained_tokens, batch.tokens) == (4, 7)


def test_extras_are_concatenated_in_row_order():
    with_pixels = [TokenSequence([1], [True], extras={"pixels": torch.full((n, 2), float(n))}) for n in (1, 2)]
    batch = collate([with_pixels[0], TokenSequence([1], [True]), with_pixels[1]], 0)
    assert batch.extras["pixels"][:, 0].tolist() == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_samples_do_not_see_each_other(family: str, attention: str, make_llama: Any):
    torch.manual_seed(0)
    if family == "llama":
        module = make_llama(attn_implementation=attention)
    elif family == "gpt2":
        config: Any = GPT2Config(
            vocab_size=420, n_embd=32, n_layer=2, n_head=4, n_positions=128, attn_implementation=attention
        )
        module = AutoModelForCausalLM.from_config(config).eval()
    else:
        config = Qwen2Config(
            vocab_size=420,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_implementation=attention,
        )
        module = AutoModelForCausalLM.from_config(config).eval()
    draw = random.Random(0)
    made = [TokenSequence([draw.randrange(420) for _ in range(n)], [True] * n) for n in (5, 9, 7, 3)]
    batch = collate_packed([made[:3], made[3:]], 0)
    with torch.no_grad():
        packed = module(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        alone = [module(input_ids=torch.tensor([each.ids])).logits[0] for each in made]
    places = [packed[0, :5], packed[0, 5:14], packed[0, 14:21], packed[1, :3]]
    for got, expected in zip(places, alone):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_rows_hold_everything_once_and_no_more_than_fits(seed: int):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 30) for _ in range(draw.randint(1, 40))]
    rows = pack_rows(lengths, 30)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 30 for row in rows)
    assert len(rows) <= 2 * -(-sum(lengths) // 30)  # first-fit never needs twice the best


def test_epochs_hold_every_sample_once_in_seeded_order():
    steps = plan_epoch([1] * 10, 4, seed=3, epoch=0)
    assert [len(step) for step in steps] == [4, 4, 2]
    assert sorted(i for step in steps for i in step) == list(range(10))
    assert steps == plan_epoch([1] * 10, 4, seed=3, epoch=0)
    assert steps != plan_epoch([1] * 10, 4, seed=3, epoch=1)
    assert steps != plan_epoch([1] * 10, 4, seed=4, epoch=0)


def test_micro_batches_are_alike_in_length():
    assert split_micro([9, 1, 8, 2], 2) == [[1, 3], [2, 0]]
    assert split_micro([], 2) == []


def test_long_samples_come_in_smaller_micro_batches():
    assert split_micro([9, 1, 8, 2, 50], 4, tokens=16) == [[1, 3], [2], [0], [4]]
    assert split_micro([4, 4, 4, 4, 4], 4, tokens=16) == [[0, 1, 2, 3], [4]]
