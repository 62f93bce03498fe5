"""Which proposed tokens are kept, and what follows them: functions of tensors.

Leviathan, Kalman & Matias (2023), arXiv 2211.17192. A token x drawn from q is kept with probability
min(1, p(x) / q(x)); where one is not, the next is drawn from max(p - q, 0), normalised; where all are kept, one more
is drawn from p. What comes out is distributed as p, whatever q is:
min(p, q) + (1 - sum(min(p, q))) * norm(max(p - q, 0)) = p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmflow.inference.sampling import sample


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of a block of proposals, one entry per row."""

    accepted: Tensor
    """How many proposals are kept, from the first on, (R,)."""
    following: Tensor
    """The token after them, (R,)."""


def accept(target: Tensor, proposed: Tensor, counts: Tensor, draft: Tensor | None, uniforms: Tensor) -> Tensor:
    """Whether each proposal is kept if those before it are, (R, K) bool.

    `target` holds log p at the places of the proposals, (R, K, V), `proposed` the tokens, (R, K), of which the first
    `counts`, (R,), are there; `draft` log q, (R, K, V), None where each was proposed with certainty; `uniforms`,
    (R, K) in [0, 1), are independent of the proposals.
    """
    there = torch.arange(proposed.shape[1], device=proposed.device) < counts.unsqueeze(-1)
    index = proposed.unsqueeze(-1)
    p = target.gather(-1, index).squeeze(-1).double().exp()
    q = torch.ones_like(p) if draft is None else draft.gather(-1, index).squeeze(-1).double().exp()
    return there & (uniforms * q < p)


def residual(target: Tensor, draft: Tensor) -> Tensor:
    """Logarithm of max(p - q, 0) up to a constant, from log p and log q, (R, V) each.

    Where p and q are equal nothing is ever rejected but by rounding, and log p is returned.
    """
    rest = (target.exp() - draft.exp()).clamp_min(0)
    equal = rest.sum(-1, keepdim=True) == 0
    return torch.where(equal, target, rest.log())


def verify(
    target: Tensor, proposed: Tensor, counts: Tensor, draft: Tensor | None, uniforms: Tensor, following: Tensor
) -> Verification:
    """Keep proposals and draw the token after them.

    Shapes as in `accept`, but `target` has one place more, (R, K + 1, V): row r's proposals are followed by the one
    at `counts[r]`. `following` are the numbers the next token is drawn with, one for each place, (R, K + 1).
    """
    places = proposed.shape[1]
    kept = accept(target[:, :places], proposed, counts, draft, uniforms)
    accepted = kept.long().cumprod(-1).sum(-1)
    rows = torch.arange(len(accepted), device=accepted.device)
    final = target[rows, accepted]
    rejected = (accepted < counts).nonzero().squeeze(-1)
    if len(rejected):
        where = accepted[rejected]
        if draft is None:
            final[rejected, proposed[rejected, where]] = -torch.inf
        else:
            final[rejected] = residual(final[rejected], draft[rejected, where])
    return Verification(accepted, sample(final, following[rows, accepted]))


def verify_greedy(best: Tensor, proposed: Tensor, counts: Tensor) -> Verification:
    """The limit of temperature 0: proposals are kept while they are the target's most probable, `best` (R, K + 1)."""
    places = proposed.shape[1]
    there = torch.arange(places, device=proposed.device) < counts.unsqueeze(-1)
    accepted = (there & (proposed == best[:, :places])).long().cumprod(-1).sum(-1)
    return Verification(accepted, best.gather(-1, accepted.unsqueeze(-1)).squeeze(-1))
