"""Advantages of completions within their group: how much better each is than the others of the same prompt.

A group in which all rewards are equal says nothing about its completions and gets zeros, whatever rounding makes of its
mean and standard deviation. Left out: baselines that are learnt (a value model).
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalized_advantages(rewards: Tensor) -> Tensor:
    """(r - mean) / std within each group (GRPO, arXiv 2402.03300): (P, K) from rewards of K completions of P prompts.

    The standard deviation is that of a sample (divided by K - 1). Raises ValueError unless K is 2 or more.
    """
    centered = centered_advantages(rewards)
    spread = torch.where(_is_flat(rewards), torch.ones_like(rewards[:, :1]), rewards.std(dim=1, keepdim=True))
    return centered / spread


def centered_advantages(rewards: Tensor) -> Tensor:
    """r - mean within each group (Dr. GRPO, arXiv 2503.20783), (P, K): no prompt counts more for being near to solved.

    Raises ValueError unless K is 2 or more.
    """
    _check_groups(rewards)
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    return torch.where(_is_flat(rewards), torch.zeros_like(centered), centered)


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """r - mean of the other rewards of its group (RLOO, arXiv 2402.14740), (P, K): a baseline without bias.

    It is K / (K - 1) times `centered_advantages`. Raises ValueError unless K is 2 or more.
    """
    count = rewards.shape[-1]
    return centered_advantages(rewards) * (count / max(count - 1, 1))


def _is_flat(rewards: Tensor) -> Tensor:
    """Which groups have equal rewards, (P, 1)."""
    return rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)


def _check_groups(rewards: Tensor) -> None:
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"expected rewards of at least 2 completions of each prompt, (P, K); found {tuple(rewards.shape)}"
        )
