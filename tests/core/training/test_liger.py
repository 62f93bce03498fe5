"""Liger's kernel against ours: on a GPU where there is one, else by Triton's interpreter, which runs it on the CPU."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from lmflow.training import chunked_loss
from lmflow.training.chunked_loss import LogitTransform, chunked_nll
from lmflow.training.liger import liger_nll

COMPARE = """
import torch
from lmflow.training.chunked_loss import chunked_nll
from lmflow.training.liger import liger_nll

draw = torch.Generator().manual_seed(0)
hidden, weight, bias = (torch.randn(*shape, generator=draw) for shape in ((37, 16), (101, 16), (101,)))
targets = torch.randint(0, 101, (37,), generator=draw)
for trained in ((hidden, weight, bias), (hidden,)):
    found = []
    for nll in (liger_nll(), chunked_nll):
        inputs = [each.clone().requires_grad_(any(each is one for one in trained)) for each in (hidden, weight, bias)]
        loss = nll(*inputs, targets)
        (loss * 0.3).backward()
        found.append([loss.detach(), *(each.grad for each in inputs[: len(trained)])])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_equals_the_loss_in_chunks() -> None:
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMPARE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each time the kernel is asked for; there is none then."""
    asked: list[str] = []
    monkeypatch.setattr(chunked_loss, "liger_nll", lambda: asked.append("asked"))
    return asked


def on(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a weight and targets."""
    return torch.randn(3, 4, device=device), torch.randn(5, 4, device=device), torch.tensor([0, 1, 2], device=device)


def test_the_cpu_does_without(asked: list[str]) -> None:
    hidden, weight, targets = on("cpu")
    loss = chunked_nll(hidden, weight, None, targets)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum"))
    assert not asked


@pytest.mark.gpu
def test_a_gpu_asks_for_it_unless_logits_are_changed(asked: list[str]) -> None:
    hidden, weight, targets = on("cuda")
    chunked_nll(hidden, weight, None, targets, LogitTransform(cap=5.0))
    assert not asked
    chunked_nll(hidden, weight, None, targets)
    assert asked


@pytest.mark.gpu
def test_a_gpu_s_loss_is_that_of_the_cpu() -> None:
    if liger_nll() is None:
        pytest.skip("liger-kernel is not installed")
    hidden, weight, targets = on("cuda")
    expected = chunked_nll(hidden.cpu(), weight.cpu(), None, targets.cpu())
    torch.testing.assert_close(chunked_nll(hidden, weight, None, targets).cpu(), expected, rtol=1e-5, atol=1e-5)
