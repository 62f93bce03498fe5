"""Requests of many kinds, and engines that are given them in an order that chance decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

from lmflow.data.sample import Prompt
from lmflow.inference.types import Completion, Sampling

if TYPE_CHECKING:
    from lmflow.components import Engine, Update


def random_sampling(chance: Random, most: int = 16) -> Sampling:
    """Options of every kind, greedy ones among them, for completions of at most `most` tokens."""
    new_tokens = chance.randint(1, most)
    return Sampling(
        temperature=chance.choice([0, 0.6, 1, 1.5]),
        top_k=chance.choice([0, 0, 1, 5, 50]),
        top_p=chance.choice([1, 1, 0.9, 0.5]),
        n=chance.randint(1, 3),
        max_new_tokens=new_tokens,
        min_new_tokens=chance.choice([0, 0, new_tokens // 2]),
        stop=chance.choice([(), (), ("e",), ("xyz", " a")]),
        seed=chance.randint(0, 3),
    )


def run_at_random(
    engine: Engine, requests: Sequence[tuple[Prompt, Sampling]], chance: Random, cancelled: Sequence[int] = ()
) -> dict[int, list[list[Update]]]:
    """Submit the requests in any order, some while others run, half of them followed; updates by request and sample.

    Those whose index is in `cancelled` are cancelled some steps after they were submitted, and their updates from then
    on are left in the result, where there should be none.
    """
    arriving = list(range(len(requests)))
    chance.shuffle(arriving)
    tickets: dict[int, int] = {}
    found: dict[int, list[list[Update]]] = {}
    cancelling: dict[int, int] = {}
    step = 0
    while arriving or not engine.idle:
        for _ in range(min(len(arriving), chance.choice([0, 0, 1, 2]))):
            index = arriving.pop()
            tickets[engine.submit(*requests[index], follow=chance.random() < 0.5)] = index
            found[index] = [[] for _ in range(requests[index][1].n)]
            if index in cancelled:
                cancelling[index] = step + chance.randint(0, 3)
        for index, when in list(cancelling.items()):
            if when <= step:
                engine.cancel(next(ticket for ticket, other in tickets.items() if other == index))
                found[index] = [[] for _ in found[index]]
                del cancelling[index]
        for update in engine.step():
            found[tickets[update.ticket]][update.sample].append(update)
        step += 1
    return found


def check_updates(
    updates: Sequence[Update], expected: Completion, same: Callable[[Completion, Completion], bool]
) -> None:
    """Fail unless the updates of one completion, put together, are `expected`."""
    last = updates[-1].completion if updates else None
    assert last is not None, "expected the last update of a completion to bring it; found none that does"
    assert all(update.completion is None for update in updates[:-1]), "expected no update after the completion is there"
    assert same(last, expected), f"expected the completion of `generate` alone, {expected}; found {last}"
    ids = tuple(token for update in updates for token in update.ids)
    assert ids == last.ids, f"expected the updates' tokens to make {last.ids}; they make {ids}"
    logprobs = tuple(each for update in updates for each in update.logprobs)
    assert logprobs == last.logprobs, "expected the updates' log-probabilities to make those of the completion"
    text = "".join(update.text for update in updates)
    assert text == last.text, f"expected the updates' pieces to make {last.text!r}; they make {text!r}"
