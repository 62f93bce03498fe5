"""No sound model is refused for rounding, and every planted leak is found, in full and in low precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lmflow.data.sample import TokenSequence
from lmflow.errors import TrainingError
from lmflow.models.language_model import LanguageModel
from lmflow.testing.architectures import tiny_architecture
from lmflow.testing.tiny import scale_matrices
from lmflow.training.batching_checks import check_batching, check_causal, exactly, is_low_precision

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])


@pytest.fixture(scope="module")
def make(make_tokenizer: Callable[..., Any]) -> Callable[..., LanguageModel]:
    def model(kind: str, dtype: torch.dtype = torch.float32, sharpness: float = 6.0, **options: Any) -> LanguageModel:
        tokenizer = make_tokenizer()
        module = tiny_architecture(kind, len(tokenizer), **options)
        scale_matrices(module, sharpness)
        return LanguageModel(module.to(dtype), tokenizer, kind)

    return model


@pytest.fixture
def short_answers() -> list[TokenSequence]:
    """Long prompts of different length, and an answer of one word with the end after it."""
    return [
        TokenSequence([(7 * i + n) % 200 + 5 for i in range(n)], [False] * (n - 2) + [True] * 2, f"s{n}")
        for n in (48, 31, 17)
    ]


@dtypes
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_oss", "mixtral", "qwen3_moe", "jamba", "mamba", "bloom"])
def test_sound_models_with_short_answers_pass(
    kind: str, dtype: torch.dtype, make: Callable[..., LanguageModel], short_answers: list[TokenSequence]
):
    if (kind, dtype) == ("mamba", torch.float16):
        pytest.skip("weights as sharp as these are too large for it")
    model = make(kind, dtype)
    check_causal(model, short_answers)
    check_batching(model, short_answers, packing=False)
    if kind in ("llama", "gpt2", "mixtral", "qwen3_moe"):
        check_batching(model, short_answers, packing=True)


@dtypes
@pytest.mark.parametrize("kind", ["bloom", "gpt_oss", "lfm2"])
def test_architectures_that_let_packed_samples_see_each_other(
    kind: str, dtype: torch.dtype, make: Callable[..., LanguageModel], short_answers: list[TokenSequence]
):
    with pytest.raises(TrainingError, match=r"Self-test: .*Set --data\.packing false"):
        check_batching(make(kind, dtype), short_answers, packing=True)


@dtypes
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_a_model_that_looks_ahead(
    kind: str, dtype: torch.dtype, make: Callable[..., LanguageModel], short_answers: list[TokenSequence]
):
    with pytest.raises(TrainingError, match="is no causal language model: later tokens change"):
        check_causal(make(kind, dtype, pad_token_id=0), short_answers)


def leaking(module: nn.Module, change: Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]) -> None:
    """Let the embeddings of a model be changed by what `change` makes of them and its inputs."""
    given: dict[str, Any] = {}
    module.register_forward_pre_hook(lambda _, __, inputs: given.update(inputs), with_kwargs=True)
    module.get_input_embeddings().register_forward_hook(  # type: ignore[operator]
        lambda _, __, embedded: change(embedded, given)
    )


def from_other_rows(embedded: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
    return embedded + 0.02 * embedded.roll(1, 0)


def from_padding(embedded: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
    return embedded + 0.02 * embedded[:, -1:]


def from_positions(embedded: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    width = embedded.shape[1]
    return embedded + 0.2 * width / 48 * embedded.std()


@dtypes
@pytest.mark.parametrize("leak", [from_other_rows, from_padding, from_positions])
def test_planted_leaks_into_padded_batches(
    leak: Callable[..., torch.Tensor],
    dtype: torch.dtype,
    make: Callable[..., LanguageModel],
    short_answers: list[TokenSequence],
):
    model = make("llama", dtype)
    leaking(model.module, leak)
    with pytest.raises(TrainingError, match="Self-test"):
        check_batching(model, short_answers, packing=False)


@dtypes
def test_a_leak_into_packed_rows(
    dtype: torch.dtype, make: Callable[..., LanguageModel], short_answers: list[TokenSequence]
):
    """Attention knows where samples begin, and the embedding before a sample's first token leaks all the same."""
    model = make("llama", dtype)
    leaking(model.module, lambda embedded, _: embedded + 0.02 * torch.cat([embedded[:, :1], embedded[:, :-1]], 1))
    with pytest.raises(TrainingError, match=r"lets packed samples see each other"):
        check_batching(model, short_answers, packing=True)


def test_float32_weights_are_checked_without_autocast(make: Callable[..., LanguageModel]):
    model = make("llama")
    with torch.autocast("cpu", torch.bfloat16):
        assert is_low_precision(model)
        with exactly(model):
            assert not is_low_precision(model)
        low = make("llama", torch.bfloat16)
        with exactly(low):
            assert is_low_precision(low)


@pytest.mark.parametrize("packing", [False, True])
def test_weights_that_are_not_finite(
    packing: bool, make: Callable[..., LanguageModel], short_answers: list[TokenSequence]
):
    """NaN is not larger than any limit, so that comparisons alone would let it pass."""
    model = make("llama")
    model.module.model.norm.weight.data.fill_(torch.nan)
    for check in (check_causal, lambda *given: check_batching(*given, packing=packing)):
        with pytest.raises(TrainingError, match="not finite numbers before the first step"):
            check(model, short_answers)
