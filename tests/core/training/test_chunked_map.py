"""Functions of all logits, a chunk at a time: values, gradients, and memory against the whole computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmflow.data.collate import collate, collate_packed
from lmflow.data.sample import TokenSequence
from lmflow.testing.tiny import tiny_module
from lmflow.training.chunked_loss import chunked_map
from lmflow.training.distributions import entropy, kl_divergence
from lmflow.training.loss import forward_inputs, target_map, target_mask, target_states
from lmflow.training.output_head import OutputHead

ROWS, WIDTH, VOCABULARY = 23, 11, 57


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_entropy_and_divergence_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2): H(p) = ln 4 - 3/4 ln 3; KL(p || q) = ln 2 - H(p)
    p, q = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    assert float(entropy(p)) == pytest.approx(1.3862944 - 0.75 * 1.0986123)
    assert float(kl_divergence(p, q)) == pytest.approx(0.6931472 - (1.3862944 - 0.75 * 1.0986123))


def test_divergence_is_nothing_from_itself_positive_from_others_and_torchs():
    p, q = normal(5, 9), normal(5, 9, seed=1)
    assert kl_divergence(p, p).abs().max() < 1e-12
    assert kl_divergence(p, q).min() > 0
    reference = nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl_divergence(p, q), reference)
    torch.testing.assert_close(entropy(p), torch.distributions.Categorical(logits=p).entropy())


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_entropy_equals_the_whole_computation_with_gradients(rows: int):
    inputs = [normal(ROWS, WIDTH).requires_grad_(), normal(VOCABULARY, WIDTH, seed=1).requires_grad_()]
    upstream = normal(ROWS, seed=2)
    chunk = rows * VOCABULARY * 4
    found = chunked_map(inputs[0], lambda part: part @ inputs[1].t(), entropy, chunk_bytes=chunk)
    expected = entropy(inputs[0] @ inputs[1].t())
    torch.testing.assert_close(found, expected)
    both = (torch.autograd.grad(each, inputs, upstream) for each in (found, expected))
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_divergence_from_a_teacher_equals_the_whole_computation_with_gradients(rows: int):
    student = [normal(ROWS, WIDTH).requires_grad_(), normal(VOCABULARY, WIDTH, seed=1).requires_grad_()]
    states, teacher = normal(ROWS, 5, seed=2).requires_grad_(), normal(VOCABULARY, 5, seed=3)

    def divergence(logits: Tensor, part: Tensor) -> Tensor:
        return kl_divergence(logits, part @ teacher.t())

    found = chunked_map(
        student[0], lambda part: part @ student[1].t(), divergence, states, chunk_bytes=rows * VOCABULARY * 4
    )
    expected = kl_divergence(student[0] @ student[1].t(), states @ teacher.t())
    torch.testing.assert_close(found, expected)
    both = (torch.autograd.grad(each.sum(), [*student, states]) for each in (found, expected))
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_rows_and_rows_of_several_numbers():
    head = normal(VOCABULARY, WIDTH)
    assert chunked_map(normal(0, WIDTH), lambda part: part @ head.t(), entropy).shape == (0,)
    found = chunked_map(normal(ROWS, WIDTH), lambda part: part @ head.t(), lambda z: z.topk(3).values, chunk_bytes=999)
    torch.testing.assert_close(found, (normal(ROWS, WIDTH) @ head.t()).topk(3).values)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [each.numel() for each in tree_leaves(out) if isinstance(each, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def test_no_tensor_is_larger_than_a_chunk_forwards_and_backwards():
    """512 rows of 20,000 tokens would be 10 million logits; a chunk of 320,000 bytes has 80,000."""
    hidden, weight = torch.randn(512, 2).requires_grad_(), torch.randn(20_000, 2).requires_grad_()
    with Largest() as largest:
        values = chunked_map(hidden, lambda part: part @ weight.t(), entropy, chunk_bytes=320_000)
        values.sum().backward()
    assert weight.grad is not None
    assert 40_000 <= largest.elements <= 80_000


def batch_of(packed: bool) -> Any:
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 400, (length,), generator=draw).tolist() for length in (9, 17, 5)]
    sequences = [TokenSequence(each, [False, False, *[True] * (len(each) - 2)]) for each in ids]
    return collate_packed([sequences[:2], sequences[2:]], 2) if packed else collate(sequences, 2)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_models_divergence_from_a_teacher_equals_that_of_whole_logits(packed: bool, is_known: bool, monkeypatch):
    """Also of a model that does something unknown to its logits, which are then made at once."""
    if not is_known:
        for each in ("output_head",):
            monkeypatch.setattr(
                f"lmflow.training.loss.{each}", lambda module: OutputHead(module.get_output_embeddings(), None)
            )
    student, teacher = tiny_module(seed=0), tiny_module(seed=1, hidden_size=16, num_attention_heads=2)
    batch = batch_of(packed)
    states, head = target_states(teacher, batch)
    assert not states.requires_grad
    found = target_map(student, student, batch, lambda ours, theirs: kl_divergence(head(theirs), ours), states)
    mask = target_mask(batch.loss_mask)
    ours, theirs = (module(**forward_inputs(batch)).logits[mask] for module in (student, teacher))
    expected = kl_divergence(theirs.detach(), ours)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    gradients = (torch.autograd.grad(each.sum(), list(student.parameters())) for each in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert "forward" not in teacher.get_output_embeddings().__dict__
