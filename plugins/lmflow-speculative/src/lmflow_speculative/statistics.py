"""What speculation brought: how many proposals were kept at each place, and the passes it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt

Z = 1.959964
"""The normal distribution has 95% within so many standard deviations."""


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """The 95% interval for a share of `trials`; from 0 to 1 where there were none."""
    if not trials:
        return 0.0, 1.0
    share, spread = hits / trials, Z * Z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = Z * sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass
class Passes:
    """How often a model was called, and how many tokens it read, prompts included."""

    count: int = 0
    tokens: int = 0


@dataclass
class Statistics:
    """Counts since they were begun. A pass over a batch counts once in `target`, and for each row in `row_passes`.

    The pass that reads a prompt is one of them; so without speculation there is one row pass for each token.
    """

    proposed: list[int] = field(default_factory=list)
    """Proposals at the first, second, … place after the last certain token."""
    accepted: list[int] = field(default_factory=list)
    tokens: int = 0
    row_passes: int = 0
    target: Passes = field(default_factory=Passes)
    draft: Passes = field(default_factory=Passes)

    def count_block(self, proposed: int, accepted: int, tokens: int) -> None:
        """A row's block of `proposed` tokens was verified and brought `tokens`."""
        missing = proposed - len(self.proposed)
        self.proposed += [0] * missing
        self.accepted += [0] * missing
        for place in range(proposed):
            self.proposed[place] += 1
            self.accepted[place] += place < accepted
        self.tokens += tokens
        self.row_passes += 1

    @property
    def acceptance(self) -> Sequence[float]:
        """Share of the proposals kept, by place; those after a refused one count as refused."""
        return [kept / made for kept, made in zip(self.accepted, self.proposed, strict=True)]

    @property
    def acceptance_rate(self) -> float:
        """Share of all proposals that were kept; 0 where none was made."""
        return sum(self.accepted) / max(1, sum(self.proposed))

    @property
    def acceptance_interval(self) -> tuple[float, float]:
        """The 95% interval of Wilson (1927) for `acceptance_rate`, as if proposals were independent."""
        return wilson_interval(sum(self.accepted), sum(self.proposed))

    @property
    def tokens_per_pass(self) -> float:
        """Tokens sampled per pass of the target over a row; 1 without speculation."""
        return self.tokens / max(1, self.row_passes)

    def figures(self) -> dict[str, float]:
        """The figures that sum it up, by name."""
        return {
            "acceptance_rate": self.acceptance_rate,
            "proposals": sum(self.proposed),
            "tokens_per_target_pass": self.tokens_per_pass,
            "target_passes": self.target.count,
            "draft_passes": self.draft.count,
        }

    def describe(self) -> str:
        """The same in a line."""
        if not self.tokens:
            return "speculation: nothing sampled"
        places = ", ".join(f"{share:.0%}" for share in self.acceptance)
        return (
            f"speculation: {self.tokens_per_pass:.2f} tokens per target pass ({self.tokens:,} tokens, "
            f"{self.target.count:,} target and {self.draft.count:,} draft passes); "
            f"{self.acceptance_rate:.0%} of the proposals accepted, by place: {places or 'none made'}"
        )
