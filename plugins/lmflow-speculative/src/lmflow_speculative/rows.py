"""What is known of each completion being drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow.inference.sampling import stream_key
from lmflow.inference.text_stream import TextStream
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
    """A completion being drawn: `history` is the prompt and what was drawn after it."""

    number: int
    history: list[int]
    prompt_length: int
    room: int
    keys: Keys
    length: DraftLength
    text: TextStream | None
    logprobs: list[float] = field(default_factory=list)
    done: bool = False

    @property
    def drawn(self) -> int:
        """Tokens drawn so far."""
        return len(self.history) - self.prompt_length

    @property
    def ids(self) -> list[int]:
        """What was drawn."""
        return self.history[self.prompt_length :]

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
            if self.text is not None and not ends:
                self.text.add(token)
                ends = self.text.stopped
            self.done = ends or self.drawn >= self.room
            if self.done:
                return count
        return len(tokens)
