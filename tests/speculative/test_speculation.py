"""Batches of proposals: what is kept of a block by the target's logits, made up by hand, and how rows come and go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lmflow.data.sample import Prompt
from lmflow.errors import DataError, LmflowError
from lmflow.inference.batching import Owner, Request
from lmflow.inference.types import Sampling
from lmflow_speculative.lengths import FixedLength
from lmflow_speculative.proposing import Proposal
from lmflow_speculative.rows import Row
from lmflow_speculative.speculation import Plan, SpeculativeBatch, SpeculativeEngine
from lmflow_speculative.statistics import Statistics

END, A, B, C, D, E = range(6)
"""The letters; the first ends a text."""


class Stub:
    """A target or a proposer that does as it is told, and remembers what it was asked for."""

    width = 7

    def __init__(self, logits: Any = None, proposal: Proposal | None = None) -> None:
        self.logits, self.proposal = logits, proposal
        self.asked: list[Any] = []

    def read(self, blocks: Sequence[Sequence[int]]) -> Any:
        """The target's logits of blocks."""
        self.asked.append(("read", [list(block) for block in blocks]))
        return self.logits

    def propose(self, rows: Sequence[Row], limits: Sequence[int]) -> Any:
        """The proposals."""
        self.asked.append(("propose", list(limits)))
        return self.proposal

    def crop(self, lengths: Sequence[int]) -> None:
        """What is known to be right of each row."""
        self.asked.append(("crop", list(lengths)))

    def keep(self, rows: Sequence[int]) -> None:
        """These rows stay."""
        self.asked.append(("keep", list(rows)))

    def concat(self, other: Any) -> None:
        """Rows below these."""
        self.asked.append(("concat", other))


def owner(prompt: Sequence[int] = (A, B), room: int = 9, **sampling: Any) -> Owner:
    chosen = Sampling(**{"temperature": 0.0, "max_new_tokens": 20, **sampling})
    return Owner(Request(0, Prompt(list(prompt)), chosen, False, room, 1), 0, None)


def favouring(*tokens: Sequence[int]) -> torch.Tensor:
    """Logits (R, K + 1, 6) whose most likely token at each place is the one named."""
    return torch.stack([torch.nn.functional.one_hot(torch.tensor(row), 6).float() * 5 for row in tokens])


@pytest.fixture
def make(make_letters: Any) -> Any:
    def build(*rows: Owner, target: Stub | None = None, proposer: Stub | None = None, longest: int = 3) -> Any:
        statistics = Statistics()
        made = [Row.begin(each, FixedLength()) for each in rows]
        batch = SpeculativeBatch(make_letters(), made, target or Stub(), proposer or Stub(), longest, statistics)  # type: ignore[arg-type]
        return batch, statistics

    return build


def certain(*tokens: list[int]) -> Proposal:
    return Proposal(list(tokens), [[1.0] * len(row) for row in tokens])


def test_of_a_block_the_right_start_is_kept_and_one_token_of_the_target_s(make: Any):
    """Proposed C D E, of which the target takes C and D, and then B in place of E."""
    batch, statistics = make(owner())
    assert batch.take(favouring([C, D, B, A]), certain([C, D, E])) == 3
    [row] = batch.rows
    assert row.ids == [C, D, B]
    assert (statistics.proposed, statistics.accepted) == ([1, 1, 1], [1, 1, 0])
    assert (statistics.tokens, statistics.row_passes) == (3, 1)


def test_a_block_that_is_all_right_brings_one_token_more(make: Any):
    batch, statistics = make(owner())
    assert batch.take(favouring([C, D, A]), certain([C, D])) == 3
    assert batch.rows[0].ids == [C, D, A]
    assert statistics.acceptance == [1.0, 1.0]


def test_without_proposals_it_is_plain_decoding(make: Any):
    batch, statistics = make(owner(), owner())
    assert batch.take(favouring([C], [D]), certain([], [])) == 2
    assert [row.ids for row in batch.rows] == [[C], [D]]
    assert (statistics.proposed, statistics.tokens_per_pass) == ([], 1.0)


def test_rows_of_one_batch_are_judged_each_for_itself(make: Any):
    batch, _ = make(owner(), owner())
    assert batch.take(favouring([C, D, A], [B, E, A]), certain([C, D], [C])) == 4
    assert [row.ids for row in batch.rows] == [[C, D, A], [B]]


def test_the_end_within_a_block_ends_the_row_and_what_follows_was_neither_right_nor_wrong(make: Any):
    batch, statistics = make(owner())
    assert batch.take(favouring([C, END, D, E]), certain([C, END, D])) == 2
    assert batch.rows[0].ids == [C, END]
    assert batch.finished() == [0]
    assert (statistics.proposed, statistics.accepted) == ([1, 1], [1, 1])


def test_no_more_tokens_are_taken_than_a_row_has_room_for(make: Any):
    batch, _ = make(owner(room=2))
    assert batch.take(favouring([C, D, E, A]), certain([C, D, E])) == 2
    assert batch.rows[0].ids == [C, D]
    assert batch.rows[0].done


