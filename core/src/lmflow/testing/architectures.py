"""A tiny model of any causal architecture that Transformers has: its configuration with all sizes small.

Random weights and real code: caches, masks and positions are those of the full model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZES: dict[str, Any] = {
    # width
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_dim", "word_embed_proj_dim", "lru_width"), 32),
    **dict.fromkeys(("embedding_size", "attention_hidden_size", "hidden_size_per_layer_input"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "dff", "ffn_hidden_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("expert_intermediate_size", "moe_shared_expert_intermediate_size", "decoder_ffn_dim"), 32),
    **dict.fromkeys(("encoder_ffn_dim", "intermediate_size_mlp"), 32),
    # depth
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    # heads
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "linear_num_heads", "index_n_heads"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "kv_channels", "index_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "adapter_rank"), 16),
    # experts
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_shared_experts"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts"), 1),
    # states
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "block_size", "conv_chunk_size"), 16),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    # positions and tables
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "context_length", "max_seq_len", "model_max_length"), 256
    ),
    "n_ctx": 256,
    "vocab_size_per_layer_input": 64,
}
"""What fields of that name are set to, in every configuration that has them."""

_MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
_LINEAR_THEN_FULL = ["linear_attention", "full_attention"]
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA_HEADS | {"attn_layer_indices": [1]},
    "falcon_h1": _MAMBA_HEADS | {"mamba_d_ssm": 64},
    "granitemoehybrid": _MAMBA_HEADS | {"layer_types": _LINEAR_THEN_FULL},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "minimax": {"layer_types": _LINEAR_THEN_FULL},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "num_hidden_layers": 4,
    },
    "qwen3_next": {"layer_types": _LINEAR_THEN_FULL},
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": 1, "attention_window_size": 64},
    "zamba2": {
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "num_key_value_heads": 4,
        "hybrid_layer_ids": [1],
    },
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "num_key_value_heads": 4,
        "use_mamba_kernels": False,
    },
    "xlstm": {"num_blocks": 2, "qk_dim_factor": 0.5},
}
"""What some architectures need beside `SIZES`: lists with one entry a layer, and sizes that must fit each other."""


def tiny_config(kind: str, vocab_size: int = 420, **options: Any) -> Any:
    """The configuration of `kind` (Transformers' `model_type`) with every size small, and `options` on top.

    Raises what the configuration raises where its sizes do not fit each other.
    """
    from transformers import AutoConfig

    plain = AutoConfig.for_model(kind)
    wanted = _shrunk(plain.to_dict()) | SPECIAL.get(kind, {})
    ends = {"eos_token_id": 1, "pad_token_id": 2, "bos_token_id": 1}
    return AutoConfig.for_model(kind, **(wanted | {"vocab_size": vocab_size} | ends | options))


def tiny_architecture(kind: str, vocab_size: int = 420, *, seed: int = 0, **options: Any) -> Any:
    """A causal language model of this kind with a few thousand seeded random weights, in eval mode."""
    import torch
    from transformers import AutoModelForCausalLM

    config = tiny_config(kind, vocab_size, **options)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def _shrunk(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that `SIZES` names, and those of the configurations inside it."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and "model_type" in value:
            found[name] = {"model_type": value["model_type"], **_shrunk(value)}
        elif name in SIZES and value is not None and not isinstance(value, list | dict):
            found[name] = SIZES[name]
    layers = found.get("num_hidden_layers")
    for name, value in values.items():
        if isinstance(value, list) and layers and len(value) == values.get("num_hidden_layers"):
            found[name] = _ends_of(value, layers)
    return found


def _ends_of(values: list[Any], count: int) -> list[Any]:
    """As many of the values, each kind among them if there is room: hybrids have one layer of each."""
    kinds = list(dict.fromkeys(map(str, values)))
    chosen = [next(value for value in values if str(value) == kind) for kind in kinds][:count]
    return chosen + [values[-1]] * (count - len(chosen))
