"""When logits differ by more than rounding."""

from __future__ import annotations

import pytest
import torch

from lmflow.inference.comparing import distance, judgeable, looks_ahead


def test_padded_rows_of_a_head_do_not_count():
    right = torch.tensor([[1.0, -1.0, -torch.inf]])
    assert judgeable(right)
    assert not judgeable(torch.tensor([[1.0, torch.nan]]))
    assert not judgeable(torch.tensor([[-torch.inf, -torch.inf]]))
    # By hand: differences 0.5 and 0 over two numbers, deviation 1: sqrt(0.125).
    assert distance(torch.tensor([[1.5, -1.0, -torch.inf]]), right).item() == pytest.approx(0.125**0.5)
    assert distance(torch.tensor([[torch.nan, -1.0, 0.0]]), right).item() == torch.inf


def test_one_token_of_other_experts_is_no_look_ahead():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    flipped = logits.clone()
    flipped[2] = -logits[2]
    assert not looks_ahead(logits, flipped, 1e-3)
    assert looks_ahead(logits, logits + torch.randn(5, 7), 1e-3)
    assert looks_ahead(logits, logits * torch.nan, 1e-3)
