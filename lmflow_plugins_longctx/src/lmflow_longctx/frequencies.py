"""Rotary frequencies scaled for longer texts: functions from the frequencies a model was trained with to new ones.

RoPE turns the i-th pair of a head's d rotated dimensions by `position * f[i]`, with f[i] = base^(-2i/d) and i from 0 to
d/2 - 1 (Su et al., arXiv 2104.09864). Every function takes those frequencies as a tensor of shape (d/2,), highest
first, and returns a tensor of that shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def base_frequencies(dimension: int, base: float) -> Tensor:
    """Unscaled frequencies base^(-2i/d) of `dimension` = d rotated dimensions, shape (d/2,)."""
    exponents = torch.arange(0, dimension, 2, dtype=torch.float32) / dimension
    return 1.0 / base**exponents


def interpolate(frequencies: Tensor, factor: float) -> Tensor:
    """Position interpolation: every position divided by `factor` (Chen et al., arXiv 2306.15595, equation 4)."""
    return frequencies / factor


def enlarge_base(base: float, dimension: int, factor: float) -> float:
    """NTK-aware scaling's base, b * factor^(d/(d-2)) (bloc97, 2023; arXiv 2309.00071, equation 16).

    With it the lowest frequency is divided by `factor` and the highest stays. Needs d > 2.
    """
    return float(base * factor ** (dimension / (dimension - 2)))


def ntk(frequencies: Tensor, factor: float) -> Tensor:
    """NTK-aware scaling: f[i] * factor^(-2i/(d-2)), what `enlarge_base` makes of the frequencies."""
    dimension = 2 * len(frequencies)
    exponents = torch.arange(0, dimension, 2, dtype=torch.float32) / (dimension - 2)
    return frequencies * factor**-exponents


def dynamic_ntk(frequencies: Tensor, factor: float, original_length: int, length: int) -> Tensor:
    """NTK-aware scaling that grows with the text (emozilla, 2023), for a text of `length` tokens.

    The factor is `factor * length / original_length - (factor - 1)`: 1 up to the original length. `factor` 1 gives the
    `length / original_length` of arXiv 2309.00071, section 3.3; more, as in Transformers, stretches faster.
    """
    stretch = factor * max(length, original_length) / original_length - (factor - 1)
    return ntk(frequencies, stretch)


def yarn(
    frequencies: Tensor, factor: float, original_length: int, *, base: float, beta_fast: float, beta_slow: float
) -> Tensor:
    """YaRN's frequencies (Peng et al., arXiv 2309.00071, section 3.2; temperature: `yarn_attention_factor`).

    Pairs that turn more than `beta_fast` times within the original length are kept, those that turn less than
    `beta_slow` times interpolated, with a linear ramp between. The ramp runs over the index of the pair between whole
    numbers, as in the authors' code and in Transformers; the paper prints one over the number of turns, with the same
    ends.
    """
    dimension = 2 * len(frequencies)
    first = max(math.floor(pair_turning(beta_fast, dimension, base, original_length)), 0)
    last = min(math.ceil(pair_turning(beta_slow, dimension, base, original_length)), dimension - 1)
    ramp = (torch.arange(len(frequencies), dtype=torch.float32) - first) / max(last - first, 0.001)
    interpolated = ramp.clamp(0, 1)
    return frequencies / factor * interpolated + frequencies * (1 - interpolated)


def pair_turning(turns: float, dimension: int, base: float, length: int) -> float:
    """Index (not whole) of the pair that turns `turns` times within `length`: L * base^(-2i/d) = 2 pi * turns."""
    return dimension * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))


def yarn_attention_factor(factor: float) -> float:
    """What YaRN multiplies queries and keys with, sqrt(1/t) = 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 15)."""
    return 0.1 * math.log(factor) + 1.0


def llama3(
    frequencies: Tensor, factor: float, original_length: int, *, low_freq_factor: float, high_freq_factor: float
) -> Tensor:
    """Llama 3.1's scaling by parts (arXiv 2407.21783 and its published code).

    Pairs that turn more than `high_freq_factor` times within the original length are kept, those that turn less than
    `low_freq_factor` times interpolated; between, the share that is kept grows linearly with the turns.
    """
    turns = original_length * frequencies / (2 * math.pi)
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies
