"""The loss by Liger's kernel (Hsu et al., 2024, arXiv 2410.10989), where `liger-kernel` is installed.

It does what `lmflow.training.chunked_loss` does, with the softmax and the gradient of a chunk in one pass over its
logits, and is written in Triton, so it serves GPUs alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

NllKernel = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""(hidden (N, H), weight (V, H), bias (V,), targets (N,)) -> -sum of log p(targets), a scalar in float32."""
IGNORED, NO_PENALTY, NO_SMOOTHING = -100, 0.0, 0.0


@cache
def liger_nll() -> NllKernel | None:
    """Liger's kernel; None where it is not installed."""
    try:
        # Not through `liger_kernel.transformers`, which imports every model it knows how to patch.
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
    except ImportError:
        return None

    def nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        loss: Tensor = LigerFusedLinearCrossEntropyFunction.apply(
            hidden,
            weight,
            targets,
            bias,
            None,  # weights of classes
            IGNORED,
            NO_PENALTY,
            NO_SMOOTHING,
            "sum",
            None,  # a cap, for which the interpreter that tests use has no operation
            False,
            torch.float32,  # sums over chunks in a short format would lose what is added late
        )[0]
        return loss

    return nll
