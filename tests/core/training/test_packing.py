"""Packed rows against each sample alone, architecture by architecture: equal, or refused by the self-test."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from lmflow.data.collate import collate, collate_packed
from lmflow.data.sample import TokenSequence
from lmflow.errors import TrainingError
from lmflow.models.language_model import LanguageModel
from lmflow.training.batching_checks import check_batching, check_isolation
from lmflow.training.loss import forward_inputs, negative_log_likelihood

VOCABULARY = 420
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FEW_HEADS = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
SMALL_HEADS = {**COMMON, "head_dim": 8}
SLIDING = {"sliding_window": 8}  # shorter than the samples
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4}

PACKED: dict[str, dict[str, Any]] = {
    "LlamaConfig": COMMON,
    "MistralConfig": {**COMMON, **SLIDING},
    "MixtralConfig": {**COMMON, "num_local_experts": 4},
    "Qwen2Config": COMMON,
    "Qwen3Config": SMALL_HEADS,
    "GemmaConfig": SMALL_HEADS,
    "Gemma2Config": {**SMALL_HEADS, **SLIDING},
    "Gemma3TextConfig": {**SMALL_HEADS, **SLIDING},
    "Phi3Config": {**COMMON, "pad_token_id": 0},
    "Olmo2Config": COMMON,
    "GPTNeoXConfig": FEW_HEADS,
    "GPT2Config": {**GPT2, "n_positions": 128},
}
REFUSED: dict[str, dict[str, Any]] = {
    "OPTConfig": {**FEW_HEADS, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "BloomConfig": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "FalconConfig": {**FEW_HEADS, "alibi": False},
    "MambaConfig": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def build(name: str, options: dict[str, Any], attention: str | None = None) -> Any:
    """A random model with weights large enough for attention to matter."""
    torch.manual_seed(0)
    config = getattr(transformers, name)(**options, bos_token_id=1, eos_token_id=2)
    try:
        module = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    except ValueError as error:
        pytest.skip(f"no {attention} attention: {error}")
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
    return module


@pytest.fixture
def samples() -> list[TokenSequence]:
    draw = random.Random(0)
    return [
        TokenSequence([draw.randrange(1, VOCABULARY) for _ in range(n)], [False] + [True] * (n - 1))
        for n in (15, 9, 17, 3)
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_equals_alone(name: str, attention: str, samples: list[TokenSequence]):
    module = build(name, PACKED[name], attention)
    packed = collate_packed([samples[:3], samples[3:]], 0)
    with torch.no_grad():
        logits = module(**forward_inputs(packed)).logits
        alone = [module(**forward_inputs(collate([each], 0))).logits[0] for each in samples]
    for found, expected in zip([logits[0, :15], logits[0, 15:24], logits[0, 24:41], logits[1, :3]], alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    negative_log_likelihood(module, module, packed).backward()
    together = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    for each in samples:
        negative_log_likelihood(module, module, collate([each], 0)).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_would_let_samples_see_each_other_are_refused(
    name: str, samples: list[TokenSequence], make_tokenizer: Any
):
    model = LanguageModel(build(name, REFUSED[name]), make_tokenizer(), "made here")
    kind = model.module.config.model_type
    with pytest.raises(TrainingError, match=rf"packed into one row.*{kind}.*--data\.packing false"):
        check_batching(model, samples[:3], packing=True)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*PACKED, *REFUSED])
def test_what_stands_before_a_sample_changes_nothing_or_is_refused(
    name: str, precision: torch.dtype, samples: list[TokenSequence], make_tokenizer: Any
):
    """In bfloat16, where the comparison with each sample alone is coarse, BLOOM and Mamba passed it."""
    module = build(name, (PACKED | REFUSED)[name]).to(precision)
    model = LanguageModel(module, make_tokenizer(), "made here")
    if name in PACKED:
        check_isolation(model, samples[:3])
        return
    with pytest.raises(TrainingError, match=r"packed into one row before it.*--data\.packing false"):
        check_isolation(model, samples[:3])
