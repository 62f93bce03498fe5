"""How many tokens to propose: a fixed number, or as many as are expected to pay."""

from __future__ import annotations

from collections.abc import Sequence

PRIOR, WEIGHT, MEMORY = 0.8, 4.0, 0.95
"""Acceptance assumed at first, for how many proposals that counts, and how much of the past is kept per block."""


class FixedLength:
    """Always as many proposals as allowed."""

    def chance(self, confidence: float) -> float:
        """Probability that a proposal made with this confidence is kept, if those before it are."""
        return 1.0

    def goes_on(self, kept: Sequence[float]) -> bool:
        """Whether to propose another token after those that are kept with the probabilities `kept`."""
        return True

    def learn(self, confidences: Sequence[float], accepted: int) -> None:
        """Take note of what became of a block."""


class AdaptedLength:
    """Proposes while another token is expected to bring more for its cost than the block so far.

    If proposal i is kept with probability s_i, k of them bring 1 + s_1 + ... + s_k tokens for the cost of one target
    pass and k proposals, `cost` target passes each. s_i falls with i, so the best k is where one more no longer raises
    the ratio. A row learns from its own past alone, so that no neighbour changes what it draws.
    """

    def __init__(self, cost: float) -> None:
        self._cost = cost
        self._verified = WEIGHT
        self._refused = self._feared = (1 - PRIOR) * WEIGHT

    def chance(self, confidence: float) -> float:
        """Probability that a proposal made with this confidence is kept, if those before it are.

        What the proposer gives its token is rarely what the target thinks of it, so its doubt, one minus confidence, is
        scaled by how many proposals were refused for all the doubt there was.
        """
        return max(0.0, 1 - (1 - confidence) * self._refused / self._feared)

    def goes_on(self, kept: Sequence[float]) -> bool:
        """Whether to propose another token after those that are kept with the probabilities `kept`."""
        if not kept:
            return True
        following = kept[-1] * self.rate
        return following * (1 + len(kept) * self._cost) > (1 + sum(kept)) * self._cost

    @property
    def rate(self) -> float:
        """Probability that a proposal is kept when those before it were, whatever its confidence."""
        return 1 - self._refused / self._verified

    def learn(self, confidences: Sequence[float], accepted: int) -> None:
        """Take note of what became of a block: those accepted, and the first refused if one was, were verified."""
        verified = confidences[: accepted + 1]
        if verified:
            self._verified = self._verified * MEMORY + len(verified)
            self._refused = self._refused * MEMORY + len(verified) - accepted
            self._feared = self._feared * MEMORY + sum(1 - confidence for confidence in verified)


DraftLength = FixedLength | AdaptedLength
