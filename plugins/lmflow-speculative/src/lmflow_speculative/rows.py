"""What is known of each completion being sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow.inference.batching import Owner
from lmflow.inference.sampling import stream_key
from lmflow.inference.types import Sampling
from lmflow_speculative.lengths import DraftLength


@dataclass(frozen=True, slots=True)
class Keys:
    """Random streams of a completion; a number of each is used once at most for every token that stays.

    Three are needed: the token of the target's own, the proposal, and whether that is kept must be independent.
    """

    draw: int
    propose: int
    accept: int

    @classmethod
    def of(cls, prompt: Prompt, sample: int, seed: int) -> Keys:
        """The streams of completion number `sample` of a prompt."""
        return cls(*(stream_key(prompt.ids, sample, seed, purpose) for purpose in ("draw", "propose", "accept")))


@dataclass(slots=True)
class Row:
    """A completion being sampled: `history` is the prompt and what was sampled after it."""

    owner: Owner
    history: list[int]
    keys: Keys
    length: DraftLength
    logprobs: list[float] = field(default_factory=list)
    done: bool = False

    @classmethod
    def begin(cls, owner: Owner, length: DraftLength) -> Row:
        """A completion without a token."""
        request = owner.request
        keys = Keys.of(request.prompt, owner.sample, request.sampling.seed)
        return cls(owner, list(request.prompt.ids), keys, length)

    @property
    def sampling(self) -> Sampling:
        """How it is sampled."""
        return self.owner.request.sampling

    @property
    def drawn(self) -> int:
        """Tokens sampled so far."""
        return len(self.history) - len(self.owner.request.prompt.ids)

    @property
    def to_come(self) -> int:
        """Most tokens that are still to come."""
        return self.owner.request.token_budget - self.drawn

    @property
    def ids(self) -> list[int]:
        """What was sampled."""
        return self.history[len(self.owner.request.prompt.ids) :]

    def extend(self, tokens: Sequence[int], logprobs: Sequence[float], end_ids: Sequence[int]) -> int:
        """Add tokens up to where one ends the completion; how many were added.

        Raises LmflowError where one has no probability, which only broken weights bring about.
        """
        for count, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True), 1):
            if not math.isfinite(logprob):
                raise LmflowError(
                    "The model's logits are not finite numbers: its weights are damaged or have diverged."
                )
            self.history.append(token)
            self.logprobs.append(logprob)
            ends = token in end_ids
            if self.owner.text is not None and not ends:
                self.owner.text.add(token)
                ends = self.owner.text.stopped
            self.done = ends or not self.to_come
            if self.done:
                return count
        return len(tokens)
