"""What LoRA adapts: every linear layer of the blocks that PEFT accepts, fused experts, and new tokens."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from lmflow.components import LoadRequest
from lmflow.errors import RecipeError
from lmflow.models.pretrained import Pretrained
from lmflow.models.vocabulary import add_tokens, save_extended
from lmflow.testing.tiny import tiny_model
from lmflow_lora.adapter import Adapter
from lmflow_lora.lora import Lora
from lmflow_lora.targets import block_linear_names, fused_experts

IDS = torch.arange(3, 13)[None]
ENDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BLOCKS = {
    **ENDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
SCAN = {**ENDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
ROUTED = {**BLOCKS, "num_experts_per_tok": 2}
ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
FUSED = ["experts.down_proj", "experts.gate_up_proj"]
FOUND = {
    "Mamba": (SCAN, ["in_proj"], []),
    "Mamba2": ({**SCAN, "num_heads": 8, "head_dim": 8, "n_groups": 2}, ["in_proj"], []),
    "FalconMamba": (SCAN, ["in_proj"], []),
    "Llama4Text": (
        {**ROUTED, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48},
        sorted([*ATTENTION, "down_proj", "gate_proj", "up_proj"]),
        FUSED,
    ),
    "Mixtral": ({**ROUTED, "num_local_experts": 4}, ATTENTION, FUSED),
    "Qwen3Moe": ({**ROUTED, "num_experts": 4, "moe_intermediate_size": 16}, ATTENTION, FUSED),
    "GptOss": ({**ROUTED, "num_local_experts": 4}, ATTENTION, FUSED),
}
"""Configurations, the layers that are adapted, and the experts."""


def build(kind: str) -> Any:
    config = getattr(transformers, f"{kind}Config")(**FOUND[kind][0])
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(IDS).logits


@pytest.mark.parametrize("kind", FOUND)
def test_auto_takes_what_counts_and_merging_keeps_it(kind: str, tmp_path: Path):
    """Every matrix that trains has a gradient, so none is passed by; saved, read and merged the logits are the same."""
    module, (_, layers, experts) = build(kind), FOUND[kind]
    assert (block_linear_names(module), fused_experts(module)) == (layers, experts)
    before, tuner = logits(module), Lora(rank=4)
    assert not tuner.notes(module)
    wrapped: Any = tuner.prepare(module)
    assert torch.equal(logits(wrapped), before)
    trained = {name: each for name, each in wrapped.named_parameters() if each.requires_grad}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in trained.values():
            each.add_(0.05 * torch.randn(each.shape, generator=generator))
    wrapped(IDS).logits.square().sum().backward()
    assert [name for name, each in trained.items() if each.grad is None] == []
    if experts:
        assert any(".experts." in name for name in trained)
    expected = logits(wrapped)
    assert not torch.allclose(expected, before, atol=1e-2)
    wrapped.save_pretrained(tmp_path, save_embedding_layers=False)
    read = PeftModel.from_pretrained(build(kind), tmp_path)
    torch.testing.assert_close(logits(read), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(read.merge_and_unload()), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"dora": True}, {"initialisation": "orthogonal"}])
def test_experts_that_are_left_are_named(options: dict[str, Any]):
    tuner, module = Lora(rank=4, **options), build("Mixtral")
    wrapped = tuner.prepare(module)
    assert not any(".experts." in name for name, each in wrapped.named_parameters() if each.requires_grad)
    (note,) = tuner.notes(wrapped)
    assert note.startswith(
        "tuner lora leaves the experts as they are (experts.down_proj, experts.gate_up_proj): with tuner."
    )
    assert next(iter(options)) in note


def test_layers_that_are_named_leave_the_experts_without_a_word():
    tuner = Lora(target_modules=["q_proj"])
    wrapped = tuner.prepare(build("Mixtral"))
    assert not any(".experts." in name for name, each in wrapped.named_parameters() if each.requires_grad)
    assert not tuner.notes(wrapped)


def test_a_layer_that_the_scan_reads_itself_is_refused():
    """Beside it LoRA would count for nothing, and merged for something."""
    with pytest.raises(RecipeError, match="no linear layer matches 'dt_proj'; there are in_proj"):
        Lora(target_modules=["dt_proj"]).prepare(build("Mamba"))


# New tokens


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def extended(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model with two more tokens, of which nothing has trained the rows."""
    model = tiny_model(tie_word_embeddings=request.param)
    save_extended(add_tokens(model, ["<tool>", "<call>"]), tmp_path / "extended")
    return tmp_path / "extended"


def test_rows_of_new_tokens_train_and_nothing_else_of_the_tables(extended: Path, tmp_path: Path):
    model = Pretrained(path=str(extended)).load(LoadRequest())
    tied = model.module.config.tie_word_embeddings
    new = model.tokenizer.convert_tokens_to_ids(["<tool>", "<call>"])
    original, tuner = copy.deepcopy(model.module), Lora(rank=4)
    tuned = model.with_module(tuner.prepare(model.module))
    (note,) = tuner.notes(tuned.module)
    where = "the embeddings" if tied else "the embeddings and the head"
    assert f"trains the rows of 2 new tokens in {where} too" in note
    rows = {
        name: each for name, each in tuned.module.named_parameters() if "token_adapter" in name and each.requires_grad
    }
    assert [tuple(each.shape) for each in rows.values()] == [(2, 32)] * (1 if tied else 2)
    optimizer = torch.optim.SGD([each for each in tuned.module.parameters() if each.requires_grad], lr=0.5)
    ids = torch.tensor([[5, new[0], 9, new[1], 8]])
    tuned.module.train()
    tuned.module(input_ids=ids, labels=ids).loss.backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in rows.values())
    optimizer.step()
    with torch.no_grad():
        expected = tuned.module.eval()(ids).logits
    loaded = Adapter(path=str(tuner.save(tuned, tmp_path / "run"))).load(LoadRequest())
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(ids).logits, expected, rtol=0, atol=1e-5)
    for table in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(original, table)().weight, getattr(loaded.module, table)().weight
        moved = (before != after).any(dim=1).nonzero().flatten().tolist()
        assert moved == sorted(new)
    assert (loaded.module.get_output_embeddings().weight is loaded.module.get_input_embeddings().weight) == tied
    assert not Lora().notes(Lora().prepare(loaded.module)), "they are trained now"


def test_tables_that_train_whole_have_no_rows_of_their_own(extended: Path):
    model = Pretrained(path=str(extended)).load(LoadRequest())
    tuner = Lora(rank=4, modules_to_save=["embed_tokens", "lm_head"])
    wrapped = tuner.prepare(model.module)
    assert not any("token_adapter" in name for name, _ in wrapped.named_parameters())
    assert not tuner.notes(wrapped)


def test_a_skeleton_knows_of_new_tokens_too(extended: Path):
    bare, whole = (
        method(LoadRequest())
        for method in (Pretrained(path=str(extended)).skeleton, Pretrained(path=str(extended)).load)
    )
    names = [
        {n for n, each in Lora().prepare(m.module).named_parameters() if each.requires_grad} for m in (bare, whole)
    ]
    assert names[0] == names[1]
