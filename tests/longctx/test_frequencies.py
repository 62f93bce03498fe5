"""Every formula three ways: scalars as the papers print them, Transformers' own functions, and properties."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lmflow_longctx import frequencies

DIMENSION, BASE, ORIGINAL = 64, 10_000.0, 2048
F = frequencies.base_frequencies(DIMENSION, BASE)


def transformers_frequencies(length: int | None = None, **rope: object) -> tuple[torch.Tensor, float]:
    config = LlamaConfig(
        hidden_size=2 * DIMENSION,
        num_attention_heads=2,
        max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_theta": BASE, **rope},
    )
    return ROPE_INIT_FUNCTIONS[str(rope["rope_type"])](config, seq_len=length)


def close(found: torch.Tensor, expected: torch.Tensor | list[float]) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32), rtol=2e-5, atol=0)


def test_base_frequencies_by_hand():
    # d = 4, b = 100: 100^0 = 1, 100^(-2/4) = 0.1
    close(frequencies.base_frequencies(4, 100.0), [1.0, 0.1])
    close(F, [BASE ** (-2 * i / DIMENSION) for i in range(DIMENSION // 2)])


@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0, 32.0])
class TestEveryFactor:
    def test_linear(self, factor: float):
        close(frequencies.interpolate(F, factor), [BASE ** (-2 * i / DIMENSION) / factor for i in range(32)])
        close(frequencies.interpolate(F, factor), transformers_frequencies(rope_type="linear", factor=factor)[0])

    def test_interpolating_frequencies_is_interpolating_positions(self, factor: float):
        """Equation 4 of arXiv 2306.15595 divides positions; the angles are the same."""
        positions = torch.arange(0, 9, dtype=torch.float32)
        torch.testing.assert_close(
            torch.outer(positions / factor, F), torch.outer(positions, frequencies.interpolate(F, factor))
        )

    def test_ntk(self, factor: float):
        base = BASE * factor ** (DIMENSION / (DIMENSION - 2))
        assert frequencies.enlarge_base(BASE, DIMENSION, factor) == pytest.approx(base)
        close(frequencies.ntk(F, factor), [base ** (-2 * i / DIMENSION) for i in range(32)])
        close(frequencies.ntk(F, factor), frequencies.base_frequencies(DIMENSION, base))

    def test_ntk_keeps_the_highest_and_interpolates_the_lowest(self, factor: float):
        scaled = frequencies.ntk(F, factor)
        assert scaled[0].item() == pytest.approx(F[0].item())
        assert scaled[-1].item() == pytest.approx(F[-1].item() / factor, rel=1e-5)

    @pytest.mark.parametrize("length", [100, ORIGINAL, ORIGINAL + 1, 3 * ORIGINAL, 8 * ORIGINAL])
    def test_dynamic(self, factor: float, length: int):
        stretch = factor * max(length, ORIGINAL) / ORIGINAL - (factor - 1)
        base = BASE * stretch ** (DIMENSION / (DIMENSION - 2))
        found = frequencies.dynamic_ntk(F, factor, ORIGINAL, length)
        close(found, [base ** (-2 * i / DIMENSION) for i in range(32)])
        close(found, transformers_frequencies(length, rope_type="dynamic", factor=factor)[0])

    @pytest.mark.parametrize(("fast", "slow"), [(32, 1), (16, 2), (400, 0.1)])
    def test_yarn(self, factor: float, fast: float, slow: float):
        found = frequencies.yarn(F, factor, ORIGINAL, base=BASE, beta_fast=fast, beta_slow=slow)
        close(found, [yarn_by_scalars(i, factor, fast, slow) for i in range(32)])
        reference, temperature = transformers_frequencies(
            rope_type="yarn",
            factor=factor,
            original_max_position_embeddings=ORIGINAL,
            beta_fast=fast,
            beta_slow=slow,
        )
        close(found, reference)
        assert frequencies.yarn_attention_factor(factor) == pytest.approx(temperature)

    def test_yarn_has_the_ends_the_paper_prints(self, factor: float):
        """Section 3.2's gamma(r), r = L f / 2 pi: 1 from 32 turns on, 0 up to 1 turn; only between do ramps differ."""
        found = frequencies.yarn(F, factor, ORIGINAL, base=BASE, beta_fast=32, beta_slow=1)
        turns = ORIGINAL * F / (2 * math.pi)
        for i in range(1, 31):
            if turns[i + 1] >= 32:
                assert found[i] == F[i]
            if turns[i - 1] <= 1:
                assert found[i].item() == pytest.approx(F[i].item() / factor)
        gamma = ((turns - 1) / 31).clamp(0, 1)
        printed = (1 - gamma) * F / factor + gamma * F
        assert (found >= F / factor * (1 - 1e-6)).all()
        assert (found <= F * (1 + 1e-6)).all()
        assert (printed <= F * (1 + 1e-6)).all()

    def test_llama3(self, factor: float):
        found = frequencies.llama3(F, factor, ORIGINAL, low_freq_factor=1, high_freq_factor=4)
        close(found, [llama3_by_scalars(F[i].item(), factor, 1, 4) for i in range(32)])
        close(
            found,
            transformers_frequencies(
                rope_type="llama3",
                factor=factor,
                original_max_position_embeddings=ORIGINAL,
                low_freq_factor=1,
                high_freq_factor=4,
            )[0],
        )


