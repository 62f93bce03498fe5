"""Which requests go together: order, budget, and when it is worth letting more in."""

from __future__ import annotations

from lmflow.inference.scheduler import Demand, admit, longest_first


def test_longest_first_and_equals_in_order():
    assert longest_first([3, 9, 3, 5]) == [1, 3, 0, 2]


def test_the_budget_counts_padding_and_what_is_to_come():
    waiting = [Demand(2, 10, 5), Demand(2, 8, 5), Demand(2, 8, 5), Demand(2, 8, 5)]
    # Two requests of two rows: 4 * (10 + 5) = 60; three would take 90.
    assert admit(waiting, 89, None) == 2
    assert admit(waiting, 90, None) == 3
    assert admit(waiting, 120, None) == 4


def test_requests_of_different_numbers_of_rows():
    waiting = [Demand(1, 10, 5), Demand(3, 4, 20), Demand(1, 4, 5)]
    # One and three rows, each as wide as the widest and with as much to come as the longest: 4 * (10 + 20) = 120.
    assert admit(waiting, 119, None) == 1
    assert admit(waiting, 120, None) == 2
    assert admit(waiting, 150, None) == 3


def test_a_request_over_the_budget_goes_alone():
    assert admit([Demand(4, 100, 10), Demand(4, 1, 10)], 50, None) == 1


def test_few_wait_until_more_fit_or_none_are_left():
    waiting = [Demand(1, 10, 10)] * 9
    running = Demand(8, 10, 10)
    assert admit(waiting, 9 * 20, running) == 0
    assert admit(waiting, 10 * 20, running) == 2
    assert admit(waiting[:1], 9 * 20, running) == 1
    assert admit(waiting[:1], 8 * 20, running) == 0


def test_what_runs_counts_with_its_width_and_room():
    assert admit([Demand(1, 10, 10)], 60, Demand(1, 20, 11)) == 0
    assert admit([Demand(1, 10, 10)], 62, Demand(1, 20, 11)) == 1


def test_only_as_many_are_looked_at_as_are_needed():
    looked = []

    def waiting():
        for number in range(1000):
            looked.append(number)
            yield Demand(1, 10, 10)

    assert admit(waiting(), 60, None) == 3
    assert len(looked) == 4
