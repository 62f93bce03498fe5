"""Log-probabilities of targets straight from the hidden states, a chunk of them at a time.

The logits of a chunk are thrown away before the next one's are made, in the forward and in the backward pass, so no
(N, V) tensor ever exists. Gradients are written out here rather than left to autograd, which would keep one:
d log p(t) / d z = onehot(t) - softmax(z).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lmflow.training.liger import liger_nll

CHUNK_BYTES = 32 * 2**20
"""Memory of one chunk of logits, in float32; two such buffers live at a time."""


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to the logits of its output head: `scale` * z, then `cap` * tanh(z / `cap`)."""

    scale: float = 1.0
    cap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """The transformed logits; those given where nothing is done to them."""
        scaled = logits if self.scale == 1.0 else logits * self.scale
        return scaled if self.cap is None else (scaled / self.cap).tanh() * self.cap

    def chain_(self, gradient: Tensor, transformed: Tensor | None) -> Tensor:
        """The gradient of what the head gave from that of the transformed logits, in place."""
        if self.cap is not None and transformed is not None:
            gradient.mul_(transformed.div(self.cap).square_().neg_().add_(1.0))
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


IDENTITY = LogitTransform()


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform = IDENTITY,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """log p(targets) as float32 (N,) from hidden states (N, H), the head's weight (V, H) and bias (V,).

    Differentiable in the first three, by making each chunk's logits once more in the backward pass.
    """
    inputs = _in_one_format(hidden, weight, bias)
    logprobs: Tensor = _Logprobs.apply(*inputs, targets, transform, chunk_bytes)
    return logprobs


def chunked_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform = IDENTITY,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """-sum of `chunked_logprobs`, a scalar. Cheaper: the gradient is made with the loss, from the same logits.

    On a GPU it is Liger's kernel that makes them, where that is installed and the logits are used as they are.
    """
    inputs = _in_one_format(hidden, weight, bias)
    kernel = liger_nll() if hidden.is_cuda and transform == IDENTITY else None
    if kernel is not None:
        return kernel(*inputs, targets)
    loss: Tensor = _Nll.apply(*inputs, targets, transform, chunk_bytes)
    return loss


def checkpointed_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    transform: LogitTransform = IDENTITY,
    rows: int = 256,
) -> Tensor:
    """`chunked_logprobs` for any head, a function from (n, H) to (n, V): autograd calls it once more going back."""

    def some(part: Tensor, wanted: Tensor) -> Tensor:
        return _logprobs_of(transform.apply(head(part).float()), wanted)[0]

    parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    return torch.cat([checkpoint(some, part, wanted, use_reentrant=False) for part, wanted in parts])