def yarn_by_scalars(i: int, factor: float, fast: float, slow: float) -> float:
    """The authors' code, a pair at a time."""
    frequency = BASE ** (-2 * i / DIMENSION)
    first = DIMENSION * math.log(ORIGINAL / (fast * 2 * math.pi)) / (2 * math.log(BASE))
    last = DIMENSION * math.log(ORIGINAL / (slow * 2 * math.pi)) / (2 * math.log(BASE))
    low, high = max(math.floor(first), 0), min(math.ceil(last), DIMENSION - 1)
    share = min(max((i - low) / (high - low), 0), 1)
    return frequency * (1 - share) + frequency / factor * share


def llama3_by_scalars(frequency: float, factor: float, low: float, high: float) -> float:
    """Meta's published code, a pair at a time."""
    wavelength = 2 * math.pi / frequency
    if wavelength < ORIGINAL / high:
        return frequency
    if wavelength > ORIGINAL / low:
        return frequency / factor
    smooth = (ORIGINAL / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def test_temperature_by_hand():
    # 0.1 ln 4 + 1 = 0.1 * 1.386294 + 1
    assert frequencies.yarn_attention_factor(4) == pytest.approx(1.1386294)
    assert frequencies.yarn_attention_factor(1) == 1.0


def test_factor_one_is_no_scaling():
    for scaled in (
        frequencies.interpolate(F, 1),
        frequencies.ntk(F, 1),
        frequencies.dynamic_ntk(F, 1, ORIGINAL, ORIGINAL),
        frequencies.yarn(F, 1, ORIGINAL, base=BASE, beta_fast=32, beta_slow=1),
        frequencies.llama3(F, 1, ORIGINAL, low_freq_factor=1, high_freq_factor=4),
    ):
        torch.testing.assert_close(scaled, F)


def test_dynamic_with_factor_one_is_the_papers():
    """arXiv 2309.00071, section 3.3: s = max(1, l / L)."""
    torch.testing.assert_close(frequencies.dynamic_ntk(F, 1, ORIGINAL, 3 * ORIGINAL), frequencies.ntk(F, 3))


def test_the_pair_that_turns_once():
    """Half of 64 dimensions, base 100: pair i has 100^(-i/32); one turn in L means f = 2 pi / L."""
    index = frequencies.pair_turning(1, 64, 100.0, 256)
    assert 100.0 ** (-index / 32) == pytest.approx(2 * math.pi / 256)