def test_log_probabilities_are_the_target_s(make: Any):
    """One logit of 5 beside five of 0: e^5 / (e^5 + 5) of the sixth."""
    batch, _ = make(owner())
    batch.take(favouring([C, D]), certain([C]))
    expected = math.log(math.exp(5) / (math.exp(5) + 5))
    [(ids, logprobs)] = batch.drawn([0])
    assert ids == [C, D]
    assert logprobs == pytest.approx([expected, expected], abs=1e-5)


def test_a_row_that_is_done_takes_no_more(make: Any):
    batch, statistics = make(owner(), owner())
    batch.rows[0].done = True
    assert batch.take(favouring([C], [D]), certain([], [])) == 1
    assert [row.ids for row in batch.rows] == [[], [D]]
    assert statistics.row_passes == 1


def test_logits_that_are_no_numbers_are_an_error(make: Any):
    batch, _ = make(owner())
    with pytest.raises(LmflowError, match="logits are not finite numbers"):
        batch.take(torch.full((1, 1, 6), math.nan), certain([]))


def test_a_sampled_row_keeps_a_certain_proposal_with_the_target_s_probability(make: Any):
    """Of 400 rows that are proposed C with certainty, as many keep it as the target gives it: half."""
    logits = torch.full((400, 2, 6), -math.inf)
    logits[:, :, C] = logits[:, :, D] = 0.0
    rows = [owner(temperature=1.0, seed=seed) for seed in range(400)]
    batch, statistics = make(*rows)
    batch.take(logits, certain(*([C] for _ in rows)))
    assert statistics.accepted[0] / 400 == pytest.approx(0.5, abs=0.08)
    refused = [row.ids for row in batch.rows if len(row.ids) == 1]
    assert all(ids == [D] for ids in refused), "a refused token is not sampled again"


def test_a_step_proposes_reads_and_forgets_what_was_refused(make: Any):
    target = Stub(favouring([C, B, A], [D, A, A]))
    proposer = Stub(proposal=certain([C, D], []))
    batch, _ = make(owner(), owner(room=1), target=target, proposer=proposer)
    assert batch.step() == 3
    assert [row.ids for row in batch.rows] == [[C, B], [D]]
    # The last token a row has room for comes from the target, so nothing is proposed for the second.
    assert proposer.asked == [("propose", [3, 0]), ("crop", [3, 2])]
    assert target.asked == [("read", [[B, C, D], [B]]), ("crop", [3, 2])]


def test_a_finished_row_that_has_not_left_is_read_no_more(make: Any):
    target = Stub(favouring([A], [D]))
    proposer = Stub(proposal=certain([], []))
    batch, _ = make(owner(), owner(), target=target, proposer=proposer)
    batch.rows[0].done = True
    batch.step()
    assert target.asked[0] == ("read", [[], [B]])
    assert proposer.asked[0] == ("propose", [0, 3])


def test_rows_leave_and_join_in_target_and_proposer_alike(make: Any):
    batch, _ = make(owner(), owner(), owner())
    other, _ = make(owner())
    first, _, third = batch.rows
    batch.keep([0, 2])
    batch.concat(other)
    assert batch.rows == [first, third, *other.rows]
    assert batch.owners == [row.owner for row in batch.rows]
    for part, theirs in ((batch._target, other._target), (batch._proposer, other._proposer)):
        assert part.asked == [("keep", [0, 2]), ("concat", theirs)]


def test_what_the_rows_take_counts_refused_proposals_too(make: Any):
    batch, _ = make(owner(room=4), owner(room=9), longest=5)
    size = batch.size()
    assert (size.rows, size.width, size.to_come) == (2, 7, 9 + 5)


# The engine


def engine(model: Any, draft: Any = None, longest: int = 4) -> SpeculativeEngine:
    return SpeculativeEngine(model, 1000, Plan(draft, 3, longest, FixedLength), Statistics())


def test_a_request_takes_room_for_proposals(make_letters: Any):
    made = engine(make_letters(), longest=4)
    plain = Request(0, Prompt([A, B]), Sampling(n=2, max_new_tokens=5), False, 5, 2)
    demand = made.demand(plain)
    assert demand.rows == 2
    assert demand.to_come == engine(make_letters(), longest=0).demand(plain).to_come + 4


def test_the_version_changes_with_the_weights_of_either_model(make_letters: Any):
    target, draft = make_letters(0), make_letters(1)
    made = engine(target, draft)
    versions = [made.version()]
    for model in (target, draft):
        model.weights.changed()
        versions.append(made.version())
    assert len(set(versions)) == 3
    assert engine(target).version() == engine(target).version()


def test_a_prompt_that_the_draft_cannot_read_is_refused(make_letters: Any):
    target = make_letters(0)
    with pytest.raises(DataError):
        engine(target, make_letters(1)).check(Prompt([]), Sampling(max_new_tokens=3))


def test_both_models_are_as_they_were_after_a_step(make_letters: Any):
    """Dropout is off in the draft too, which may be in training beside."""
    target, draft = make_letters(0), make_letters(1)
    target.module.train()
    draft.module.train()
    made = engine(target, draft)
    ticket = made.submit(Prompt([A, B]), Sampling(max_new_tokens=3))
    updates = []
    for _ in range(20):
        updates += made.step()
        if any(update.completion for update in updates):
            break
    assert ticket in {update.ticket for update in updates}
    assert target.module.training
    assert draft.module.training