def chunked_map(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    function: Callable[..., Tensor],
    *rows: Tensor,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """`function(head(hidden), *rows)` a chunk of rows at a time: its results (N, …) from hidden states (N, H).

    `head` makes logits (n, V) of (n, H); `function` gets them and the same rows of each further tensor (N, …), and
    returns n rows of its own. Differentiable in all of them: what a chunk needs for its gradient is computed once more
    in the backward pass and thrown away, so that logits of `chunk_bytes` in float32, and what `function` makes of
    them, are all there is at a time. `function` must not be random.
    """
    if not len(hidden):
        return function(head(hidden), *rows)
    with torch.no_grad():
        vocabulary = head(hidden[:1]).shape[-1]
    parts = _chunks(hidden, vocabulary, chunk_bytes)

    def some(part: Tensor, *others: Tensor) -> Tensor:
        return function(head(part), *others)

    return torch.cat([checkpoint(some, hidden[at], *(each[at] for each in rows), use_reentrant=False) for at in parts])


def _in_one_format(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The inputs as autocast would give them to the head: what happens in a custom function it does not see."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _chunks(hidden: Tensor, vocabulary: int, chunk_bytes: int) -> Iterator[slice]:
    """Parts of equal size, so that none is small, whose logits take at most `chunk_bytes`."""
    rows = max(1, chunk_bytes // (4 * vocabulary))
    count = math.ceil(len(hidden) / rows)
    size = math.ceil(len(hidden) / count) if count else 1
    return (slice(start, start + size) for start in range(0, len(hidden), size))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    made = hidden @ weight.t() if bias is None else torch.addmm(bias, hidden, weight.t())
    return transform.apply(made.float())


def _logprobs_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p(targets), (n,), and the log of the sum of exponentials, (n,)."""
    total = logits.logsumexp(-1)
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - total, total


class _Gradients:
    """Sums up, chunk by chunk, the gradients that are wanted."""

    def __init__(self, wanted: tuple[bool, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self._inputs = hidden, weight
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        # Sums over chunks in a short format would lose what is added late.
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None

    def add(self, part: slice, gradient: Tensor) -> None:
        """Go on from the gradient (n, V) of what the head gave for `part`."""
        hidden, weight = self._inputs
        if self.bias is not None:
            self.bias += gradient.sum(0)
        gradient = gradient.to(weight.dtype)
        if self.hidden is not None:
            torch.mm(gradient, weight, out=self.hidden[part])
        if self.weight is None:
            return
        if gradient.dtype == torch.float32:
            self.weight.addmm_(gradient.t(), hidden[part])
        else:
            self.weight += gradient.t() @ hidden[part]

    def as_inputs(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The sums in the format of the inputs."""
        dtype = self._inputs[1].dtype
        return (
            self.hidden,
            None if self.weight is None else self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
        )


class _Logprobs(torch.autograd.Function):
    """`chunked_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        chunk_bytes: int,
    ) -> Tensor:
        logprobs = hidden.new_empty(len(hidden), dtype=torch.float32)
        totals = torch.empty_like(logprobs)
        for part in _chunks(hidden, len(weight), chunk_bytes):
            logits = _logits(hidden[part], weight, bias, transform)
            logprobs[part], totals[part] = _logprobs_of(logits, targets[part])
        ctx.save_for_backward(hidden, weight, bias, targets, totals)
        ctx.transform, ctx.chunk_bytes = transform, chunk_bytes
        return logprobs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, totals = ctx.saved_tensors
        gradients = _Gradients(ctx.needs_input_grad, hidden, weight, bias)
        for part in _chunks(hidden, len(weight), ctx.chunk_bytes):
            logits = _logits(hidden[part], weight, bias, ctx.transform)
            capped = logits.clone() if ctx.transform.cap is not None else None
            slope = logits.sub_(totals[part, None]).exp_().mul_(-upstream[part, None])
            slope.scatter_add_(-1, targets[part, None], upstream[part, None])
            gradients.add(part, ctx.transform.chain_(slope, capped))
        return *gradients.as_inputs(), None, None, None


class _Nll(torch.autograd.Function):
    """`chunked_nll`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        chunk_bytes: int,
    ) -> Tensor:
        gradients = _Gradients(ctx.needs_input_grad, hidden, weight, bias)
        wanted = any(ctx.needs_input_grad)
        loss = hidden.new_zeros((), dtype=torch.float32)
        for part in _chunks(hidden, len(weight), chunk_bytes):
            logits = _logits(hidden[part], weight, bias, transform)
            if not wanted:
                loss -= _logprobs_of(logits, targets[part])[0].sum()
                continue
            capped = logits.clone() if transform.cap is not None else None
            own, top = logits.gather(-1, targets[part, None]), logits.amax(-1, keepdim=True)
            slope = logits.sub_(top).exp_()  # the softmax, by way of which its logarithm is known too
            total = slope.sum(-1, keepdim=True)
            loss -= (own - top - total.log()).sum()
            slope.div_(total).scatter_add_(-1, targets[part, None], torch.full_like(own, -1.0))
            gradients.add(part, transform.chain_(slope, capped))
        ctx.gradients = gradients.as_inputs()
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Handed on rather than copied: the weight's is often the largest tensor there is.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of chunked_nll was taken already; chunked_logprobs allows it twice")
        return *(None if each is None else each.mul_(upstream) for each in gradients), None, None, None
