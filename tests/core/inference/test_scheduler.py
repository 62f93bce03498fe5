"""Which prompts go together: order, budget, and when it is worth letting more in."""

from __future__ import annotations

from collections import deque

from lmflow.inference.scheduler import admit, longest_first


def test_longest_first_and_equals_in_order():
    assert list(longest_first([3, 9, 3, 5])) == [1, 3, 0, 2]


def test_the_budget_counts_padding_and_what_is_to_come():
    queue, lengths, token_budgets = deque([0, 1, 2, 3]), [10, 8, 8, 8], [5] * 4
    # Two prompts of two rows: 4 * (10 + 5) = 60; three would take 90.
    assert admit(queue, lengths, token_budgets, 2, 89, (0, 0, 0)) == [0, 1]
    assert admit(queue, lengths, token_budgets, 2, 89, (0, 0, 0)) == [2, 3]
    assert not queue


def test_a_prompt_over_the_budget_goes_alone():
    queue = deque([0, 1])
    assert admit(queue, [100, 1], [10, 10], 4, 50, (0, 0, 0)) == [0]


def test_few_wait_until_more_fit_or_none_are_left():
    lengths, token_budgets = [10] * 9, [10] * 9
    assert admit(deque(range(9)), lengths, token_budgets, 1, 9 * 20, (8, 10, 10)) == []
    assert admit(deque(range(9)), lengths, token_budgets, 1, 10 * 20, (8, 10, 10)) == [0, 1]
    assert admit(deque([8]), lengths, token_budgets, 1, 9 * 20, (8, 10, 10)) == [8]


def test_what_runs_counts_with_its_width_and_room():
    assert admit(deque([0]), [10], [10], 1, 60, (1, 20, 11)) == []
    assert admit(deque([0]), [10], [10], 1, 62, (1, 20, 11)) == [0]
