"""Scoring completions: the checks that every reward's scores get."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from lmflow.errors import LmflowError, RewardError
from lmflow.inference.types import Completion
from lmflow.plugins.user_code import fenced

if TYPE_CHECKING:
    from lmflow.components import Log, Reward
    from lmflow.data.sample import Sample


LONGEST = 200
"""Characters of a score that are shown."""


def score_completions(reward: Reward, samples: Sequence[Sample], completions: Sequence[str]) -> list[float]:
    """Score with `reward` and insist on one finite number per completion.

    What the reward prints goes to standard error, and torch's modes are afterwards as they were. Raises RewardError
    showing a sample when the reward raises, or asks Python to end, and when it returns no list or one-dimensional
    tensor, another number of scores, or a score that is not finite.
    """
    if not completions:
        return []
    try:
        with fenced():
            scores = as_list(reward.score(samples, completions))
    except LmflowError:
        raise
    except Exception as error:
        first = show_sample(samples[0], completions[0])
        raise RewardError(
            f"Reward {reward.name} raised {type(error).__name__}: {error}\n"
            f"on a batch of {len(completions)} whose first is {first}\n(--debug shows the traceback)"
        ) from error
    if len(scores) != len(completions):
        raise RewardError(
            f"Reward {reward.name} returned {len(scores)} scores for {len(completions)} completions, "
            f"the first of which is {show_sample(samples[0], completions[0])}"
        )
    for score, sample, completion in zip(scores, samples, completions):
        if not _is_finite(score):
            raise RewardError(
                f"Reward {reward.name} returned {shown(score)}, not a finite number, for "
                f"{show_sample(sample, completion)}"
            )
    return [float(score) for score in scores]


def as_list(scores: Any) -> list[Any]:
    """The scores of a batch. Raises TypeError for what holds no list of them, though Python could walk through it."""
    shape = getattr(scores, "shape", None)
    if shape is not None and len(shape) != 1:
        raise TypeError(f"it returned numbers of the shape {tuple(shape)}, not a list with one for each completion")
    if isinstance(scores, Mapping | Set | str | bytes) or not isinstance(scores, Iterable):
        raise TypeError(f"it returned a {type(scores).__name__}, not a list of numbers")
    return list(scores)


def score_on_rank0(log: Log, reward: Reward, samples: Sequence[Sample], completions: Sequence[str]) -> list[float]:
    """`score_completions` in the phase "scoring", by rank 0 for all processes, each of which has to call it.

    One process scores everything, because a reward may look at a whole batch, and must not be asked twice.
    """
    with log.phase("scoring", len(completions)):
        return log.processes.on_rank0(lambda: score_completions(reward, samples, completions))


def score_groups(
    log: Log, reward: Reward, samples: Sequence[Sample], groups: Sequence[Sequence[Completion]]
) -> list[list[float]]:
    """Rewards in the shape of `groups`, those of sample i for the completions in `groups[i]`; see `score_on_rank0`."""
    each = [sample for sample, group in zip(samples, groups, strict=True) for _ in group]
    texts = [completion.text for group in groups for completion in group]
    scores = iter(score_on_rank0(log, reward, each, texts))
    return [[next(scores) for _ in group] for group in groups]


def show_sample(sample: Sample, completion: str) -> str:
    """A prompt and a completion, shortened, with where they came from."""
    return f"{sample.source or 'a sample'}\n  prompt: {sample.prompt_text[:200]!r}\n  completion: {completion[:200]!r}"


def _is_finite(score: Any) -> bool:
    try:
        return not isinstance(score, str | bytes) and math.isfinite(float(score))
    except Exception:  # it is no number, or one that is too large for a float; what arrays raise is their own
        return False


def shown(score: Any) -> str:
    """What a reward returned, shortened."""
    try:
        text = repr(score)
    except Exception:  # Python writes out no number of thousands of digits
        text = f"a {type(score).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
