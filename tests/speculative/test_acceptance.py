"""The acceptance rule: by hand, and the identity that makes it exact."""

from __future__ import annotations

import math

import pytest
import torch

from lmflow_speculative.acceptance import accept, residual, verify, verify_greedy


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_accepts_by_the_ratio_worked_by_hand():
    # p = (.5, .3, .2), q = (.2, .6, .2). Token 0: p/q = 2.5, always. Token 1: .3/.6 = .5.
    target, draft = logs([0.5, 0.3, 0.2])[:, None], logs([0.2, 0.6, 0.2])[:, None]
    one = torch.tensor([1])
    for token, number, kept in [(0, 0.999, True), (1, 0.499, True), (1, 0.501, False), (2, 0.99, True)]:
        got = accept(target, torch.tensor([[token]]), one, draft, torch.tensor([[number]], dtype=torch.float64))
        assert got.item() is kept, (token, number)


def test_a_proposal_made_with_certainty_is_kept_with_the_targets_probability():
    target = logs([0.5, 0.3, 0.2])[:, None]
    numbers = torch.tensor([[0.29], [0.31]], dtype=torch.float64)
    kept = accept(target.expand(2, 1, 3), torch.tensor([[1], [1]]), torch.tensor([1, 1]), None, numbers)
    assert kept.squeeze().tolist() == [True, False]


def test_residual_worked_by_hand():
    # max(p - q, 0) = (.3, 0, 0), then with p = (.4, .4, .2): (.2, 0, 0) and nothing else.
    rest = residual(logs([0.5, 0.3, 0.2], [0.4, 0.4, 0.2]), logs([0.2, 0.6, 0.2], [0.2, 0.5, 0.3]))
    assert torch.allclose(rest.exp(), torch.tensor([[0.3, 0, 0], [0.2, 0, 0]]), atol=1e-6)
    same = logs([0.5, 0.5])
    assert torch.equal(residual(same, same), same)


def test_the_identity_for_random_distributions():
    """min(p, q) + (1 - sum(min(p, q))) * norm(max(p - q, 0)) = p."""
    torch.manual_seed(0)
    p, q = (torch.randn(50, 7).mul(2).log_softmax(-1) for _ in range(2))
    p[:25, :3], q[10:40, 4:] = -torch.inf, -torch.inf  # as top-k leaves them
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    kept = torch.minimum(p.exp(), q.exp())
    rest = residual(p, q).softmax(-1)
    assert torch.allclose(kept + (1 - kept.sum(-1, keepdim=True)) * rest, p.exp(), atol=1e-6)


def test_counts_stop_at_the_first_refusal_and_at_the_end_of_a_block():
    target = logs([0.5, 0.5, 0.0]).expand(3, 4, 3).clone()
    proposed = torch.tensor([[0, 2, 0], [0, 1, 1], [1, 0, 0]])
    zeros = torch.zeros(3, 3, dtype=torch.float64)
    verification = verify(target, proposed, torch.tensor([3, 3, 1]), None, zeros, torch.zeros(3, 4))
    # Token 2 has probability 0; row 1 is kept whole; of row 2 only one token is a proposal.
    assert verification.accepted.tolist() == [1, 3, 1]
    assert verification.following.tolist() == [0, 0, 0]


def test_after_a_refusal_the_refused_token_is_not_drawn():
    target = logs([0.9, 0.1])[:, None].expand(1, 2, 2).clone()
    for number in (0.0, 0.5, 0.99):
        verification = verify(
            target.clone(), torch.tensor([[0]]), torch.tensor([1]), None,
            torch.tensor([[0.95]], dtype=torch.float64), torch.full((1, 2), number),
        )  # fmt: skip
        assert verification.accepted.item() == 0
        assert verification.following.item() == 1


def test_greedy_keeps_what_the_target_would_have_taken():
    best = torch.tensor([[4, 5, 6], [4, 5, 6], [4, 5, 6]])
    proposed = torch.tensor([[4, 5], [4, 9], [4, 5]])
    verification = verify_greedy(best, proposed, torch.tensor([2, 2, 1]))
    assert verification.accepted.tolist() == [2, 1, 1]
    assert verification.following.tolist() == [6, 5, 5]


@pytest.mark.parametrize("lookup", [False, True])
def test_a_block_is_distributed_as_the_target(lookup):
    """One place, exactly: the share of numbers that lead to each token is its probability."""
    p, q = logs([0.5, 0.3, 0.2, 0.0]), logs([0.1, 0.2, 0.3, 0.4])
    steps = 200
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    accepting, following = (each.flatten() for each in torch.meshgrid(grid, grid, indexing="ij"))
    rows = steps * steps
    total = torch.zeros(4, dtype=torch.float64)
    for token, share in [(2, 1.0)] if lookup else enumerate(q.exp()[0].tolist()):
        verification = verify(
            p.expand(rows, 2, 4).clone(),
            torch.full((rows, 1), token),
            torch.ones(rows, dtype=torch.long),
            None if lookup else q.expand(rows, 1, 4),
            accepting.unsqueeze(-1),
            following.unsqueeze(-1).expand(-1, 2),
        )
        first = torch.where(verification.accepted == 1, token, verification.following)
        total += share * torch.bincount(first, minlength=4).double() / rows
    assert torch.allclose(total, p.exp()[0].double(), atol=1 / math.sqrt(rows))
